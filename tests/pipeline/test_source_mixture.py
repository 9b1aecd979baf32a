"""Mixtures of sources, provenance of rows, and second captions."""

import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stages import sample_images, tokenize_pairs, train_generator, train_image_tokenizer, train_scorer
from tests.helpers.images import png, write, write_tar
from tests.helpers.tiny_models import SIDE, tiny, tiny_text
from tests.pipeline.test_data_stages import CLIP, DVAE, TRANSFORMER, stage
from thousandwords import components
from thousandwords.core.cache import Store
from thousandwords.core.config import section
from thousandwords.core.errors import InvalidInput
from thousandwords.core.files import unit_hash
from thousandwords.core.manifest import read_manifest
from thousandwords.data.images import to_float
from thousandwords.data.loader import ImageLoader, TokenLoader
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.sampler import Mixture, epochs_and_rows, first_rows
from thousandwords.data.token_shards import open_token_rows
from thousandwords.evaluation.evaluate_run import ChosenPairs
from thousandwords.inference.config import PromptsConfig
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.counts import BadData
from thousandwords.ingest.ingest import check_source, open_source, write_pairs
from thousandwords.ingest.prepare import select_captions
from thousandwords.ingest.records import QUARANTINE
from thousandwords.ingest.sources.base import RawPair, SourceError
from thousandwords.text.bpe import save as save_text

LOOSE = {"image_size": 16, "validation_share": 0.3, "max_refused_share": 0.9}


def config(**settings: object) -> DataConfig:
    return section({**LOOSE, **settings}, "data", DataConfig)


def rows_of(folder: Path) -> dict[str, dict]:
    """{key: row} of every pair shard."""
    shards = [pq.read_table(path).to_pylist() for path in folder.glob("*.parquet") if path.name != QUARANTINE]
    return {row["key"]: row for rows in shards for row in rows}


@pytest.fixture
def own(tmp_path) -> Path:
    """Two folders with the same names in them, and a table."""
    for number, name in enumerate(("photos", "drawings")):
        for index in range(8):
            files = {f"{index}.png": png(10 * number + index), f"{index}.txt": f"{name} {index}"}
            write(tmp_path / name, files)
    write(tmp_path / "table", {"a.png": png(50), "t.tsv": "file\ttext\na.png\ta table\n"})
    return tmp_path


def mixture(own: Path) -> list[dict]:
    columns = {"image_column": "file", "caption_column": "text"}
    return [
        {"source": "folder", "path": f"{own}/photos", "licence": "CC0-1.0", "origin": "https://example.org"},
        {"source": "folder", "path": f"{own}/drawings"},
        {"source": "csv", "path": f"{own}/table/t.tsv", **columns, "licence": "MIT"},
    ]


def more_photos(own: Path) -> None:
    for index in range(8, 40):
        write(own / "photos", {f"{index}.png": png(100 + index), f"{index}.txt": f"photos {index}"})


def write_weighted_pairs(own: Path, weights: tuple[int, ...], **settings: object) -> Path:
    """Pairs of the first sources with these weights."""
    sources = [{**part, "weight": weight} for part, weight in zip(mixture(own), weights, strict=False)]
    write_pairs(config(source="mixture", sources=sources, **settings), 0, own / "pairs")
    return own / "pairs"


# ---- mixtures


def test_a_mixture_has_each_input_of_each_source_once_with_its_provenance(own):
    settings = config(source="mixture", sources=mixture(own))
    counts = write_pairs(settings, 0, own / "pairs")

    rows = rows_of(own / "pairs")
    assert counts["n_in"] == counts["n_ok"] == check_source(settings) == len(rows) == 17
    assert rows["0/3.png"]["captions"] == ["photos 3"] and rows["1/3.png"]["captions"] == ["drawings 3"]
    assert {key: json.loads(rows[key]["provenance"]) for key in ("0/3.png", "1/3.png", "2/a.png")} == {
        "0/3.png": {"at": "photos/3.png", "source": 0, "licence": "CC0-1.0", "origin": "https://example.org"},
        "1/3.png": {"at": "drawings/3.png", "source": 1},
        "2/a.png": {"at": "t.tsv/a.png", "source": 2, "licence": "MIT"},
    }
    sources = read_manifest(own / "pairs")["facts"]["settings"]["sources"]
    assert [source["path"] for source in sources] == [source["path"] for source in mixture(own)]
    without_weights = PairReader(own / "pairs", "train").mixture  # in an epoch each row comes once
    assert without_weights.weights == without_weights.rows and sum(without_weights.rows) > 8


