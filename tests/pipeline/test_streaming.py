"""Rows on disk and prefetched batches give exactly the same batches as rows in memory."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.images import encoded, noise, write
from tests.helpers.paths import ROOT
from tests.helpers.sources import folder_config
from tests.helpers.tiny_models import HEADER, flips, tiny_text, write_shards
from thousandwords.core.cache import Store
from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.core.row_store import write_rows
from thousandwords.data.loader import ImageLoader, TokenLoader
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.prefetch import Prefetcher
from thousandwords.data.sampler import epochs_and_rows, positions
from thousandwords.data.token_shards import StoredTokenRows, TokenRows, open_token_rows, read_token_rows
from thousandwords.ingest.ingest import write_pairs
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import World

TWO_VIEWS = replace(HEADER, views=2)


def stored(folder: Path, split: str = "train") -> StoredTokenRows | TokenRows:
    """The rows as training opens them with almost no memory."""
    store = Store(folder / "store", log=lambda sentence: None)
    return open_token_rows(folder / "tokens", split, None, store, max_bytes_in_memory=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """30 rows of two views and two captions, in 8 shards."""
    folder = tmp_path_factory.mktemp("streaming")
    write_shards(folder / "tokens", {"train": 30, "validation": 9}, TWO_VIEWS)
    return folder


# --- rows on disk ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    start=st.integers(0, 200),
    length=st.integers(1, 40),
    seed=st.integers(0, 99),
    dropout=st.sampled_from([0.0, 0.4]),
)
def test_batches_from_disk_are_those_from_memory(folder, start, length, seed, dropout):
    in_memory, on_disk = read_token_rows(folder / "tokens", "train"), stored(folder)
    assert isinstance(in_memory, TokenRows) and isinstance(on_disk, StoredTokenRows)
    loaders = [TokenLoader(rows, tiny_text(), seed, dropout) for rows in (in_memory, on_disk)]
    expected, batch = (loader.batch(range(start, start + length)) for loader in loaders)
    assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(expected, batch, strict=True))


def test_few_rows_stay_in_memory_and_nothing_is_stored(folder, tmp_path):
    rows = open_token_rows(folder / "tokens", "train", None, Store(tmp_path / "store"))
    assert isinstance(rows, TokenRows) and not (tmp_path / "store").exists()


@pytest.mark.parametrize(("first", "count"), [(4, 4), (5, 8), (500, 9)])
def test_only_the_needed_shards_are_read(folder, first, count):
    assert len(read_token_rows(folder / "tokens", "validation", first=first)) == count


def test_rows_are_stored_once_and_again_when_the_shards_have_changed(tmp_path):
    messages = []
    store = Store(tmp_path / "store", keep_runs=2, log=messages.append)
    for rows in (6, 6, 7):
        write_shards(tmp_path / "tokens", {"train": rows})
        assert len(open_token_rows(tmp_path / "tokens", "train", None, store, max_bytes_in_memory=1)) == rows
    assert [sentence.partition(" rows")[0] for sentence in messages] == ["store: the 6", "store: the 7"]


def test_damaged_shards_are_rejected_each_time_rows_are_stored(tmp_path):
    write_shards(tmp_path / "tokens", {"train": 6})
    shard = tmp_path / "tokens" / "train-00001.parquet"
    for _ in flips(shard, 5):
        for _ in range(2):
            with pytest.raises(DamagedArtefact, match="train-00001.parquet is damaged"):
                stored(tmp_path)
    assert len(stored(tmp_path)) == 6


def test_damaged_rows_in_the_store_are_made_again(folder):
    expected = TokenLoader(stored(folder), tiny_text(), 0).batch(range(30))
    for file in (folder / "store").glob("*/*.bin"):
        file.write_bytes(file.read_bytes()[:-1])
    batch = TokenLoader(stored(folder), tiny_text(), 0).batch(range(30))
    assert all(a.equal(b) for a, b in zip(expected, batch, strict=True))


def test_too_little_space_is_reported_before_anything_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9 // 5))
    monkeypatch.setattr("thousandwords.data.token_shards.TEXT_BYTES_PER_ROW", 10**8)
    message = "the 30 rows of train .* do not fit in memory; unpacked they take 3.0 GB, but .*/store has 0.2 GB free. Make"
    with pytest.raises(UserError, match=message):
        open_token_rows(folder / "tokens", "train", None, Store(tmp_path / "store"), max_bytes_in_memory=1)


OPENING = """
import json, sys
from pathlib import Path
from thousandwords.data.sampler import epochs_and_rows
from thousandwords.core.row_store import RowStore
from thousandwords.data.token_shards import StoredTokenRows, TokenHeader

def memory_peak():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024

