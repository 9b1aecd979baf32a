"""The store makes an entry once and keeps the entries of the last runs; rows are read by number."""

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
def messages() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, messages) -> Store:
    return Store(tmp_path / "store", keep_runs=2, log=messages.append)


class Maker:
    """Writes an entry of one file, and counts how often."""

    def __init__(self, data: bytes = b"tokens") -> None:
        self.data, self.calls = data, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        write_bytes(folder / "data", self.data)
        write_manifest(folder, {"data": None}, {})


# --- entries ------------------------------------------------------------


def test_an_entry_is_made_once_and_reused(store, messages):
    make = Maker()

    first, again = store.get("a", make), store.get("a", make)

    assert make.calls == 1 and first == again == store.folder / "a"
    assert (first / "data").read_bytes() == b"tokens" and messages == []


def test_a_damaged_entry_is_reported_and_made_again(store, messages):
    make = Maker()
    file = store.get("a", make) / "data"
    file.write_bytes(b"broken")

    assert (store.get("a", make) / "data").read_bytes() == b"tokens"
    assert make.calls == 2 and len(messages) == 1
    assert (
        messages[0].startswith(f"store: {file} is damaged: sha256 should be ")
        and "it is made again" in messages[0]
    )


def test_an_incomplete_entry_is_not_an_entry(store):
    def killed(folder: Path) -> None:
        write_bytes(folder / "data", b"tok")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("a", killed)

    assert not store.has("a") and (store.get("a", Maker()) / "data").read_bytes() == b"tokens"


def test_of_several_threads_one_makes_the_entry(store):
    make = Maker()
    threads = [threading.Thread(target=store.get, args=("a", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert make.calls == 1


# --- what is kept ------------------------------------------------------------


def run(store: Store, *keys: str) -> set[str]:
    """A run that uses these entries; returns the entries that exist afterwards."""
    store.begin(keys)
    for key in keys:
        store.get(key, Maker())
    return {path.name for path in store.folder.iterdir() if path.is_dir()}


def test_the_entries_of_the_last_runs_are_kept(store):
    assert run(store, "a", "b") == {"a", "b"}
    assert run(store, "a", "c") == {"a", "b", "c"}
    assert run(store, "a", "d") == {"a", "c", "d"}  # neither of the last two runs used b
    assert run(store, "e") == {"a", "d", "e"}


def test_the_same_run_again_removes_nothing(store):
    run(store, "a")
    for _ in range(5):
        assert run(store, "b") == {"a", "b"}


def test_a_killed_run_keeps_its_finished_entries(store):
    store.begin(["a", "b", "c"])
    store.get("a", Maker())  # killed here
    make = Maker()
    store.begin(["a", "b", "c"])
    store.get("a", make)
    assert make.calls == 0


def test_a_damaged_list_of_runs_loses_no_entry_in_use(store):
    run(store, "a")
    (store.folder / "runs.json").write_text("[")
    assert run(store, "b") == {"b"}


# --- rows ------------------------------------------------------------

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


def test_rows_outside_the_range_are_rejected(tmp_path):
    write_rows(tmp_path, [{"a": [b"x", b"y"]}])
    for row in (-1, 2):
        with pytest.raises(IndexError, match=f"row {row} of 2"):
            RowStore(tmp_path).read("a", row)


def test_a_file_truncated_under_a_reader_is_an_error_and_no_crash(tmp_path):
    write_rows(tmp_path, [{"a": [b"some", b"tokens"]}])
    rows = RowStore(tmp_path)
    (tmp_path / "a.bin").open("r+b").truncate(6)

    assert rows.read("a", 0) == b"some"
    with pytest.raises(DamagedArtefact) as caught:
        rows.read("a", 1)
    assert (
        str(caught.value)
        == f"{tmp_path}/a.bin ends at byte 6. Run: the same command again; damaged data is made again"
    )


def test_rows_stay_readable_when_their_files_are_removed(tmp_path):
    write_rows(tmp_path, [{"a": [b"some", b"tokens"]}])
    rows = RowStore(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert rows.read("a", 1) == b"tokens"
