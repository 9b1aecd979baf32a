"""An artefact with a flipped bit, a cut, missing or moved file is rejected by name, twice; nothing of it is used."""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from flows.dvc.damage import dvc_digest
from scripts import verify_artifacts
from stages import rank_images
from tests.helpers.images import write
from tests.helpers.sources import scenes_config
from tests.helpers.tiny_models import HEADER, SIDE, flipped, rng, write_parts, write_shards
from thousandwords.core.files import sha256_of, write_bytes, write_json
from thousandwords.core.manifest import MANIFEST, DamagedArtefact, read_manifest, write_manifest
from thousandwords.core.model_files import read_model
from thousandwords.core.parquet import table_bytes
from thousandwords.data.images import encode_png
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.token_shards import read_token_rows
from thousandwords.inference.sample_shards import read_samples, sample_table, write_samples
from thousandwords.ingest import ingest
from thousandwords.text.bpe import load
from thousandwords.training import checkpoints
from thousandwords.training.checkpoints import Checkpoints

SHORTENED = ["pair shards", "token shards", "sample shards", "models", "checkpoints"]


@dataclass(frozen=True)
class Kind:
    """One kind of artefact: its folder, and the function that reads it."""

    folder: Path
    read: Callable[[], object]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Kind]:
    """Every kind of artefact, as the pipeline writes it."""
    root = tmp_path_factory.mktemp("kinds")
    pairs, tokens, samples, ranked = (
        root / name for name in ("data/pairs", "data/tokens", "results/samples", "results/ranked")
    )
    ingest.write_pairs(scenes_config(20, image_size=24, rows_per_shard=8), 0, pairs)
    write_shards(tokens, {"train": 10, "validation": 3})
    models = write_parts(root / "models")
    prompt = {"prompt_id": 0, "split": "own", "prompt": "a star", "seed": 0}
    images = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    rows = [prompt | {"candidate": number} for number in range(4)]
    table = sample_table(rows, torch.randint(12, (4, 16), generator=rng()), images)
    metadata = {"candidates": 4, "prompts": 1}
    write_samples(samples, [table], metadata | {"seed": 0}, {0: images[0]})
    scores = rank_images.score_table(np.ones((1, 4), np.float32))
    write_bytes(ranked / "scores.parquet", table_bytes(scores))
    write_manifest(ranked, {"scores.parquet": 4}, metadata)
    run = Checkpoints(root / ".ckpt/train_generator/run")
    for step in (10, 20):
        run.save(step, {"weight": torch.arange(300.0) + step}, {"history": [{"step": step}]})
    newest = run.folder / "step-00000020"
    return {
        "pair shards": Kind(pairs, lambda: PairReader(pairs, "train")),
        "token shards": Kind(tokens, lambda: read_token_rows(tokens, "train")),
        "sample shards": Kind(samples, lambda: read_samples(samples)),
        "scores": Kind(ranked, lambda: read_manifest(ranked)),
        "models": Kind(models["generator"], lambda: read_model(models["generator"])),
        "text tokenizer": Kind(models["text_tokenizer"], lambda: load(models["text_tokenizer"])),
        "checkpoints": Kind(newest, lambda: checkpoints._read_checkpoint(newest)),
    }


def rejected(kind: Kind, path: Path) -> str:
    """The error of a damaged artefact; the same the second time."""
    sentences = []
    for _ in range(2):
        with pytest.raises(DamagedArtefact) as caught:
            kind.read()
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1] and str(path) in sentences[0]
    return sentences[0]


@contextlib.contextmanager
def damaged(path: Path, damage: Callable[[bytes], bytes]) -> Iterator[None]:
    intact = path.read_bytes()
    path.write_bytes(damage(intact))
    yield
    path.write_bytes(intact)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["files", MANIFEST])
@pytest.mark.parametrize("name", [*SHORTENED, "scores", "text tokenizer"])
def test_no_flipped_bit_is_read(kinds, name, part, count):
    """One random bit of all the bits of an artefact's files, or of its manifest."""
    kind, random = kinds[name], np.random.default_rng(count)
    files = sorted(path for path in kind.folder.iterdir() if (path.name == MANIFEST) == (part == MANIFEST))
    sizes = np.array([path.stat().st_size for path in files])
    for _ in range(count):
        path = files[random.choice(len(files), p=sizes / sizes.sum())]
        with damaged(
            path, lambda data: flipped(data, int(random.integers(len(data))), int(random.integers(8)))
        ):
            rejected(kind, path)
    kind.read()


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SHORTENED)
def test_nothing_that_was_cut_short_is_read(kinds, name, count):
    kind, random = kinds[name], np.random.default_rng(count)
    files = sorted(path for path in kind.folder.iterdir())
    for number in range(count):
        path = files[number % len(files)]
        # the last byte of JSON is a line end
        with damaged(path, lambda data: data[: random.integers(len(data) - 1)]):
            rejected(kind, path)
    kind.read()


READERS = {"pair shards": PairReader, "token shards": read_token_rows}


def copy_of(kinds: dict[str, Kind], name: str, folder: Path) -> Kind:
    """A copy of shards that a test may damage."""
    shutil.copytree(kinds[name].folder, folder)
    return Kind(folder, lambda: READERS[name](folder, "train"))


@pytest.fixture
def tokens(kinds, tmp_path) -> Path:
    """10 rows of train in 3 shards, 3 of validation in one."""
    return copy_of(kinds, "token shards", tmp_path / "tokens").folder


