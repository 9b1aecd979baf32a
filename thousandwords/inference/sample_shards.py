"""Sample shards: Parquet rows of (prompt_id, split, prompt, candidate, seed, image_tokens, image).

Beside them is a PNG for each prompt with an image to inpaint: its kept cells, the rest grayed out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from thousandwords.core.files import write_bytes
from thousandwords.core.manifest import clear, read_manifest, write_manifest
from thousandwords.core.parquet import table_bytes
from thousandwords.data.images import decode_png, encode_png

FIX = "dvc repro sample_images"
COLUMNS = ("prompt_id", "split", "prompt", "candidate", "seed")  # and image_tokens, image
PAINTED = "painted.parquet"
INPAINTED = "completed"  # the split of prompts with an image to inpaint, under its name in earlier files


def sample_table(prompts: list[dict], tokens: Tensor, images: np.ndarray) -> pa.Table:
    """Rows for one shard: a dict of COLUMNS per image, tokens (B, L) int64, images (B, H, W, 3) uint8."""
    flat = pa.array(tokens.numpy().astype(np.uint16).ravel())
    columns = {name: pa.array([row[name] for row in prompts]) for name in COLUMNS}
    columns["image_tokens"] = pa.FixedSizeListArray.from_arrays(flat, tokens.shape[1])
    columns["image"] = pa.array([encode_png(image) for image in images], pa.binary())
    return pa.table(columns)


def write_samples(
    folder: Path, tables: list[pa.Table], metadata: dict, kept_parts: Mapping[int, np.ndarray] | None = None
) -> None:
    """Write a Parquet file per table, a PNG per prompt of `kept_parts`, and the manifest, over earlier files."""
    clear(folder, "*.parquet", "given-*.png")
    rows: dict[str, int | None] = {}
    for number, table in enumerate(tables):
        name = f"samples-{number:05d}.parquet"
        write_bytes(Path(folder) / name, table_bytes(table))
        rows[name] = table.num_rows
    for prompt, image in (kept_parts or {}).items():
        write_bytes(Path(folder) / f"given-{prompt:05d}.png", encode_png(image))
        rows[f"given-{prompt:05d}.png"] = None
    write_manifest(folder, rows, metadata)


@dataclass(frozen=True)
class Samples:
    """P prompts with N candidates each, in the order in which they were sampled."""

    prompts: list[str]
    splits: list[str]
    candidates: int
    table: pa.Table
    metadata: dict
    kept_parts: dict[int, np.ndarray]  # {prompt: the image it inpaints, grayed out where sampled}
    # PNGs by the decoder, in place of the tokenizer's images, by (prompt, candidate); only with `decoder.paint: kept`
    painted: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def images(self, prompt: int) -> np.ndarray:
        """The N candidates of one prompt: uint8 (N, H, W, 3)."""
        return np.stack([self.image(prompt, candidate) for candidate in range(self.candidates)])

    def image(self, prompt: int, candidate: int) -> np.ndarray:
        """One candidate: uint8 (H, W, 3)."""
        row = self.table["image"][prompt * self.candidates + candidate]
        return decode_png(self.painted.get((prompt, candidate)) or row.as_py())

    def tokens(self, prompt: int) -> Tensor:
        """The tokens of the N candidates of one prompt: (N, L) int64."""
        rows = self.table["image_tokens"].slice(prompt * self.candidates, self.candidates)
        return torch.tensor(rows.to_pylist())

    def text_only_prompts(self) -> list[int]:
        """The prompts without an image to inpaint, which the metrics use; all prompts if each has one."""
        text_only = [prompt for prompt, split in enumerate(self.splits) if split != INPAINTED]
        return text_only or list(range(len(self.prompts)))


def painted_table(painted: Mapping[tuple[int, int], bytes]) -> pa.Table:
    """{(prompt, candidate): PNG} as a table, the file PAINTED in the folder of `rank_images`."""
    prompts, candidates = zip(*painted, strict=True)
    images = pa.array(painted.values(), pa.binary())
    return pa.table({"prompt_id": pa.array(prompts), "candidate": pa.array(candidates), "image": images})


def _read_painted(ranked: Path) -> dict[tuple[int, int], bytes]:
    """What `painted_table` was made of, verified; nothing where all samples are as they were decoded first."""
    if PAINTED not in read_manifest(ranked, fix="dvc repro rank_images")["files"]:
        return {}
    rows = pq.read_table(Path(ranked) / PAINTED, page_checksum_verification=True).to_pylist()
    return {(row["prompt_id"], row["candidate"]): row["image"] for row in rows}


def read_samples(folder: Path, ranked: Path | None = None) -> Samples:
    """The samples of `folder`, verified, with the images that were made in `ranked` for the kept ones."""
    manifest = read_manifest(folder, fix=FIX)
    names = sorted(name for name in manifest["files"] if name.endswith(".parquet"))
    table = pa.concat_tables(
        [pq.read_table(Path(folder) / name, page_checksum_verification=True) for name in names]
    ).sort_by([("prompt_id", "ascending"), ("candidate", "ascending")])
    count = manifest["facts"]["candidates"]
    prompts, splits = table["prompt"].to_pylist()[::count], table["split"].to_pylist()[::count]
    kept_parts = {
        int(name[len("given-") : -len(".png")]): decode_png((Path(folder) / name).read_bytes())
        for name in sorted(set(manifest["files"]) - set(names))
    }
    painted = _read_painted(ranked) if ranked else {}
    return Samples(prompts, splits, count, table, manifest["facts"], kept_parts, painted)
