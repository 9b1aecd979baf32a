"""Token shards return what was written, and reject shards that are damaged or of another tokenizer."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers.tiny_models import CAPTIONS, HEADER, shard_tokens, write_shards
from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_bytes
from thousandwords.core.manifest import DamagedArtefact, write_manifest
from thousandwords.core.parquet import table_bytes
from thousandwords.data.sampler import sequential_batches
from thousandwords.data.token_shards import (
    TokenHeader,
    TokensConfig,
    TokenShardWriter,
    WrongTokenizer,
    read_shard,
    read_token_rows,
)


@pytest.fixture
def folder(tmp_path):
    """10 rows of train in 3 shards, 3 rows of validation in one."""
    write_shards(tmp_path, {"train": 10, "validation": 3})
    return tmp_path


# --- there and back --------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_written(folder):
    rows = read_token_rows(folder, "train", HEADER.tokenizer_fingerprint)
    assert rows.header == HEADER and len(rows) == 10
    assert rows.keys == [f"train-{row}" for row in range(10)]
    assert rows.captions[5] == [CAPTIONS[1], "image 5"]
    assert rows.tokens.shape == (10, 1, 16) and rows.tokens.dtype == np.uint16
    assert torch.from_numpy(rows.tokens[:, 0].astype(np.int64)).equal(shard_tokens(10))


def test_a_batch_is_first_captions_and_tokens(folder):
    captions, tokens = read_token_rows(folder, "train").batch([7, 0])
    assert captions == [CAPTIONS[3], CAPTIONS[0]]
    assert tokens.dtype == torch.int64 and tokens.equal(shard_tokens(10)[[7, 0]])


@pytest.mark.parametrize("parts", [[10], [1] * 10, [3, 7], [9, 1]])
def test_how_rows_are_grouped_does_not_change_a_byte(folder, tmp_path_factory, parts):
    again = tmp_path_factory.mktemp("again")
    rows, start = read_token_rows(folder, "train"), 0
    with TokenShardWriter(again, HEADER, 4) as shards:
        for count in parts:
            part = slice(start, start + count)
            shards.write("train", rows.keys[part], rows.captions[part], shard_tokens(10)[part])
            start += count
    for path in again.glob("train-*"):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_rows_read_from_a_shard_are_written_like_new_ones(folder, tmp_path_factory):
    """Tokenizing reads rows from its store; Parquet has another name for the field in a list."""
    again = tmp_path_factory.mktemp("again")
    with TokenShardWriter(again, HEADER, 4) as shards:
        for name in ("train-00000", "train-00001", "train-00002", "validation-00000"):
            shards.add(name.partition("-")[0], read_shard(folder / f"{name}.parquet", HEADER))
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_images_of_many_scales_and_views_keep_their_layout(tmp_path):
    header = replace(HEADER, scales=(1, 2, 3), views=2)
    write_shards(tmp_path, {"train": 5}, header)
    rows = read_token_rows(tmp_path, "train")
    assert header.length == 14 and rows.header == header and rows.tokens.shape == (5, 2, 14)
    assert rows.batch([4], view=1)[1].equal(shard_tokens(5, header)[4:, 14:])


def test_an_interrupted_writer_leaves_no_manifest(tmp_path):
    with pytest.raises(KeyboardInterrupt), TokenShardWriter(tmp_path, HEADER, 4) as shards:
        shards.write("train", ["a"] * 5, [["a"]] * 5, shard_tokens(5))
        raise KeyboardInterrupt
    with pytest.raises(DamagedArtefact, match="manifest.json is missing"):
        read_token_rows(tmp_path, "train")


# --- rejected shards -------------------------------------------------------------------------------------------------


def test_shards_of_another_tokenizer_are_rejected(folder):
    message = (
        r"was written by image tokenizer 'dvae' \(fingerprint 3f9c3f9c3f9c\), but the tokenizer in use has "
        "a210a210a210. Run: dvc repro tokenize_pairs"
    )
    with pytest.raises(WrongTokenizer, match=message):
        read_token_rows(folder, "train", "a210" * 16)


def test_a_split_without_a_shard_is_rejected_by_name(folder):
    with pytest.raises(DamagedArtefact, match="has no shard of the split 'unseen'. Run: dvc repro tokenize"):
        read_token_rows(folder, "unseen")


def test_a_token_outside_the_vocabulary_is_rejected_with_its_row(folder):
    table = pq.read_table(folder / "train-00001.parquet").to_pylist()
    table[2]["image_tokens"][15] = 12
    wrong = pa.Table.from_pylist(table, schema=pq.read_schema(folder / "train-00001.parquet"))
    rewrite(folder, "train-00001.parquet", wrong)
    message = (
        "00001.parquet, row 2, column image_tokens: token 12 is outside the vocabulary of 12. Run: dvc repro"
    )
    with pytest.raises(DamagedArtefact, match=message):
        read_token_rows(folder, "train")


@pytest.mark.parametrize(
    "token_type", [pa.list_(pa.uint16(), 15), pa.list_(pa.int32(), 16), pa.list_(pa.uint16())]
)
def test_tokens_of_another_number_or_type_are_rejected(folder, token_type):
    table = pq.read_table(folder / "train-00001.parquet")
    length = getattr(token_type, "list_size", 16)
    rows = [row["image_tokens"][:length] for row in table.to_pylist()]
    field = pa.field("image_tokens", token_type, nullable=False)
    rewrite(folder, "train-00001.parquet", table.set_column(2, field, [pa.array(rows, token_type)]))
    with pytest.raises(DamagedArtefact, match="00001.parquet has columns .* of other types than a token"):
        read_token_rows(folder, "train")


def rewrite(folder, name: str, table: pa.Table) -> None:
    """Replace a shard by another table, with a manifest for it."""
    write_bytes(folder / name, table_bytes(table))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    rows = {name: entry["rows"] for name, entry in manifest["files"].items()}
    write_manifest(folder, rows, manifest["facts"])


def test_a_vocabulary_larger_than_uint16_is_rejected():
    assert TokenHeader("dvae", "3f9c", 65_536, (4,), 16).vocab_size == 65_536
    message = r"'dvae' has a vocabulary of 65537, but token shards hold at most 65536 \(uint16\)"
    with pytest.raises(UserError, match=message):
        TokenHeader("dvae", "3f9c", 65_537, (4,), 16)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rows_per_shard", 0, "it needs to be 1 or more"),
        ("batch_size", 0, "it needs to be 1 or more"),
        ("views_per_image", 0, "it needs to be 1 or more"),
        ("views_per_image", 3, "but all views of a center square are equal. Set tokens.augmentation: paper"),
    ],
)
def test_settings_without_a_use_are_rejected(key, value, message):
    with pytest.raises(ConfigError, match=f"params.yaml: tokens.{key} is {value}[;,] {message}"):
        section({key: value}, "tokens", TokensConfig)


def test_sequential_batches_have_each_row_once():
    assert list(sequential_batches(5, 2)) == [[0, 1], [2, 3], [4]]
    assert list(sequential_batches(0, 2)) == []
