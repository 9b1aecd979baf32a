"""An artefact that lost a bit, its end, a file or its place is refused, twice, by name; nothing else is ever read of it."""
from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from stages import _verify, rank_images
from tests.tiny import HEADER, SIDE, flipped, rng, write_parts, write_shards
from thousandwords import checkpoints, pair_settings, pairs, text
from thousandwords.checkpoints import Checkpoints, read_model
from thousandwords.files import (
    MANIFEST,
    DamagedArtefact,
    read_manifest,
    sha256_of,
    write_bytes,
    write_json,
    write_manifest,
)
from thousandwords.images import encode_png
from thousandwords.pair_shards import PairReader
from thousandwords.samples import read_samples, sample_table, write_samples
from thousandwords.shards import read_token_rows
from thousandwords.tables import table_bytes


@dataclass(frozen=True)
class Kind:
    """One kind of artefact: where it is, and how it is read; `read` raises DamagedArtefact, and never gives anything wrong."""

    folder: Path
    read: Callable[[], object]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Kind]:
    """Every kind of artefact there is, as the pipeline leaves it."""
    folder = tmp_path_factory.mktemp("kinds")
    scenes = pairs.Config(source="scenes", image_size=24, rows_per_shard=8,
                          scenes=pair_settings.SceneCounts(count=20, validation_count=4, unseen_count=4))  # fmt: skip
    pairs.write_pairs(scenes, 0, folder / "data/pairs")
    write_shards(folder / "data/tokens", {"train": 10, "validation": 3})
    models = write_parts(folder / "models")
    prompts = [{"prompt_id": 0, "split": "own", "prompt": "a star", "candidate": one, "seed": 0} for one in range(4)]
    pictures = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    table = sample_table(prompts, torch.randint(12, (4, 16), generator=rng()), pictures)
    write_samples(folder / "results/samples", [table], {"candidates": 4, "prompts": 1, "seed": 0}, {0: pictures[0]})
    write_bytes(folder / "results/ranked/scores.parquet", table_bytes(rank_images.score_table(np.ones((1, 4), np.float32))))
    write_manifest(folder / "results/ranked", {"scores.parquet": 4}, {"candidates": 4, "prompts": 1})
    run = Checkpoints(folder / ".ckpt/train_generator/run")
    for step in (10, 20):
        run.save(step, {"weight": torch.arange(300.0) + step}, {"history": [{"step": step}]})
    return {
        "pair shards": Kind(folder / "data/pairs", lambda: PairReader(folder / "data/pairs", "train")),
        "token shards": Kind(folder / "data/tokens", lambda: read_token_rows(folder / "data/tokens", "train")),
        "sample shards": Kind(folder / "results/samples", lambda: read_samples(folder / "results/samples")),
        "scores": Kind(folder / "results/ranked", lambda: read_manifest(folder / "results/ranked")),
        "models": Kind(models["generator"], lambda: read_model(models["generator"])),
        "words": Kind(models["text_tokenizer"], lambda: text.load(models["text_tokenizer"])),
        "checkpoints": Kind(run.folder / "step-00000020", lambda: checkpoints._read_checkpoint(run.folder / "step-00000020")),
    }


def refused(kind: Kind, path: Path) -> str:
    """The sentence with which a damaged artefact is refused; the same the second time."""
    sentences = []
    for _ in range(2):
        with pytest.raises(DamagedArtefact) as caught:
            kind.read()
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1] and str(path) in sentences[0]
    return sentences[0]


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["files", MANIFEST])
@pytest.mark.parametrize("name", ["pair shards", "token shards", "sample shards", "scores", "models", "words", "checkpoints"])
def test_no_flipped_bit_is_read(kinds, name, part, count):
    """One random bit of all the bits of an artefact's files, or of its manifest: refused by the file's name, twice."""
    kind, random = kinds[name], np.random.default_rng(count)
    files = sorted(path for path in kind.folder.iterdir() if (path.name == MANIFEST) == (part == MANIFEST))
    sizes = np.array([path.stat().st_size for path in files])
    for _ in range(count):
        path = files[random.choice(len(files), p=sizes / sizes.sum())]
        sound = path.read_bytes()
        path.write_bytes(flipped(sound, int(random.integers(len(sound))), int(random.integers(8))))
        refused(kind, path)
        path.write_bytes(sound)
    kind.read()


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["pair shards", "token shards", "sample shards", "models", "checkpoints"])
def test_nothing_that_was_cut_short_is_read(kinds, name, count):
    kind, random = kinds[name], np.random.default_rng(count)
    files = sorted(path for path in kind.folder.iterdir())
    for number in range(count):
        path = files[number % len(files)]
        sound = path.read_bytes()
        path.write_bytes(sound[: random.integers(len(sound) - 1)])  # the last byte of JSON is a line end
        refused(kind, path)
        path.write_bytes(sound)
    kind.read()


