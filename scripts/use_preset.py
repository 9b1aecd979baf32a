"""python -m scripts.use_preset smoke: copy presets/smoke.yaml to params.yaml. Your own settings are kept in
params.before.yaml."""

import difflib
from pathlib import Path

from thousandwords.core.command_line import one_sentence, parser
from thousandwords.core.files import write_bytes

PRESETS, PARAMS, BACKUP = Path("presets"), Path("params.yaml"), Path("params.before.yaml")


def use_preset(name: str, presets: Path = PRESETS, params: Path = PARAMS, backup: Path = BACKUP) -> str:
    """Copy the preset to params.yaml, after a backup of the user's own settings. Returns the message to
    print.

    Raises ValueError that lists the presets.
    """
    contents = {path.stem: path.read_bytes() for path in sorted(presets.glob("*.yaml"))}
    if name not in contents:
        close = difflib.get_close_matches(name, contents, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no preset {name!r}.{hint} There is: {', '.join(contents)}")
    if params.is_file() and params.read_bytes() == contents[name]:
        return f"params.yaml is the preset {name!r} already"
    note = replace_params(contents[name], set(contents.values()), params, backup)
    return f"params.yaml is now the preset {name!r}{note}"


def replace_params(content: bytes, presets: set[bytes], params: Path = PARAMS, backup: Path = BACKUP) -> str:
    """Write params.yaml; settings there that are no preset are backed up first, which the returned note says."""
    before = params.read_bytes() if params.is_file() else b""
    note = ""
    if before and before != content and before not in presets:
        write_bytes(backup, before)
        note = f"; your own settings were saved in {backup}"
    write_bytes(params, content)
    return note


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("name", help="the name of a file in presets/, without .yaml")
    with one_sentence("preset", errors=(ValueError,)):
        print(use_preset(arguments.parse_args(argv).name))


if __name__ == "__main__":
    main()
