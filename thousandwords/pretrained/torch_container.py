"""Read the tensors of a file that torch.save wrote, in both of its containers, without running the pickle.

The zip container (torch 1.6 and later): data.pkl, and each storage as an uncompressed member. The legacy
container: five pickles (a magic number, a version, the machine, the object, the storages' keys), then each
storage as its length and its numbers. The description is checked before any number is read. The tar of torch
before 0.1.10 is rejected by name.
"""

import contextlib
import functools
import io
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.pretrained.safe_pickle import (
    BFLOAT16,
    MAX_PARTS,
    MAX_PICKLE_BYTES,
    NUMBER_BYTES,
    Network,
    RejectedPickle,
    StoredTensor,
    Unpickler,
    network_of,
    printable,
    state_dict_of,
)

# the files of the DALL-E release have 215 and 175 MB, those of taming-transformers with their optimizers about 1 GB
MAX_FILE_BYTES = 2**30
CHUNK_BYTES = 2**20  # read at a time
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
LEGACY_VERSION = 1001
COUNTS = "torch.LongStorage"
NUMPY_TYPES = {"torch.FloatStorage": "<f4", "torch.HalfStorage": "<f2", BFLOAT16: "<u2"}
FIX = "Download it again from where it was published, and compare its sha256"
# what zipfile raises for a damaged file
ZIP_ERRORS = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, OverflowError, struct.error)


class OtherModel(RejectedPickle):
    """A sound file, but of another model: downloading it again would not help."""


class Stored(NamedTuple):
    """The bytes of one storage: their number, and a stream of them."""

    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


Tensors = dict[str, StoredTensor]  # by name
Storages = dict[str, Stored]  # by key
Contents = tuple[object, Unpickler, Storages]  # the value that a pickle describes, what read it, its storages


def read_tensors(path: Path, check: Callable[[Network], None] = lambda _: None) -> dict[str, np.ndarray]:
    """{path in the module: float32 array} of every tensor: "blocks.input.w" -> array, in its own memory.

    `check` gets names and shapes before any number is read, and raises where they are wrong. Raises
    RejectedPickle with the name of the file for anything that the DALL-E release does not have. Nothing in
    the file is ever run.
    """

    def tensors_in(value: object, weights: Tensors) -> Tensors:
        if weights:
            raise OtherModel(
                f"is a plain state dict of weights (tensors: {len(weights)}, the first is "
                f"{printable(next(iter(weights)))}): sound, but of another model. import-weights takes whole modules: "
                "encoder.pkl and decoder.pkl as OpenAI published them"
            )
        network = network_of(value)
        check(network)
        return network.tensors

    _, arrays = _read(path, tensors_in)
    return arrays


def read_state_dict(
    path: Path,
    parts: Sequence[str] = (),
    ignored: tuple[str, ...] = (),
    check: Callable[[dict[str, tuple[int, ...]]], None] = lambda _: None,
    max_bytes: int = MAX_FILE_BYTES,
) -> tuple[str, dict[str, np.ndarray]]:
    """Where the state dict is in the file, "" in a bare one, and its {name: float32 array}; what else the file holds
    is not read, and counts (int64) are left out.

    `parts` are the paths in a checkpoint to look under first, in this order: "ema", "trainer.model"; what starts with
    one of `ignored` is left out too. `check` gets {name: shape} before any number is read, and raises where they are wrong.
    """

    def tensors_in(_: object, weights: Tensors) -> Tensors:
        weights = {
            name: tensor
            for name, tensor in weights.items()
            if tensor.storage.kind != COUNTS and not name.startswith(ignored)
        }
        if not weights:
            raise RejectedPickle("holds no state dict")
        for tensor in weights.values():
            tensor.check()
        check({name: tensor.shape for name, tensor in weights.items()})
        return weights

    try:
        return _read(path, tensors_in, parts, max_bytes)
    except RejectedPickle as error:
        raise RejectedPickle(str(error).replace("the DALL-E release", "a state dict")) from error


def is_legacy(path: Path) -> bool:
    """Whether a file has the legacy container, which holds no checksum of its numbers."""
    with open(path, "rb") as file:
        return file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC


def checked_sha256(path: Path, expected_sha256: str | None, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The sha256 of a file; raises UserError if it is missing, too large, or not the expected one."""
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}. Download it from where it was published")
    if Path(path).stat().st_size > max_bytes:
        raise UserError(
            f"{path} has more than {max_bytes:,} bytes, the maximum for a file of published weights"
        )
    sha256 = sha256_of(path)
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise UserError(
            f"{path} is not the expected file: its sha256 should be {expected_sha256}, found {sha256}. Download it again"
        )
    return sha256


def check_finite(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise UserError if an array of the file has a number that is not finite."""
    if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path} has numbers that are not finite, the first in {wrong[0]}. Download it again")


def _read(
    path: Path,
    tensors_in: Callable[[object, Tensors], Tensors],
    parts: Sequence[str] = (),
    max_bytes: int = MAX_FILE_BYTES,
) -> tuple[str, dict[str, np.ndarray]]:
    if not Path(path).is_file():
        raise RejectedPickle(f"there is no file {path}. Download it from where it was published")
    try:
        with _ChunkedFile(path) as file:
            value, unpickler, storages = _contents(file, os.fstat(file.fileno()).st_size, max_bytes)
            part, weights = state_dict_of(value, parts)
            _check_storages(weights, storages)
            if not weights:
                unpickler.check_names()
            tensors = tensors_in(value, weights)
            _check_storages(tensors, storages)
            # two tensors of one storage: a small file could fill the memory
            if len({tensor.storage.key for tensor in tensors.values()}) < len(tensors):
                raise RejectedPickle(
                    "uses the same numbers for two tensors, which the DALL-E release does not do"
                )
            return part, {name: _numbers(tensor, storages) for name, tensor in tensors.items()}
    except RejectedPickle as error:
        fix = "" if isinstance(error, OtherModel) else f". {FIX}"
        raise type(error)(f"{path} {error}{fix}") from error
    except ZIP_ERRORS as error:
        raise RejectedPickle(f"{path} is damaged or cut short ({printable(str(error))}). {FIX}") from error


