"""python -m stages._preset smoke: makes presets/smoke.yaml the knobs in use. What stood in params.yaml is never lost."""
from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from thousandwords.files import write_bytes

PRESETS, PARAMS, ASIDE = Path("presets"), Path("params.yaml"), Path("params.before.yaml")


def use_preset(name: str, presets: Path = PRESETS, params: Path = PARAMS, aside: Path = ASIDE) -> str:
    """Copies the preset over params.yaml; knobs of the user's own are set aside first. Returns what to tell.

    Raises ValueError that lists the presets there are.
    """
    known = {path.stem: path.read_bytes() for path in sorted(presets.glob("*.yaml"))}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no preset {name!r}.{hint} There is: {', '.join(known)}")
    before = params.read_bytes() if params.is_file() else b""
    if before == known[name]:
        return f"params.yaml is the preset {name!r} already"
    kept = ""
    if before and before not in known.values():
        write_bytes(aside, before)
        kept = f"; your own knobs were set aside in {aside}"
    write_bytes(params, known[name])
    return f"params.yaml is now the preset {name!r}{kept}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the name of a file in presets/, without .yaml")
    try:
        print(use_preset(parser.parse_args(argv).name))
    except ValueError as error:
        print(f"preset: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
