"""A stage that was killed, stopped or out of disk space gives the same result when it is run again."""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from stages.runtime.locks import output_lock
from tests.helpers.fork_server import Ended, ForkServer
from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import processes_in, wait_for
from tests.helpers.smoke_project import environment
from tests.helpers.sources import write_folder
from tests.helpers.tiny_models import SIDE, TINY, tiny, tiny_text, write_shards
from thousandwords import components
from thousandwords.core.files import FAILPOINTS, DiskFull, write_json
from thousandwords.data.token_shards import read_token_rows
from thousandwords.inference.sample_shards import read_samples
from thousandwords.text.bpe import save
from thousandwords.training.checkpoints import Checkpoints

EVERY = {"evaluate_every": 50, "log_every": 10, "checkpoint_every": 10}
TRAINING = {"batch_size": 4, "learning_rate": 0.01, "ema_decay": 0.9, "clip_norm": 1.0, **EVERY}
PARTS = ("--text-tokenizer", "models/text_tokenizer", "--image-tokenizer", "models/image_tokenizer")
DECODING = ("--decoder", "models/decoder", "--generator", "models/generator")


@dataclass(frozen=True)
class Work:
    """The arguments and outputs of a stage; it needs all the other folders of its arguments."""

    argv: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.sources, *(path for path in self.argv[1::2] if path not in self.outputs))


WORK = {
    "prepare_pairs": Work(("--out", "data/pairs"), ("data/pairs",), sources=("own",)),
    "tokenize_pairs": Work(
        ("--pairs", "data/pairs", "--tokenizer", "models/image_tokenizer", "--out", "data/tokens"),
        ("data/tokens",),
    ),
    "train_generator": Work(
        ("--tokens", "data/tokens", *PARTS, "--out", "models/generator", "--curves", "results/curves.json"),
        ("models/generator", "results/curves.json"),
    ),
    "sample_images": Work(
        ("--pairs", "data/pairs", *PARTS, *DECODING, "--out", "results/samples"), ("results/samples",)
    ),
    "rank_images": Work(
        (
            "--samples",
            "results/samples",
            *PARTS[2:],
            *DECODING[:2],
            "--scorer",
            "models/scorer",
            "--out",
            "results/ranked",
        ),
        ("results/ranked",),
    ),
}


OTHERS = [stage for stage in WORK if stage != "train_generator"]


def params_of(steps: int, **training: object) -> dict:
    """Small settings, with many shards and many checkpoints to be killed in between."""
    data = {"source": "folder", "path": "own", "image_size": SIDE, "min_side": 8}
    model = {"kind": "transformer", "transformer": TINY["generators"]["transformer"]}
    return {
        "seed": 0,
        "device": "cpu",
        "data": {**data, "validation_share": 0.3, "rows_per_shard": 4},
        "tokens": {"rows_per_shard": 4, "batch_size": 4},
        "generator": {**model, "training": {**TRAINING, "steps": steps, **training}},
        "sampling": {"prompts_per_split": 8, "candidates": 4, "batch_size": 4, "prompts": ["a red star"]},
    }


