"""The store of several threads and runs (damage and kills: tests/pipeline/test_incremental.py); rows by number."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thousandwords.core.cache import Store
from thousandwords.core.files import write_bytes
from thousandwords.core.manifest import DamagedArtefact, write_manifest
from thousandwords.core.row_store import RowStore, write_rows


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", keep_runs=2)


def make(folder: Path) -> None:
    """Write an entry of one file."""
    write_bytes(folder / "data", b"tokens")
    write_manifest(folder, {"data": None}, {})


def test_of_several_threads_one_makes_the_entry(store):
    calls = []
    args = ("a", lambda folder: (calls.append(folder), make(folder)))
    threads = [threading.Thread(target=store.get, args=args) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1


def run(store: Store, *keys: str) -> set[str]:
    """A run that uses these entries; returns the entries that exist afterwards."""
    store.begin(keys)
    for key in keys:
        store.get(key, make)
    return {path.name for path in store.folder.iterdir() if path.is_dir()}


def test_the_entries_of_the_last_runs_are_kept(store):
    assert run(store, "a", "b") == {"a", "b"}
    assert run(store, "a", "c") == {"a", "b", "c"}
    assert run(store, "a", "d") == {"a", "c", "d"}  # neither of the last two runs used b
    assert run(store, "e") == {"a", "d", "e"}
    assert run(store, "e") == {"a", "d", "e"}  # the same run again removes nothing
    (store.folder / "runs.json").write_text("[")  # a damaged list loses no entry in use
    assert run(store, "b") == {"b"}


PARTS = st.lists(
    st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=4), min_size=1, max_size=4
)


@settings(max_examples=30, deadline=None)
@given(parts=PARTS)
def test_rows_of_any_length_are_read_by_number(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder, [{"a": [a for a, _ in part], "b": [b for _, b in part]} for part in parts])

    rows, expected = RowStore(folder), [row for part in parts for row in part]
    rows.prefetch(range(len(expected)))

    assert len(rows) == len(expected)
    for number in reversed(range(len(expected))):
        assert (rows.read("a", number), rows.read("b", number)) == expected[number]


@pytest.fixture
def rows(tmp_path):
    write_rows(tmp_path, [{"a": [b"some", b"tokens"]}])
    return RowStore(tmp_path)


def test_rows_outside_the_range_are_rejected(rows):
    for row in (-1, 2):
        with pytest.raises(IndexError, match=f"row {row} of 2"):
            rows.read("a", row)


def test_a_file_truncated_under_a_reader_is_an_error_and_no_crash(rows, tmp_path):
    (tmp_path / "a.bin").open("r+b").truncate(6)

    assert rows.read("a", 0) == b"some"
    message = "a.bin ends at byte 6. Run: the same command again; damaged data is made again$"
    with pytest.raises(DamagedArtefact, match=message):
        rows.read("a", 1)


def test_rows_stay_readable_when_their_files_are_removed(rows, tmp_path):
    for path in tmp_path.iterdir():
        path.unlink()
    assert rows.read("a", 1) == b"tokens"