@pytest.mark.parametrize("damage", ["swapped", "renamed", "missing", "doubled"])
@pytest.mark.parametrize("name", READERS)
def test_shards_that_were_moved_are_rejected(kinds, tmp_path, name, damage):
    kind = copy_of(kinds, name, folder := tmp_path / "damaged")
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
    rejected(kind, folder / "train-0000")


def test_an_extra_shard_is_not_read_and_is_reported(tokens, monkeypatch):
    monkeypatch.chdir(tokens.parent)  # where no other output is
    shutil.copy(tokens / "train-00000.parquet", tokens / "train-00003.parquet")
    assert len(read_token_rows(tokens, "train")) == 10
    intact, problems = verify_artifacts.verify((str(tokens),))
    assert not intact and problems == [
        f"{tokens}/train-00003.parquet is not named in {tokens}/manifest.json. Remove it, or run: make repair"
    ]


def rewrite(folder: Path, name: str, table: pa.Table, rows: int | None = None) -> None:
    """Replace a shard by another table, with a manifest that fits its bytes."""
    write_bytes(folder / name, table_bytes(table))
    manifest = json.loads((folder / MANIFEST).read_bytes())
    rows_of = {file: entry["rows"] for file, entry in manifest["files"].items()}
    write_manifest(folder, {**rows_of, name: table.num_rows if rows is None else rows}, manifest["facts"])


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("name", READERS)
def test_a_shard_without_rows_or_with_other_rows_than_counted_is_rejected(kinds, tmp_path, name, left):
    kind = copy_of(kinds, name, folder := tmp_path / "fewer")
    whole = pq.read_table(folder / "train-00001.parquet")
    rewrite(folder, "train-00001.parquet", whole.slice(0, left), whole.num_rows if left else 0)
    expected = whole.num_rows if left else "some"
    sentence = f"train-00001.parquet should have {expected} rows, found {left}. Run: dvc repro"
    assert sentence in rejected(kind, folder)


@pytest.mark.parametrize("change", ["column", "type", "nulls"])
def test_pair_shards_of_another_schema_are_rejected(kinds, tmp_path, change):
    kind = copy_of(kinds, "pair shards", folder := tmp_path / "other")
    table = pq.read_table(folder / "train-00000.parquet")
    if change == "column":
        table = table.drop_columns(["provenance"])
    elif change == "type":
        field = pa.field("key", pa.large_string(), nullable=False)
        table = table.set_column(0, field, table["key"].cast(field.type))
    else:
        table = table.set_column(0, "key", pa.array([None] * table.num_rows, pa.string()))
    rewrite(folder, "train-00000.parquet", table)
    message = "train-00000.parquet has columns .*, not those of a pair shard. Run: dvc repro prepare_pairs"
    assert re.search(message, rejected(kind, folder))


def test_a_shard_of_another_tokenizer_among_the_others_is_rejected(tokens, tmp_path):
    """Both are intact and have the same shape and vocabulary; only the manifest shows it."""
    write_shards(tmp_path / "other", {"train": 20}, replace(HEADER, tokenizer_fingerprint="a210" * 16))
    shutil.copy(tmp_path / "other/train-00004.parquet", tokens / "train-00001.parquet")
    rejected(Kind(tokens, lambda: read_token_rows(tokens, "train", HEADER.tokenizer_fingerprint)), tokens)


def test_verify_finds_a_flipped_bit_in_every_artefact(kinds, tmp_path, monkeypatch):
    """Every file under data, models, results and .ckpt, including those without a manifest."""
    project = tmp_path / "project"
    shutil.copytree(kinds["models"].folder.parent.parent, project)
    monkeypatch.chdir(project)
    write_json(Path("results/metrics.json"), {"n": 1})
    for name in ("loss.png", "deeper/codebook.png"):
        write_bytes(Path("results/plots") / name, encode_png(np.zeros((4, 4, 3), np.uint8)))
    digests = {"results/metrics.json": dvc_digest(Path("results/metrics.json"))}
    digests["results/plots"] = dvc_digest(Path("results/plots"))
    digests |= {"data/pairs": "not looked at", "results/absent": "not here"}
    outs = [{"path": path, "md5": digest} for path, digest in digests.items()]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"evaluate": {"outs": outs}}}))
    assert verify_artifacts.verify()[1] == []

    roots = ("data", "models", "results", ".ckpt")
    files = [path for root in roots for path in Path(root).rglob("*") if path.is_file()]
    assert len(files) > 25
    for path in files:
        with damaged(path, lambda data: flipped(data, len(data) // 2)):
            (problem,) = verify_artifacts.verify()[1]
        assert ("results/plots" if "plots" in path.parts else str(path)) in problem
    assert verify_artifacts.verify()[1] == []


def test_the_digest_of_a_folder_is_the_one_that_dvc_gives_it(tmp_path):
    write(tmp_path / "plots", {"b.txt": "second\n", "a.txt": "first\n", "deeper/c.txt": ""})
    # `dvc add` of such a folder, DVC 3.67.1
    assert dvc_digest(tmp_path / "plots") == "c0e06db9cb66661accbea82b868347aa.dir"


def test_hashing_is_fast(tmp_path):
    """The bar is 1 GB/s per core on an idle machine; a quarter of that here, as the machine may be busy."""
    (tmp_path / "large").write_bytes(bytes(64 << 20))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        sha256_of(tmp_path / "large")
        seconds.append(time.process_time() - start)
    assert (64 << 20) / min(seconds) > 2.5e8
