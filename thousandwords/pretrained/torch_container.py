"""Read the tensors of a file that torch.save wrote, in both of its containers, without torch and without
running the pickle.

The zip container (torch 1.6 and later): data.pkl, and each storage as an uncompressed member. The legacy
container: five pickles (a magic number, a version, the machine, the object, the storages' keys), then each
storage as its length and its numbers. The description is checked before any number is read. The tar of torch
before 0.1.10 is rejected by name.
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

from thousandwords.pretrained.safe_pickle import (
    MAX_MODULES,
    MAX_PICKLE_BYTES,
    Module,
    RejectedPickle,
    StoredTensor,
    modules_of,
    printable,
    read_pickle,
    tensors_of,
)

MAX_FILE_BYTES = 2**30  # the files of the DALL-E release have 215 and 175 MB
CHUNK_BYTES = 2**20  # read at a time
NUMBER = np.dtype("<f4")
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
LEGACY_VERSION = 1001
FIX = "Download it again from where it was published, and compare its sha256"


class Contents(NamedTuple):
    """The description in a file, before any number is read."""

    modules: dict[str, Module]  # by path; "" is the network itself
    tensors: dict[str, StoredTensor]


class Stored(NamedTuple):
    """The bytes of one storage: their number, and a stream of them."""

    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


Storages = dict[str, Stored]  # by key
# what zipfile raises for a damaged file
ZIP_ERRORS = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, OverflowError, struct.error)


def read_tensors(path: Path, check: Callable[[Contents], None] = lambda _: None) -> dict[str, np.ndarray]:
    """{path in the module: float32 array} of every tensor: "blocks.input.w" -> array, in its own memory.

    `check` gets names and shapes before any number is read, and raises where they are wrong. Raises
    RejectedPickle with the name of the file for anything that the DALL-E release does not have. Nothing in
    the file is ever run.
    """
    path = Path(path)
    if not path.is_file():
        raise RejectedPickle(f"there is no file {path}. Download it from where it was published")
    try:
        with open(path, "rb") as file:
            network, storages = _contents(file, os.fstat(file.fileno()).st_size)
            modules = modules_of(network)
            contents = Contents(modules, tensors_of(modules))
            _check_storages(contents.tensors, storages)
            check(contents)
            return {name: _numbers(tensor, storages) for name, tensor in contents.tensors.items()}
    except RejectedPickle as error:
        raise RejectedPickle(f"{path} {error}. {FIX}") from error
    except ZIP_ERRORS as error:
        raise RejectedPickle(f"{path} is damaged or cut short ({printable(str(error))}). {FIX}") from error


def _contents(file: BinaryIO, size: int) -> tuple[object, Storages]:
    """(the network that the pickle describes, its storages)."""
    if size > MAX_FILE_BYTES:
        raise RejectedPickle(
            f"has {size:,} bytes; a file of the DALL-E release has at most {MAX_FILE_BYTES:,}"
        )
    head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(_ChunkedReader(file), size)
    if head.startswith(LEGACY_MAGIC):
        return _read_legacy(file, size)
    if head[257:262] == b"ustar":
        raise RejectedPickle(
            "is a tar, the container of torch before 0.1.10, which the DALL-E release does not use"
        )
    raise RejectedPickle("is not a file of torch.save: neither its zip nor its legacy container")


def _check_storages(tensors: dict[str, StoredTensor], storages: Storages) -> None:
    for name, tensor in tensors.items():
        stored = storages.get(tensor.storage.key)
        if stored is None or stored.size != tensor.storage.count * NUMBER.itemsize:
            raise RejectedPickle(f"lacks the numbers of {printable(name)}")
    # two tensors of one storage: a small file could fill the memory
    if len({tensor.storage.key for tensor in tensors.values()}) < len(tensors):
        raise RejectedPickle("uses the same numbers for two tensors, which the DALL-E release does not do")


def _numbers(tensor: StoredTensor, storages: Storages) -> np.ndarray:
    with storages[tensor.storage.key].open() as stream:
        storage = _read_floats(stream, tensor.storage.count)
    return storage[tensor.offset : tensor.offset + tensor.count].reshape(tensor.shape)


def _read_floats(stream: BinaryIO, count: int) -> np.ndarray:
    """The next `count` numbers, read in chunks so that memory holds them once. A zip checks its checksum
    after the last."""
    array = np.empty(count, NUMBER)
    view, filled = memoryview(array).cast("B"), 0
    while filled < len(view):
        chunk = stream.read(min(CHUNK_BYTES, len(view) - filled))
        if not chunk:
            raise EOFError("its numbers end too early")
        view[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return array.astype(np.float32, copy=False)


# --- the zip container -----------------------------------------------------------------------------------------------


class _ChunkedReader(io.BufferedIOBase):
    """A file that is read in small chunks only, so that a zip directory that claims a gigabyte is
    rejected."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(position, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, count: int | None = -1) -> bytes:
        if count is not None and count > CHUNK_BYTES:
            raise RejectedPickle("has a directory that is too long for a file of torch.save")
        return self.file.read(CHUNK_BYTES if count is None or count < 0 else count)


