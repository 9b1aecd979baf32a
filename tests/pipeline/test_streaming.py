"""A loader that never waits and never lies: rows stay on disk, batches are made ahead, and nobody can tell from the batches."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import HEADER, flips, tiny_text, write_shards
from thousandwords import pairs, training
from thousandwords.config import ConfigError, section
from thousandwords.distributed import World
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact
from thousandwords.images import encode_png
from thousandwords.loader import Ahead, ImageLoader, TokenLoader, places, positions
from thousandwords.pair_shards import PairReader
from thousandwords.rows import write_rows
from thousandwords.shards import (
    StoredTokenRows,
    TokenRows,
    WrongTokenizer,
    all_captions,
    open_token_rows,
    read_token_rows,
)
from thousandwords.store import Store

TWO_VIEWS = replace(HEADER, views=2)
ROOT = Path(__file__).parent.parent


def stored(folder: Path, split: str = "train") -> StoredTokenRows | TokenRows:
    """The rows as training opens them when memory holds next to nothing."""
    return open_token_rows(folder / "tokens", split, None, Store(folder / "store", tell=lambda sentence: None), most_in_memory=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """30 rows of two views and two captions, in 8 shards."""
    folder = tmp_path_factory.mktemp("streaming")
    write_shards(folder / "tokens", {"train": 30, "validation": 9}, TWO_VIEWS)
    return folder


# --- rows on disk ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 200), length=st.integers(1, 40), seed=st.integers(0, 99), dropout=st.sampled_from([0.0, 0.4]))
def test_batches_from_disk_are_those_from_memory(folder, start, length, seed, dropout):
    inside, outside = read_token_rows(folder / "tokens", "train"), stored(folder)
    assert isinstance(inside, TokenRows) and isinstance(outside, StoredTokenRows)

    wanted, found = (
        TokenLoader(rows, tiny_text(), seed, dropout).batch(range(start, start + length)) for rows in (inside, outside)
    )

    assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(wanted, found, strict=True))


def test_captions_come_in_order_from_disk_as_from_memory(folder):
    inside, outside = read_token_rows(folder / "tokens", "train"), stored(folder)
    assert list(all_captions(outside)) == list(all_captions(inside)) and len(outside) == len(inside) == 30


def test_few_rows_stay_in_memory_and_nothing_is_stored(folder, tmp_path):
    rows = open_token_rows(folder / "tokens", "train", None, Store(tmp_path / "store"))
    assert isinstance(rows, TokenRows) and not (tmp_path / "store").exists()


def test_no_more_shards_are_read_than_are_looked_at(folder):
    assert len(read_token_rows(folder / "tokens", "validation", first=4)) == 4  # one shard
    assert len(read_token_rows(folder / "tokens", "validation", first=5)) == 8
    assert len(read_token_rows(folder / "tokens", "validation", first=500)) == 9


def test_rows_are_stored_once_and_again_when_the_shards_have_changed(tmp_path):
    told = []
    store = Store(tmp_path / "store", kept_runs=2, tell=told.append)
    for rows in (6, 6, 7):
        write_shards(tmp_path / "tokens", {"train": rows})
        assert len(open_token_rows(tmp_path / "tokens", "train", None, store, most_in_memory=1)) == rows
    assert [sentence.partition(" rows")[0] for sentence in told] == ["store: the 6", "store: the 7"]


def test_damage_is_refused_when_rows_are_stored_each_time_anew(tmp_path):
    write_shards(tmp_path / "tokens", {"train": 6})
    shard = tmp_path / "tokens" / "train-00001.parquet"
    for _ in flips(shard, 5):
        for _ in range(2):
            with pytest.raises(DamagedArtefact, match="train-00001.parquet is damaged"):
                stored(tmp_path)
    assert len(stored(tmp_path)) == 6


def test_damaged_rows_in_the_store_are_made_again(folder):
    wanted = TokenLoader(stored(folder), tiny_text(), 0).batch(range(30))
    for file in (folder / "store").glob("*/*.bin"):
        file.write_bytes(file.read_bytes()[:-1])
    found = TokenLoader(stored(folder), tiny_text(), 0).batch(range(30))
    assert all(a.equal(b) for a, b in zip(wanted, found, strict=True))


def test_rows_of_another_tokenizer_are_refused_before_any_work(folder, tmp_path):
    with pytest.raises(WrongTokenizer, match="was written by image tokenizer 'dvae'"):
        open_token_rows(folder / "tokens", "train", "a210" * 16, Store(tmp_path), most_in_memory=1)


def test_too_little_room_is_told_before_anything_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9 // 5})())
    monkeypatch.setattr("thousandwords.shards.BYTES_OF_TEXT", 10**8)
    with pytest.raises(UserError) as caught:
        open_token_rows(folder / "tokens", "train", None, Store(tmp_path / "store"), most_in_memory=1)
    assert str(caught.value) == (
        f"the 30 rows of train in {folder}/tokens are more than fits memory; unpacked they take 3.0 GB, but {tmp_path}/store "
        "has 0.2 GB free. Make room there"
    )


OPENING = """
import json, sys
from pathlib import Path
from thousandwords.loader import places
from thousandwords.rows import Rows
from thousandwords.shards import StoredTokenRows, TokenHeader

