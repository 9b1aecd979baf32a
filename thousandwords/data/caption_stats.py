"""Caption lengths of the training data, from one shard, so that the cost does not grow with the data set."""

from __future__ import annotations

import statistics
from pathlib import Path

import pyarrow.parquet as pq

from thousandwords.core.manifest import check_file, read_manifest
from thousandwords.data.pair_shards import FIX, shard_names


def caption_counts(folder: Path) -> dict | None:
    """Counts of the first shard: {"pairs", "captions", "distinct", "words": {"least", "median", "most"}}.

    None without a training shard. Words are separated by white space. Raises DamagedArtefact if the manifest
    does not match.
    """
    manifest = read_manifest(folder, verify=False, fix=FIX)
    names = shard_names(manifest, "train")
    if not names:
        return None
    check_file(folder / names[0], manifest["files"][names[0]], FIX)
    rows = pq.read_table(folder / names[0], columns=["captions"], page_checksum_verification=True)[
        "captions"
    ].to_pylist()
    captions = [caption for row in rows for caption in row]
    lengths = [len(caption.split()) for caption in captions]
    words = {"least": min(lengths), "median": statistics.median_low(lengths), "most": max(lengths)}
    return {"pairs": len(rows), "captions": len(captions), "distinct": len(set(captions)), "words": words}
