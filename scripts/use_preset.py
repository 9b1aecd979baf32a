"""python -m scripts.use_preset smoke: write the settings of presets/smoke.yaml, whole, to params.yaml. Your own settings are
kept in params.before.yaml."""

from pathlib import Path

from thousandwords.core.command_line import one_sentence, parser
from thousandwords.core.files import write_bytes
from thousandwords.planning.presets import PRESETS, preset_text

PARAMS, BACKUP = Path("params.yaml"), Path("params.before.yaml")


def use_preset(name: str, presets: Path = PRESETS, params: Path = PARAMS, backup: Path = BACKUP) -> str:
    """Write the preset to params.yaml; the message to print. Raises ConfigError that lists the presets."""
    content = preset_text(name, presets).encode()
    if params.is_file() and params.read_bytes() == content:
        return f"params.yaml is the preset {name!r} already"
    return f"params.yaml is now the preset {name!r}{replace_params(content, params, backup, presets)}"


def replace_params(
    content: bytes, params: Path = PARAMS, backup: Path = BACKUP, presets: Path = PRESETS
) -> str:
    """Write params.yaml; settings there that are no preset are backed up first, which the returned note says."""
    before = params.read_bytes() if params.is_file() else b""
    known = [b"", content, *(preset_text(path.stem, presets).encode() for path in presets.glob("*.yaml"))]
    if before not in known:
        write_bytes(backup, before)
    write_bytes(params, content)
    return "" if before in known else f"; your own settings were saved in {backup}"


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("name", help="the name of a file in presets/, without .yaml")
    with one_sentence("preset"):
        print(use_preset(arguments.parse_args(argv).name))


if __name__ == "__main__":
    main()
