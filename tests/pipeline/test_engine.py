"""Work items over processes and machines: the same results in the same order, also if a worker dies."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from stages import sample_images, tokenize_pairs
from tests.helpers import work_items
from tests.helpers.paths import ROOT
from tests.helpers.sources import files_of, folder_config, write_folder
from tests.helpers.tiny_models import SIDE, fitting_package
from tests.pipeline.test_data_stages import stage
from thousandwords import preflight
from thousandwords.core.config import ConfigError
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.ingest import ingest
from thousandwords.parallel.engine import (
    Engine,
    EngineConfig,
    engine_from_params,
    read_engine_config,
    run_items,
)
from thousandwords.planning.presets import read_preset

TWO = {"workers": 2}
TOKENS = {"rows_per_shard": 7, "batch_size": 3, "augmentation": "paper", "views_per_image": 2}
SAMPLING = {"candidates": 3, "prompts_per_split": 3, "prompts": ["a red star"], "batch_size": 4}
MODELS = ("text_tokenizer", "image_tokenizer", "decoder", "generator")


def engine(**settings: object) -> Engine:
    return engine_from_params({"engine": settings}, "cpu")


def results_of(open_worker, items, **settings: object) -> list:
    """The results of `run_items`, without the items."""
    return [result for _, result in run_items(open_worker, items, engine(**settings), "test")]


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # stores and state go there


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """12 pairs in shards of 4, and models that fit together; read-only."""
    folder = tmp_path_factory.mktemp("engine")
    config = folder_config(write_folder(folder / "images"), image_size=SIDE, keep="whole", rows_per_shard=4)
    ingest.write_pairs(config, 0, folder / "pairs")
    fitting_package(folder)
    return folder


def tokenize(folder: Path, out: str, **sections: object) -> tuple[dict[str, bytes], int]:
    """(the written files, the number of encoded shards)"""
    context = stage("tokenize_pairs", tokens=TOKENS, **sections)
    tokenize_pairs.tokenize_pairs(folder / "pairs", folder / "image_tokenizer", Path(out), context)
    return files_of(Path(out)), context.tracker.figures["shards_encoded"]


def sample(folder: Path, out: str, **sections: object) -> dict[str, bytes]:
    sampling = {**SAMPLING, "inpaint": str(folder / "images")}
    context = stage("sample_images", sampling=sampling, **sections)
    sample_images.sample_images(folder / "pairs", *(folder / name for name in MODELS), Path(out), context)
    return files_of(Path(out))


@pytest.fixture(params=["two processes", "two machines"])
def two(request) -> dict[str, object]:
    """Settings of two workers."""
    return TWO if request.param == "two processes" else ray_settings(request.getfixturevalue("cluster"))


def test_images_are_the_same_bytes_from_one_worker_and_from_two(folder, two):
    expected = sample(folder, "alone")
    assert len([name for name in expected if name.startswith("samples-")]) > 4
    assert sample(folder, "two", engine=two) == expected


def test_tokens_of_two_machines_are_those_of_one(folder, cluster):
    expected = tokenize(folder, "alone")
    shutil.rmtree(".store")
    assert tokenize(folder, "ray", engine=ray_settings(cluster)) == expected


AS_A_COMMAND = """
import runpy, sys
from stages.runtime import stage
stage.open_tracker = lambda name, params: stage.NoTracker()  # tracking would take most of the time
runpy.run_module("stages.tokenize_pairs", run_name="__main__", alter_sys=True)
"""


def test_tokens_and_cache_are_the_same_from_a_command_with_two_processes_and_from_one(folder):
    settings = {"seed": 0, "device": "cpu", "tokens": TOKENS, "engine": TWO}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    options = ["--pairs", folder / "pairs", "--tokenizer", folder / "image_tokenizer", "--out", "tokens"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", AS_A_COMMAND, *options]
    output = subprocess.check_output(command, env=environment, text=True)
    expected = files_of(Path("tokens"))
    shutil.rmtree(".store")
    files, count = tokenize(folder, "alone")
    assert files == expected and count > 2
    assert output == f"tokenize_pairs: {count} of {count} shards encoded, the others were in the cache\n"
    assert tokenize(folder, "again", engine={"workers": 3}) == (expected, 0)  # all from the cache


def test_without_a_section_this_process_does_all_work_and_else_each_worker_with_as_many_threads():
    own = (os.getpid(), torch.get_num_threads(), "cpu")
    assert read_engine_config({}) == EngineConfig(kind="local", workers=1, address="auto")
    assert results_of(work_items.environments, [0, 1]) == [own] * 2
    ((process, *rest),) = results_of(work_items.environments, [0], **TWO)
    assert process != os.getpid() and tuple(rest) == own[1:]


@pytest.mark.parametrize("settings", [{}, TWO])
def test_an_error_of_an_item_or_of_opening_is_raised_unchanged(settings):
    results = run_items(work_items.damaged_item, [0, 1, 2, 3], engine(**settings), "test")
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(DamagedArtefact, match="^shard 2 is damaged. Run: dvc checkout$"):
        next(results)
    assert results_of(work_items.damaged_model, [], **settings) == []  # no worker is opened
    with pytest.raises(DamagedArtefact, match="^models/image_tokenizer is damaged. Run: dvc checkout$"):
        results_of(work_items.damaged_model, [0], **settings)


def test_an_item_whose_worker_dies_is_tried_twice_more(tmp_path, capfd, two):
    assert results_of(work_items.KillsWorker(tmp_path, 2), [0, 1, 2, 3], **two) == [0, 1, 2, 3]
    reason = r"\(SIGKILL\)" if two is TWO else r"\(.*\)"
    attempts = re.findall(rf"(?m)^test: a worker died at 1 {reason}, attempt (.*)$", capfd.readouterr().err)
    assert attempts == ["1 of 3", "2 of 3"]


def test_an_item_that_ends_every_worker_is_named(tmp_path):
    message = "^1 has ended 3 workers, which is often a lack of memory. Lower engine.workers"
    with pytest.raises(UserError, match=message):
        results_of(work_items.KillsWorker(tmp_path, 9), [1], **TWO)


def test_each_worker_has_its_own_cores_or_gpu():
    def num_workers(device: str, threads: int, **machine: int) -> int:
        return Engine(EngineConfig(workers="auto"), device, threads).num_workers(**machine)

    assert num_workers("cpu", 2, cores=8, gpus=0) == 4
    assert num_workers("cpu", 8, cores=2, gpus=0) == 1
    assert num_workers("cuda", 8, cores=8, gpus=4) == 4
    assert Engine(EngineConfig(workers="auto"), "cpu", threads=10**6).is_single_process


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"worker": 2}, "engine has no key 'worker'. Did you mean 'workers'?"),
        ({"kind": "dask"}, "engine.kind is 'dask'; it can be: local, ray"),
        ({"kind": "ray"}, "engine.kind is ray, but Ray is not installed. Run on every machine: make ray"),
        ({"workers": 0}, "engine.workers is 0; it needs to be 1 or more, or auto"),
        ({"workers": "many"}, "engine.workers should be"),
        ({"address": "host:1"}, "address is 'host:1', but engine.kind is local. Set engine.kind: ray"),
        (None, "engine should be a block of keys, found None"),
    ],
)
def test_the_check_reads_the_engine_before_any_long_work(monkeypatch, settings, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    params = read_preset("smoke", ROOT / "presets")
    with pytest.raises(ConfigError) as caught:
        preflight.check_params({**params, "engine": settings}, 0)
    assert message in str(caught.value)


def test_no_stage_depends_on_the_engine():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert not [name for name, stage in stages.items() if "engine" in str(stage.get("params", []))]
    assert [name for name, stage in stages.items() if "params.yaml" in stage["deps"]] == ["check_params"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Two nodes with one core each, on the loopback address of this machine."""
    pytest.importorskip("ray", reason="Ray is not installed (make ray): nothing was tested on a cluster")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))  # nodes pass it to workers: only the work of the tests needs it
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


