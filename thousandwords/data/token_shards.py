"""Write and read token shards: Parquet files of (key, captions, image_tokens) with a manifest.

`image_tokens` is a fixed-size list of uint16, views × L. The manifest names the image tokenizer that wrote the
shards; training rejects any other. Captions stay text, so that a new BPE vocabulary needs no new image tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from thousandwords.core.cache import Store
from thousandwords.core.config import check_minimums
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest
from thousandwords.core.parquet import ROW_GROUP
from thousandwords.core.row_store import RowBatch, RowStore, unpack_rows
from thousandwords.data.sampler import Mixture, first_rows
from thousandwords.data.shard_writer import ShardWriter

FIX = "dvc repro tokenize_pairs"
MAX_VOCAB_SIZE = 2**16
MAX_BYTES_IN_MEMORY = 2**28  # of rows; larger splits are read from disk
TEXT_BYTES_PER_ROW = 500  # captions and key of a row as Python objects, a rough estimate


class WrongTokenizer(UserError):
    """The token shards were written by another image tokenizer."""


@dataclass(frozen=True)
class TokensConfig:
    """The section `tokens` of params.yaml."""

    rows_per_shard: int = 8192
    batch_size: int = 256  # images encoded at a time
    views_per_image: int = 1  # crops of each training image; training uses one of them per epoch
    augmentation: Literal["none", "paper"] = "none"  # the center square, or random crops (listing 2)

    def __post_init__(self) -> None:
        check_minimums(self, "tokens", rows_per_shard=1, batch_size=1, views_per_image=1)
        if self.views_per_image > 1 and self.augmentation == "none":
            raise ValueError(
                f"tokens.views_per_image is {self.views_per_image}, but all views of a center square "
                "are equal. Set tokens.augmentation: paper"
            )


@dataclass(frozen=True)
class TokenHeader:
    """What the tokens of a folder are: their tokenizer, vocabulary and grid."""

    tokenizer_kind: str
    tokenizer_fingerprint: str
    vocab_size: int
    scales: tuple[int, ...]
    image_size: int  # pixels per side
    views: int = 1  # crops of each image

    def __post_init__(self) -> None:
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise UserError(
                f"image tokenizer {self.tokenizer_kind!r} has a vocabulary of {self.vocab_size}, but "
                f"token shards hold at most {MAX_VOCAB_SIZE} (uint16). Set a smaller vocab_size"
            )

    @property
    def length(self) -> int:
        """L, the number of tokens of one view."""
        return sum(side * side for side in self.scales)

    def metadata(self) -> dict:
        return {**vars(self), "scales": list(self.scales)}

    @classmethod
    def from_metadata(cls, metadata: dict) -> TokenHeader:
        return cls(**{**metadata, "scales": tuple(metadata["scales"])})


def schema(header: TokenHeader) -> pa.Schema:
    """The Parquet schema of token shards."""
    image_tokens = pa.list_(pa.uint16(), header.views * header.length)
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("captions", pa.list_(pa.string()), nullable=False),
            pa.field("image_tokens", image_tokens, nullable=False),
        ]
    )


def token_table(
    header: TokenHeader, keys: Sequence[str], captions: Sequence[list[str]], tokens: Tensor
) -> pa.Table:
    """Rows of a token shard: tokens (B, views × L) int64 in 0 … vocab_size − 1."""
    width = header.views * header.length
    assert tokens.shape == (len(keys), width), (
        f"tokens are {tuple(tokens.shape)}, expected ({len(keys)}, {width})"
    )
    assert 0 <= int(tokens.min()) and int(tokens.max()) < header.vocab_size
    flat = pa.array(tokens.numpy().astype(np.uint16).ravel())
    columns = [pa.array(keys), pa.array(captions), pa.FixedSizeListArray.from_arrays(flat, width)]
    return pa.Table.from_arrays(columns, schema=schema(header))


class TokenShardWriter(ShardWriter):
    """Writes token shards, and at the end their manifest with `metadata`, for example weights of a mixture."""

    def __init__(
        self, folder: Path, header: TokenHeader, rows_per_shard: int, metadata: dict | None = None
    ) -> None:
        super().__init__(folder, schema(header), rows_per_shard, ROW_GROUP)
        self.header, self.metadata = header, {"tokens": header.metadata(), **(metadata or {})}

    def write(self, split: str, keys: Sequence[str], captions: Sequence[list[str]], tokens: Tensor) -> None:
        """Add rows: tokens (B, views × L) int64 in 0 … vocab_size − 1."""
        self.add(split, token_table(self.header, keys, captions, tokens))

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if kind is None:
            self.commit()
            write_manifest(self.folder, self.rows, self.metadata, self.digests)
        super().__exit__(kind, *rest)


@dataclass(frozen=True)
class TokenRows:
    """All rows of one split: keys, captions, and tokens (N, views, L) as uint16."""

    header: TokenHeader
    keys: list[str]
    captions: list[list[str]]
    tokens: np.ndarray
    mixture: Mixture | None = None  # of several sources

    def __len__(self) -> int:
        return len(self.keys)

    def prefetch(self, rows: Sequence[int]) -> None:
        """Nothing to do: all rows are in memory."""

    def captions_of(self, row: int) -> list[str]:
        return self.captions[row]

    def tokens_of(self, rows: Sequence[int], views: Sequence[int]) -> np.ndarray:
        """One view of each row: (B, L) uint16."""
        return self.tokens[rows, views]

    def batch(self, indices: Sequence[int], view: int = 0) -> tuple[list[str], Tensor]:
        """The first caption of each row, and tokens (B, L) int64."""
        tokens = torch.from_numpy(self.tokens[np.asarray(indices), view].astype(np.int64))
        return [self.captions[index][0] for index in indices], tokens


class StoredTokenRows:
    """The same rows as `TokenRows`, read from disk row by row."""

    def __init__(self, header: TokenHeader, rows: RowStore, mixture: Mixture | None = None) -> None:
        self.header, self.rows, self.mixture = header, rows, mixture

    def __len__(self) -> int:
        return len(self.rows)

    def prefetch(self, rows: Sequence[int]) -> None:
        """Announce the rows that are read next."""
        self.rows.prefetch(rows)

    def captions_of(self, row: int) -> list[str]:
        return json.loads(self.rows.read("captions", row))

    def tokens_of(self, rows: Sequence[int], views: Sequence[int]) -> np.ndarray:
        """One view of each row: (B, L) uint16."""
        length = self.header.length
        tokens = [
            np.frombuffer(self.rows.read("tokens", row), np.uint16)[view * length : (view + 1) * length]
            for row, view in zip(rows, views, strict=True)
        ]
        return np.stack(tokens)


AnyTokenRows = TokenRows | StoredTokenRows


def all_captions(rows: AnyTokenRows) -> Iterator[str]:
    """All captions of all rows, in order."""
    return (caption for row in range(len(rows)) for caption in rows.captions_of(row))


def read_token_rows(
    folder: Path, split: str, tokenizer_fingerprint: str | None = None, first: int | None = None
) -> TokenRows:
    """Read the rows of a split into memory; with `first`, only the first shards with so many `sampler.first_rows`.

    Verified against the manifest and, if given, against the tokenizer in use: WrongTokenizer or DamagedArtefact.
    """
    manifest = read_manifest(folder, fix=FIX)
    header, names = _header_and_shards(manifest, folder, split, tokenizer_fingerprint)
    mixture = Mixture.from_metadata(manifest["facts"], split)
    rows = {name: manifest["files"][name]["rows"] for name in names}
    needed = None if first is None else max(first_rows(first, sum(rows.values()), mixture))
    tables = []
    for name in names:
        if needed is None or sum(table.num_rows for table in tables) <= needed:
            tables.append(read_shard(Path(folder) / name, header, rows[name]))
    table = pa.concat_tables(tables)
    return TokenRows(
        header, table["key"].to_pylist(), table["captions"].to_pylist(), _all_tokens(table, header), mixture
    )


def open_token_rows(
    folder: Path,
    split: str,
    tokenizer_fingerprint: str | None,
    store: Store,
    max_bytes_in_memory: int = MAX_BYTES_IN_MEMORY,
) -> AnyTokenRows:
    """`read_token_rows`, or above `max_bytes_in_memory` the same rows unpacked once to the store.

    Raises UserError if the disk has too little space for them.
    """
    manifest = read_manifest(folder, verify=False, fix=FIX)
    header, names = _header_and_shards(manifest, folder, split, tokenizer_fingerprint)
    rows = {name: manifest["files"][name]["rows"] for name in names}
    needed = sum(rows.values()) * (2 * header.views * header.length + TEXT_BYTES_PER_ROW)
    if needed <= max_bytes_in_memory:
        return read_token_rows(folder, split, tokenizer_fingerprint)
    parts = (_part(read_shard(Path(folder) / name, header, rows[name]), header) for name in names)
    stored = unpack_rows(store, folder, split, names, "rows", needed, parts, FIX)
    return StoredTokenRows(header, stored, Mixture.from_metadata(manifest["facts"], split))


def _header_and_shards(
    manifest: dict, folder: Path, split: str, tokenizer_fingerprint: str | None
) -> tuple[TokenHeader, list[str]]:
    """(header, shard names of the split); raises WrongTokenizer or DamagedArtefact."""
    header = TokenHeader.from_metadata(manifest["facts"]["tokens"])
    if tokenizer_fingerprint is not None and tokenizer_fingerprint != header.tokenizer_fingerprint:
        raise WrongTokenizer(
            f"{folder} was written by image tokenizer {header.tokenizer_kind!r} (fingerprint "
            f"{header.tokenizer_fingerprint[:12]}), but the tokenizer in use has {tokenizer_fingerprint[:12]}. Run: {FIX}"
        )
    names = sorted(name for name in manifest["files"] if name.startswith(f"{split}-"))
    if not names:
        raise DamagedArtefact(f"{folder} has no shard of the split {split!r}. Run: {FIX}")
    return header, names


def _part(table: pa.Table, header: TokenHeader) -> RowBatch:
    tokens = _all_tokens(table, header).reshape(table.num_rows, -1)
    captions = [json.dumps(texts, ensure_ascii=False).encode() for texts in table["captions"].to_pylist()]
    return {"captions": captions, "tokens": [row.tobytes() for row in tokens]}


def read_shard(path: Path, header: TokenHeader, rows: int | None = None) -> pa.Table:
    """Read one shard; raises DamagedArtefact if a page, a column, a token or the row count is wrong."""
    table = pq.read_table(path, page_checksum_verification=True)
    if table.schema != schema(header):
        raise DamagedArtefact(
            f"{path} has columns {table.schema.names} of other types than a token shard. Run: {FIX}"
        )
    if table.num_rows == 0 or (rows is not None and table.num_rows != rows):
        raise DamagedArtefact(f"{path} should have {rows or 'some'} rows, found {table.num_rows}. Run: {FIX}")
    tokens = _all_tokens(table, header)
    if tokens.max() >= header.vocab_size:
        row = int(tokens.max(axis=(1, 2)).argmax())
        raise DamagedArtefact(
            f"{path}, row {row}, column image_tokens: token {tokens.max()} is outside the vocabulary of "
            f"{header.vocab_size}. Run: {FIX}"
        )
    return table


def _all_tokens(table: pa.Table, header: TokenHeader) -> np.ndarray:
    chunks = [chunk.flatten().to_numpy() for chunk in table["image_tokens"].chunks]
    return np.concatenate(chunks).reshape(-1, header.views, header.length)