class ReferenceRun:
    """A run of all five stages without a kill: inputs, outputs, seconds, how often each fail point is passed."""

    def __init__(self, folder: Path, fork_server: ForkServer, steps: int) -> None:
        self.folder, self.fork_server, self.params = folder, fork_server, params_of(steps)
        write_folder(folder / "own", 40)
        write_json(folder / "params.yaml", self.params)
        save(tiny_text(), folder / "models/text_tokenizer")
        fingerprint = components.save(tiny("image_tokenizers", "dvae"), folder / "models/image_tokenizer")
        components.save(tiny("decoders", "unet"), folder / "models/decoder", image_tokenizer=fingerprint)
        components.save(tiny("scorers", "clip"), folder / "models/scorer")
        self.failpoints, self.seconds, self.outputs = {}, {}, {}
        for stage in WORK:
            done = self.run(folder, stage, failpoint="none:0")
            assert done.code == 0, done.output
            self.failpoints[stage], self.outputs[stage] = done.failpoints, outputs_of(folder, stage)
            self.seconds[stage] = done.seconds

    def new_folder(self, folder: Path, stage: str) -> Path:
        """A new folder with what the stage needs, and nothing that it makes."""
        folder.mkdir(parents=True)
        write_json(folder / "params.yaml", self.params)
        for name in WORK[stage].needs:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(self.folder / name)
        return folder

    def run(self, folder: Path, stage: str, **options: object) -> Ended:
        return self.fork_server.run(stage, WORK[stage].argv, folder=str(folder), **options)

    def resume_and_compare(self, folder: Path, stage: str) -> None:
        """Run the stage to its end, and check for the same bytes as in the reference run."""
        done = self.run(folder, stage)
        assert done.code == 0, done.output
        assert outputs_of(folder, stage) == self.outputs[stage]
        assert not [path for path in folder.rglob("*.tmp") if path.is_file() and ".ckpt" not in path.parts]
        assert not [path for path in folder.rglob(".*.lock")]


