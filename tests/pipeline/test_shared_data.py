"""Real data sets with each kind of source: the stage ends with code 0 and every input is counted.

Slow; skipped if ../shared/data is absent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers.paths import ROOT, SHARED
from thousandwords.core.files import write_json
from thousandwords.core.manifest import read_manifest
from thousandwords.ingest.counts import OUTCOMES
from thousandwords.ingest.records import QUARANTINE

SHARED_DATA = SHARED / "data"
FSA = SHARED_DATA / "photos/fsa-color"
SKIN_TONE = "^(.*?): .*skin tone"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is absent"),
]


def emoji(_: Path) -> dict:
    return {"source": "webdataset", "path": str(SHARED_DATA / "emoji"), "group_by": SKIN_TONE}


def nlvr(_: Path) -> dict:
    return {"source": "webdataset", "path": str(SHARED_DATA / "nlvr"), "max_aspect": 4.0}


def fsa_table(_: Path) -> dict:
    return {"source": "csv", "path": str(FSA / "captions.tsv")}


def coco(_: Path) -> dict:
    return {
        "source": "coco",
        "path": str(SHARED_DATA / "photos/coco-cc/captions.json"),
        "image_folder": "images",
    }


SETS = {  # -> n_in, n_ok, n_quarantined, n_duplicate, n_filtered
    emoji: (3787, 3787, 0, 0, 0),
    nlvr: (2000, 1945, 0, 55, 0),
    fsa_table: (1615, 1615, 0, 0, 0),
    coco: (79, 79, 0, 0, 0),
}


@pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)
def test_a_real_set_ends_with_code_0_and_every_input_is_counted(make, tmp_path):
    data = {"image_size": 32, "validation_share": 0.1, **make(tmp_path)}
    write_json(tmp_path / "params.yaml", {"seed": 0, "device": "cpu", "data": data})
    command = [sys.executable, "-m", "stages.prepare_pairs", "--params", "params.yaml", "--out", "pairs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    counts = read_manifest(tmp_path / "pairs")["facts"]["counts"]
    print(make.__name__, json.dumps(counts))
    assert counts["n_in"] == sum(counts[outcome] for outcome in OUTCOMES)
    for shard in counts.get("by_shard", {}).values():
        assert shard["n_in"] == sum(shard[outcome] for outcome in OUTCOMES)
    assert sum(shard["n_in"] for shard in counts.get("by_shard", {}).values()) in (0, counts["n_in"])
    rows = {path.name: pq.read_table(path).num_rows for path in (tmp_path / "pairs").glob("*.parquet")}
    assert rows.pop(QUARANTINE) == counts["n_quarantined"] + counts["n_filtered"]
    assert sum(rows.values()) == counts["n_ok"]
    assert tuple(counts[name] for name in ("n_in", *OUTCOMES)) == SETS[make]
