"""Files of torch.save are read without being run: a hostile, cut or unusual one ends in one sentence."""

import argparse
import collections
import contextlib
import enum
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.dalle_release import SMALL, write_release
from tests.helpers.malicious_files import Called, Stateful, legacy_tar, with_new
from tests.helpers.tiny_models import flipped
from thousandwords.pretrained.safe_pickle import MAX_PARTS, MAX_PICKLE_BYTES, RejectedPickle, Unpickler
from thousandwords.pretrained.torch_container import (
    LEGACY_MAGIC,
    MAX_FILE_BYTES,
    read_state_dict,
    read_tensors,
)

CONTAINERS = ("zip", "legacy")
FILE = Path("encoder.pkl")  # each test has its own folder
TINY = SMALL | {"groups": 1, "blocks_per_group": 1, "width": 4, "codebook_width": 2, "stem_kernel": 1}


def dumps(*values: object) -> bytes:
    return b"".join(pickle.dumps(value, protocol=2) for value in values)


def write_container(
    path: Path, program: bytes, container: str, storages: dict[str, bytes] | None = None
) -> Path:
    """A file as torch.save lays it out, with `program` where the pickle of the object should be."""
    storages = storages or {}
    if container == "legacy":
        sizes = {"short": 2, "int": 4, "long": 8}
        machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
        parts = b"".join(struct.pack("<q", len(data) // 4) + data for data in storages.values())
        path.write_bytes(LEGACY_MAGIC + dumps(1001, machine) + program + dumps(list(storages)) + parts)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def error_of(path: Path) -> str:
    """The error of reading it: one sentence that names the file, and no marker in the working directory."""
    with pytest.raises(RejectedPickle) as caught:
        read_tensors(path)
    with pytest.raises(RejectedPickle):
        read_state_dict(path)
    assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)
    assert not Path("marker").exists()
    return str(caught.value)


@pytest.fixture(autouse=True)
def work_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=CONTAINERS)
def container(request) -> str:
    return request.param


@pytest.fixture
def rejected(container):
    """Puts a program into a container, reads it, and returns the error."""

    def run(program: bytes, storages: dict[str, bytes] | None = None) -> str:
        return error_of(write_container(FILE, program, container, storages))

    return run


# --- what runs code when Python reads it -----------------------------------------------------------------------------

