"""Presets: presets/default.yaml is a whole params.yaml, each other file holds what differs from it."""

import difflib
import re
from pathlib import Path

import yaml

from thousandwords.core.config import ConfigError

PRESETS = Path("presets")
KEY = re.compile(r"( *)(\w+):(?=\s)")


def preset_text(name: str, folder: Path = PRESETS) -> str:
    """A whole params.yaml: presets/default.yaml with the lines of presets/<name>.yaml in place of its own.

    A section of the preset that names its `kind` or `source` replaces the default's, another one only the keys that it
    has. Raises ConfigError that lists the presets.
    """
    names = sorted(path.stem for path in Path(folder).glob("*.yaml"))
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"there is no preset {name!r}.{hint} There is: {', '.join(names)}")
    base, own = (_lines_by_key(Path(folder) / f"{each}.yaml") for each in ("default", name))
    values = own.keys() - {path[:-1] for path in own}
    replaced = values | {path[:1] for path in own if path[1:] in (("kind",), ("source",))}
    kept = [path for path in base if not any(path[:depth] in replaced for depth in range(1, len(path)))]
    merged = {path: base[path] for path in kept} | own
    order = {path: number for number, path in enumerate(merged)}
    paths = sorted(merged, key=lambda path: [order[path[:depth]] for depth in range(len(path) + 1)])
    return "".join(merged[path] for path in paths)


def read_preset(name: str, folder: Path = PRESETS) -> dict:
    """The settings of a preset, whole."""
    return yaml.safe_load(preset_text(name, folder))


def _lines_by_key(path: Path) -> dict[tuple[str, ...], str]:
    """{path of a key: its line, with what is below it and the blank line above it}; () is the comment at the top."""
    found, key, space = {(): ""}, (), ""
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if match := KEY.match(line):
            key = (*key[: len(match[1]) // 2], match[2])
            found[key] = space + line
        elif line.strip():
            found[key] += line
        space = "" if line.strip() else line
    return found
