"""The tensors of a file that torch.save wrote, in both of its containers, without torch and without running the pickle.

The zip one (torch 1.6 and later): data.pkl, and each storage as an uncompressed member. The legacy one: five pickles (a
magic number, a version, the machine, the object, the storages' keys), then each storage as its length and its numbers.
What the pickle describes is checked before a single number is read. The tar of torch before 0.1.10 is refused by name.
"""
from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from thousandwords.unpickling import (
    MOST_BYTES,
    MOST_MODULES,
    Module,
    RefusedPickle,
    StoredTensor,
    modules_of,
    read_pickle,
    shown,
    tensors_of,
)

MOST_FILE_BYTES = 2**30  # the released files have 215 and 175 MB
PART_BYTES = 2**20  # read at once
NUMBER = np.dtype("<f4")
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
LEGACY_VERSION = 1001
MEND = "Fetch it again from where it was published, and compare its sha256"


class Contents(NamedTuple):
    """What a file describes; no number of it has been read yet."""

    modules: dict[str, Module]  # by path; "" is the network itself
    tensors: dict[str, StoredTensor]


class Stored(NamedTuple):
    """The bytes of one storage: how many, and a stream of them."""

    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


Storages = dict[str, Stored]  # by key
BROKEN = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, OverflowError, struct.error)  # what zipfile raises


def read_tensors(path: Path, check: Callable[[Contents], None] = lambda _: None) -> dict[str, np.ndarray]:
    """Every tensor by its path in the module: "blocks.input.w" -> float32 array, in memory of its own.

    `check` sees names and shapes before any number is read, and raises where they will not do. Raises RefusedPickle, with
    the name of the file: for whatever a released tokenizer does not have. Nothing in the file is ever run.
    """
    path = Path(path)
    if not path.is_file():
        raise RefusedPickle(f"there is no file {path}. Fetch it from where it was published")
    try:
        with open(path, "rb") as file:
            network, storages = _contents(file, os.fstat(file.fileno()).st_size)
            modules = modules_of(network)
            contents = Contents(modules, tensors_of(modules))
            _check_storages(contents.tensors, storages)
            check(contents)
            return {name: _numbers(tensor, storages) for name, tensor in contents.tensors.items()}
    except RefusedPickle as error:
        raise RefusedPickle(f"{path} {error}. {MEND}") from error
    except BROKEN as error:
        raise RefusedPickle(f"{path} is damaged or cut short ({shown(str(error))}). {MEND}") from error


def _contents(file: BinaryIO, size: int) -> tuple[object, Storages]:
    """(what the object's pickle describes, its storages)."""
    if size > MOST_FILE_BYTES:
        raise RefusedPickle(f"has {size:,} bytes; a released tokenizer has {MOST_FILE_BYTES:,} at most")
    head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(_InParts(file), size)
    if head.startswith(LEGACY_MAGIC):
        return _read_legacy(file, size)
    if head[257:262] == b"ustar":
        raise RefusedPickle("is a tar, the container of torch before 0.1.10; no released tokenizer is")
    raise RefusedPickle("is no file of torch.save: neither its zip nor its legacy container")


def _check_storages(tensors: dict[str, StoredTensor], storages: Storages) -> None:
    for name, tensor in tensors.items():
        stored = storages.get(tensor.storage.key)
        if stored is None or stored.size != tensor.storage.count * NUMBER.itemsize:
            raise RefusedPickle(f"lacks the numbers of {shown(name)}")
    if len({tensor.storage.key for tensor in tensors.values()}) < len(tensors):  # else a small file could fill the memory
        raise RefusedPickle("uses the same numbers for two tensors, as no released tokenizer does")


def _numbers(tensor: StoredTensor, storages: Storages) -> np.ndarray:
    with storages[tensor.storage.key].open() as stream:
        storage = _read_floats(stream, tensor.storage.count)
    return storage[tensor.offset : tensor.offset + tensor.count].reshape(tensor.shape)


