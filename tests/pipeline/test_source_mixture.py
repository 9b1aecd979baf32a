"""Mixtures of sources, what is kept of where a row comes from, and second captions: none of it changes what stands alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import tokenize_pairs
from tests.pictures import png, write, write_tar
from tests.test_data_stages import stage
from tests.tiny import SIDE, tiny, tiny_text
from thousandwords import components
from thousandwords.config import ConfigError, section
from thousandwords.files import read_manifest, unit_hash
from thousandwords.images import Refused
from thousandwords.loader import ImageLoader, TokenLoader, places
from thousandwords.mixing import Mixing
from thousandwords.pair_counts import BadData
from thousandwords.pair_shards import PairReader
from thousandwords.pairs import QUARANTINE, Config, check_source, open_source, recaptioned, write_pairs
from thousandwords.shards import open_token_rows
from thousandwords.sources import Provenance, RawPair, SourceError, read_provenance
from thousandwords.store import Store

LOOSE = {"image_size": 16, "validation_share": 0.3, "max_refused_share": 0.9}


def config(**settings: object) -> Config:
    return section({**LOOSE, **settings}, "data", Config)


def rows_of(folder: Path) -> dict[str, dict]:
    """{key: row} of every pair shard."""
    shards = [pq.read_table(path).to_pylist() for path in folder.glob("*.parquet") if path.name != QUARANTINE]
    return {row["key"]: row for rows in shards for row in rows}


@pytest.fixture
def own(tmp_path) -> Path:
    """Two folders with the same names in them, and a table."""
    for number, name in enumerate(("photos", "drawings")):
        for index in range(8):
            write(tmp_path / name, {f"{index}.png": png(10 * number + index), f"{index}.txt": f"{name} {index}"})
    write(tmp_path / "table", {"a.png": png(50), "t.tsv": "file\ttext\na.png\ta table\n"})
    return tmp_path


def mixture(own: Path) -> list[dict]:
    return [
        {"source": "folder", "path": f"{own}/photos", "licence": "CC0-1.0", "origin": "https://example.org/photos"},
        {"source": "folder", "path": f"{own}/drawings"},
        {"source": "csv", "path": f"{own}/table/t.tsv", "image_column": "file", "caption_column": "text", "licence": "MIT"},
    ]


# ---- mixtures


def test_a_mixture_holds_every_input_of_every_source_once_and_says_whose_it_is(own):
    settings = config(source="mixture", sources=mixture(own))
    counts = write_pairs(settings, 0, own / "pairs")

    rows = rows_of(own / "pairs")
    assert counts["n_in"] == counts["n_ok"] == check_source(settings) == len(rows) == 17
    assert rows["0/3.png"]["captions"] == ["photos 3"] and rows["1/3.png"]["captions"] == ["drawings 3"]
    assert {key: json.loads(rows[key]["provenance"]) for key in ("0/3.png", "1/3.png", "2/a.png")} == {
        "0/3.png": {"at": "photos/3.png", "source": 0, "licence": "CC0-1.0", "origin": "https://example.org/photos"},
        "1/3.png": {"at": "drawings/3.png", "source": 1},
        "2/a.png": {"at": "t.tsv/a.png", "source": 2, "licence": "MIT"},
    }
    said = read_manifest(own / "pairs")["facts"]["settings"]["sources"]
    assert [part["path"] for part in said] == [f"{own}/photos", f"{own}/drawings", f"{own}/table/t.tsv"]


def test_training_sees_of_each_source_what_its_weight_says_though_every_input_is_kept_once(own):
    for index in range(8, 40):
        write(own / "photos", {f"{index}.png": png(100 + index), f"{index}.txt": f"photos {index}"})
    sources = [{**part, "weight": weight} for part, weight in zip(mixture(own), (1, 2, 1), strict=True)]
    write_pairs(config(source="mixture", sources=sources), 0, own / "pairs")

    reader = PairReader(own / "pairs", "train")
    keys = [reader.key(row) for row in range(len(reader))]
    counted = [sum(key.startswith(f"{number}/") for key in keys) for number in range(3)]
    assert reader.mixing == Mixing(tuple(counted), (1.0, 2.0, 1.0))
    captions = ImageLoader(reader, seed=0).captions(range(3 * len(reader)))
    seen = Counter(caption.split()[0] for caption in captions)
    present = 4 if counted[2] else 3
    assert seen["drawings"] / len(captions) == pytest.approx(2 / present, abs=0.05)
    assert set(Counter(caption for caption in captions if "drawings" in caption).values()) <= {
        seen["drawings"] // counted[1], seen["drawings"] // counted[1] + 1}  # fmt: skip


def test_without_weights_every_row_is_shown_once_an_epoch(own):
    write_pairs(config(source="mixture", sources=mixture(own)), 0, own / "pairs")
    reader = PairReader(own / "pairs", "train")
    assert reader.mixing is None and "mixtures" not in read_manifest(own / "pairs")["facts"]
    assert sorted(row for _, row in places(range(len(reader)), len(reader), 0)) == list(range(len(reader)))


def test_the_weights_travel_with_the_words_of_the_pictures(own, monkeypatch):
    sources = [{**part, "weight": weight} for part, weight in zip(mixture(own)[:2], (1, 3), strict=True)]
    data = {**LOOSE, "image_size": SIDE, "source": "mixture", "sources": sources}
    write_pairs(section(data, "data", Config), 0, own / "pairs")
    components.save(tiny("tokenizers", "dvae"), own / "tokenizer")
    monkeypatch.chdir(own)
    tokenize_pairs.tokenize_pairs(Path("pairs"), Path("tokenizer"), Path("tokens"), stage("tokenize_pairs", tokens={}))

    of_pairs = PairReader(Path("pairs"), "train").mixing
    assert of_pairs is not None and of_pairs.weights == (1.0, 3.0)
    rows = open_token_rows(Path("tokens"), "train", None, Store(Path("store")))
    stored = open_token_rows(Path("tokens"), "train", None, Store(Path("store")), most_in_memory=0)
    assert rows.mixing == stored.mixing == of_pairs
    loaders = [TokenLoader(one, tiny_text(), seed=0) for one in (rows, stored)]
    (words, tokens), (other_words, other_tokens) = (loader.batch(range(20, 50)) for loader in loaders)
    assert (words == other_words).all() and (tokens == other_tokens).all()
    shown = [row for _, row in places(range(20, 50), len(rows), 0, of_pairs)]
    assert (tokens.numpy() == rows.tokens_of(shown, [0] * 30)).all()


def test_what_is_refused_in_a_mixture_says_whose_it_is(own):
    write(own, {"photos/bad.png": b"<html>", "photos/bad.txt": "x"})
    write_pairs(config(source="mixture", sources=mixture(own)), 0, own / "pairs")
    (refused,) = pq.read_table(own / "pairs" / QUARANTINE).to_pylist()
    assert refused["id"] == "0/bad.png" and read_provenance(refused["source"]).licence == "CC0-1.0"


def test_a_mixture_comes_in_order_and_twice_the_same(own):
    source = open_source(config(source="mixture", sources=mixture(own)))
    keys = [pair.key for pair in source]
    assert keys == [pair.key for pair in source] and keys[7:10] == ["0/7.png", "1/0.png", "1/1.png"] and keys[-1] == "2/a.png"


def test_an_error_in_a_mixture_names_the_entry(own):
    sources = mixture(own)[:2] + [{"source": "jsonl", "path": f"{own}/none.jsonl"}]
    with pytest.raises(SourceError, match=r"data.sources\[2\]: data.path: there is no file .*none.jsonl"):
        check_source(config(source="mixture", sources=sources))


def test_an_error_met_while_reading_a_mixture_names_the_entry(own):
    write_tar(own / "t.tar", [("a.png", png()), ("a.txt", "x")])
    source = open_source(config(source="mixture", sources=[*mixture(own)[:1], {"source": "webdataset", "path": f"{own}/t.tar"}]))
    (own / "t.tar").write_bytes((own / "t.tar").read_bytes()[:700])
    with pytest.raises(SourceError, match=r"data.sources\[1\]: .*t.tar (is no plain tar, or )?was cut short"):
        list(source)
    sources = [{"source": "folder", "path": "nonsense://x"}]
    with pytest.raises(SourceError, match=r"data.sources\[0\]: nonsense://x cannot be opened"):
        open_source(config(source="mixture", sources=sources))


def test_too_many_bad_inputs_of_a_mixture_name_all_places(own):
    write(own, {"photos/bad.png": b"<html>", "photos/bad.txt": "x"})
    with pytest.raises(BadData, match=r"1 of the 18 inputs of data.sources \(.*photos, .*drawings, .*t.tsv\) were refused"):
        write_pairs(config(source="mixture", sources=mixture(own), max_refused_share=0.0), 0, own / "pairs")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"source": "mixture"}, "data.source is mixture, but data.sources is empty. List the sources there"),
        (
            {"source": "folder", "sources": [{"source": "csv", "path": "x"}]},
            "data.sources is given, but data.source is folder. Set data.source: mixture, or take data.sources away",
        ),
        (
            {"source": "mixture", "sources": [{"source": "csv", "path": "x"}], "licence": "MIT"},
            "data.url, data.licence and data.origin are of one source, but data.source is mixture. Say them of each source",
        ),
        ({"source": "mixture", "sources": [{"source": "csv"}]}, "data.sources[0] lacks the key 'path' (text)"),
        (
            {"source": "mixture", "sources": [{"source": "scenes", "path": "x"}]},
            "data.sources[0].source is 'scenes'; it can be: folder",
        ),
        (
            {"source": "mixture", "sources": [{"source": "csv", "path": "x", "lisence": "MIT"}]},
            "no key 'lisence'. Did you mean 'licence'?",
        ),
        (
            {"source": "mixture", "sources": [{"source": "csv", "path": "x", "weight": 0}]},
            "data.sources: weight is 0.0; it needs to be a number above 0",
        ),
        (
            {"source": "mixture", "sources": [{"source": "csv", "path": "x", "weight": 2}, {"source": "csv", "path": "y"}]},
            "some of data.sources have a weight and some have none. Give each one, or none",
        ),
        (
            {"source": "mixture", "sources": [{"source": "csv", "path": ""}]},
            "data.sources: path is empty; it needs a path or a URL",
        ),
        (
            {"source": "mixture", "sources": [{"source": "folder", "path": "x", "recaption_column": "y"}]},
            "data.sources: recaption_column is given, but folder knows no such thing. Take it away; it is for csv, webdataset",
        ),
        (
            {"source": "folder", "image_folder": "x"},
            "data.image_folder is given, but folder knows no such thing. Take it away; it is for",
        ),
        ({"source": "coco", "recaption_column": "x"}, "data.recaption_column is given, but coco knows no such thing"),
        (
            {"source": "csv", "recaption_share": 0.5},
            "data.recaption_share is 0.5, but data.recaption_column names no second text",
        ),
        (
            {"source": "csv", "recaption_column": "x", "recaption_share": 1.5},
            "data.recaption_share is 1.5; it lies between 0 and 1",
        ),
        (
            {"source": "folder", "url": "bucket/x"},
            "data.url is 'bucket/x', no URL like s3:",
        ),
    ],
)
def test_settings_of_sources_are_checked_at_birth(block, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        section(block, "data", Config)


# ---- one source, with its licence


def test_a_licence_is_kept_with_every_row_and_changes_nothing_else(own):
    settings = {"source": "folder", "path": f"{own}/photos"}
    write_pairs(config(**settings), 0, own / "plain")
    write_pairs(config(**settings, licence="CC0-1.0", origin="my camera"), 0, own / "said")
    plain, said = rows_of(own / "plain"), rows_of(own / "said")
    assert plain["3.png"]["provenance"] == "photos/3.png"
    assert said["3.png"]["provenance"] == '{"at": "photos/3.png", "licence": "CC0-1.0", "origin": "my camera"}'
    assert [{**row, "provenance": ""} for row in plain.values()] == [{**row, "provenance": ""} for row in said.values()]


def test_the_manifest_speaks_of_sources_and_second_texts_only_where_there_are_some(own):
    write_pairs(config(source="folder", path=f"{own}/photos"), 0, own / "plain")
    said = read_manifest(own / "plain")["facts"]
    assert not {"url", "version", "recaption_column", "recaption_share", "image_folder", "licence", "origin", "sources"} & set(
        said["settings"]
    )
    assert "texts" not in said["counts"]


@given(st.text(max_size=20), st.none() | st.integers(0, 9), st.none() | st.text(max_size=5), st.none() | st.text(max_size=5))
def test_provenance_is_read_as_it_was_written(at, source, licence, origin):
    written = Provenance(at, source, licence, origin)
    assert read_provenance(written.text()) == written or (written.text() == at and at.lstrip().startswith("{"))


@pytest.mark.parametrize("text", ["own/cat.png", "scenes, seed 0", "{}", "7", "[1]", "", '{"x": 1}'])
def test_a_provenance_that_is_a_bare_place_stays_one(text):
    assert read_provenance(text) == Provenance(text)


# ---- second captions


def recaption_folder(own: Path, count: int = 30) -> Path:
    """The same pictures with two texts each, in all forms that have room for two."""
    folder = own / "two"
    pictures = {f"{index:02d}.png": png(100 + index) for index in range(count)}
    write(folder, pictures)
    records = [{"image": name, "caption": f"plain {name}", "recaption": f"long {name}"} for name in pictures]
    records[4]["recaption"] = " "
    lines = "".join("\t".join(record.values()) + "\n" for record in records)
    write(folder, {"t.tsv": "image\tcaption\trecaption\n" + lines, "l.jsonl": "\n".join(map(json.dumps, records))})
    columns = {name: pa.array([record[name] for record in records]) for name in ("image", "caption", "recaption")}
    pq.write_table(pa.table(columns), folder / "paths.parquet")
    pq.write_table(pa.table({**columns, "image": pa.array(list(pictures.values()))}), folder / "bytes.parquet")
    members = [(record["image"], pictures[record["image"]]) for record in records]
    members += [(record["image"].replace("png", "json"), json.dumps(record)) for record in records]
    write_tar(folder / "w.tar", members)
    return folder


@pytest.mark.parametrize(
    ("source", "name"),
    [("csv", "t.tsv"), ("jsonl", "l.jsonl"), ("parquet", "paths.parquet"), ("parquet", "bytes.parquet"), ("webdataset", "w.tar")],
)
def test_a_share_of_the_pairs_is_trained_on_the_second_text_alone(own, source, name):
    settings = {"source": source, "path": str(recaption_folder(own) / name), "recaption_column": "recaption"}
    counts = write_pairs(config(**settings, recaption_share=0.5), 3, own / "pairs")

    rows = rows_of(own / "pairs")
    texts = {key: row["captions"] for key, row in rows.items()}
    chosen = {key for key in rows if unit_hash(f"recaption\0{key}", 3) < 0.5}
    assert len(rows) == 30 and 8 <= len(chosen) <= 22
    for number, key in enumerate(sorted(rows)):
        is_long = key in chosen and number != 4  # which has no second text
        assert texts[key] == [f"{'long' if is_long else 'plain'} {number:02d}.png"]
    long = sum(text[0].startswith("long") for text in texts.values())
    assert counts["texts"] == {"original": 30 - long, "recaptioned": long}


def test_the_share_moves_no_pair_to_another_split_and_none_at_share_0(own):
    settings = {
        "source": "jsonl",
        "path": str(recaption_folder(own) / "l.jsonl"),
        "recaption_column": "recaption",
        "group_by": "(.*)",
    }
    where = {}
    for share in (0.0, 0.4, 1.0):
        write_pairs(config(**settings, recaption_share=share), 0, own / str(share))
        where[share] = {key: row["split"] for key, row in rows_of(own / str(share)).items()}
    assert where[0.0] == where[0.4] == where[1.0]
    del settings["recaption_column"]
    write_pairs(config(**settings), 0, own / "none")
    assert rows_of(own / "none") == rows_of(own / "0.0")


def test_a_larger_share_takes_more_and_gives_none_back():
    pairs = [RawPair(str(number), b"", ("plain",), "", recaptions=("long",)) for number in range(200)]
    taken = [{pair.key for pair in pairs if recaptioned(pair, 0, share).captions == ("long",)} for share in (0.0, 0.25, 0.5, 1.0)]
    assert taken[0] == set() and taken[1] < taken[2] < taken[3] and len(taken[3]) == 200
    assert 35 < len(taken[1]) < 65 and 80 < len(taken[2]) < 120


def test_a_second_text_that_cannot_be_used_refuses_the_pair_only_where_it_is_used():
    pair = RawPair("key", b"", ("plain",), "", recaptions=("x" * 5_000,))
    assert recaptioned(pair, 0, 1.0).problem.reason == "caption_too_long"
    assert recaptioned(pair, 0, 0.0) == RawPair("key", b"", ("plain",), "")
    refused = RawPair("key", b"", (), "", Refused("caption_empty", "x"), ("long",))
    assert recaptioned(refused, 0, 1.0).problem is refused.problem


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("csv", "t.tsv", "t.tsv has no column 'again', only 'image', 'caption', 'recaption'. Set data.recaption_column"),
        (
            "jsonl",
            "l.jsonl",
            "l.jsonl has no line with the key 'again', only 'caption', 'image', 'recaption'. Set data.recaption_column",
        ),
        ("webdataset", "w.tar", "tars at .*w.tar hold no .json with 'again'. Set data.recaption_column to the key of the second"),
        ("parquet", "bytes.parquet", "bytes.parquet has no column 'again', only .*. Set data.recaption_column"),
    ],
)
def test_a_second_column_that_is_not_there_is_refused_with_the_mend(own, source, name, message):
    with pytest.raises(SourceError, match=message):
        check_source(config(source=source, path=str(recaption_folder(own) / name), recaption_column="again"))
