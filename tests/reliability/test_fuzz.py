"""Thousands of damaged images: each is counted once, and none stops the run, stalls it, or kills a worker.

`pytest -m slow tests/reliability/test_fuzz.py` uses 2,000; FUZZ_COUNT=10000 and FUZZ_SEED=1 give more, or
different ones.
"""

import json
import os
import time
from pathlib import Path

import pytest

from tests.helpers.fuzzing import damaged_images, valid_images
from tests.helpers.images import write
from tests.helpers.sources import folder_config
from thousandwords.core.manifest import read_manifest
from thousandwords.data.pair_shards import PairReader
from thousandwords.ingest.ingest import write_pairs

# and never worker_died or decode_timeout
REASONS = {
    *("truncated", "corrupt_data", "not_an_image", "bad_format"),
    *("bad_mode", "too_many_pixels", "empty_file", "out_of_memory"),
}


def fuzz(folder: Path, count: int, seed: int) -> dict:
    """Prepare `count` damaged images among the valid ones; returns the counts after all checks."""
    own = folder / "own"
    valid = [(f"valid-{number:02d}.{suffix}", data) for number, (suffix, data) in enumerate(valid_images())]
    for name, data in [*damaged_images(count, seed), *valid]:
        write(own, {name: data, f"{Path(name).stem}.txt": name})
    limits = {"min_side": 1, "max_aspect": 1e9, "max_refused_share": 1.0}
    config = folder_config(own, validation_share=0.5, rows_per_shard=500, **limits)

    started = time.monotonic()
    counts = write_pairs(config, 0, folder / "pairs")

    result = {**counts, "seconds": round(time.monotonic() - started, 1)}
    assert counts["n_in"] == count + len(valid) == counts["n_ok"] + counts["n_quarantined"], result
    assert set(counts["reasons"]) <= REASONS, result
    readers = [PairReader(folder / "pairs", split) for split in ("train", "validation")]
    keys = [reader.key(row) for reader in readers for row in range(len(reader))]
    assert {name for name, _ in valid} <= set(keys)
    assert len(set(keys)) == counts["n_ok"] == len(keys)
    files = read_manifest(folder / "pairs")["files"]
    assert sum(entry["rows"] for entry in files.values()) == counts["n_in"]
    return result


def test_damaged_images_are_rejected_or_decoded_and_counted(tmp_path):
    fuzz(tmp_path, 120, seed=0)


@pytest.mark.slow
def test_thousands_of_damaged_images_are_rejected_or_decoded_and_counted(tmp_path):
    count, seed = int(os.environ.get("FUZZ_COUNT", 2000)), int(os.environ.get("FUZZ_SEED", 0))
    print(json.dumps(fuzz(tmp_path, count, seed)))
