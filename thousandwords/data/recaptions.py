"""Captions written by a captioner, in place of the original ones of a share of the training pairs.

data/recaptions has one Parquet file of (key, caption, provenance) for each shard of training pairs, with its name, and
a manifest that names the pairs and the captioner. Without a captioner it has the manifest only. Held-out pairs keep
their own captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from thousandwords.core.config import check_minimums
from thousandwords.core.errors import UserError
from thousandwords.core.files import unit_hash, write_bytes
from thousandwords.core.manifest import DamagedArtefact, check_file, clear, read_manifest, write_manifest
from thousandwords.core.parquet import table_bytes

FIX = "dvc repro recaption"
RECAPTION_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("provenance", pa.string(), nullable=False),  # captioner and seed
    ]
)


@dataclass(frozen=True)
class RecaptionConfig:
    """The section `captioner` of params.yaml beside the model and its training."""

    recaption_share: float = 0.95  # of the training pairs, by a hash of the key (DALL-E 3: 95 %)
    candidates: int = 8  # captions sampled for an image, of which the one that says most about it is kept
    top_p: float | None = 0.95  # of a token's probability; null: all

    def __post_init__(self) -> None:
        if not 0 <= self.recaption_share <= 1:
            raise ValueError(f"captioner.recaption_share is {self.recaption_share}; it lies between 0 and 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"captioner.top_p is {self.top_p}; it needs to be in (0, 1], or null")
        check_minimums(self, "captioner", candidates=1)


def is_recaptioned(key: str, seed: int, share: float) -> bool:
    """Whether a pair belongs to the `share` that is trained on its second caption; a larger share has the same pairs."""
    return unit_hash(f"recaption\0{key}", seed) < share


def recaption_table(keys: Sequence[str], captions: Sequence[str], provenance: str) -> pa.Table:
    columns = [pa.array(texts, pa.string()) for texts in (keys, captions, [provenance] * len(keys))]
    return pa.Table.from_arrays(columns, schema=RECAPTION_SCHEMA)


def write_recaptions(folder: Path, tables: dict[str, pa.Table], metadata: dict) -> None:
    """Write {name of the pair shard: its rows of RECAPTION_SCHEMA}, and the manifest last."""
    clear(folder, "*.parquet")
    for name, table in tables.items():
        write_bytes(folder / name, table_bytes(table))
    write_manifest(folder, {name: table.num_rows for name, table in tables.items()}, metadata)


def read_table(path: Path) -> pa.Table:
    """One file of RECAPTION_SCHEMA; raises DamagedArtefact if it is another table."""
    table = pq.read_table(path, page_checksum_verification=True)
    if table.schema != RECAPTION_SCHEMA:
        raise DamagedArtefact(
            f"{path} has columns {table.schema.names}, not those of second captions. Run: {FIX}"
        )
    return table


@dataclass(frozen=True)
class Recaptions:
    """The captions in a folder; `fingerprint` is None where no captioner wrote any."""

    folder: Path
    files: dict[str, dict]
    metadata: dict
    fingerprint: str | None

    def of_shard(self, name: str) -> dict[str, str]:
        """{key: second caption} of a shard of pairs, verified."""
        entry = self.files.get(name)
        if entry is None:
            return {}
        check_file(self.folder / name, entry, FIX)
        rows = read_table(self.folder / name)
        return dict(zip(rows["key"].to_pylist(), rows["caption"].to_pylist(), strict=True))


def open_recaptions(folder: Path | None, pairs: Path) -> Recaptions:
    """The captions in a folder, or none; raises UserError if they were written for other pairs."""
    if folder is None:
        return Recaptions(Path(), {}, {}, None)
    manifest = read_manifest(folder, verify=False, fix=FIX)
    files, metadata = manifest["files"], manifest["facts"]
    expected = read_manifest(pairs, verify=False)["sha256"]
    if files and metadata["pairs"] != expected:
        raise UserError(
            f"{folder} was written for the pairs {metadata['pairs'][:12]}, but {pairs} holds {expected[:12]}. Run: {FIX}"
        )
    return Recaptions(Path(folder), files, metadata, manifest["sha256"] if files else None)


def replace_captions(table: pa.Table, second: dict[str, str]) -> pa.Table:
    """Rows with `key` and `captions`, with the second caption alone where there is one."""
    if not second:
        return table
    rows = zip(table["key"].to_pylist(), table["captions"].to_pylist(), strict=True)
    column = [[second[key]] if key in second else own for key, own in rows]
    index = table.schema.get_field_index("captions")
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(column, field.type))
