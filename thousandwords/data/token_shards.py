"""Token shards: the data set as words. Parquet files of (key, captions, image_tokens), a manifest, and seeded batches.

`image_tokens` is a fixed-size list of uint16, views × L, and the manifest's `scales` says what the L words are: (32,) is
DALL-E's 1,024, (16,) another model's 256. The manifest binds the shards to the image tokenizer that wrote them; training
refuses any other. Captions stay text, so a new BPE does not re-encode a single picture.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from thousandwords.errors import UserError
from thousandwords.files import (
    DamagedArtefact,
    check_file,
    clear,
    fingerprint,
    read_manifest,
    write_bytes,
    write_manifest,
)
from thousandwords.mixing import Mixing
from thousandwords.rows import Part, Rows, write_rows
from thousandwords.store import Store
from thousandwords.tables import table_bytes

MEND = "dvc repro tokenize_pairs"
MOST_WORDS = 2**16
MOST_IN_MEMORY = 2**28  # bytes of rows; more stay on disk
BYTES_OF_TEXT = 500  # of a row's captions and key as Python holds them, roughly


class WrongTokenizer(UserError):
    """Shards and tokenizer do not belong together."""


@dataclass(frozen=True)
class Config:
    """The section `tokens` of params.yaml."""

    rows_per_shard: int = 8192
    batch_size: int = 256  # pictures encoded at a time
    views_per_image: int = 1  # crops of each training picture; training sees one of them per epoch
    augmentation: Literal["none", "paper"] = "none"  # none: the plain square; paper: random crops (listing 2)

    def __post_init__(self) -> None:
        for name in ("rows_per_shard", "batch_size", "views_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"tokens.{name} is {getattr(self, name)}; it needs to be 1 or more")
        if self.views_per_image > 1 and self.augmentation == "none":
            raise ValueError(
                f"tokens.views_per_image is {self.views_per_image}, but all views of a plain square are alike. "
                "Set tokens.augmentation: paper"
            )


@dataclass(frozen=True)
class TokenHeader:
    """What the words in a folder of shards are: who wrote them, from which vocabulary, in which grid."""

    tokenizer_kind: str
    tokenizer_fingerprint: str
    vocab_size: int
    scales: tuple[int, ...]
    image_size: int  # pixels a side
    views: int = 1  # crops of each picture

    def __post_init__(self) -> None:
        if self.vocab_size > MOST_WORDS:
            raise UserError(
                f"image tokenizer {self.tokenizer_kind!r} has {self.vocab_size} words, but token shards can tell "
                f"{MOST_WORDS} apart (uint16). Give it a smaller vocab_size"
            )

    @property
    def length(self) -> int:
        """L: how many words one view has."""
        return sum(side * side for side in self.scales)

    def facts(self) -> dict:
        return {**vars(self), "scales": list(self.scales)}

    @classmethod
    def from_facts(cls, facts: dict) -> TokenHeader:
        return cls(**{**facts, "scales": tuple(facts["scales"])})


def schema(header: TokenHeader) -> pa.Schema:
    """The one schema of token shards."""
    words = pa.list_(pa.uint16(), header.views * header.length)
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("captions", pa.list_(pa.string()), nullable=False),
            pa.field("image_tokens", words, nullable=False),
        ]
    )


def token_table(header: TokenHeader, keys: Sequence[str], captions: Sequence[list[str]], tokens: Tensor) -> pa.Table:
    """Rows of a token shard: tokens is (B, views × L) int64, each in 0 … vocab_size − 1."""
    width = header.views * header.length
    assert tokens.shape == (len(keys), width), f"tokens are {tuple(tokens.shape)}, wanted ({len(keys)}, {width})"
    assert 0 <= int(tokens.min()) and int(tokens.max()) < header.vocab_size
    flat = pa.array(tokens.numpy().astype(np.uint16).ravel())
    columns = [pa.array(keys), pa.array(captions), pa.FixedSizeListArray.from_arrays(flat, width)]
    return pa.Table.from_arrays(columns, schema=schema(header))


@dataclass
class TokenShardWriter:
    """Writes shards of `rows_per_shard` rows, one split after the other; `close` writes the manifest. Earlier ones are removed.

    `facts` are further ones for the manifest, like the weights of a mixture.
    Usage: with TokenShardWriter(folder, header, 4096) as shards: shards.write("train", keys, captions, tokens)
    """

    folder: Path
    header: TokenHeader
    rows_per_shard: int
    facts: dict = field(default_factory=dict)
    _pending: dict[str, list[pa.Table]] = field(default_factory=dict)
    _rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clear(self.folder, "*.parquet")

    def write(self, split: str, keys: Sequence[str], captions: Sequence[list[str]], tokens: Tensor) -> None:
        """Adds rows: tokens is (B, views × L) int64, each in 0 … vocab_size − 1."""
        self.add(split, token_table(self.header, keys, captions, tokens))

    def add(self, split: str, table: pa.Table) -> None:
        """Adds rows that `token_table` or `read_shard` gave; shards are cut as if all had come at once."""
        # Parquet calls the field within a list "element" and pyarrow "item": one name, or the bytes hang on where rows came from
        table = pa.Table.from_arrays(table.columns, schema=schema(self.header))
        self._pending.setdefault(split, []).append(table)
        while sum(table.num_rows for table in self._pending[split]) >= self.rows_per_shard:
            self._flush(split)

    def close(self) -> dict:
        """Writes what is pending, and the manifest over all shards; returns the manifest."""
        for split, tables in self._pending.items():
            if sum(table.num_rows for table in tables):
                self._flush(split)
        return write_manifest(self.folder, self._rows, {"tokens": self.header.facts(), **self.facts})

    def __enter__(self) -> TokenShardWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()

    def _flush(self, split: str) -> None:
        whole = pa.concat_tables(self._pending[split])
        shard = whole.slice(0, self.rows_per_shard)
        self._pending[split] = [whole.slice(self.rows_per_shard)]
        number = sum(name.startswith(f"{split}-") for name in self._rows)
        name = f"{split}-{number:05d}.parquet"
        write_bytes(Path(self.folder) / name, table_bytes(shard))
        self._rows[name] = shard.num_rows


@dataclass(frozen=True)
class TokenRows:
    """All rows of one split: keys, captions, and tokens (N, views, L) as uint16."""

    header: TokenHeader
    keys: list[str]
    captions: list[list[str]]
    tokens: np.ndarray
    mixing: Mixing | None = None  # how much training sees of each source, where they have weights

    def __len__(self) -> int:
        return len(self.keys)

    def expect(self, rows: Sequence[int]) -> None:
        """Nothing to wait for: they are here."""

    def captions_of(self, row: int) -> list[str]:
        return self.captions[row]

    def tokens_of(self, rows: Sequence[int], views: Sequence[int]) -> np.ndarray:
        """One view of each row: (B, L) uint16."""
        return self.tokens[rows, views]

    def batch(self, indices: Sequence[int], view: int = 0) -> tuple[list[str], Tensor]:
        """(the first caption of each row, tokens (B, L) int64)."""
        tokens = torch.from_numpy(self.tokens[np.asarray(indices), view].astype(np.int64))
        return [self.captions[index][0] for index in indices], tokens


class StoredTokenRows:
    """What `TokenRows` holds, read row by row from disk: the same answers, whatever the number of rows."""

    def __init__(self, header: TokenHeader, rows: Rows, mixing: Mixing | None = None) -> None:
        self.header, self.rows, self.mixing = header, rows, mixing

    def __len__(self) -> int:
        return len(self.rows)

    def expect(self, rows: Sequence[int]) -> None:
        """These rows will be asked for next."""
        self.rows.expect(rows)

    def captions_of(self, row: int) -> list[str]:
        return json.loads(self.rows.read("captions", row))

    def tokens_of(self, rows: Sequence[int], views: Sequence[int]) -> np.ndarray:
        """One view of each row: (B, L) uint16."""
        length = self.header.length
        words = [
            np.frombuffer(self.rows.read("tokens", row), np.uint16)[view * length : (view + 1) * length]
            for row, view in zip(rows, views, strict=True)
        ]
        return np.stack(words)


AnyTokenRows = TokenRows | StoredTokenRows


def all_captions(rows: AnyTokenRows) -> Iterator[str]:
    """Every caption of every row, in order."""
    return (caption for row in range(len(rows)) for caption in rows.captions_of(row))


def read_token_rows(folder: Path, split: str, tokenizer_fingerprint: str | None = None, first: int | None = None) -> TokenRows:
    """The rows of a split (or no more than its first shards, of `first` rows or more), in memory.

    Verified against the manifest and, if given, against the tokenizer in use. Raises WrongTokenizer or DamagedArtefact; both
    say which command mends it.
    """
    manifest = read_manifest(folder, mend=MEND)
    header, names = _opened(manifest, folder, split, tokenizer_fingerprint)
    tables = []
    for name in names:
        if first is None or sum(table.num_rows for table in tables) < first:
            tables.append(read_shard(Path(folder) / name, header, manifest["files"][name]["rows"]))
    table = pa.concat_tables(tables)
    mixing = None if first is not None else Mixing.from_facts(manifest["facts"], split)
    return TokenRows(header, table["key"].to_pylist(), table["captions"].to_pylist(), _all_words(table, header), mixing)


def open_token_rows(
    folder: Path, split: str, tokenizer_fingerprint: str | None, store: Store, most_in_memory: int = MOST_IN_MEMORY
) -> AnyTokenRows:
    """`read_token_rows`, or where memory would hold more than that many bytes: the same rows, written once to the store.

    They are known there by the shards' manifest, and need as much disk as the shards unpacked. Raises UserError where there is
    too little.
    """
    manifest = read_manifest(folder, verify=False, mend=MEND)
    header, names = _opened(manifest, folder, split, tokenizer_fingerprint)
    count = sum(manifest["files"][name]["rows"] for name in names)
    if count * (_token_bytes(header) + BYTES_OF_TEXT) <= most_in_memory:
        return read_token_rows(folder, split, tokenizer_fingerprint)
    key = fingerprint({"shards": manifest["sha256"], "split": split, "layout": 1})
    store.begin([key])

    def make(entry: Path) -> None:
        store.check_room(count * (_token_bytes(header) + BYTES_OF_TEXT), f"the {count:,} rows of {split} in {folder}")
        for name in names:
            check_file(Path(folder) / name, manifest["files"][name], MEND)
        shards = (read_shard(Path(folder) / name, header, manifest["files"][name]["rows"]) for name in names)
        write_rows(entry, (_part(shard, header) for shard in shards))

    return StoredTokenRows(header, Rows(store.get(key, make), verify=False), Mixing.from_facts(manifest["facts"], split))


def _opened(manifest: dict, folder: Path, split: str, tokenizer_fingerprint: str | None) -> tuple[TokenHeader, list[str]]:
    """(what the words are, the names of the split's shards)."""
    header = TokenHeader.from_facts(manifest["facts"]["tokens"])
    if tokenizer_fingerprint is not None and tokenizer_fingerprint != header.tokenizer_fingerprint:
        raise WrongTokenizer(
            f"{folder} was written by image tokenizer {header.tokenizer_kind!r} (fingerprint "
            f"{header.tokenizer_fingerprint[:12]}), but the tokenizer in use has {tokenizer_fingerprint[:12]}. Run: {MEND}"
        )
    names = sorted(name for name in manifest["files"] if name.startswith(f"{split}-"))
    if not names:
        raise DamagedArtefact(f"{folder} has no shard of the split {split!r}. Run: {MEND}")
    return header, names


def _token_bytes(header: TokenHeader) -> int:
    return 2 * header.views * header.length


def _part(table: pa.Table, header: TokenHeader) -> Part:
    words = _all_words(table, header).reshape(table.num_rows, -1)
    captions = [json.dumps(several, ensure_ascii=False).encode() for several in table["captions"].to_pylist()]
    return {"captions": captions, "tokens": [row.tobytes() for row in words]}


def read_shard(path: Path, header: TokenHeader, rows: int | None = None) -> pa.Table:
    """The rows of one shard; DamagedArtefact where a page, a column, a word or the count of `rows` is wrong."""
    table = pq.read_table(path, page_checksum_verification=True)
    if table.schema != schema(header):
        raise DamagedArtefact(
            f"{path} has columns {table.schema.names} of other types than a token shard's. Run: {MEND}"
        )
    if table.num_rows == 0 or (rows is not None and table.num_rows != rows):
        raise DamagedArtefact(f"{path} should have {rows or 'some'} rows, found {table.num_rows}. Run: {MEND}")
    words = _all_words(table, header)
    if words.max() >= header.vocab_size:
        row = int(words.max(axis=(1, 2)).argmax())
        raise DamagedArtefact(
            f"{path}, row {row}, column image_tokens: word {words.max()} is outside the vocabulary of "
            f"{header.vocab_size}. Run: {MEND}"
        )
    return table


def _all_words(table: pa.Table, header: TokenHeader) -> np.ndarray:
    return np.concatenate([_words(chunk, header) for chunk in table["image_tokens"].chunks])


def _words(chunk: pa.FixedSizeListArray, header: TokenHeader) -> np.ndarray:
    return chunk.flatten().to_numpy().reshape(len(chunk), header.views, header.length)


def in_order(count: int, batch_size: int) -> Iterator[list[int]]:
    """All rows once, in order, in batches: in_order(5, 2) -> [0, 1], [2, 3], [4]"""
    for start in range(0, count, batch_size):
        yield list(range(start, min(count, start + batch_size)))