CONV = b"cdall_e.utils\nConv2d\n"
MODULE = CONV + b")\x81"
CALLS = {
    "posix.system": Called(os.system, "touch marker"),
    "eval": Called(eval, "open('marker', 'w')"),
    "check_call": Called(subprocess.check_call, ["touch", "marker"]),
    "getattr": Called(getattr, "a", "upper"),
    "torch.serialization.load": Called(torch.load, io.BytesIO),
    "torch.storage._load_from_bytes": Called(torch.storage._load_from_bytes, "x"),
    "pickle.loads": Called(pickle.loads, "x"),
    "malicious_files.Stateful": Stateful("marker"),
    "malicious_files.CreatesFileInNew": with_new(Path("marker")),
}
HOSTILE = {
    **{
        f"{name} by protocol {protocol}": (pickle.dumps(call, protocol=protocol), name)
        for protocol in (0, 2, 4)
        for name, call in CALLS.items()
        if protocol == 4 or not name.startswith("malicious_files")
    },
    "NEWOBJ of a class": (b"csubprocess\nPopen\nX\x05\x00\x00\x00touch\x85\x81.", "subprocess.Popen"),
    "INST": (b"(S'touch marker'\niposix\nsystem\n.", "operation 0x53"),
    "INST without text": (b"(iposix\nsystem\n.", "operation 0x69"),
    "OBJ": (b"(" + CONV + b"o.", "operation 0x6f"),
    "NEWOBJ_EX": (CONV + b")}\x92.", "operation 0x92"),
    "BUILD of a function": (b"cposix\nsystem\n}b.", "posix.system"),
    "BUILD of a class": (CONV + b"}b.", "attributes of what is no module"),
    "BUILD twice": (MODULE + b"}b}b.", "attributes of a module twice"),
    "BUILD with slots": (MODULE + b"N}\x86b.", "are no dict"),
    "REDUCE of a known class": (CONV + b")R.", "calls dall_e.utils.Conv2d"),
    "REDUCE of its method": (b"cdall_e.utils\nConv2d.forward\n)R.", "dall_e.utils.Conv2d.forward"),
    "NEWOBJ of a known function": (b"ccollections\nOrderedDict\n)\x81.", "makes a collections.OrderedDict"),
    "a known class with arguments": (CONV + b"K\x01\x85\x81.", "makes a dall_e.utils.Conv2d"),
    "an OrderedDict with arguments": (b"ccollections\nOrderedDict\n]\x85R.", "fills an OrderedDict"),
    "another rebuilder": (b"ctorch._utils\n_rebuild_parameter_with_state\n)R.", "parameter_with_state"),
    "a storage of another type": (b"ctorch\nComplexFloatStorage\n.", "torch.ComplexFloatStorage"),
    "a text persistent id": (b"Pstorage\n.", "operation 0x50"),
    "a persistent id that is text": (b"X\x01\x00\x00\x00aQ.", "outside its pickle"),
    "a persistent id of another kind": (b"X\x01\x00\x00\x00aK\x01\x86Q.", "outside its pickle"),
    "an extension code": (b"\x82\x01.", "operation 0x82"),
    "pickled bytes": (pickle.dumps(dumps(CALLS["eval"]), protocol=3), "operation 0x43"),
    "a name that would paint the terminal": (b"c\x1b[2J\nx\n.", "'\\x1b[2J.x'"),
}


@pytest.mark.parametrize(("program", "named"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_is_rejected_by_what_it_asks_for_and_not_run(rejected, program, named):
    sentence = rejected(program)
    assert named in sentence
    assert sentence.endswith("Download it again from where it was published, and compare its sha256")


def test_numbers_that_are_themselves_a_pickle_stay_numbers(container):
    hostile = dumps(CALLS["posix.system"]).ljust(64, b".")
    write_container(FILE, conv(), container, {"0": hostile})
    assert read_tensors(FILE)["w"].tobytes() == hostile
    assert not Path("marker").exists()


# --- tensors that are not what they say ------------------------------------------------------------------------------


def value(plain: object) -> bytes:
    """The operations that make a plain value."""
    return pickletools.optimize(pickle.dumps(plain, protocol=2))[2:-1]


def conv(shape: object = (16,), strides: tuple = (1,), count=16, offset=0, key="0") -> bytes:
    """A Conv2d with one parameter `w`, written by hand."""
    storage = b"(" + value("storage") + b"ctorch\nFloatStorage\n"
    storage += value(key) + value("cpu") + value(count) + b"tQ"
    place = b"".join(map(value, (offset, shape, strides)))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place
    return MODULE + b"}(" + value("_parameters") + b"}" + value("w") + tensor + b"\x89}tRsub."


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "numbers"),
    [((2, 1, 3), (3, 99, 1), 5, [[[5, 6, 7]], [[8, 9, 10]]]), ((2, 3), (1, 4), 3, [[3, 7, 11], [4, 8, 12]])],
)
def test_a_tensor_is_the_numbers_that_it_says(container, shape, strides, offset, numbers):
    stored = {"0": np.arange(16, dtype="<f4").tobytes()}
    tensors = read_tensors(write_container(FILE, conv(shape, strides, offset=offset), container, stored))
    assert tensors["w"].tolist() == numbers and tensors["w"].flags.c_contiguous and list(tensors) == ["w"]


HALVES = {
    torch.float16: [1.0, -2.5, 65504.0, 2.0**-24, 0.333251953125, -0.0],
    torch.bfloat16: [1.0, -2.5, 3.3895313892515355e38, 2.0**-133, 0.333984375, -0.0],
}