def _read_floats(stream: BinaryIO, count: int) -> np.ndarray:
    """The next `count` numbers; in parts, so that memory holds them once. A zip compares its checksum after the last."""
    array = np.empty(count, NUMBER)
    view, filled = memoryview(array).cast("B"), 0
    while filled < len(view):
        part = stream.read(min(PART_BYTES, len(view) - filled))
        if not part:
            raise EOFError("its numbers end too early")
        view[filled : filled + len(part)] = part
        filled += len(part)
    return array.astype(np.float32, copy=False)


# --- the zip container -----------------------------------------------------------------------------------------------


class _InParts(io.BufferedIOBase):
    """A file that is read in small parts only: a directory of a zip that says it has a gigabyte is no directory."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(position, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, count: int | None = -1) -> bytes:
        if count is not None and count > PART_BYTES:
            raise RefusedPickle("has a directory that is too long for a file of torch.save")
        return self.file.read(PART_BYTES if count is None or count < 0 else count)


def _read_zip(file: _InParts, size: int) -> tuple[object, Storages]:
    archive = zipfile.ZipFile(file)  # not closed: the file is the caller's
    members = _members(archive, size)
    programs = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(programs) != 1:
        raise RefusedPickle("is a zip, but none of torch.save: it has no data.pkl")
    if members[programs[0]].file_size > MOST_BYTES:
        raise RefusedPickle(f"has a pickle of more than {MOST_BYTES:,} bytes")
    folder = programs[0].removesuffix("data.pkl")
    byteorder = members.get(f"{folder}byteorder")
    if byteorder is not None and (byteorder.file_size != 6 or archive.read(byteorder) != b"little"):
        raise RefusedPickle("was written on a big-endian machine")
    network, _ = read_pickle(archive.read(members[programs[0]]))
    prefix = f"{folder}data/"
    storages = {
        name.removeprefix(prefix): Stored(member.file_size, _opener(archive, member))
        for name, member in members.items()
        if name.startswith(prefix)
    }
    return network, storages


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name; torch neither compresses nor encrypts, and together they fit into the file."""
    infos = archive.infolist()
    if any(one.compress_type != zipfile.ZIP_STORED or one.compress_size != one.file_size or one.flag_bits & 1 for one in infos):
        raise RefusedPickle("has compressed or encrypted parts, which torch.save never writes")
    if sum(one.file_size for one in infos) > size or len({one.filename for one in infos}) < len(infos):
        raise RefusedPickle("has parts that overlap or share a name, which torch.save never writes")
    return {one.filename: one for one in infos}


def _opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], AbstractContextManager[BinaryIO]]:
    return lambda: archive.open(member)


# --- the legacy container --------------------------------------------------------------------------------------------


def _read_legacy(file: BinaryIO, size: int) -> tuple[object, Storages]:
    file.seek(0)
    head = file.read(MOST_BYTES)
    version, end = read_pickle(head, len(LEGACY_MAGIC))
    machine, end = read_pickle(head, end)
    network, end = read_pickle(head, end)
    keys, end = read_pickle(head, end)
    if type(version) is not int or version != LEGACY_VERSION:
        raise RefusedPickle("was written in a version of torch's legacy container that is not known here")
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise RefusedPickle("was written on a big-endian machine")
    if type(keys) is not list or len(keys) > MOST_MODULES or any(type(key) is not str for key in keys):
        raise RefusedPickle("has no list of its storages")
    return network, _legacy_storages(file, keys, end, size)


def _legacy_storages(file: BinaryIO, keys: list[str], end: int, size: int) -> Storages:
    """Each storage is its length, int64, and its numbers; `end` is where the pickles end."""
    storages: Storages = {}
    for key in keys:
        file.seek(end)
        count = int.from_bytes(file.read(8), "little", signed=True)
        start, end = end + 8, end + 8 + count * NUMBER.itemsize
        if count < 0 or end > size:
            raise RefusedPickle("is damaged or cut short: it lacks a part of its numbers")
        storages[key] = Stored(count * NUMBER.itemsize, _opener_at(file, start))
    return storages


def _opener_at(file: BinaryIO, start: int) -> Callable[[], AbstractContextManager[BinaryIO]]:
    def open_there() -> AbstractContextManager[BinaryIO]:
        file.seek(start)
        return contextlib.nullcontext(file)  # stays open for the next one

    return open_there
