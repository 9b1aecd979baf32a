"""How long the captions are that training sees: a look at one shard of pairs, so that it costs the same for any data set."""
from __future__ import annotations

import statistics
from pathlib import Path

import pyarrow.parquet as pq

from thousandwords.files import check_file, read_manifest
from thousandwords.pair_shards import MEND, shards_of


def caption_counts(folder: Path) -> dict | None:
    """Of the first training shard: {"pairs", "captions", "distinct", "words": {"least", "median", "most"}}.

    None where there is no such shard. Words end at blanks. Raises DamagedArtefact where it is not what its manifest promises.
    """
    manifest = read_manifest(folder, verify=False, mend=MEND)
    names = shards_of(manifest, "train")
    if not names:
        return None
    check_file(folder / names[0], manifest["files"][names[0]], MEND)
    rows = pq.read_table(folder / names[0], columns=["captions"], page_checksum_verification=True)["captions"].to_pylist()
    captions = [caption for row in rows for caption in row]
    lengths = [len(caption.split()) for caption in captions]
    words = {"least": min(lengths), "median": statistics.median_low(lengths), "most": max(lengths)}
    return {"pairs": len(rows), "captions": len(captions), "distinct": len(set(captions)), "words": words}
