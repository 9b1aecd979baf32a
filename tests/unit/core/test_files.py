"""A file is written completely or not at all, and the manifest of a folder detects every changed byte."""

import errno
import hashlib
import json
import os
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
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

WORDS = b"a picture is worth a thousand words\n"
SUM = "82e348efe704f0399b26baca82836558afc5505fcd6410a9f19aa25f11a443b2"


@pytest.fixture
def folder(tmp_path):
    """Two small files and their manifest."""
    write_bytes(tmp_path / "words.txt", WORDS)
    write_json(tmp_path / "config.json", {"side": 16})
    write_manifest(tmp_path, {"words.txt": 1, "config.json": None}, {"source": "scenes", "scales": [1, 2]})
    return tmp_path


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


FULL = ": the disk is full, or your quota is used up: 5 bytes are to be written, 2 are free. Make room,"
NO_WRITE = " cannot be written: "


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ENOSPC", FULL),
        ("EDQUOT", FULL),
        ("EACCES", f"{NO_WRITE}Permission denied. Check that you may write there, or use another folder"),
        ("EROFS", f"{NO_WRITE}Read-only file system. Mount it for writing, or use another folder"),
        ("EIO", f"{NO_WRITE}Input/output error. The disk may be failing: look at the system log, and"),
    ],
)
def test_a_write_that_fails_in_the_middle_is_reported_with_the_fix_and_changes_nothing(
    tmp_path, monkeypatch, name, sentence
):
    write_bytes(tmp_path / "file.txt", b"before")
    monkeypatch.setenv("THOUSANDWORDS_FAILPOINT", f"mid-write:1:{name}")
    monkeypatch.setattr("thousandwords.core.files._passed", Counter())
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2))

    with pytest.raises(CannotWrite) as caught:
        write_bytes(tmp_path / "file.txt", b"after")

    assert str(caught.value).startswith(f"{tmp_path}{sentence}")
    assert isinstance(caught.value, DiskFull) == (name in ("ENOSPC", "EDQUOT"))
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
    assert write_bytes(folder / "new/whole", data) == write_blocks(folder / "new/blocks", blocks, 9) == digest
    assert (folder / "new/whole").read_bytes() == (folder / "new/blocks").read_bytes() == data
    assert len(list((folder / "new").iterdir())) == 2  # no other file


def test_json_and_fingerprints_do_not_depend_on_the_order_of_keys(tmp_path):
    first = write_json(tmp_path / "first.json", {"b": 1, "a": "ü"})
    second = write_json(tmp_path / "second.json", {"a": "ü", "b": 1})

    assert first == second
    assert fingerprint({"outer": {"b": 1, "a": 2}}) == fingerprint({"outer": {"a": 2, "b": 1}})
    assert (tmp_path / "first.json").read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'


def test_a_unit_hash_is_a_fixed_number_of_text_and_seed():
    assert unit_hash("a red star", 0) == 0.4301163779985586
    assert unit_hash("a red star", 1) == 0.6353870804783429
    assert unit_hash("", 0) == 0.8943794394498068


def test_a_manifest_gives_back_its_metadata_and_the_size_sum_and_rows_of_each_file(folder):
    manifest = read_manifest(folder)

    assert manifest["facts"] == {"source": "scenes", "scales": [1, 2]}
    assert manifest["files"]["words.txt"] == {"bytes": 36, "rows": 1, "sha256": SUM}
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


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("words.txt", b"A" + WORDS[1:], f"words.txt is damaged: sha256 should be {SUM}, found fa75c67f"),
        ("words.txt", b"", "words.txt should be 36 bytes, found 0"),
        ("words.txt", b"x" * 35, "words.txt should be 36 bytes, found 35"),
        ("words.txt", b"x" * 37, "words.txt should be 36 bytes, found 37"),
        ("words.txt", None, "words.txt is missing, but its manifest names it"),
        ("manifest.json", None, "manifest.json is missing, so nothing in "),
        ("manifest.json", b"", "manifest.json cannot be read"),
        ("manifest.json", b'{"facts": {', "manifest.json cannot be read"),
    ],
)
def test_damage_is_named_with_what_was_expected_what_was_found_and_the_fix(folder, name, data, sentence):
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(DamagedArtefact) as caught:
        read_manifest(folder, fix="dvc repro prepare_pairs")
    # DVC takes a damaged file whose time is the same for unchanged, so another command repairs it
    fix = "dvc repro prepare_pairs" if data is None else "make repair"
    message = str(caught.value)
    assert message.startswith(f"{folder}/{sentence}") and message.endswith(f". Run: {fix}")


def test_a_manifest_edited_by_hand_is_rejected(folder):
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["facts"]["source"] = "folder"
    write_json(folder / "manifest.json", manifest)

    message = "manifest.json was changed: its sha256 should be [0-9a-f]{64}, found"
    with pytest.raises(DamagedArtefact, match=message):
        read_manifest(folder)
