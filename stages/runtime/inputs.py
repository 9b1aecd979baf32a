"""The settings, code and data of a stage, pinned when it starts and compared when it ends.

DVC hashes them after a stage has ended, so without this dvc.lock would name an edit that the stage never read.
Import this module before the code that it pins. Outside DVC, which sets DVC_STAGE, it pins nothing.
"""

import atexit
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from thousandwords.core.errors import UserError

STAGE = "DVC_STAGE"
PINNED = "THOUSANDWORDS_PINNED"  # the digest of what was pinned, for the processes that torchrun starts
COMPARED_BY_CONTENT = {".py", ".yaml"}  # other files by size and time: data can be large


class InputsChanged(UserError):
    """What a stage depends on was edited while it ran."""


def read_inputs() -> dict[str, object]:
    """{setting or file that this stage depends on in dvc.yaml: its value, or what identifies its content}"""
    try:
        params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
        stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
        entry = stages[os.environ[STAGE]]
    except (KeyError, OSError, TypeError, ValueError, yaml.YAMLError):
        return {}  # not a stage of this folder, or a file that the stage itself reports
    inputs = {f"params.yaml: {name}": value_of(params, name) for name in entry.get("params", [])}
    for dependency in entry.get("deps", []):
        path = re.sub(r"\$\{(.*?)\}", lambda match: str(value_of(params, match[1])), dependency)
        inputs |= {str(file): identity(file) for file in files_of(Path(path))}
    return inputs


def value_of(params: dict, name: str) -> object:
    """value_of({"a": {"b": 1}}, "a.b") -> 1; None if there is none"""
    for key in name.split("."):
        params = params.get(key) if isinstance(params, dict) else None
    return params


def files_of(path: Path) -> Iterator[Path]:
    """The file, or the files of the folder that DVC hashes."""
    if not path.is_dir():
        yield path
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(folder, name) for name in names if not name.endswith(".pyc"))


def identity(file: Path) -> object:
    try:
        if file.suffix in COMPARED_BY_CONTENT:
            return hashlib.sha256(file.read_bytes()).hexdigest()
        status = file.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def digest(inputs: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def check_inputs() -> None:
    """Raises InputsChanged if something differs from what was pinned."""
    if STAGE not in os.environ:
        return
    now = read_inputs()
    if digest(now) == os.environ[PINNED]:
        return
    changed = [name for name in {**_start, **now} if _start.get(name) != now.get(name)]
    changed = changed or ["a setting or file"]  # while torchrun started
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    raise InputsChanged(
        f"{describe(changed[0], _start, now)}{more} changed while this stage ran, so its result is not recorded. "
        "Run the same again; or undo the change first, and a training goes on from its last checkpoint"
    )


def describe(name: str, before: dict[str, object], after: dict[str, object]) -> str:
    """ "params.yaml: a.b (1, now 2)" of a setting, the name of a file"""
    old, new = before.get(name), after.get(name)
    if not name.startswith("params.yaml: "):
        return name
    while isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        name, old, new = f"{name}.{key}", old.get(key), new.get(key)
    return f"{name} ({old!r}, now {new!r})"


def end_when_done() -> None:
    """Let this process, which has done its work, end with the last check. Outside DVC nothing happens."""
    global _is_done
    _is_done = True


def _end() -> None:
    """Check again and end at once: Python's own end takes seconds with torch loaded, time for another edit."""
    if not _is_done:
        return
    code = 0
    try:
        check_inputs()
    except InputsChanged as error:
        print(f"{os.environ[STAGE]}: {error}", file=sys.stderr)
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def pin() -> None:
    """Pin what this stage is going to read."""
    global _start
    _start = read_inputs()
    os.environ.setdefault(PINNED, digest(_start))


_start: dict[str, object] = {}
_is_done = False
if STAGE in os.environ:
    pin()
    atexit.register(_end)  # the first function registered is the last one called
