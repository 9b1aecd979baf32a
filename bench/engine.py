"""Tokenizing by a Ray cluster of two nodes on this machine, compared with two local processes.

    OMP_NUM_THREADS=1 python -m bench.engine [--images 20000] [--rounds 3]

Needs Ray (the extra `ray`). The tokenizer is the default preset's, with first weights, which do not affect
its speed. Each round begins with an empty store and includes everything a stage does: start of the workers,
joining the cluster, transfer of the code, and the shards. The cluster itself is started before. Rounds
alternate; the ratio is that of the medians of wall time. The bytes of each round are compared with those of
one process.
"""

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import ray
from ray.cluster_utils import Cluster

from stages.tokenize_pairs import tokenize_pairs
from thousandwords import components
from thousandwords.core.command_line import one_sentence, parser
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig, SceneCounts
from thousandwords.planning.presets import read_preset
from thousandwords.training.distributed import SINGLE_PROCESS

SIDE = 64
PRESETS = Path(__file__).parent.parent / "presets"
ROWS_PER_SHARD = 512


def prepare(images: int) -> None:
    """Scenes in shards of ROWS_PER_SHARD, and a tokenizer, in this folder."""
    scenes = SceneCounts(count=images, validation_count=ROWS_PER_SHARD, unseen_count=ROWS_PER_SHARD)
    ingest.write_pairs(
        DataConfig(image_size=SIDE, scenes=scenes, rows_per_shard=ROWS_PER_SHARD), 0, Path("pairs")
    )
    block = read_preset("default", PRESETS)["image_tokenizer"]
    config = components.model_config("image_tokenizers", block, "image_tokenizer")
    components.save(
        components.build("image_tokenizers", block["kind"], config, image_size=SIDE).eval(), Path("tokenizer")
    )


def tokenize(engine: dict) -> tuple[float, dict[str, bytes]]:
    """(seconds, files) of one run from an empty store."""
    shutil.rmtree(".store", ignore_errors=True)
    context = SimpleNamespace(
        params={"tokens": {}, "engine": engine},
        world=SINGLE_PROCESS,
        seed=0,
        record_metrics=lambda figures: None,
    )
    started = time.perf_counter()
    with contextlib.redirect_stdout(None):
        tokenize_pairs(Path("pairs"), Path("tokenizer"), Path("tokens"), context)
    return time.perf_counter() - started, {path.name: path.read_bytes() for path in Path("tokens").iterdir()}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=20000)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    print(f"ray {ray.__version__}, {os.cpu_count()} cores, {options.images} images of {SIDE} x {SIDE}")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare(options.images)
        measure(options.rounds)


def measure(rounds: int) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    engines = {"local": {"workers": 2}, "ray": {"kind": "ray", "workers": 2, "address": cluster.address}}
    try:
        single, expected = tokenize({})
        print(f"one process   {single:6.1f} s")
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(rounds):
            for name, engine in engines.items():
                duration, files = tokenize(engine)
                assert files == expected, f"{name} gave other bytes"
                seconds[name].append(duration)
                print(f"{name:13} {duration:6.1f} s, the same {len(files)} files", flush=True)
    finally:
        cluster.shutdown()
    print(
        f"ray / local   {statistics.median(seconds['ray']) / statistics.median(seconds['local']):.2f} (medians; bar 1.3)"
    )


if __name__ == "__main__":
    with one_sentence("engine"):
        main()
