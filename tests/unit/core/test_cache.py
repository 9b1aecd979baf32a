"""The store makes an entry once, gives it whole or not at all, and keeps what the last runs used; rows come back by number."""
from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import flips
from thousandwords.files import DamagedArtefact, write_bytes, write_manifest
from thousandwords.rows import Rows, write_rows
from thousandwords.store import Store


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, told) -> Store:
    return Store(tmp_path / "store", kept_runs=2, tell=told.append)


class Maker:
    """Writes an entry of one file, and counts how often."""

    def __init__(self, data: bytes = b"words") -> None:
        self.data, self.calls = data, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        write_bytes(folder / "data", self.data)
        write_manifest(folder, {"data": None}, {})


# --- entries ---------------------------------------------------------------------------------------------------------


def test_an_entry_is_made_once_and_found_again(store, told):
    make = Maker()

    first, again = store.get("a", make), store.get("a", make)

    assert make.calls == 1 and first == again == store.folder / "a"
    assert (first / "data").read_bytes() == b"words" and told == []


def test_a_damaged_entry_is_told_and_made_again(store, told):
    make = Maker()
    file = store.get("a", make) / "data"
    file.write_bytes(b"worms")

    assert (store.get("a", make) / "data").read_bytes() == b"words"
    assert make.calls == 2 and len(told) == 1
    assert told[0].startswith(f"store: {file} is damaged: sha256 should be ") and "it is made again" in told[0]


def test_a_bit_flipped_anywhere_in_an_entry_is_noticed(store):
    make = Maker(b"some words of a shard")
    entry = store.get("a", make)
    for file in ("data", "manifest.json"):
        for _ in flips(entry / file, 20):
            assert (store.get("a", make) / "data").read_bytes() == b"some words of a shard"


def test_an_entry_half_made_is_no_entry(store):
    def killed(folder: Path) -> None:
        write_bytes(folder / "data", b"wor")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("a", killed)

    assert not store.has("a") and (store.get("a", Maker()) / "data").read_bytes() == b"words"


def test_what_a_killed_process_left_half_made_is_no_entry_either(store):
    (store.folder / ".a.tmp").mkdir(parents=True)
    (store.folder / ".a.tmp" / "data").write_bytes(b"wor")
    assert (store.get("a", Maker()) / "data").read_bytes() == b"words"


def test_of_several_at_once_one_makes_it(store):
    make = Maker()
    threads = [threading.Thread(target=store.get, args=("a", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert make.calls == 1


# --- what is kept ----------------------------------------------------------------------------------------------------


def run(store: Store, *keys: str) -> set[str]:
    """A run that uses those entries; the entries there are afterwards."""
    store.begin(keys)
    for key in keys:
        store.get(key, Maker())
    return {path.name for path in store.folder.iterdir() if path.is_dir()}


def test_the_entries_of_the_last_runs_are_kept(store):
    assert run(store, "a", "b") == {"a", "b"}
    assert run(store, "a", "c") == {"a", "b", "c"}
    assert run(store, "a", "d") == {"a", "c", "d"}  # b was used by none of the last two
    assert run(store, "e") == {"a", "d", "e"}


def test_the_same_run_again_pushes_nothing_out(store):
    run(store, "a")
    for _ in range(5):
        assert run(store, "b") == {"a", "b"}


def test_a_run_that_was_killed_keeps_what_it_had_finished(store):
    store.begin(["a", "b", "c"])
    store.get("a", Maker())  # killed here
    make = Maker()
    store.begin(["a", "b", "c"])
    store.get("a", make)
    assert make.calls == 0


def test_a_damaged_note_of_runs_loses_nothing_in_use(store):
    run(store, "a")
    (store.folder / "runs.json").write_text("[")
    assert run(store, "b") == {"b"}


# --- rows ------------------------------------------------------------------------------------------------------------

PARTS = st.lists(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=4), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(parts=PARTS)
def test_rows_come_back_by_number_whatever_their_length(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder, [{"a": [a for a, _ in part], "b": [b for _, b in part]} for part in parts])

    rows, wanted = Rows(folder), [row for part in parts for row in part]
    rows.expect(range(len(wanted)))

    assert len(rows) == len(wanted)
    for number in reversed(range(len(wanted))):
        assert (rows.read("a", number), rows.read("b", number)) == wanted[number]


def test_rows_outside_are_refused(tmp_path):
    write_rows(tmp_path, [{"a": [b"x", b"y"]}])
    for row in (-1, 2):
        with pytest.raises(IndexError, match=f"row {row} of 2"):
            Rows(tmp_path).read("a", row)


def test_rows_of_a_damaged_file_are_refused_at_the_door(tmp_path):
    write_rows(tmp_path, [{"a": [b"some", b"words"]}])
    for name in ("a.bin", "a.offsets", "manifest.json"):
        for _ in flips(tmp_path / name, 20):
            with pytest.raises(DamagedArtefact):
                Rows(tmp_path)
    assert Rows(tmp_path).read("a", 1) == b"words"


def test_a_file_cut_short_under_a_reader_is_an_error_and_no_crash(tmp_path):
    write_rows(tmp_path, [{"a": [b"some", b"words"]}])
    rows = Rows(tmp_path)
    (tmp_path / "a.bin").open("r+b").truncate(6)

    assert rows.read("a", 0) == b"some"
    with pytest.raises(DamagedArtefact) as caught:
        rows.read("a", 1)
    assert str(caught.value) == f"{tmp_path}/a.bin ends at byte 6. Run: the same command again; what is damaged is made anew"


def test_rows_stay_readable_when_their_files_are_removed(tmp_path):
    write_rows(tmp_path, [{"a": [b"some", b"words"]}])
    rows = Rows(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert rows.read("a", 1) == b"words"
