"""A file is written completely or not at all, and the manifest of a folder detects every changed byte."""

import errno
import hashlib
import json
import os
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny_models import flipped
from thousandwords.core.files import (
    CannotWrite,
    DiskFull,
    fingerprint,
    unit_hash,
    write_blocks,
    write_bytes,
    write_json,
)
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    """Two small files and their manifest."""
    write_bytes(tmp_path / "words.txt", b"a picture is worth a thousand words\n")
    write_json(tmp_path / "config.json", {"side": 16})
    write_manifest(tmp_path, {"words.txt": 1, "config.json": None}, {"source": "scenes", "scales": [1, 2]})
    return tmp_path


# --- writing ------------------------------------------------------------


def test_a_durable_write_leaves_the_file_and_nothing_else(tmp_path):
    digest = write_bytes(tmp_path / "new" / "file.txt", b"abc")

    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.txt"]
    assert (tmp_path / "new" / "file.txt").read_bytes() == b"abc"
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))

    write_bytes(tmp_path / "file.txt", b"abc")

    assert events == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_file_unchanged(tmp_path, monkeypatch, call):
    write_bytes(tmp_path / "file.txt", b"before")

    def disk_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, disk_full)
    with pytest.raises(DiskFull, match="the disk is full"):
        write_bytes(tmp_path / "file.txt", b"after")

    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_bytes() == b"before"


def failing(monkeypatch, name: str) -> None:
    """Make the next durable write fail in the middle with the errno `name`: ENOSPC, EIO, ..."""
    monkeypatch.setenv("THOUSANDWORDS_FAILPOINT", f"mid-write:1:{name}")
    monkeypatch.setattr("thousandwords.core.files._passed", Counter())


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_is_reported_with_the_folder_the_bytes_needed_and_the_bytes_free(
    tmp_path, monkeypatch, name
):
    failing(monkeypatch, name)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2))
    with pytest.raises(DiskFull) as caught:
        write_bytes(tmp_path / "file.txt", b"12345")
    assert str(caught.value) == (
        f"{tmp_path}: the disk is full, or your quota is used up: 5 bytes are to be written, 2 are free. Make room, then "
        "run the same again: finished work is kept"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("EACCES", "Permission denied. Check that you may write there, or use another folder"),
        ("EROFS", "Read-only file system. Mount it for writing, or use another folder"),
        ("EIO", "Input/output error. The disk may be failing: look at the system log, and use another disk"),
    ],
)
def test_a_folder_that_cannot_be_written_is_reported_with_the_fix(tmp_path, monkeypatch, name, sentence):
    write_bytes(tmp_path / "file.txt", b"before")
    failing(monkeypatch, name)
    with pytest.raises(CannotWrite) as caught:
        write_bytes(tmp_path / "file.txt", b"after")
    assert str(caught.value) == f"{tmp_path} cannot be written: {sentence}"
    assert not isinstance(caught.value, DiskFull)
    assert (tmp_path / "file.txt").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_inside_a_file_is_rejected(tmp_path):
    write_bytes(tmp_path / "file.txt", b"before")
    with pytest.raises(CannotWrite, match="file.txt/deeper cannot be written: Not a directory"):
        write_bytes(tmp_path / "file.txt" / "deeper" / "file.txt", b"after")


@given(st.binary(max_size=9))
def test_data_written_whole_or_in_blocks_reaches_the_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("few")
    digest = hashlib.sha256(data).hexdigest()
    blocks = (bytes([byte]) for byte in data)
    assert write_bytes(folder / "whole", data) == write_blocks(folder / "blocks", blocks, 9) == digest
    assert (folder / "whole").read_bytes() == (folder / "blocks").read_bytes() == data


def test_json_does_not_depend_on_the_order_of_keys(tmp_path):
    first = write_json(tmp_path / "first.json", {"b": 1, "a": "ü"})
    second = write_json(tmp_path / "second.json", {"a": "ü", "b": 1})

    assert first == second
    assert (tmp_path / "first.json").read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'


# --- hashes ------------------------------------------------------------


