"""The digests that DVC gives to files and folders: md5 of their bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def dvc_digest(path: Path) -> str:
    """The md5 of a file, or of the sorted list of a folder's files, as in dvc.lock."""
    return _digest_of_folder(path) if path.is_dir() else _md5_of(path)


def _digest_of_folder(folder: Path) -> str:
    return f"{_md5(list_of_folder(folder))}.dir"


def list_of_folder(folder: Path) -> bytes:
    """What DVC's cache holds of a folder: the sorted list of its files."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    entries = [{"md5": _md5_of(names[name]), "relpath": name} for name in sorted(names)]
    return json.dumps(entries, sort_keys=True).encode()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
