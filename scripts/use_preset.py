"""python -m scripts.use_preset smoke: write the settings of presets/smoke.yaml, whole, to params.yaml. Your own settings are
kept in params.before.yaml."""

from pathlib import Path

from thousandwords.core.command_line import one_sentence, parser
from thousandwords.core.files import write_bytes
from thousandwords.planning.presets import PRESETS, preset_text

PARAMS, BACKUP = Path("params.yaml"), Path("params.before.yaml")


def use_preset(name: str, presets: Path = PRESETS, params: Path = PARAMS, backup: Path = BACKUP) -> str:
    """Write the preset to params.yaml, after a backup of the user's own settings. Returns the message to print.

    Raises ConfigError that lists the presets.
    """
    content = preset_text(name, presets).encode()
    if params.is_file() and params.read_bytes() == content:
        return f"params.yaml is the preset {name!r} already"
    note = replace_params(content, params, backup, presets)
    return f"params.yaml is now the preset {name!r}{note}"


def replace_params(
    content: bytes, params: Path = PARAMS, backup: Path = BACKUP, presets: Path = PRESETS
) -> str:
    """Write params.yaml; settings there that are no preset are backed up first, which the returned note says."""
    before = params.read_bytes() if params.is_file() else b""
    names = (path.stem for path in presets.glob("*.yaml"))
    note = ""
    if before and before != content and before not in (preset_text(name, presets).encode() for name in names):
        write_bytes(backup, before)
        note = f"; your own settings were saved in {backup}"
    write_bytes(params, content)
    return note


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("name", help="the name of a file in presets/, without .yaml")
    with one_sentence("preset"):
        print(use_preset(arguments.parse_args(argv).name))


if __name__ == "__main__":
    main()
