"""The real sets beside the project, each by the kind of source that fits: the stage ends with code 0 and every input is counted.

Slow; and skipped where ../shared/data is absent.
"""
from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thousandwords.files import read_manifest, write_json
from thousandwords.images import encode_png
from thousandwords.pair_counts import FATES
from thousandwords.pairs import QUARANTINE
from thousandwords.sources import WebDatasetSource

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared/data"
FSA = SHARED / "photos/fsa-color"
SKIN_TONE = "^(.*?): .*skin tone"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")]


def emoji(_: Path) -> dict:
    return {"source": "webdataset", "path": str(SHARED / "emoji"), "group_by": SKIN_TONE}


def nlvr(_: Path) -> dict:
    return {"source": "webdataset", "path": str(SHARED / "nlvr"), "max_aspect": 4.0}


def fsa_table(_: Path) -> dict:
    return {"source": "csv", "path": str(FSA / "captions.tsv")}


def fsa_lines(folder: Path) -> dict:
    with open(FSA / "captions.tsv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
    (folder / "fsa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"source": "jsonl", "path": str(folder / "fsa.jsonl"), "image_folder": str(FSA)}


def coco(_: Path) -> dict:
    return {"source": "coco", "path": str(SHARED / "photos/coco-cc/captions.json"), "image_folder": "images"}


def coco_folder(folder: Path) -> dict:
    """The same, each caption a line of the text beside its picture."""
    shutil.copytree(SHARED / "photos/coco-cc/images", folder / "own")
    content = json.loads((SHARED / "photos/coco-cc/captions.json").read_bytes())
    for image in content["images"]:
        lines = [said["caption"] for said in content["annotations"] if said["image_id"] == image["id"]]
        (folder / "own" / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines))
    return {"source": "folder", "path": str(folder / "own")}


def emoji_rows(folder: Path) -> dict:
    """As the hub stores pictures, one Parquet file a tar."""
    (folder / "rows").mkdir()
    for tar in sorted((SHARED / "emoji").glob("*.tar")):
        rows = [{"image": {"bytes": raw.image, "path": None}, "caption": list(raw.captions)} for raw in WebDatasetSource(tar)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"rows/{tar.stem}.parquet")
    return {"source": "parquet", "path": str(folder / "rows"), "group_by": SKIN_TONE}


def all_captions(folder: Path) -> dict:
    """Every caption of captions.txt.gz, some 66 to each of a thousand plain pictures."""
    said = gzip.decompress((SHARED / "captions.txt.gz").read_bytes()).decode().splitlines()
    for number in range(1000):
        colour = np.array([number % 10, number // 10 % 10, number // 100], np.uint8) * 25
        (folder / f"{number}.png").write_bytes(encode_png(np.broadcast_to(colour, (32, 32, 3)).copy()))
    lines = [json.dumps({"image": f"{number}.png", "caption": said[number::1000]}) for number in range(1000)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return {"source": "jsonl", "path": str(folder / "captions.jsonl")}


def bad_images(folder: Path) -> dict:
    with open(SHARED / "bad-images/CURATED.tsv", newline="") as table:
        names = [row["file"] for row in csv.DictReader(table, delimiter="\t")]
    (folder / "own").mkdir()
    for number, name in enumerate(names):
        shutil.copy(SHARED / "bad-images" / name, folder / f"own/{number:02d}-{Path(name).name}.png")
        (folder / f"own/{number:02d}-{Path(name).name}.txt").write_text(name)
    return {"source": "folder", "path": str(folder / "own"), "max_refused_share": 0.99}


SETS = {  # -> n_in, n_ok, n_quarantined, n_duplicate, n_filtered
    emoji: (3787, 3787, 0, 0, 0),
    emoji_rows: (3787, 3787, 0, 0, 0),
    nlvr: (2000, 1945, 0, 55, 0),
    fsa_table: (1615, 1615, 0, 0, 0),
    fsa_lines: (1615, 1615, 0, 0, 0),
    coco: (79, 79, 0, 0, 0),
    coco_folder: (79, 79, 0, 0, 0),
    all_captions: (1000, 1000, 0, 0, 0),
    bad_images: (66, 28, 28, 0, 10),
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
    assert counts["n_in"] == sum(counts[fate] for fate in FATES)
    for shard in counts.get("by_shard", {}).values():
        assert shard["n_in"] == sum(shard[fate] for fate in FATES)
    assert sum(shard["n_in"] for shard in counts.get("by_shard", {}).values()) in (0, counts["n_in"])
    rows = {path.name: pq.read_table(path).num_rows for path in (tmp_path / "pairs").glob("*.parquet")}
    assert rows.pop(QUARANTINE) == counts["n_quarantined"] + counts["n_filtered"]
    assert sum(rows.values()) == counts["n_ok"]
    assert tuple(counts[name] for name in ("n_in", *FATES)) == SETS[make]