def held():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024

before = held()
rows = StoredTokenRows(TokenHeader("dvae", "0" * 64, 8192, (32,), 256), Rows(Path(sys.argv[1])))
words = rows.tokens_of([row for _, row in places(range(64), len(rows), 0)], [0] * 64)
print(json.dumps([len(rows), words.shape, held() - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_200_mb_of_rows_takes_no_memory_for_them(tmp_path):
    row, part = bytes(2048), 2000
    write_rows(tmp_path, ({"captions": [b'["a"]'] * part, "tokens": [row] * part} for _ in range(50)))

    ran = subprocess.run([sys.executable, "-c", OPENING, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)

    count, shape, grown = json.loads(ran.stdout)
    assert count == 100_000 and shape == [64, 1024] and grown < 10  # MB, at the peak


# --- batches made ahead ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
def test_batches_are_the_same_for_any_number_of_workers(folder, workers):
    loader = TokenLoader(stored(folder), tiny_text(), seed=1, bpe_dropout=0.3)

    with Ahead(lambda step: loader.batch(positions(step, 7)), 20, workers) as batches:
        found = [batches(step) for step in range(20)]

    for step, batch in enumerate(found):
        assert all(a.equal(b) for a, b in zip(batch, loader.batch(positions(step, 7)), strict=True))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 50), ranks=st.integers(1, 4), micro=st.integers(1, 3), length=st.integers(1, 3),
       workers=st.integers(0, 9), start=st.integers(0, 30), seed=st.integers(0, 2**32))  # fmt: skip
def test_any_ranks_workers_and_starts_see_one_stream(count, ranks, micro, length, workers, start, seed):
    batch_size, steps = ranks * micro * length, start + 4
    stream = places(range(steps * batch_size), count, seed)

    seen = {}
    for rank in range(ranks):
        shares = World(rank, ranks).shares
        parts_of = lambda step, shares=shares: [  # noqa: E731
            places(share, count, seed) for share in shares(positions(step, batch_size), micro)
        ]
        with Ahead(parts_of, steps, workers) as parts:
            for step in range(start, steps):  # as a run that goes on from a checkpoint
                seen[step, rank] = [place for part in parts(step) for place in part]

    laid = [place for step in range(start, steps) for rank in range(ranks) for place in seen[step, rank]]
    assert laid == stream[start * batch_size :]
    whole = steps * batch_size // count
    for epoch in range(whole):
        assert sorted(row for _, row in stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_more_workers_than_rows_and_shards_are_fine(tmp_path):
    write_shards(tmp_path / "tokens", {"train": 1})
    loader = TokenLoader(stored(tmp_path), tiny_text(), seed=0)
    with Ahead(lambda step: loader.batch(positions(step, 2)), 3, 8) as batches:
        assert [batches(step)[1].shape for step in range(3)] == [(2, 16)] * 3


def test_the_next_batches_are_made_while_one_is_used():
    made = threading.Event()
    with Ahead(lambda step: made.set() if step == 1 else None, 5, 1) as batches:
        batches(0)
        assert made.wait(10)


def test_no_batch_is_made_beyond_the_end_or_too_far_ahead():
    asked = []
    with Ahead(lambda step: asked.append(step) or step, 6, 2) as batches:
        assert batches(0) == 0
    assert set(asked) <= {0, 1, 2, 3, 4}
    with Ahead(lambda step: asked.append(step) or step, 6, 2) as batches:
        assert [batches(step) for step in range(6)] == list(range(6)) and batches(7) == 7
    assert sorted(set(asked)) == [0, 1, 2, 3, 4, 5, 7]


def test_an_error_is_raised_where_its_batch_is_asked_for():
    def batch_of(step: int) -> int:
        if step == 2:
            raise DamagedArtefact("row 5 is gone")
        return step

    with Ahead(batch_of, 10, 4) as batches:
        assert (batches(0), batches(1)) == (0, 1)
        for _ in range(2):
            with pytest.raises(DamagedArtefact, match="row 5 is gone"):
                batches(2)
        assert batches(3) == 3


def test_leaving_in_mid_run_leaves_no_thread_behind():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Ahead(lambda step: time.sleep(0.01), 10**6, 4) as batches:
        batches(0)
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_batches_may_be_asked_for_in_any_order():
    with Ahead(lambda step: step * step, 100, 3) as batches:
        assert [batches(step) for step in (5, 6, 90, 0, 99, 1)] == [25, 36, 8100, 0, 9801, 1]


def test_workers_are_threads_beside_a_gpu_and_none_on_a_cpu():
    config = training.Config(steps=1, batch_size=1, learning_rate=0.1)
    assert (config.loader_workers, config.workers_on("cpu"), config.workers_on("cuda:1")) == ("auto", 0, 2)
    assert training.Config(steps=1, batch_size=1, learning_rate=0.1, loader_workers=3).workers_on("cpu") == 3
    with pytest.raises(ConfigError, match="training.loader_workers is -1; it needs to be 0 or more"):
        section({"steps": 1, "batch_size": 1, "learning_rate": 0.1, "loader_workers": -1}, "training", training.Config)


def test_an_order_of_many_rows_is_that_of_numpy_and_is_made_once():
    """Nothing of how it is kept may show in it: weights would not be the same any more."""
    order = np.random.default_rng([7, 1, 100_000]).permutation(100_000)
    assert places(range(100_000, 100_050), 100_000, 7) == [(1, row) for row in order[:50].tolist()]
    assert all(type(row) is int for _, row in places(range(3), 100_000, 7))


def test_a_training_with_workers_is_the_training_without(folder):
    weights = []
    for workers in (0, 3):
        torch.manual_seed(0)
        model = torch.nn.Linear(16, 1)
        rows = TokenLoader(stored(folder), tiny_text(), seed=0)
        config = training.Config(steps=12, batch_size=4, learning_rate=0.1, loader_workers=workers)
        with Ahead(lambda step, rows=rows: [rows.batch(positions(step, 4))[1].float()], 12, config.workers_on("cpu")) as batches:
            training.fit(model, config, batches_of=batches, loss_of=mean_square, seed=0)
        weights.append(model.weight.detach().clone())
    assert weights[0].equal(weights[1])


def mean_square(model: torch.nn.Module, batch: torch.Tensor, step: int, rng: torch.Generator):
    return model(batch).square().mean(), {}




# --- pictures on disk ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """20 pictures of noise, with two captions each, in shards of 6."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "own").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        (folder / "own" / f"{number}.png").write_bytes(encode_png(pixels))
        (folder / "own" / f"{number}.txt").write_text(f"Picture {number}\nnumber {number} \u2605", encoding="utf-8")
    config = pairs.Config(source="folder", path=str(folder / "own"), image_size=16, min_side=8, keep="whole", rows_per_shard=6)
    pairs.write_pairs(config, 0, folder / "pairs")
    return folder


@pytest.mark.parametrize("augmentation", ["none", "paper"])
def test_pictures_from_disk_are_those_from_memory(pictures, augmentation):
    store = Store(pictures / "store", tell=lambda sentence: None)
    inside = PairReader(pictures / "pairs", "train")
    outside = PairReader(pictures / "pairs", "train", store, most_in_memory=1)
    assert (pictures / "store").is_dir() and len(outside) == len(inside) > 12

    wanted, found = (ImageLoader(reader, seed=3, augmentation=augmentation) for reader in (inside, outside))

    assert found.batch(range(5, 50)).equal(wanted.batch(range(5, 50)))
    assert found.captions(range(5, 50)) == wanted.captions(range(5, 50))
    assert [outside.key(row) for row in range(len(inside))] == [inside.key(row) for row in range(len(inside))]
    assert (outside.fingerprint, outside.counts, outside.image_size) == (inside.fingerprint, inside.counts, 16)


def test_few_pictures_stay_in_memory(pictures, tmp_path):
    PairReader(pictures / "pairs", "train", Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_damaged_pictures_are_not_taken_into_the_store(pictures, tmp_path):
    shutil.copytree(pictures / "pairs", tmp_path / "pairs")
    next(flips(tmp_path / "pairs" / "train-00001.parquet", 2))
    for _ in range(2):
        with pytest.raises(DamagedArtefact, match="train-00001.parquet is damaged"):
            PairReader(tmp_path / "pairs", "train", Store(tmp_path / "store", tell=print), most_in_memory=1)