def test_a_unit_hash_is_a_fixed_number_of_text_and_seed():
    assert unit_hash("a red star", 0) == 0.4301163779985586
    assert unit_hash("a red star", 1) == 0.6353870804783429
    assert unit_hash("", 0) == 0.8943794394498068


@settings(max_examples=25)
@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans(), min_size=2), st.randoms())
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(values, random):
    shuffled = list(values.items())
    random.shuffle(shuffled)
    assert fingerprint({"outer": dict(shuffled)}) == fingerprint({"outer": values})


# --- the manifest ------------------------------------------------------------


def test_a_manifest_gives_back_its_metadata_and_the_size_sum_and_rows_of_each_file(folder):
    manifest = read_manifest(folder)

    assert manifest["facts"] == {"source": "scenes", "scales": [1, 2]}
    assert manifest["files"]["words.txt"] == {
        "bytes": 36,
        "rows": 1,
        "sha256": "82e348efe704f0399b26baca82836558afc5505fcd6410a9f19aa25f11a443b2",
    }
    assert manifest["files"]["config.json"]["rows"] is None


def test_the_same_files_and_metadata_have_the_same_manifest(folder):
    first = (folder / "manifest.json").read_bytes()
    write_manifest(folder, {"config.json": None, "words.txt": 1}, {"scales": [1, 2], "source": "scenes"})
    assert (folder / "manifest.json").read_bytes() == first


@pytest.mark.parametrize("name", ["words.txt", "config.json", "manifest.json"])
def test_a_flipped_bit_in_any_byte_is_detected(folder, name):
    whole = (folder / name).read_bytes()
    for position in range(len(whole)):
        (folder / name).write_bytes(flipped(whole, position, bit=position % 8))
        with pytest.raises(DamagedArtefact, match=re.escape(str(folder / name))):
            read_manifest(folder)
    (folder / name).write_bytes(whole)
    read_manifest(folder)


EXPECTED_SUM = "82e348efe704f0399b26baca82836558afc5505fcd6410a9f19aa25f11a443b2"
OTHER_SUM = "fa75c67fee12f83b4e2cafbdaa1f00fd40adc2824c51c3cc59eddb084f4bd38d"


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        (
            "words.txt",
            b"A picture is worth a thousand words\n",
            f"words.txt is damaged: sha256 should be {EXPECTED_SUM}, found {OTHER_SUM}",
        ),
        ("words.txt", b"", "words.txt should be 36 bytes, found 0"),
        ("words.txt", b"x" * 35, "words.txt should be 36 bytes, found 35"),
        ("words.txt", b"x" * 37, "words.txt should be 36 bytes, found 37"),
        ("words.txt", None, "words.txt is missing, but its manifest names it"),
        ("manifest.json", None, "manifest.json is missing, so nothing in FOLDER can be trusted"),
    ],
)
def test_damage_is_named_with_what_was_expected_what_was_found_and_the_fix(folder, name, data, sentence):
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(DamagedArtefact) as caught:
        read_manifest(folder, fix="dvc repro prepare_pairs")
    sentence = sentence.replace("FOLDER", str(folder))
    # DVC takes a damaged file whose time is the same for unchanged, so another command repairs it
    fix = "dvc repro prepare_pairs" if data is None else "make repair"
    assert str(caught.value) == f"{folder}/{sentence}. Run: {fix}"


def test_a_truncated_manifest_is_rejected(folder):
    whole = (folder / "manifest.json").read_bytes()
    for size in range(0, len(whole) - 1, 5):  # without its last byte, a newline, it has the same content
        (folder / "manifest.json").write_bytes(whole[:size])
        with pytest.raises(DamagedArtefact, match="manifest.json cannot be read"):
            read_manifest(folder)


def test_a_manifest_edited_by_hand_is_rejected(folder):
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["facts"]["source"] = "folder"
    write_json(folder / "manifest.json", manifest)

    with pytest.raises(
        DamagedArtefact, match="manifest.json was changed: its sha256 should be [0-9a-f]{64}, found"
    ):
        read_manifest(folder)