def test_weights_set_how_often_training_uses_a_source_while_each_input_is_stored_once(own):
    more_photos(own)
    reader = PairReader(write_weighted_pairs(own, (1, 2, 1)), "train")
    keys = [reader.key(row) for row in range(len(reader))]
    counted = [sum(key.startswith(f"{number}/") for key in keys) for number in range(3)]
    assert reader.mixture == Mixture(tuple(counted), (1.0, 2.0, 1.0))
    captions = ImageLoader(reader, seed=0).captions(range(3 * len(reader)))
    uses = Counter(caption.split()[0] for caption in captions)
    present = 4 if counted[2] else 3
    assert uses["drawings"] / len(captions) == pytest.approx(2 / present, abs=0.05)
    each = uses["drawings"] // counted[1]
    assert set(Counter(caption for caption in captions if "drawings" in caption).values()) <= {each, each + 1}


@pytest.mark.parametrize(
    ("count", "mixture", "repeat", "expected"),
    [
        (4, Mixture((6, 3), (1, 1)), False, [0, 6, 1, 7]),
        (8, Mixture((6, 3), (1, 1)), False, [0, 6, 1, 7, 2, 8, 3]),
        (6, Mixture((8, 1), (1, 1)), False, [0, 8, 1, 2]),
        (6, Mixture((8, 1), (1, 1)), True, [0, 8, 1, 8, 2, 8]),  # half of a figure is of the one new image
        (2, Mixture((0, 9), (1, 1)), False, [0, 1]),
        (4, None, False, [0, 1, 2, 3]),
        (10, None, False, [*range(9)]),
    ],
)
def test_the_first_rows_of_a_mixture_are_of_each_source_by_its_weight(count, mixture, repeat, expected):
    assert first_rows(count, 9, mixture, repeat) == expected


def test_held_out_prompts_and_evaluated_pairs_are_of_each_source_by_its_weight(own):
    """Else they are all of the first source, and a training that goes on with a second one keeps its first weights."""
    more_photos(own)
    pairs = write_weighted_pairs(own, (1, 1), validation_share=0.5)
    prompts = sample_images.choose_prompts(pairs, PromptsConfig(prompts_per_split=4))
    assert [prompt.split()[0] for _, prompt in prompts] == ["photos", "drawings"] * 2
    for split in ("train", "validation"):  # what an evaluation compares with, by place and not by row
        chosen, reader = ChosenPairs(PairReader(pairs, split), 4), PairReader(pairs, split)
        words = [chosen.caption(place).split()[0] for place in range(len(chosen))]
        assert words == ["photos", "drawings"] * 2
        assert np.array_equal(chosen.images([1]), chosen.images(range(4))[1:2])
        assert not np.array_equal(chosen.images([1]), reader.images([1]))


class LookedAt(Exception):
    """What a training stage looks at while it trains: captions, or images."""


class Recorder:
    """A model that only raises what it is evaluated on."""

    max_batch_size = 8

    def encode(self, images: torch.Tensor) -> None:
        raise LookedAt(images)

    def loss(self, images: torch.Tensor, captions: list[str], *_: object) -> None:
        raise LookedAt(captions)


@pytest.fixture
def tokens(own, monkeypatch) -> Path:
    """In `own`: pairs of two sources that weigh 1 and 3, half of them held out, and tokens, all of which fit together."""
    pairs = write_weighted_pairs(own, (1, 3), image_size=SIDE, validation_share=0.5)
    components.save(tiny("image_tokenizers", "dvae"), own / "tokenizer")
    monkeypatch.chdir(own)
    context = stage("tokenize_pairs", tokens={"rows_per_shard": 4})
    tokenize_pairs.tokenize_pairs(pairs, own / "tokenizer", own / "tokens", context)
    return own / "tokens"