def outputs_of(folder: Path, stage: str) -> dict[str, object]:
    """{name: bytes} of every file in the outputs, hidden ones too; of a training also its last checkpoint."""
    outputs = [folder / name for name in WORK[stage].outputs]
    files = [path for whole in outputs for path in (whole, *whole.rglob("*")) if path.is_file()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for run in folder.glob(f".ckpt/{stage}/*"):
        last = Checkpoints(run).newest()
        found["checkpoint"] = (last.step, json.dumps(last.state), sorted(last.tensors))
        for name, tensor in last.tensors.items():
            found[f"checkpoint/{name}"] = (str(tensor.dtype), tensor.numpy().tobytes())
    return found


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    fork_server = ForkServer("stages")
    yield fork_server
    fork_server.close()


@pytest.fixture(scope="module")
def reference(fork_server, tmp_path_factory) -> ReferenceRun:
    return ReferenceRun(tmp_path_factory.mktemp("reference") / "run", fork_server, steps=30)


@pytest.fixture(scope="module")
def long_reference(fork_server, tmp_path_factory) -> ReferenceRun:
    return ReferenceRun(tmp_path_factory.mktemp("long") / "run", fork_server, steps=200)


def cases_of(passed: dict[str, int]) -> list[str]:
    """Every fail point at its first, middle and last pass."""
    times = {name: sorted({1, passed[name] // 2 or 1, passed[name]}) for name in FAILPOINTS}
    return [f"{name}:{count}" for name, counts in times.items() for count in counts]


def die_and_resume(reference: ReferenceRun, folder: Path, stage: str, failpoint: str) -> None:
    reference.new_folder(folder, stage)
    died = reference.run(folder, stage, failpoint=failpoint)
    assert died.code == -signal.SIGKILL, f"{failpoint}: {died}"
    reference.resume_and_compare(folder, stage)


@pytest.mark.parametrize(
    ("stage", "failpoint"),
    [*(("tokenize_pairs", failpoint) for failpoint in FAILPOINTS), ("train_generator", "mid-write")],
)
def test_a_stage_that_died_at_a_fail_point_gives_the_same_result(reference, tmp_path, stage, failpoint):
    middle = reference.failpoints[stage][failpoint] // 2 or 1
    die_and_resume(reference, tmp_path / "run", stage, f"{failpoint}:{middle}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", WORK)
def test_every_stage_survives_its_death_at_every_fail_point(long_reference, tmp_path, stage):
    cases = cases_of(long_reference.failpoints[stage])
    for case in cases:
        die_and_resume(long_reference, tmp_path / case.replace(":", "-"), stage, case)
        shutil.rmtree(tmp_path / case.replace(":", "-"))
    print(f"{stage}: {len(cases)} deaths at fail points, all equal")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in WORK if stage != "rank_images"])
def test_random_kills_change_nothing(long_reference, tmp_path, stage):
    """Each trial is killed one to five times, each time at a random moment, and then goes on to its end."""
    trials, kills, random = int(os.environ.get("THOUSANDWORDS_KILLS", "20")), 0, np.random.default_rng(0)
    usual = long_reference.seconds[stage]
    for trial in range(trials):
        folder = long_reference.new_folder(tmp_path / str(trial), stage)
        for earlier in range(1 + trial % 5):
            ended = long_reference.run(folder, stage, signal_after=random.uniform(0, usual))
            assert ended.code in (0, -signal.SIGKILL), ended.output
            if ended.code == 0 and not earlier:  # a whole run: the machine was busier in the reference run
                usual = min(usual, ended.seconds)
            kills += ended.code != 0
        long_reference.resume_and_compare(folder, stage)
        shutil.rmtree(folder)
    print(f"{stage}: {trials} trials, {kills} kills, all equal")
    assert kills >= trials / 2


def test_every_candidate_of_every_prompt_is_generated_once(reference):
    samples = read_samples(reference.folder / "results/samples")
    rows = list(zip(*(samples.table[name].to_pylist() for name in ("prompt_id", "candidate")), strict=True))
    assert rows == [(prompt, candidate) for prompt in range(len(samples.prompts)) for candidate in range(4)]


def test_a_training_that_is_stopped_saves_a_checkpoint(reference, tmp_path):
    folder = reference.new_folder(tmp_path / "run", "train_generator")
    write_json(folder / "params.yaml", params_of(steps=100_000))
    when = {"signal_after": 0.0, "once": ".ckpt/train_generator/*/step-*", "number": signal.SIGTERM}
    ended = reference.run(folder, "train_generator", **when)
    assert ended.code == 143 and "the next run resumes from there" in ended.output
    assert last_step(folder) > 0


def last_step(folder: Path) -> int:
    (run,) = folder.glob(".ckpt/train_generator/*")
    return Checkpoints(run).newest().step


@pytest.mark.slow
def test_changed_settings_never_resume_from_other_checkpoints(reference, tmp_path):
    """There is a checkpoint of another learning rate; the run with the old one does not resume from it."""
    folder = reference.new_folder(tmp_path / "run", "train_generator")
    write_json(folder / "params.yaml", params_of(steps=30, learning_rate=0.02))
    assert reference.run(folder, "train_generator", failpoint="after-manifest:2").code == -signal.SIGKILL
    (other,) = folder.glob(".ckpt/train_generator/*")
    before = sorted(path.name for path in other.iterdir())

    write_json(folder / "params.yaml", reference.params)
    assert reference.run(folder, "train_generator").code == 0

    weights = (folder / "models/generator/weights.safetensors").read_bytes()
    assert weights == (reference.folder / "models/generator/weights.safetensors").read_bytes()
    assert sorted(path.name for path in other.iterdir()) == before


ENVIRONMENT = environment(PYTHONPATH=str(ROOT))


def test_a_second_writer_of_an_output_is_rejected_wherever_it_was_started(reference, tmp_path):
    """The same output by another name, from another working folder."""
    folder = reference.new_folder(tmp_path / "run", "prepare_pairs")
    (tmp_path / "link").symlink_to(folder / "data/pairs")
    with output_lock(tmp_path / "link"):
        rejected = reference.run(folder, "prepare_pairs")
        sentence = f"data/pairs is being written by process {os.getpid()}. Wait for it, or stop it"
        assert (rejected.code, rejected.output) == (2, f"prepare_pairs: {sentence}\n")
        assert not (folder / "data/pairs").exists()
    reference.resume_and_compare(folder, "prepare_pairs")


def kill_when_training(folder: Path, *command: str) -> list[psutil.Process]:
    """Start a command that trains, kill it alone once there is a checkpoint; the processes left after 10 s."""
    with open(folder / "output.txt", "w") as file:
        running = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=file, stderr=file)
    wait_for(lambda: list(folder.glob(".ckpt/train_generator/*/step-*")), 180, "there is no checkpoint")
    others = [process for process in processes_in(folder) if process.pid != running.pid]
    running.kill()
    running.wait()
    return psutil.wait_procs(others, timeout=10)[1]


@pytest.mark.slow
def test_no_worker_outlives_torchrun(reference, tmp_path):
    folder = reference.new_folder(tmp_path / "run", "train_generator")
    write_json(folder / "params.yaml", params_of(steps=100_000, num_processes=2))
    command = (sys.executable, "-m", "stages.train_generator", *WORK["train_generator"].argv)
    assert kill_when_training(folder, *command) == []
    assert last_step(folder) > 0


@pytest.mark.slow
def test_no_stage_outlives_dvc_and_the_next_repro_resumes(reference, tmp_path):
    folder, work = reference.new_folder(tmp_path / "run", "train_generator"), WORK["train_generator"]
    write_json(folder / "params.yaml", params_of(steps=1000))
    cmd = " ".join(("python -m stages.train_generator", *work.argv))
    write_json(folder / "dvc.yaml", {"stages": {"train": {"cmd": cmd, "outs": list(work.outputs)}}})
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=folder, env=ENVIRONMENT, check=True)

    assert kill_when_training(folder, "dvc", "repro") == [] and last_step(folder) > 0

    subprocess.run(["dvc", "repro"], cwd=folder, env=ENVIRONMENT, check=True)
    curves = json.loads((folder / "results/curves.json").read_bytes())
    assert [row["step"] for row in curves] == list(range(10, 1001, 10))


