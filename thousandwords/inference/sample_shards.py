"""Sample shards: what was drawn. Parquet rows of (prompt_id, split, prompt, candidate, seed, image_tokens, image).

Beside them lies a PNG for each prompt that had a picture to complete: what was given of it, the rest greyed out.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from thousandwords import images
from thousandwords.files import clear, read_manifest, write_bytes, write_manifest
from thousandwords.tables import table_bytes

MEND = "dvc repro sample_images"
COMPLETED = "completed"  # the split of prompts whose pictures were given in part


def sample_table(prompts: list[dict], tokens: Tensor, pictures: np.ndarray) -> pa.Table:
    """Rows for one shard: `prompts` has one dict (prompt_id, split, prompt, candidate, seed) per picture.

    tokens (B, L) int64, pictures (B, H, W, 3) uint8.
    """
    flat = pa.array(tokens.numpy().astype(np.uint16).ravel())
    columns = {name: pa.array([row[name] for row in prompts]) for name in ("prompt_id", "split", "prompt", "candidate")}
    columns["seed"] = pa.array([row["seed"] for row in prompts], pa.int64())
    columns["image_tokens"] = pa.FixedSizeListArray.from_arrays(flat, tokens.shape[1])
    columns["image"] = pa.array([images.encode_png(picture) for picture in pictures], pa.binary())
    return pa.table(columns)


def write_samples(
    folder: Path, tables: list[pa.Table], facts: dict, given: Mapping[int, np.ndarray] | None = None
) -> None:
    """One Parquet file per table, a PNG per prompt of `given`, and the manifest; earlier ones are removed."""
    clear(folder, "*.parquet", "given-*.png")
    rows: dict[str, int | None] = {}
    for number, table in enumerate(tables):
        name = f"samples-{number:05d}.parquet"
        write_bytes(Path(folder) / name, table_bytes(table))
        rows[name] = table.num_rows
    for prompt, picture in (given or {}).items():
        write_bytes(Path(folder) / f"given-{prompt:05d}.png", images.encode_png(picture))
        rows[f"given-{prompt:05d}.png"] = None
    write_manifest(folder, rows, facts)


@dataclass(frozen=True)
class Samples:
    """P prompts with N candidates each, in the order in which they were drawn."""

    prompts: list[str]
    splits: list[str]
    candidates: int
    table: pa.Table
    facts: dict
    given: dict[int, np.ndarray]  # {prompt: what is seen of the picture that it completes, uint8 (H, W, 3)}

    def pictures(self, prompt: int) -> np.ndarray:
        """The N candidates of one prompt: uint8 (N, H, W, 3)."""
        rows = self.table["image"].slice(prompt * self.candidates, self.candidates)
        return np.stack([images.decode_png(data) for data in rows.to_pylist()])

    def from_text(self) -> list[int]:
        """The prompts that were drawn from text alone, which figures are about; all of them if there is none such."""
        alone = [prompt for prompt, split in enumerate(self.splits) if split != COMPLETED]
        return alone or list(range(len(self.prompts)))


def read_samples(folder: Path) -> Samples:
    """The samples of `folder`, verified."""
    manifest = read_manifest(folder, mend=MEND)
    names = sorted(name for name in manifest["files"] if name.endswith(".parquet"))
    table = pa.concat_tables(
        [pq.read_table(Path(folder) / name, page_checksum_verification=True) for name in names]
    ).sort_by([("prompt_id", "ascending"), ("candidate", "ascending")])
    count = manifest["facts"]["candidates"]
    prompts, splits = table["prompt"].to_pylist()[::count], table["split"].to_pylist()[::count]
    given = {
        int(name[len("given-") : -len(".png")]): images.decode_png((Path(folder) / name).read_bytes())
        for name in sorted(set(manifest["files"]) - set(names))
    }
    return Samples(prompts, splits, count, table, manifest["facts"], given)