before = memory_peak()
rows = StoredTokenRows(TokenHeader("dvae", "0" * 64, 8192, (32,), 256), RowStore(Path(sys.argv[1])))
tokens = rows.tokens_of([row for _, row in epochs_and_rows(range(64), len(rows), 0)], [0] * 64)
print(json.dumps([len(rows), tokens.shape, memory_peak() - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_200_mb_of_rows_takes_no_memory_for_them(tmp_path):
    row, part = bytes(2048), 2000
    write_rows(tmp_path, ({"captions": [b'["a"]'] * part, "tokens": [row] * part} for _ in range(50)))
    command = [sys.executable, "-c", OPENING, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count, shape, grown = json.loads(ran.stdout)
    assert count == 100_000 and shape == [64, 1024] and grown < 10  # MB, at the peak


# --- prefetched batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 8])
def test_batches_are_the_same_for_any_number_of_workers(folder, workers):
    loader = TokenLoader(stored(folder), tiny_text(), seed=1, bpe_dropout=0.3)
    with Prefetcher(lambda step: loader.batch(positions(step, 7)), 20, workers) as batches:
        prefetched = [batches(step) for step in range(20)]
    for step, batch in enumerate(prefetched):
        assert all(a.equal(b) for a, b in zip(batch, loader.batch(positions(step, 7)), strict=True))


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 50),
    ranks=st.integers(1, 4),
    micro=st.integers(1, 3),
    length=st.integers(1, 3),
    workers=st.integers(0, 9),
    start=st.integers(0, 30),
)
def test_any_ranks_workers_and_starts_use_one_stream(count, ranks, micro, length, workers, start):
    batch_size, steps = ranks * micro * length, start + 4

    def rows_of(rank: int, step: int) -> list[tuple[int, int]]:
        parts = World(rank, ranks).micro_batches(positions(step, batch_size), micro)
        return [row for part in parts for row in epochs_and_rows(part, count, seed=0)]

    used = {}
    for rank in range(ranks):
        with Prefetcher(partial(rows_of, rank), steps, workers) as batches:
            for step in range(start, steps):  # like a run that resumes from a checkpoint
                used[step, rank] = batches(step)
    joined = [row for step in range(start, steps) for rank in range(ranks) for row in used[step, rank]]
    assert joined == epochs_and_rows(range(start * batch_size, steps * batch_size), count, seed=0)


def test_the_next_batches_are_computed_while_one_is_used():
    made = threading.Event()
    with Prefetcher(lambda step: made.set() if step == 1 else None, 5, 1) as batches:
        batches(0)
        assert made.wait(10)


def test_no_batch_is_computed_beyond_the_end_or_too_far_ahead():
    computed = []
    with Prefetcher(lambda step: computed.append(step) or step, 6, 2) as batches:
        assert batches(0) == 0
    assert set(computed) <= {0, 1, 2, 3, 4}
    with Prefetcher(lambda step: computed.append(step) or step, 6, 2) as batches:
        assert [batches(step) for step in range(6)] == list(range(6)) and batches(7) == 7
    assert sorted(set(computed)) == [0, 1, 2, 3, 4, 5, 7]


def test_an_error_is_raised_when_its_batch_is_requested():
    def batch_of(step: int) -> int:
        if step == 2:
            raise DamagedArtefact("row 5 is gone")
        return step

    with Prefetcher(batch_of, 10, 4) as batches:
        assert (batches(0), batches(1)) == (0, 1)
        for _ in range(2):
            with pytest.raises(DamagedArtefact, match="row 5 is gone"):
                batches(2)
        assert batches(3) == 3


def test_no_thread_is_left_after_an_exception():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Prefetcher(lambda step: time.sleep(0.01), 10**6, 4) as batches:
        batches(0)
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_workers_are_threads_beside_a_gpu_and_none_on_a_cpu():
    sizes = {"steps": 1, "batch_size": 1, "learning_rate": 0.1}
    config = TrainingConfig(**sizes)
    assert [config.num_loader_workers(device) for device in ("cpu", "cuda:1")] == [0, 2]
    assert TrainingConfig(**sizes, loader_workers=3).num_loader_workers("cpu") == 3
    with pytest.raises(ConfigError, match="training.loader_workers is -1; it needs to be 0 or more"):
        section({**sizes, "loader_workers": -1}, "training", TrainingConfig)


# --- images on disk ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """20 images of noise, with two captions each, in shards of 6."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(20):
        caption = f"Image {number}\nnumber {number} \u2605"
        write(folder / "own", {f"{number}.png": encoded(noise(20, 24, number)), f"{number}.txt": caption})
    settings = {"validation_share": 0.05, "min_side": 8, "keep": "whole", "rows_per_shard": 6}
    write_pairs(folder_config(folder / "own", **settings), 0, folder / "pairs")
    return folder


@pytest.mark.parametrize("augmentation", ["none", "paper"])
def test_images_from_disk_are_those_from_memory(images, augmentation):
    store = Store(images / "store", log=lambda sentence: None)
    in_memory = PairReader(images / "pairs", "train")
    on_disk = PairReader(images / "pairs", "train", store, max_bytes_in_memory=1)
    assert (images / "store").is_dir() and len(on_disk) == len(in_memory) > 12
    expected, loader = (ImageLoader(reader, 3, augmentation) for reader in (in_memory, on_disk))
    assert loader.batch(range(5, 50)).equal(expected.batch(range(5, 50)))
    assert loader.captions(range(5, 50)) == expected.captions(range(5, 50))
    keys = [[reader.key(row) for row in range(len(reader))] for reader in (in_memory, on_disk)]
    assert keys[0] == keys[1] and on_disk.image_size == 16
    assert (on_disk.fingerprint, on_disk.counts) == (in_memory.fingerprint, in_memory.counts)