def ray_settings(cluster, workers: int | str = 2) -> dict[str, object]:
    return {"kind": "ray", "workers": workers, "address": cluster.address}


def test_both_nodes_work(cluster):
    assert len(set(results_of(work_items.nodes, [0.5] * 6, **ray_settings(cluster)))) == 2


def test_an_error_on_another_machine_names_the_machine(cluster):
    message = f"^on {socket.gethostname()}: shard 2 is damaged. Run: dvc checkout$"
    with pytest.raises(DamagedArtefact, match=message):
        results_of(work_items.damaged_item, [2], **ray_settings(cluster))


def test_the_error_for_a_full_cluster_says_what_is_free(cluster, monkeypatch):
    from thousandwords.parallel import ray_workers

    monkeypatch.setattr(ray_workers, "PLACE_SECONDS", 3.0)
    five_threads = Engine(EngineConfig(**ray_settings(cluster)), "cpu", threads=5)
    message = "no place for a worker, which needs CPU 5, in 3 seconds.*Lower engine.workers"
    with pytest.raises(UserError, match=message):
        list(run_items(work_items.nodes, [0.0], five_threads, "test"))


def test_a_worker_that_has_a_place_but_does_not_start_is_replaced(cluster, monkeypatch, capfd, tmp_path):
    from thousandwords.parallel import ray_workers
    from thousandwords.parallel.pool import WorkerDied

    has_died = tmp_path / "died"

    class StartsTheSecondTime(ray_workers.TaskRunner):
        def __init__(self) -> None:
            if not has_died.exists():
                time.sleep(600.0)

    def died(reason: str) -> WorkerDied:
        has_died.touch()
        ray_workers.START_SECONDS = 300.0  # all the time that the second needs on a busy machine
        return WorkerDied(reason)

    monkeypatch.setattr(ray_workers, "TaskRunner", StartsTheSecondTime)
    monkeypatch.setattr(ray_workers, "WorkerDied", died)
    monkeypatch.setattr(ray_workers, "START_SECONDS", 5.0)
    assert len(results_of(work_items.nodes, [0.0], **ray_settings(cluster, 1))) == 1
    assert "a worker died at 0.0 (it did not start in 5 seconds), attempt 1 of 3" in capfd.readouterr().err