def test_a_damaged_checkpoint_is_passed_over_with_file_expected_and_found(kinds):
    run = Checkpoints(kinds["checkpoints"].folder.parent)
    path = kinds["checkpoints"].folder / "tensors.safetensors"
    sound, wanted = path.read_bytes(), sha256_of(path)
    path.write_bytes(flipped(sound, 200))
    with pytest.warns(UserWarning) as told:
        assert run.newest().step == 10
    assert str(told[0].message) == (
        f"passing over a damaged checkpoint: {path} is damaged: sha256 should be {wanted}, found {sha256_of(path)}. "
        "Run: nothing: an older checkpoint is used"
    )
    path.write_bytes(sound)


@pytest.fixture
def tokens(tmp_path) -> Path:
    """10 rows of train in 3 shards, 3 of validation in one."""
    write_shards(tmp_path / "tokens", {"train": 10, "validation": 3})
    return tmp_path / "tokens"


@pytest.mark.parametrize("damage", ["swapped", "renamed", "missing", "doubled"])
@pytest.mark.parametrize("name", ["pair shards", "token shards"])
def test_shards_that_are_not_where_they_were_are_refused(kinds, tmp_path, name, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(kinds[name].folder, folder)
    first, second = folder / "train-00000.parquet", folder / "train-00001.parquet"
    if damage == "swapped":
        first.rename(folder / "between")
        second.rename(first)
        (folder / "between").rename(second)
    elif damage == "renamed":
        second.rename(folder / "train-00009.parquet")
    elif damage == "missing":
        second.unlink()
    else:
        shutil.copy(first, second)
    read = {"pair shards": lambda: PairReader(folder, "train"), "token shards": lambda: read_token_rows(folder, "train")}
    refused(Kind(folder, read[name]), folder / "train-0000")


def test_a_shard_too_many_is_not_read_and_is_told_of(tokens):
    shutil.copy(tokens / "train-00000.parquet", tokens / "train-00003.parquet")
    assert len(read_token_rows(tokens, "train")) == 10
    whole, complaints = _verify.verify((str(tokens),), tokens / "no lock")
    assert not whole and complaints == [
        f"{tokens}/train-00003.parquet is not named in {tokens}/manifest.json. Remove it, or run: dvc checkout, or dvc repro"
    ]


def rewrite(folder: Path, name: str, table: pa.Table, rows: int | None = None) -> None:
    """Puts another table in place of a shard, with a manifest that vouches for its bytes."""
    write_bytes(folder / name, table_bytes(table))
    manifest = json.loads((folder / MANIFEST).read_bytes())
    counted = {file: entry["rows"] for file, entry in manifest["files"].items()}
    write_manifest(folder, {**counted, name: table.num_rows if rows is None else rows}, manifest["facts"])


@pytest.mark.parametrize("name", ["pair shards", "token shards"])
def test_a_shard_without_rows_is_refused(kinds, tmp_path, name):
    folder = tmp_path / "empty"
    shutil.copytree(kinds[name].folder, folder)
    rewrite(folder, "train-00001.parquet", pq.read_table(folder / "train-00001.parquet").slice(0, 0))
    read = {"pair shards": lambda: PairReader(folder, "train"), "token shards": lambda: read_token_rows(folder, "train")}
    assert "train-00001.parquet should have some rows, found 0. Run: dvc repro" in refused(Kind(folder, read[name]), folder)


@pytest.mark.parametrize("name", ["pair shards", "token shards"])
def test_a_shard_with_other_rows_than_its_manifest_counts_is_refused(kinds, tmp_path, name):
    folder = tmp_path / "fewer"
    shutil.copytree(kinds[name].folder, folder)
    whole = pq.read_table(folder / "train-00001.parquet")
    rewrite(folder, "train-00001.parquet", whole.slice(0, whole.num_rows - 1), whole.num_rows)
    read = {"pair shards": lambda: PairReader(folder, "train"), "token shards": lambda: read_token_rows(folder, "train")}
    sentence = refused(Kind(folder, read[name]), folder)
    assert f"train-00001.parquet should have {whole.num_rows} rows, found {whole.num_rows - 1}" in sentence


@pytest.mark.parametrize("change", ["column", "type", "nulls"])
def test_pair_shards_of_another_schema_are_refused(kinds, tmp_path, change):
    folder = tmp_path / "other"
    shutil.copytree(kinds["pair shards"].folder, folder)
    table = pq.read_table(folder / "train-00000.parquet")
    if change == "column":
        table = table.drop_columns(["provenance"])
    elif change == "type":
        table = table.set_column(0, pa.field("key", pa.large_string(), nullable=False), table["key"].cast(pa.large_string()))
    else:
        table = table.set_column(0, "key", pa.array([None] * table.num_rows, pa.string()))
    rewrite(folder, "train-00000.parquet", table)
    sentence = refused(Kind(folder, lambda: PairReader(folder, "train")), folder)
    assert re.search("train-00000.parquet has columns .*, not a pair shard's. Run: dvc repro prepare_pairs", sentence)


def test_a_shard_of_another_tokenizer_among_the_others_is_refused(tokens, tmp_path):
    """Both are whole, in shape and in vocabulary; only the manifest knows that one does not belong."""
    write_shards(tmp_path / "other", {"train": 20}, replace(HEADER, tokenizer_fingerprint="a210" * 16))
    shutil.copy(tmp_path / "other/train-00004.parquet", tokens / "train-00001.parquet")
    refused(Kind(tokens, lambda: read_token_rows(tokens, "train", HEADER.tokenizer_fingerprint)), tokens)


def test_verify_finds_a_flipped_bit_in_everything_that_is_made(kinds, tmp_path, monkeypatch):
    """Every single file under data, models, results and .ckpt, those without a manifest among them."""
    project = tmp_path / "project"
    shutil.copytree(kinds["models"].folder.parent.parent, project)
    monkeypatch.chdir(project)
    write_json(Path("results/metrics.json"), {"n": 1})
    for name in ("loss.png", "deeper/words.png"):
        write_bytes(Path("results/plots") / name, encode_png(np.zeros((4, 4, 3), np.uint8)))
    outs = [{"path": path, "md5": digest} for path, digest in (
        ("results/metrics.json", "2f20a6f0a0b26e0ebb40cbdb9bd4ad2b"), ("results/plots", ""), ("data/pairs", "not looked at"),
        ("results/absent", "not here"))]  # fmt: skip
    outs[0]["md5"], outs[1]["md5"] = _verify._md5(b'{\n  "n": 1\n}\n'), _verify._digest_of_folder(Path("results/plots"))
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"evaluate": {"outs": outs}}}))
    assert _verify.verify()[1] == []

    made = [path for root in ("data", "models", "results", ".ckpt") for path in Path(root).rglob("*") if path.is_file()]
    assert len(made) > 25
    for path in made:
        sound = path.read_bytes()
        path.write_bytes(flipped(sound, len(sound) // 2))
        complaints = _verify.verify()[1]
        assert len(complaints) == 1 and str(path if "plots" not in path.parts else "results/plots") in complaints[0]
        path.write_bytes(sound)
    assert _verify.verify()[1] == []


def test_the_digest_of_a_folder_is_the_one_that_dvc_gives_it(tmp_path):
    (tmp_path / "plots/deeper").mkdir(parents=True)
    (tmp_path / "plots/b.txt").write_bytes(b"second\n")
    (tmp_path / "plots/a.txt").write_bytes(b"first\n")
    (tmp_path / "plots/deeper/c.txt").write_bytes(b"")
    assert _verify._digest_of_folder(tmp_path / "plots") == DVC_DIGEST


DVC_DIGEST = "c0e06db9cb66661accbea82b868347aa.dir"  # `dvc add` of such a folder, DVC 3.67.1


def test_hashing_is_fast(tmp_path):
    """The bar is 1 GB/s a core on an idle machine; a quarter of that here, since others may be at work."""
    (tmp_path / "large").write_bytes(bytes(64 << 20))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        sha256_of(tmp_path / "large")
        seconds.append(time.process_time() - start)
    assert (64 << 20) / min(seconds) > 2.5e8
