"""Units over processes and machines: the same bytes, in the same order, whoever did them; and what happens when one dies."""
from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

from stages import _engine, check_params, sample_images, tokenize_pairs
from stages._engine import Config, Engine, engine_of, places, read_engine, run_units
from tests import unit_work
from tests.test_data_stages import stage
from tests.tiny import CAPTIONS, SIDE, tiny, tiny_text
from thousandwords import components, pairs, text
from thousandwords.config import ConfigError
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact
from thousandwords.images import encode_png

ROOT = Path(__file__).parent.parent
TWO = {"workers": 2}
TOKENS = {"rows_per_shard": 7, "batch_size": 3, "augmentation": "paper", "views_per_image": 2}
SAMPLING = {"candidates": 3, "prompts_per_split": 3, "prompts": ["a red star"], "batch_size": 4}
MODELS = ("text_tokenizer", "image_tokenizer", "generator")


def engine(**settings: object) -> Engine:
    return engine_of({"engine": settings}, "cpu")


def done(open_worker, units, **settings: object) -> list:
    """What `run_units` gives, the units aside."""
    return [result for _, result in run_units(open_worker, units, engine(**settings), "test")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Stores and state go where the test is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """30 pairs in shards of 4, and models that know each other; to be read only."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "own").mkdir()
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE + 4, 3), np.uint8)
        (folder / "own" / f"{number:04d}.png").write_bytes(encode_png(pixels))
        (folder / "own" / f"{number:04d}.txt").write_text(f"{CAPTIONS[number % 4]}\npicture {number}")
    config = pairs.Config(source="folder", path=str(folder / "own"), image_size=SIDE, min_side=8, validation_share=0.2,
                          rows_per_shard=4, keep="whole")  # fmt: skip
    pairs.write_pairs(config, 0, folder / "pairs")
    words = text.save(tiny_text(), folder / "text_tokenizer")
    of_pictures = components.save(tiny("tokenizers", "dvae"), folder / "image_tokenizer")
    components.save(tiny("generators", "transformer"), folder / "generator",
                    text_tokenizer=words, image_tokenizer=of_pictures)  # fmt: skip
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tokenized(folder: Path, out: str, **more: object) -> tuple[dict[str, bytes], int]:
    """(the files written, how many shards were encoded)"""
    run = stage("tokenize_pairs", tokens=TOKENS, **more)
    tokenize_pairs.tokenize_pairs(folder / "pairs", folder / "image_tokenizer", Path(out), run)
    return files_in(Path(out)), run.tracker.figures["shards_encoded"]


def sampled(folder: Path, out: str, **more: object) -> dict[str, bytes]:
    run = stage("sample_images", sampling={**SAMPLING, "complete": str(folder / "own"), **more.pop("sampling", {})}, **more)
    sample_images.sample_images(folder / "pairs", *(folder / name for name in MODELS), Path(out), run)
    return files_in(Path(out))


# --- the same bytes --------------------------------------------------------------------------------------------------


def test_the_store_does_not_hang_on_who_encoded(folder):
    alone, _ = tokenized(folder, "alone")
    assert tokenized(folder, "again", engine={"workers": 3}) == (alone, 0)


def test_pictures_are_the_same_bytes_from_one_process_and_from_two(folder):
    alone = sampled(folder, "alone")
    assert len([name for name in alone if name.startswith("samples-")]) == 26  # 34 prompts with 3 candidates, 4 a file
    assert sampled(folder, "two", engine=TWO) == alone


AS_A_COMMAND = """
import runpy, sys
from stages import _stage
_stage.Tracker = lambda name, params: _stage.NoTracker()  # the diary would take most of the time
runpy.run_module("stages.tokenize_pairs", run_name="__main__", alter_sys=True)
"""


def test_words_are_the_same_bytes_from_a_command_with_two_processes_and_from_one(folder):
    Path("params.yaml").write_text(yaml.safe_dump({"seed": 0, "device": "cpu", "tokens": TOKENS, "engine": TWO}))
    words = ["--pairs", folder / "pairs", "--tokenizer", folder / "image_tokenizer", "--out", "tokens"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", AS_A_COMMAND, *words]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "tokenize_pairs: 9 of 9 shards encoded, the others were known\n"
    shutil.rmtree(".store")

    assert (files_in(Path("tokens")), 9) == tokenized(folder, "alone")


# --- processes -------------------------------------------------------------------------------------------------------


def test_without_a_section_this_very_process_does_all():
    assert read_engine({}) == Config(kind="local", workers=1, address="auto")
    assert done(unit_work.places, [0, 1]) == [(os.getpid(), torch.get_num_threads(), "cpu")] * 2


def test_nothing_to_do_opens_no_worker():
    assert done(unit_work.unopened, []) == [] == done(unit_work.unopened, [], **TWO)


def test_each_worker_has_the_threads_of_one_process_alone():
    seen = done(unit_work.places, [0], **TWO)
    assert {(threads, device) for _, threads, device in seen} == {(torch.get_num_threads(), "cpu")}
    assert os.getpid() not in {process for process, *_ in seen}


def test_results_come_in_the_order_of_the_units():
    assert list(run_units(unit_work.squares, [0, 1, 2, 3, 4], engine(**TWO), "test")) == [
        (0, 0), (1, 1), (2, 4), (3, 9), (4, 16),
    ]  # fmt: skip


@pytest.mark.parametrize("settings", [{}, TWO])
def test_an_error_of_a_unit_comes_up_as_it_is(settings):
    results = run_units(unit_work.damaged, [0, 1, 2, 3], engine(**settings), "test")
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(DamagedArtefact, match="^shard 2 is damaged. Run: dvc checkout$"):
        next(results)


@pytest.mark.parametrize("settings", [{}, TWO])
def test_an_error_of_opening_comes_up_as_it_is(settings):
    with pytest.raises(DamagedArtefact, match="^models/image_tokenizer is damaged. Run: dvc checkout$"):
        done(unit_work.unopened, [0], **settings)


def test_a_mistake_of_ours_comes_up_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)a worker failed:.*unit_work.py.*ZeroDivisionError"):
        done(unit_work.mistaken, [0], **TWO)


def test_a_worker_that_dies_costs_its_unit_two_more_trials(tmp_path, capfd):
    assert done(unit_work.Deadly(tmp_path, 2), [0, 1, 2, 3], **TWO) == [0, 1, 2, 3]
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("test: a worker")]
    assert told == [f"test: a worker died at 1 (SIGKILL), attempt {attempt} of 3" for attempt in (1, 2)]


def test_a_unit_that_ends_every_worker_is_named(tmp_path):
    with pytest.raises(UserError, match="^1 has ended 3 workers, which is often a lack of memory. Lower engine.workers"):
        done(unit_work.Deadly(tmp_path, 9), [1], **TWO)


def wait_until(is_so, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def alive(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if psutil.pid_exists(int(path.name))]


def test_no_worker_outlives_results_that_are_left_early(tmp_path):
    results = run_units(partial(unit_work.sleepers, tmp_path), [0, 1, 2], engine(**TWO), "test")
    next(results)
    wait_until(lambda: len(alive(tmp_path)) == 2)
    results.close()
    assert alive(tmp_path) == []


def test_no_worker_outlives_whoever_is_killed(tmp_path):
    script = (
        "import sys; from functools import partial; from pathlib import Path; from tests import unit_work\n"
        "from stages._engine import engine_of, run_units\n"
        "work = partial(unit_work.sleepers, Path(sys.argv[1]))\n"
        "list(run_units(work, [1, 2], engine_of({'engine': {'workers': 2}}, 'cpu'), 'test'))"
    )
    (tmp_path / "ids").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path / "ids"], env=environment)
    wait_until(lambda: len(alive(tmp_path / "ids")) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: alive(tmp_path / "ids") == [], 10.0)


# --- settings --------------------------------------------------------------------------------------------------------


def test_workers_have_cores_or_a_gpu_of_their_own():
    assert places("cpu", threads=2, cores=8, gpus=0) == 4
    assert places("cpu", threads=8, cores=8, gpus=0) == 1 == places("cpu", threads=8, cores=2, gpus=0)
    assert places("cuda", threads=8, cores=8, gpus=4) == 4
    assert Engine(Config(workers="auto"), "cpu", threads=10**6).is_alone


@pytest.mark.parametrize(("settings", "told"), [
    ({"worker": 2}, "engine has no key 'worker'. Did you mean 'workers'?"),
    ({"kind": "dask"}, "engine.kind is 'dask'; it can be: local, ray"),
    ({"workers": 0}, "engine.workers is 0; it needs to be 1 or more, or auto"),
    ({"workers": "many"}, "engine.workers should be"),
    ({"address": "host:6379"}, "engine.address is 'host:6379', but engine.kind is local. Set engine.kind: ray"),
    (None, "engine should be a block of keys, found None"),
])  # fmt: skip
def test_the_check_reads_the_engine_before_any_long_work(settings, told):
    params = yaml.safe_load((ROOT / "presets/smoke.yaml").read_text())
    with pytest.raises(ConfigError) as caught:
        check_params.check_params({**params, "engine": settings}, 0)
    assert told in str(caught.value)


def test_ray_where_it_is_missing_is_told_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr(_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="engine.kind is ray, but Ray is not installed. .* make ray"):
        read_engine({"engine": {"kind": "ray"}})


def test_no_stage_depends_on_the_engine():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert not [name for name, one in stages.items() if "engine" in str(one.get("params", []))]
    assert [name for name, one in stages.items() if "params.yaml" in one["deps"]] == ["check_params"]


# --- a Ray cluster ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Two nodes of one core each, on this machine's loopback."""
    pytest.importorskip("ray", reason="Ray is not installed (make ray): nothing was tried on a cluster")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))  # nodes hand it to workers: only the tests' own work needs it
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