def _read_zip(file: _ChunkedReader, size: int) -> tuple[object, Storages]:
    archive = zipfile.ZipFile(file)  # not closed: the file is the caller's
    members = _members(archive, size)
    programs = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(programs) != 1:
        raise RejectedPickle("is a zip, but not one of torch.save: it has no data.pkl")
    if members[programs[0]].file_size > MAX_PICKLE_BYTES:
        raise RejectedPickle(f"has a pickle of more than {MAX_PICKLE_BYTES:,} bytes")
    folder = programs[0].removesuffix("data.pkl")
    byteorder = members.get(f"{folder}byteorder")
    if byteorder is not None and (byteorder.file_size != 6 or archive.read(byteorder) != b"little"):
        raise RejectedPickle("was written on a big-endian machine")
    network, _ = read_pickle(archive.read(members[programs[0]]))
    prefix = f"{folder}data/"
    storages = {
        name.removeprefix(prefix): Stored(member.file_size, _opener(archive, member))
        for name, member in members.items()
        if name.startswith(prefix)
    }
    return network, storages


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """{name: member}; torch neither compresses nor encrypts members, and together they fit into the file."""
    infos = archive.infolist()
    if any(
        info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1
        for info in infos
    ):
        raise RejectedPickle("has compressed or encrypted parts, which torch.save never writes")
    if sum(info.file_size for info in infos) > size or len({info.filename for info in infos}) < len(infos):
        raise RejectedPickle("has parts that overlap or share a name, which torch.save never writes")
    return {info.filename: info for info in infos}


def _opener(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> Callable[[], AbstractContextManager[BinaryIO]]:
    return lambda: archive.open(member)


# --- the legacy container --------------------------------------------------------------------------------------------


def _read_legacy(file: BinaryIO, size: int) -> tuple[object, Storages]:
    file.seek(0)
    head = file.read(MAX_PICKLE_BYTES)
    version, end = read_pickle(head, len(LEGACY_MAGIC))
    machine, end = read_pickle(head, end)
    network, end = read_pickle(head, end)
    keys, end = read_pickle(head, end)
    if type(version) is not int or version != LEGACY_VERSION:
        raise RejectedPickle("was written in an unknown version of torch's legacy container")
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise RejectedPickle("was written on a big-endian machine")
    if type(keys) is not list or len(keys) > MAX_MODULES or any(type(key) is not str for key in keys):
        raise RejectedPickle("has no list of storages")
    return network, _legacy_storages(file, keys, end, size)


def _legacy_storages(file: BinaryIO, keys: list[str], end: int, size: int) -> Storages:
    """Each storage is its length, int64, and its numbers; `end` is where the pickles end."""
    storages: Storages = {}
    for key in keys:
        file.seek(end)
        count = int.from_bytes(file.read(8), "little", signed=True)
        start, end = end + 8, end + 8 + count * NUMBER.itemsize
        if count < 0 or end > size:
            raise RejectedPickle("is damaged or cut short: a part of its numbers is missing")
        storages[key] = Stored(count * NUMBER.itemsize, _opener_at(file, start))
    return storages


def _opener_at(file: BinaryIO, start: int) -> Callable[[], AbstractContextManager[BinaryIO]]:
    def open_there() -> AbstractContextManager[BinaryIO]:
        file.seek(start)
        return contextlib.nullcontext(file)  # stays open for the next storage

    return open_there
