"""Tokenising by a Ray cluster of two nodes on this machine against two local processes, on the same cores.

    OMP_NUM_THREADS=1 python -m bench.engine [--pictures 20000] [--rounds 3]

Needs Ray (the extra `ray`). The tokenizer is the default preset's, with first weights: its speed does not hang on them. Each
round begins with an empty store and takes in all that a stage pays for: the start of its workers, joining the cluster, the
hand-over of code, and the shards. The cluster itself is up before. Rounds alternate; the ratio is that of the medians, by the
clock. The bytes of each round are compared with those of one process.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import ray
import yaml
from ray.cluster_utils import Cluster

from stages.tokenize_pairs import tokenize_pairs
from thousandwords import components, pair_settings, pairs
from thousandwords.distributed import ALONE

SIDE = 64
PRESET = Path(__file__).parent.parent / "presets/default.yaml"
ROWS_PER_SHARD = 512


def prepare(pictures: int) -> None:
    """Scenes in shards of ROWS_PER_SHARD, and a tokenizer, in this folder."""
    scenes = pair_settings.SceneCounts(count=pictures, validation_count=ROWS_PER_SHARD, unseen_count=ROWS_PER_SHARD)
    pairs.write_pairs(pairs.Config(image_size=SIDE, scenes=scenes, rows_per_shard=ROWS_PER_SHARD), 0, Path("pairs"))
    block = yaml.safe_load(PRESET.read_text())["image_tokenizer"]
    config = components.model_config("tokenizers", block, "image_tokenizer")
    components.save(components.build("tokenizers", block["kind"], config, image_size=SIDE).eval(), Path("tokenizer"))


def tokenize(engine: dict) -> tuple[float, dict[str, bytes]]:
    """(seconds, files) of one run from an empty store."""
    shutil.rmtree(".store", ignore_errors=True)
    run = SimpleNamespace(
        params={"tokens": {}, "engine": engine}, world=ALONE, seed=0, record_metrics=lambda figures: None
    )
    began = time.perf_counter()
    with contextlib.redirect_stdout(None):
        tokenize_pairs(Path("pairs"), Path("tokenizer"), Path("tokens"), run)
    return time.perf_counter() - began, {path.name: path.read_bytes() for path in Path("tokens").iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"ray {ray.__version__}, {os.cpu_count()} cores, {options.pictures} pictures of {SIDE} x {SIDE}")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare(options.pictures)
        measure(options.rounds)


def measure(rounds: int) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    engines = {"local": {"workers": 2}, "ray": {"kind": "ray", "workers": 2, "address": cluster.address}}
    try:
        alone, wanted = tokenize({})
        print(f"one process   {alone:6.1f} s")
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(rounds):
            for name, engine in engines.items():
                took, files = tokenize(engine)
                assert files == wanted, f"{name} gave other bytes"
                seconds[name].append(took)
                print(f"{name:13} {took:6.1f} s, the same {len(files)} files", flush=True)
    finally:
        cluster.shutdown()
    print(f"ray / local   {statistics.median(seconds['ray']) / statistics.median(seconds['local']):.2f} (medians; bar 1.3)")


if __name__ == "__main__":
    main()