@pytest.mark.parametrize(("dtype", "values"), HALVES.items())
def test_half_precision_becomes_the_same_numbers_in_float32(saved, dtype, values):
    table = torch.tensor(values).to(dtype).view(2, 3)
    _, read = read_state_dict(
        saved({"table": table, "turned": table.clone().t(), "part": table.clone()[1:, 1]})
    )

    rows = [values[:3], values[3:]]
    expected = {"table": rows, "turned": [list(row) for row in zip(*rows, strict=True)], "part": [values[4]]}
    assert {name: array.tolist() for name, array in read.items()} == expected
    assert {array.dtype for array in read.values()} == {np.dtype("float32")}


WRONG = {
    "beyond its storage": (conv((17,)), "reaches beyond its storage"),
    "beyond its storage by its offset": (conv(offset=1), "reaches beyond its storage"),
    "before its storage": (conv((2,), offset=-1), "without a valid size"),
    "beyond its storage by a stride": (conv((2, 4), (1, 5)), "reaches beyond its storage"),
    "spread out of nothing": (conv((65535, 2), (0, 1)), "of more numbers than its storage has"),
    "of a negative side": (conv((-1, -1), (1, 1)), "without a valid size"),
    "of no side": (conv((0,)), "without a valid size"),
    "of text sides": (conv(("a",)), "without a valid size"),
    "of true sides": (conv((True,)), "without a valid size"),
    "of a huge side": (conv((2**63 - 1,)), "without a valid size"),
    "of nine sides": (conv((1,) * 9, (1,) * 9), "without a valid size"),
    "of fewer strides": (conv((2, 2)), "without a valid size"),
    "of more numbers than there are": (conv(count=17), "lacks the numbers of w"),
    "of a billion numbers that are not there": (conv(count=2**31 - 1), "lacks the numbers of w"),
    "of a storage that is not there": (conv(key="1"), "lacks the numbers of w"),
    "of a negative storage": (conv(count=-1), "not a float32 storage"),
    "a buffer": (MODULE + value({"_buffers": {"a": None}}) + b"b.", "has buffers"),
    "a dict as a part": (MODULE + value({"_modules": {"a": {}}}) + b"b.", "a part that is not a module"),
    "a list of parts": (MODULE + value({"_modules": []}) + b"b.", "_modules of a module is not a dict"),
    "a number": (MODULE + value({"_parameters": {"a": 1}}) + b"b.", "a parameter that is not a tensor"),
}


@pytest.mark.parametrize(("program", "message"), WRONG.values(), ids=WRONG)
def test_a_tensor_that_is_not_what_it_says_is_rejected(rejected, program, message):
    assert message in rejected(program, {"0": bytes(64)})


@pytest.mark.parametrize("count", [2**31 - 1, -1])
def test_a_legacy_storage_that_says_it_has_gigabytes_is_rejected_before_memory_is_taken_for_it(count):
    data = write_container(FILE, conv(count=2**31 - 1), "legacy", {"0": bytes(64)}).read_bytes()
    FILE.write_bytes(data[:-72] + struct.pack("<q", count) + data[-64:])
    assert "a part of its numbers is missing" in error_of(FILE)


def test_two_tensors_may_not_share_numbers(rejected):
    one = conv()
    start, end = one.index(value("w")), one.index(b"sub.")
    twice = one[start:end] + one[start:end].replace(value("w"), value("v"), 1)
    program = one[:start] + b"(" + twice + b"u" + one[end + 1 :]
    assert "the same numbers for two tensors" in rejected(program, {"0": bytes(64)})


# --- bombs -----------------------------------------------------------------------------------------------------------


def holding(parts: bytes) -> bytes:
    """A module, memo 1, with these names and parts."""
    return MODULE + b"q\x01}" + value("_modules") + b"}(" + parts + b"usb."


