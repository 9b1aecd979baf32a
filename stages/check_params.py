"""Check every setting of params.yaml before any long work: misspelt keys, wrong types, missing folders, empty
prompts.

DVC removes a stage's old outputs before it runs it. This check comes first, so a typing error costs nothing.
"""

from pathlib import Path

from stages.runtime.program import program
from stages.runtime.stage import Stage
from thousandwords import preflight
from thousandwords.core.files import write_bytes


def check_params(out: Path, context: Stage) -> None:
    preflight.check_params(context.params, context.seed)
    # always the same bytes: later stages wait for this check, but do not rerun because of it
    write_bytes(out, b"ok\n")


main = program(check_params, *preflight.SECTIONS[1:])


if __name__ == "__main__":
    main()