@pytest.mark.parametrize(
    "stage", ["train_generator", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_a_stage_on_a_full_disk_reports_it_and_resumes_when_there_is_room(reference, tmp_path, stage):
    folder = reference.new_folder(tmp_path / "run", stage)
    middle = reference.failpoints[stage]["mid-write"] // 2

    full = reference.run(folder, stage, failpoint=f"mid-write:{middle}:ENOSPC")

    assert full.code == 2
    last = full.output.splitlines()[-1]
    assert re.fullmatch(
        rf"{stage}: .*: the disk is full, or your quota is used up: \d+ bytes are to be written, \d+ are free\. "
        "Make room, then run the same again: finished work is kept",
        last,
    ), full.output
    assert not list(folder.rglob("*.tmp"))
    assert stage != "train_generator" or outputs_of(folder, stage)["checkpoint"][0] > 0
    reference.resume_and_compare(folder, stage)


def on_small_disk(folder: Path, work: Callable[[Path], None]) -> None:
    """Do `work` in a child, on a disk of 2 MB that only that child sees; skipped where mounting is not allowed."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            libc = ctypes.CDLL(None)
            if libc.unshare(0x20000) == libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=2m") == 0:
                code = 1
                work(folder)
                code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 3:
        pytest.skip("only root may mount a small disk")
    assert code == 0


def checkpoint_work(folder: Path) -> None:
    run = Checkpoints(folder / "run")
    for step, size in ((10, 1000), (20, 2000), (30, 600_000)):
        before = sorted(path.name for path in folder.rglob("*"))
        try:
            run.save(step, {"weight": torch.full((size,), float(step))}, {"history": []})
        except DiskFull as error:
            assert step == 30 and "the disk is full" in str(error)
            assert sorted(path.name for path in folder.rglob("*")) == before
    assert run.newest().step == 20 and run.newest().tensors["weight"].eq(20).all()
    assert len(list((folder / "run").iterdir())) == 2


def shard_work(folder: Path) -> None:
    """Shards until the disk is full: earlier ones stay intact, and no file is half-written."""
    for number in range(100):
        try:
            write_shards(folder / str(number), {"train": 4000}, rows_per_shard=1000)
        except DiskFull:
            break
    assert 1 < number < 99 and not list(folder.rglob(".*"))
    assert all(len(read_token_rows(folder / str(whole), "train")) == 4000 for whole in range(number))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("work", [checkpoint_work, shard_work])
def test_a_full_disk_of_two_megabytes_keeps_its_files(tmp_path, work):
    on_small_disk(tmp_path, work)