THOUSANDS = b"".join(value(f"{n:05d}") + b"h\x01" for n in range(20_000))
TWICE = (
    b"q\x01" + MODULE + b"}" + value("_modules") + b"}(" + value("a") + b"h\x01" + value("b") + b"h\x01usb"
)
EVER_MORE = MODULE + TWICE * 40 + b"."  # each holds the one before twice: 2^40 paths
BOMBS = {
    "a memo index of four billion": (b"Nr\xff\xff\xff\xff.", "no torch module"),
    "text of four gigabytes": (b"X\xff\xff\xff\xffa.", "its pickle ends at byte"),
    "bytes of 2^62": (b"\x8e" + struct.pack("<Q", 2**62) + b".", "operation 0x8e"),
    "a bytearray of 2^62": (b"\x96" + struct.pack("<Q", 2**62) + b".", "operation 0x96"),
    "a number of four gigabytes": (b"\x8b\xff\xff\xff\x7f.", "operation 0x8b"),
    "a frame of 2^62": (b"\x95" + struct.pack("<Q", 2**62) + b"N.", "no torch module"),
    "dicts by the hundred thousand": (b"}" * (MAX_PICKLE_BYTES - 1000) + b".", "no torch module"),
    "marks by the hundred thousand": (b"(" * (MAX_PICKLE_BYTES - 1000) + b".", "its pickle ends at byte"),
    "memos by the hundred thousand": (b"N" + b"\x94" * (MAX_PICKLE_BYTES - 1000) + b".", "no torch module"),
    "tuples in tuples": (b")" + b"\x85" * (MAX_PICKLE_BYTES - 1000) + b".", "no torch module"),
    "lists in lists": (b"]" * 100_000 + b"a" * 99_999 + b".", "no torch module"),
    "a tuple of 2^60 as a key": (b"})" + b"q\x00h\x00\x86" * 60 + b"Ns.", "is not text"),
    "a laughing module": (MODULE + b"}X\x01\x00\x00\x00a)" + b"q\x00h\x00\x86" * 60 + b"sb.", None),
    "a module that holds itself": (holding(value("a") + b"h\x01"), "has a part 'a' whose path"),
    "a module of long names": (holding(value("a" * 65535) + b"h\x01"), "part 'aaaaa"),
    "a name with a dot": (holding(value("a.b") + b"h\x01"), "has a part 'a.b' whose path"),
    "a module of thousands of parts": (holding(THOUSANDS), f"more than {MAX_PARTS} modules and tensors"),
    "a module of ever more modules": (EVER_MORE, f"more than {MAX_PARTS} modules and tensors"),
    "a pickle that never stops": (b"N" * 1000, "its pickle ends at byte"),
    "nothing": (b"", "its pickle ends at byte"),
    "no stack": (b"0.", "operation 0x30"),
    "an empty stack": (b".", "its pickle ends at byte"),
    "a mark that is not there": (b"t.", "its pickle ends at byte"),
    "a memo that is not there": (b"h\x07.", "its pickle ends at byte"),
    "text that is no text": (b"X\x02\x00\x00\x00\xff\xfe.", "its pickle ends at byte"),
}


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of memory that Python needs for it at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("program", "message"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_uses_less_than_a_hundred_megabytes(program, message):
    write_container(FILE, program, "zip")

    def read() -> None:
        with contextlib.suppress(RejectedPickle):
            assert read_tensors(FILE) == {}  # the harmless one: only modules are visited

    assert peak_of(read) < 100e6
    assert message is None or message in error_of(FILE)


# --- the containers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CONTAINERS)
def whole(request, tmp_path_factory) -> bytes:
    """The bytes of a good file."""
    folder = tmp_path_factory.mktemp("whole")
    write_release(folder, request.param, TINY)
    return (folder / "encoder.pkl").read_bytes()


NO_FILE = "is not a file of torch.save: neither its zip nor its legacy container"
CALL, LITTLE = dumps(CALLS["posix.system"]), {"little_endian": True}
FILES = {
    "nothing": (b"", NO_FILE),
    "two letters": (b"PK", NO_FILE),
    "zeros": (bytes(1000), NO_FILE),
    "text": (b"{}", NO_FILE),
    "a pickle": (dumps(CALLS["eval"]), NO_FILE),
    "a zip cut short": (b"PK\x03\x04", "is damaged or cut short"),
    "a legacy container cut short": (LEGACY_MAGIC, "its pickle ends at byte"),
    "the tar of old torch": (legacy_tar(Path("marker")), "is a tar, the container of torch before 0.1.10"),
    "a big-endian machine": (LEGACY_MAGIC + dumps(1001, {"little_endian": False}, {}, []), "big-endian"),
    "another version": (LEGACY_MAGIC + dumps(1002, LITTLE, {}, []), "unknown version"),
    "keys that are no text": (LEGACY_MAGIC + dumps(1001, LITTLE, collections.OrderedDict(), [1]), "no list of storages"),
    "a call as the version": (LEGACY_MAGIC + CALL + dumps(LITTLE, {}, []), "system, which the DALL-E release does not"),
    "a call as the machine": (LEGACY_MAGIC + dumps(1001) + CALL + dumps({}, []), "system, which the DALL-E release does not"),
    "a call as the object": (LEGACY_MAGIC + dumps(1001, LITTLE) + CALL + dumps([]), "system, which the DALL-E release does not"),
    "a call as the keys": (LEGACY_MAGIC + dumps(1001, LITTLE, {}) + CALL, "system, which the DALL-E release does not"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), FILES.values(), ids=FILES)
def test_what_torch_would_not_write_is_rejected(data, message):
    FILE.write_bytes(data)
    assert message in error_of(FILE)


@pytest.mark.parametrize("head", [b"PK\x03\x04", LEGACY_MAGIC])
def test_a_file_longer_than_a_gigabyte_is_rejected_unread(head):
    FILE.write_bytes(head)
    os.truncate(FILE, MAX_FILE_BYTES + 1)  # sparse: it takes no room
    assert "has 1,073,741,825 bytes; a file of the DALL-E release has at most 1,073,741,824" in error_of(FILE)


def test_a_compressed_zip_is_rejected_unread():
    with zipfile.ZipFile(FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N" * 200_000 + b".")
        archive.writestr("archive/data/0", bytes(50_000_000))
    assert FILE.stat().st_size < 100_000
    assert "compressed or encrypted" in error_of(FILE)


PICKLE = ("archive/data.pkl", dumps({}))
ZIPS = {
    "a name twice": ([PICKLE, PICKLE], "share a name"),
    "a directory of megabytes": ([PICKLE, *((f"{n:02d}{'a' * 20_000}", b"") for n in range(80))], "too long"),
    "no pickle": ([("archive/other.pkl", b"")], "no data.pkl"),
    "a pickle too long": ([("archive/data.pkl", b"N" * MAX_PICKLE_BYTES + b".")], "a pickle of more than"),
    "a big-endian machine": ([PICKLE, ("archive/byteorder", "big")], "big-endian"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("members", "message"), ZIPS.values(), ids=ZIPS)
def test_a_zip_that_torch_would_not_write_is_rejected(members, message):
    with zipfile.ZipFile(FILE, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    assert message in error_of(FILE)


def test_a_zip_with_parts_larger_than_itself_is_rejected():
    data = write_container(FILE, dumps({}), "zip", {"0": b"abcdefgh"}).read_bytes()
    directory = data.rindex(b"PK\x01\x02")
    FILE.write_bytes(data[: directory + 20] + struct.pack("<II", 2**31, 2**31) + data[directory + 28 :])
    assert "overlap" in error_of(FILE)


def test_a_file_cut_anywhere_is_rejected(whole):
    for end in range(0, len(whole), len(whole) // 60):
        FILE.write_bytes(whole[:end])
        error_of(FILE)


def test_a_flipped_bit_of_the_zips_numbers_is_found(tmp_path):
    write_release(tmp_path, "zip", TINY)
    with zipfile.ZipFile(FILE) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size * ("/data/" in member.filename))
        position = FILE.read_bytes().index(archive.read(member))
    FILE.write_bytes(flipped(FILE.read_bytes(), position + 3))
    assert "Bad CRC-32" in error_of(FILE)


some_changes = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=some_changes)
def test_a_changed_file_gives_float_tensors_or_the_one_error(tmp_path_factory, whole, changes):
    data = bytearray(whole)
    for share, byte in changes:
        data[int(share * len(data))] = byte
    path = tmp_path_factory.getbasetemp() / "changed.pkl"
    path.write_bytes(data)
    try:
        tensors = read_tensors(path)
    except RejectedPickle:
        return
    assert all(type(name) is str and array.dtype == np.float32 for name, array in tensors.items())


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    program=st.binary(max_size=60)
    | st.lists(st.sampled_from(b"(})].NtuasbRQh\x00q\x00K\x01\x85\x86\x81\x93")).map(bytes)
)
def test_any_bytes_at_all_are_described_or_rejected(program):
    before = set(sys.modules)
    with contextlib.suppress(RejectedPickle):
        Unpickler(io.BytesIO(program + b".")).load()
    assert set(sys.modules) == before


# --- a state dict among other things ---------------------------------------------------------------------------------

WEIGHTS = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).state_dict()
OTHER = {"weight": torch.tensor([2.0])}
NESTED = {"steps": 3, "model": WEIGHTS, "trainer": {"step": 1, "model": OTHER}}


class Settings(list):
    """In place of a list of a settings library."""


class Stage(enum.Enum):
    FIT = "fit"


NUMBERS = {"loss": np.float64(0.5), "steps": np.int64(7), "betas": np.arange(2), "dtype": torch.float16}
OF_TRAINERS = {
    "loops": {Stage.FIT: {"is_last": True}, "best": Stage.FIT},
    "hyper_parameters": [Settings([1, Settings()]), collections.defaultdict(list, {"a": [1]})],
    "numbers": NUMBERS | {"files": {Path("a")}, "queue": collections.deque([1, 2])},
    "optimizer": {"state": {0: {"step": torch.tensor(4)}, 1: {}}, "args": argparse.Namespace(lr=0.1)},
    "model": WEIGHTS,
}


@pytest.fixture
def saved(container):
    """Saves a value by torch; the path."""

    def save(value: object) -> Path:
        torch.save(value, FILE, _use_new_zipfile_serialization=container == "zip")
        return FILE

    return save


@pytest.mark.parametrize(
    ("value", "parts", "part"),
    [
        (WEIGHTS, (), ""),
        ({"state_dict": WEIGHTS, "global_step": 3}, (), "state_dict"),
        (OF_TRAINERS, (), "model"),
        (NESTED, (), "model"),
        (NESTED, ("trainer.model", "model"), "trainer.model"),
        (NESTED, ("model.weights", "model"), "model"),
    ],
    ids=["bare", "taming", "trainers", "nested", "by path", "first path missing"],
)
def test_a_state_dict_is_found_and_read_without_what_else_the_file_holds(saved, value, parts, part):
    weights = OTHER if part == "trainer.model" else WEIGHTS
    expected = {name: tensor.tolist() for name, tensor in weights.items() if tensor.is_floating_point()}

    found, read = read_state_dict(saved(value), parts)

    assert found == part
    assert {name: array.tolist() for name, array in read.items()} == expected


def test_what_is_not_wanted_takes_no_memory(saved):
    path = saved({"model": {"weight": torch.ones(1000)}, "optimizer": {0: torch.zeros(4_000_000)}})
    assert path.stat().st_size > 16e6
    assert peak_of(lambda: read_state_dict(path, ["model"])) < 2e6


def test_a_state_dict_that_is_cut_short_is_called_damaged(saved):
    path = saved(WEIGHTS)
    path.write_bytes(path.read_bytes()[:-40])
    assert "is damaged or cut short" in error_of(path)