def far(cluster, workers: int | str = 2) -> dict[str, object]:
    return {"kind": "ray", "workers": workers, "address": cluster.address}


def test_two_nodes_give_the_words_that_one_process_gives(cluster, folder):
    alone, count = tokenized(folder, "alone")
    shutil.rmtree(".store")
    assert tokenized(folder, "ray", engine=far(cluster)) == (alone, count)


def test_two_nodes_give_the_pictures_that_one_process_gives(cluster, folder):
    assert sampled(folder, "ray", engine=far(cluster, "auto")) == sampled(folder, "alone")


def test_both_nodes_work(cluster):
    assert len(set(done(unit_work.nodes, [0.5] * 6, **far(cluster)))) == 2


def test_an_actor_that_dies_costs_its_unit_two_more_trials(cluster, tmp_path, capfd):
    assert done(unit_work.Deadly(tmp_path, 2), [0, 1, 2, 3], **far(cluster)) == [0, 1, 2, 3]
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("test: a worker died at 1 ")]
    assert [line[-14:] for line in told] == ["attempt 1 of 3", "attempt 2 of 3"]


def test_an_error_far_away_says_on_which_machine(cluster):
    with pytest.raises(DamagedArtefact, match=f"^on {socket.gethostname()}: shard 2 is damaged. Run: dvc checkout$"):
        done(unit_work.damaged, [2], **far(cluster))