def test_each_training_stage_looks_at_held_out_pairs_of_each_source_by_its_weight(own, tokens, monkeypatch):
    save_text(tiny_text(), own / "text")

    def looked_at(module: ModuleType, *inputs: str, **block: object) -> object:
        monkeypatch.setattr(module, "train", lambda *_, evaluate, **others: evaluate(Recorder()))
        paths = [Path(name) for name in (*inputs, "out", "curves.json")]
        with pytest.raises(LookedAt) as caught:
            getattr(module, module.__name__.rpartition(".")[2])(*paths, stage("training", **block))
        return caught.value.args[0]

    def show_prompts(prompts: list[str], *_: object) -> None:
        raise LookedAt(prompts)

    monkeypatch.setattr(train_image_tokenizer, "VALIDATION_IMAGES", 8)
    monkeypatch.setattr(train_generator, "VALIDATION_ROWS", 8)
    monkeypatch.setattr(train_generator, "samples", show_prompts)
    monkeypatch.setattr(train_scorer, "VALIDATION_PAIRS", 8)
    captions = looked_at(train_scorer, "pairs", scorer=CLIP)
    prompts = looked_at(train_generator, "tokens", "text", "tokenizer", generator=TRANSFORMER)
    images = looked_at(train_image_tokenizer, "pairs", image_tokenizer=DVAE)
    assert Counter(caption.split()[0] for caption in prompts) == {"photos": 2, "drawings": 4}
    # among the captions for an image none may come twice
    assert captions == prompts[:5] and len(set(prompts)) == 5
    held_out = PairReader(Path("pairs"), "validation")
    rows = [[held_out.captions(row)[0] for row in range(len(held_out))].index(caption) for caption in prompts]
    assert images.equal(to_float(held_out.images(rows)))


def test_weights_are_passed_on_to_token_shards(own, tokens):
    of_pairs = PairReader(own / "pairs", "train").mixture
    assert of_pairs is not None and of_pairs.weights == (1.0, 3.0)
    rows = open_token_rows(tokens, "train", None, Store(Path("store")))
    stored = open_token_rows(tokens, "train", None, Store(Path("store")), max_bytes_in_memory=0)
    assert rows.mixture == stored.mixture == of_pairs
    loaders = [TokenLoader(either, tiny_text(), seed=0) for either in (rows, stored)]
    (text, images), (other_text, other_images) = (loader.batch(range(20, 50)) for loader in loaders)
    assert (text == other_text).all() and (images == other_images).all()
    expected_rows = [row for _, row in epochs_and_rows(range(20, 50), len(rows), 0, of_pairs)]
    assert (images.numpy() == rows.tokens_of(expected_rows, [0] * 30)).all()


def test_a_rejected_input_of_a_mixture_has_its_provenance_and_too_many_of_them_name_all_sources(own):
    write(own, {"photos/bad.png": b"<html>", "photos/bad.txt": "x"})
    write_pairs(config(source="mixture", sources=mixture(own)), 0, own / "pairs")
    (rejected,) = pq.read_table(own / "pairs" / QUARANTINE).to_pylist()
    assert rejected["id"] == "0/bad.png" and json.loads(rejected["source"])["licence"] == "CC0-1.0"
    message = r"1 of the 18 inputs of data.sources \(.*photos, .*drawings, .*t.tsv\) were rejected"
    with pytest.raises(BadData, match=message):
        write_pairs(config(source="mixture", sources=mixture(own), max_refused_share=0.0), 0, own / "pairs")


def test_an_error_while_reading_a_mixture_names_the_entry(own):
    write_tar(own / "t.tar", [("a.png", png()), ("a.txt", "x")])
    first = mixture(own)[0]
    tar, none = {"source": "webdataset", "path": f"{own}/t.tar"}, {"source": "jsonl", "path": f"{own}/none"}
    source = open_source(config(source="mixture", sources=[first, tar]))
    (own / "t.tar").write_bytes((own / "t.tar").read_bytes()[:700])
    with pytest.raises(
        SourceError, match=r"data.sources\[1\]: .*t.tar (is not a plain tar, or )?is truncated"
    ):
        list(source)
    with pytest.raises(SourceError, match=r"data.sources\[2\]: data.path: there is no file .*none"):
        check_source(config(source="mixture", sources=[first, first, none]))
    with pytest.raises(SourceError, match=r"data.sources\[0\]: nonsense://x cannot be opened"):
        open_source(config(source="mixture", sources=[{"source": "folder", "path": "nonsense://x"}]))


# ---- one source, with its licence


