"""Outputs, here and in DVC's cache, whose bytes are not those that dvc.lock names.

DVC trusts the time of a file and the read-only files of its cache: it restores a flipped bit without noticing.
Once the damaged copies are removed, `dvc repro` takes a sound one or makes the output again.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from thousandwords.core.errors import UserError

LOCK = Path("dvc.lock")


@dataclass(frozen=True)
class Damage:
    """A file or folder of an output with another md5 than dvc.lock names."""

    output: Path
    path: Path  # in the output, or in the cache
    expected: str
    found: str
    sound: Path | None = None  # a copy that is not damaged

    def __str__(self) -> str:
        of = "" if self.path.is_relative_to(self.output) else f" of {self.output}"
        return f"{self.path}{of} is damaged: md5 should be {self.expected}, found {self.found}"


def dvc_digest(path: Path) -> str:
    """The md5 of a file, or of the list of a folder's files, as in dvc.lock."""
    if path.is_dir():
        return f"{hashlib.md5(list_of_folder(path), usedforsecurity=False).hexdigest()}.dir"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def list_of_folder(folder: Path) -> bytes:
    """What DVC's cache holds of a folder: the sorted list of its files."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    entries = [{"md5": dvc_digest(names[name]), "relpath": name} for name in sorted(names)]
    return json.dumps(entries, sort_keys=True).encode()


def locked_outputs(root: Path = Path("."), stages: Collection[str] | None = None) -> dict[str, str]:
    """{output: md5} of these stages, or of all, in the dvc.lock of that folder, if there is one."""
    lock = root / LOCK
    return outputs_of(lock.read_text(encoding="utf-8"), stages) if lock.is_file() else {}


def outputs_of(lock: str, stages: Collection[str] | None = None) -> dict[str, str]:
    """{output: md5} of these stages, or of all, in the text of a dvc.lock. Raises UserError if it is not YAML."""
    chosen = [entry for name, entry in stages_of(lock).items() if stages is None or name in stages]
    return {out["path"]: out["md5"] for entry in chosen for out in entry.get("outs", []) if "md5" in out}


def stages_of(lock: str) -> dict[str, dict]:
    """{stage: what it read and wrote} in the text of a dvc.lock. Raises UserError if it is not YAML."""
    try:
        return {**(yaml.safe_load(lock) or {}).get("stages", {})}
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise UserError(
            f"{LOCK} is not valid ({' '.join(str(error).split())[:120]}). "
            f"After a merge take one side: git checkout --theirs {LOCK}; else run: python -m flows.dvc.repair"
        ) from error


def find_damage(stages: Collection[str] | None = None) -> list[Damage]:
    """What is damaged of the outputs of these stages, or of all, here and in the cache."""
    outs = locked_outputs(stages=stages).items()
    return [damage for path, md5 in outs for damage in _of_output(Path(path), md5)]


def discard(damages: list[Damage]) -> None:
    """Remove damaged files, so that DVC makes them again; the cache gets the sound copy from here."""
    for damage in damages:
        if damage.path.is_dir() and not damage.path.is_symlink():
            shutil.rmtree(damage.path)
        else:
            damage.path.unlink(missing_ok=True)
        if damage.sound and damage.sound.is_dir():
            damage.path.write_bytes(list_of_folder(damage.sound))
        elif damage.sound:
            shutil.copyfile(damage.sound, damage.path)


def object_in_cache(md5: str) -> Path:
    """The file of DVC's cache with that content; that of a folder is the list of its files."""
    return _cache() / md5[:2] / md5[2:]


@functools.cache
def _cache() -> Path:
    from dvc.repo import Repo  # late: loading takes a second

    return Path(Repo().cache.local.path)


def _of_output(output: Path, md5: str) -> Iterator[Damage]:
    in_cache = object_in_cache(md5)
    if md5.endswith(".dir") and in_cache.is_file() and dvc_digest(in_cache) == md5.removesuffix(".dir"):
        for entry in json.loads(in_cache.read_bytes()):
            path, md5 = output / entry["relpath"], entry["md5"]
            yield from _of_copies(output, path, object_in_cache(md5), md5)
    else:
        yield from _of_copies(output, output, in_cache, md5)


def _of_copies(output: Path, here: Path, in_cache: Path, md5: str) -> Iterator[Damage]:
    """The damaged ones of a file or folder and its object in the cache."""
    found_here, found_in_cache = (dvc_digest(path) if path.exists() else None for path in (here, in_cache))
    if found_here not in (None, md5):
        yield Damage(output, here, md5, found_here)
    if found_in_cache not in (None, md5.removesuffix(".dir")):
        yield Damage(output, in_cache, md5, found_in_cache, here if found_here == md5 else None)