def _contents(file: BinaryIO, size: int, max_bytes: int) -> Contents:
    if size > max_bytes:
        limit = f"a file of the DALL-E release has at most {max_bytes:,}"
        raise RejectedPickle(f"has {size:,} bytes; {limit}")
    head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file, size)
    if head.startswith(LEGACY_MAGIC):
        return _read_legacy(file, size)
    if head[257:262] == b"ustar":
        raise RejectedPickle(
            "is a tar, the container of torch before 0.1.10, which the DALL-E release does not use"
        )
    raise RejectedPickle("is not a file of torch.save: neither its zip nor its legacy container")


def _check_storages(tensors: Tensors, storages: Storages) -> None:
    for name, tensor in tensors.items():
        stored, storage = storages.get(tensor.storage.key), tensor.storage
        if stored is None or stored.size != storage.count * NUMBER_BYTES[storage.kind]:
            raise RejectedPickle(f"is damaged or cut short: it lacks the numbers of {printable(name)}")


def _numbers(tensor: StoredTensor, storages: Storages) -> np.ndarray:
    """As float32, contiguous; in chunks, so that memory holds them once. A zip checks its checksum after the last."""
    stored, data = storages[tensor.storage.key], bytearray()
    with stored.open() as stream:
        while chunk := stream.read(min(CHUNK_BYTES, stored.size - len(data))):
            data += chunk
    if len(data) < stored.size:
        raise EOFError("its numbers end too early")
    numbers = np.frombuffer(data, NUMPY_TYPES[tensor.storage.kind])
    if tensor.storage.kind == BFLOAT16:  # numpy has no such type; it is the upper half of a float32
        numbers = (numbers.astype("<u4") << 16).view("<f4")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    view = as_strided(numbers[tensor.offset :], tensor.shape, strides)
    return view.astype(np.float32, order="C", copy=False)


class _ChunkedFile(io.FileIO):
    """A file that is read in small chunks only, so that a zip directory that claims a gigabyte is rejected."""

    def read(self, count: int | None = -1) -> bytes:
        if count is not None and count > CHUNK_BYTES:
            raise RejectedPickle("has a directory that is too long for a file of torch.save")
        return super().read(CHUNK_BYTES if count is None or count < 0 else count)


def _read_zip(file: BinaryIO, size: int) -> Contents:
    archive = zipfile.ZipFile(file)  # not closed: the file is the caller's
    infos = archive.infolist()
    if any(
        info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1
        for info in infos
    ):
        raise RejectedPickle("has compressed or encrypted parts, which torch.save never writes")
    members = {info.filename: info for info in infos}
    if sum(info.file_size for info in infos) > size or len(members) < len(infos):
        raise RejectedPickle("has parts that overlap or share a name, which torch.save never writes")
    programs = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(programs) != 1:
        raise RejectedPickle("is a zip, but not one of torch.save: it has no data.pkl")
    if members[programs[0]].file_size > MAX_PICKLE_BYTES:
        raise RejectedPickle(f"has a pickle of more than {MAX_PICKLE_BYTES:,} bytes")
    folder = programs[0].removesuffix("data.pkl")
    byteorder = members.get(f"{folder}byteorder")
    if byteorder is not None and (byteorder.file_size != 6 or archive.read(byteorder) != b"little"):
        raise RejectedPickle("was written on a big-endian machine")
    unpickler = Unpickler(io.BytesIO(archive.read(members[programs[0]])))
    prefix = f"{folder}data/"
    storages = {
        name.removeprefix(prefix): Stored(member.file_size, functools.partial(archive.open, member))
        for name, member in members.items()
        if name.startswith(prefix)
    }
    return unpickler.load(), unpickler, storages


def _read_legacy(file: BinaryIO, size: int) -> Contents:
    file.seek(0)
    head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    head.seek(len(LEGACY_MAGIC))
    version, machine = _plain(head), _plain(head)
    unpickler = Unpickler(head)
    value, keys = unpickler.load(), _plain(head)
    if type(version) is not int or version != LEGACY_VERSION:
        raise RejectedPickle("was written in an unknown version of torch's legacy container")
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise RejectedPickle("was written on a big-endian machine")
    if type(keys) is not list or len(keys) > MAX_PARTS or any(type(key) is not str for key in keys):
        raise RejectedPickle("has no list of storages")
    storages, end = {}, head.tell()
    for key in keys:  # each storage is its length, int64, and its numbers
        file.seek(end)
        count = int.from_bytes(file.read(8), "little", signed=True)
        number_bytes = NUMBER_BYTES[unpickler.storages[key].kind] if key in unpickler.storages else 4
        start, end = end + 8, end + 8 + count * number_bytes
        if count < 0 or end > size:
            raise RejectedPickle("is damaged or cut short: a part of its numbers is missing")
        storages[key] = Stored(end - start, functools.partial(_opened_at, file, start))
    return value, unpickler, storages


def _plain(head: BinaryIO) -> object:
    unpickler = Unpickler(head)
    value = unpickler.load()
    unpickler.check_names()
    return value


def _opened_at(file: BinaryIO, start: int) -> AbstractContextManager[BinaryIO]:
    file.seek(start)
    return contextlib.nullcontext(file)  # stays open for the next storage