def test_a_licence_is_stored_in_each_row_and_changes_nothing_else(own):
    settings = {"source": "folder", "path": f"{own}/photos"}
    write_pairs(config(**settings), 0, own / "plain")
    write_pairs(config(**settings, licence="CC0-1.0", origin="my camera"), 0, own / "licensed")
    plain, metadata = rows_of(own / "plain"), rows_of(own / "licensed")
    assert plain["3.png"]["provenance"] == "photos/3.png"
    expected = '{"at": "photos/3.png", "licence": "CC0-1.0", "origin": "my camera"}'
    assert metadata["3.png"]["provenance"] == expected
    without = [[{**row, "provenance": ""} for row in rows.values()] for rows in (plain, metadata)]
    assert without[0] == without[1]


# ---- second captions


def recaption_folder(own: Path, count: int = 30) -> Path:
    """The same images with two captions each, in all source kinds that support two."""
    folder = own / "two"
    images = {f"{index:02d}.png": png(100 + index) for index in range(count)}
    write(folder, images)
    records = [{"image": name, "caption": f"plain {name}", "recaption": f"long {name}"} for name in images]
    records[4]["recaption"] = " "
    table = "".join("\t".join(row) + "\n" for row in (records[0], *(record.values() for record in records)))
    write(folder, {"t.tsv": table, "l.jsonl": "\n".join(map(json.dumps, records))})
    columns = {name: [record[name] for record in records] for name in ("image", "caption", "recaption")}
    pq.write_table(pa.table(columns), folder / "paths.parquet")
    pq.write_table(pa.table({**columns, "image": list(images.values())}), folder / "bytes.parquet")
    members = list(images.items())
    members += [(record["image"].replace("png", "json"), json.dumps(record)) for record in records]
    write_tar(folder / "w.tar", members)
    return folder


TWO_CAPTIONS = {"t.tsv": "csv", "l.jsonl": "jsonl", "paths.parquet": "parquet", "bytes.parquet": "parquet"}
TWO_CAPTIONS["w.tar"] = "webdataset"


@pytest.mark.parametrize(("name", "source"), TWO_CAPTIONS.items())
def test_a_share_of_the_pairs_gets_only_the_second_caption(own, source, name):
    settings = {"source": source, "path": str(recaption_folder(own) / name), "recaption_column": "recaption"}
    counts = write_pairs(config(**settings, recaption_share=0.5), 3, own / "pairs")

    rows = rows_of(own / "pairs")
    texts = {key: row["captions"] for key, row in rows.items()}
    chosen = {key for key in rows if unit_hash(f"recaption\0{key}", 3) < 0.5}
    assert len(rows) == 30 and 8 <= len(chosen) <= 22
    for number, key in enumerate(sorted(rows)):
        is_long = key in chosen and number != 4  # it has no second caption
        assert texts[key] == [f"{'long' if is_long else 'plain'} {number:02d}.png"]
    long = sum(text[0].startswith("long") for text in texts.values())
    assert counts["texts"] == {"original": 30 - long, "recaptioned": long}


def test_the_recaption_share_does_not_change_splits_and_0_changes_nothing(own):
    path = str(recaption_folder(own) / "l.jsonl")
    settings = {"source": "jsonl", "path": path, "recaption_column": "recaption", "group_by": "(.*)"}
    split_of = {}
    for share in (0.0, 0.4, 1.0):
        write_pairs(config(**settings, recaption_share=share), 0, own / str(share))
        split_of[share] = {key: row["split"] for key, row in rows_of(own / str(share)).items()}
    assert split_of[0.0] == split_of[0.4] == split_of[1.0]
    del settings["recaption_column"]
    write_pairs(config(**settings), 0, own / "none")
    assert rows_of(own / "none") == rows_of(own / "0.0")


def test_an_unusable_second_caption_rejects_the_pair_only_if_it_is_selected():
    pair = RawPair("key", b"", ("plain",), "", recaptions=("x" * 5_000,))
    assert select_captions(pair, 0, 1.0).problem.reason == "caption_too_long"
    assert select_captions(pair, 0, 0.0) == RawPair("key", b"", ("plain",), "")
    rejected = RawPair("key", b"", (), "", InvalidInput("caption_empty", "x"), ("long",))
    assert select_captions(rejected, 0, 1.0).problem is rejected.problem