OTHER = {"torch": "2.11.0", "arithmetic": "NEON"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("machine", lambda device: OTHER, "but the machine that started this has torch 2.11.0, arithmetic NEON"),
        ("Path.cwd", lambda: Path("/elsewhere"), "no folder /elsewhere. Every machine of a cluster needs this project"),
    ],
)  # fmt: skip
def test_a_machine_of_another_kind_or_without_the_project_is_rejected(
    cluster, monkeypatch, name, value, message
):
    monkeypatch.setattr(f"thousandwords.parallel.ray_workers.{name}", value)
    with pytest.raises(UserError, match=message):
        results_of(work_items.nodes, [0.0], **ray_settings(cluster))


def test_the_error_for_a_missing_cluster_says_how_to_start_one(cluster):
    message = "no Ray cluster answers at engine.address '127.0.0.1:1'. Start one here: ray start"
    with pytest.raises(UserError, match=message):
        results_of(work_items.nodes, [0.0], kind="ray", address="127.0.0.1:1")


def test_a_lost_node_loses_only_the_work_in_progress(cluster, monkeypatch, capfd, tmp_path):
    """The other workers take over its items, and a message reports the worker that found no capacity."""
    from thousandwords.parallel import ray_workers

    lost = cluster.add_node(num_cpus=1)
    workers = engine(**ray_settings(cluster, 3))
    results = run_items(work_items.WaitsForLoss(tmp_path), range(8), workers, "test")
    before = [next(results)[1] for _ in range(3)]
    monkeypatch.setattr(ray_workers, "PLACE_SECONDS", 5.0)
    cluster.remove_node(lost, allow_graceful=False)
    (tmp_path / "writing").write_text(lost.node_id)
    (tmp_path / "writing").rename(tmp_path / "lost")
    assert lost.node_id in before
    after = [result for _, result in results]
    assert len(after) == 5 and lost.node_id not in after
    assert "going on with 2 workers" in capfd.readouterr().err
