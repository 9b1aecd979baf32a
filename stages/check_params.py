"""Check every setting of params.yaml before any long work: misspelt keys, wrong types, missing folders, empty
prompts.

DVC removes a stage's old outputs before it runs it. This check comes first, so a typing error costs nothing.
"""

from __future__ import annotations

from pathlib import Path

from stages.runtime.stage import Stage, arguments, stage
from thousandwords.core.files import write_bytes
from thousandwords.preflight import SECTIONS, check_params


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "out", argv=argv)
    with stage("check_params", options, *SECTIONS[1:]) as context:
        _check(options.out, context)


def _check(out: Path, context: Stage) -> None:
    check_params(context.params, context.seed)
    # always the same bytes: later stages wait for this check, but do not rerun because of it
    write_bytes(out, b"ok\n")


if __name__ == "__main__":
    main()