def test_a_cluster_without_room_says_what_is_free(cluster, monkeypatch):
    from stages import _ray

    monkeypatch.setattr(_ray, "PLACE_SECONDS", 3.0)
    with pytest.raises(UserError, match="no place for a worker, which needs num_cpus 5, in 3 seconds.*Lower engine.workers"):
        list(run_units(unit_work.nodes, [0.0], Engine(Config(**far(cluster)), "cpu", threads=5), "test"))


def test_another_kind_of_machine_is_refused(cluster, monkeypatch):
    from stages import _ray

    monkeypatch.setattr(_ray, "machine", lambda device: {"torch": "2.11.0", "arithmetic": "NEON"})
    with pytest.raises(UserError, match="found torch .*, but the machine that started this has torch 2.11.0, arithmetic NEON"):
        done(unit_work.nodes, [0.0], **far(cluster))


def test_a_folder_that_a_machine_does_not_have_is_named(cluster, tmp_path, monkeypatch):
    from stages import _ray

    monkeypatch.setattr(_ray.Path, "cwd", lambda: tmp_path / "elsewhere")
    with pytest.raises(UserError, match="there is no folder .*elsewhere. Every machine of a cluster needs this project"):
        done(unit_work.nodes, [0.0], **far(cluster))


def test_where_no_cluster_answers_the_way_to_one_is_told(cluster):
    with pytest.raises(UserError, match="no Ray cluster answers at engine.address '127.0.0.1:1'. Start one here: ray start"):
        done(unit_work.nodes, [0.0], kind="ray", address="127.0.0.1:1")


def test_a_node_that_is_lost_costs_the_work_in_flight_only(cluster, monkeypatch, capfd):
    """Those that still have a place take over what it had, and the one that has none any more is told of."""
    from stages import _ray

    monkeypatch.setattr(_ray, "PLACE_SECONDS", 20.0)
    lost = cluster.add_node(num_cpus=1)
    results = run_units(unit_work.nodes, [0.2] * 4 + [2.0] * 4, engine(**far(cluster, 3)), "test")
    before = [next(results)[1] for _ in range(4)]
    cluster.remove_node(lost, allow_graceful=False)
    assert lost.node_id in before
    after = [result for _, result in results]
    assert len(after) == 4 and lost.node_id not in after
    assert "going on with 2 workers" in capfd.readouterr().err
