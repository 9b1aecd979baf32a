"""A stage that was killed, stopped or out of disk space gives the same result when it is run again."""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from stages.runtime.locks import output_lock
from tests.helpers.kill import ROOT, Ended, ForkServer
from tests.helpers.prefect_server import wait_for
from tests.helpers.smoke_project import environment
from tests.helpers.tiny_models import CAPTIONS, SIDE, TINY, tiny, tiny_text, write_shards
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.files import FAILPOINTS, DiskFull, write_bytes, write_json
from thousandwords.core.manifest import read_manifest, write_manifest
from thousandwords.data.images import encode_png
from thousandwords.data.token_shards import read_token_rows
from thousandwords.inference.sample_shards import read_samples
from thousandwords.text.bpe import save
from thousandwords.training.checkpoints import Checkpoints

# --- stages to kill --------------------------------------------------------------------------------------------------

TRAINING = {
    "batch_size": 4,
    "learning_rate": 0.01,
    "evaluate_every": 50,
    "log_every": 10,
    "checkpoint_every": 10,
    "ema_decay": 0.9,
    "clip_norm": 1.0,
}
PARTS = ("--text-tokenizer", "models/text_tokenizer", "--image-tokenizer", "models/image_tokenizer")
DECODING = ("--decoder", "models/decoder", "--generator", "models/generator")


@dataclass(frozen=True)
class Work:
    """The arguments, inputs and outputs of a stage, in a folder of its own per trial."""

    argv: tuple[str, ...]
    needs: tuple[str, ...]
    outputs: tuple[str, ...]


WORK = {
    "prepare_pairs": Work(("--out", "data/pairs"), ("own",), ("data/pairs",)),
    "tokenize_pairs": Work(
        ("--pairs", "data/pairs", "--tokenizer", "models/image_tokenizer", "--out", "data/tokens"),
        ("data/pairs", "models/image_tokenizer"),
        ("data/tokens",),
    ),
    "train_generator": Work(
        ("--tokens", "data/tokens", *PARTS, "--out", "models/generator", "--curves", "results/curves.json"),
        ("data/tokens", "models/text_tokenizer", "models/image_tokenizer"),
        ("models/generator", "results/curves.json"),
    ),
    "sample_images": Work(
        ("--pairs", "data/pairs", *PARTS, *DECODING, "--out", "results/samples"),
        ("data/pairs", "models/text_tokenizer", "models/image_tokenizer", *DECODING[1::2]),
        ("results/samples",),
    ),
    "rank_images": Work(
        ("--samples", "results/samples", "--scorer", "models/scorer", "--out", "results/ranked"),
        ("results/samples", "models/scorer"),
        ("results/ranked",),
    ),
}


OTHERS = [stage for stage in WORK if stage != "train_generator"]


def params_of(steps: int, **training: object) -> dict:
    """Small settings, with many shards and many checkpoints to be killed in between."""
    return {
        "seed": 0,
        "device": "cpu",
        "data": {
            "source": "folder",
            "path": "own",
            "image_size": SIDE,
            "min_side": 8,
            "validation_share": 0.3,
            "rows_per_shard": 4,
        },
        "tokens": {"rows_per_shard": 4, "batch_size": 4},
        "generator": {
            "kind": "transformer",
            "transformer": TINY["generators"]["transformer"],
            "training": {**TRAINING, "steps": steps, **training},
        },
        "sampling": {"prompts_per_split": 8, "candidates": 4, "batch_size": 4, "prompts": ["a red star"]},
    }


class ReferenceRun:
    """A run of all five stages without a kill: inputs, outputs, seconds, and how often each fail point is
    passed."""

    def __init__(self, folder: Path, fork_server: ForkServer, steps: int) -> None:
        self.folder, self.fork_server, self.params = folder, fork_server, params_of(steps)
        (folder / "own").mkdir(parents=True)
        for number in range(40):
            pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            (folder / "own" / f"{number:03d}.png").write_bytes(encode_png(pixels))
            (folder / "own" / f"{number:03d}.txt").write_text(f"{CAPTIONS[number % 4]}\nPicture {number}")
        write_json(folder / "params.yaml", self.params)
        save(tiny_text(), folder / "models/text_tokenizer")
        fingerprint = components.save(tiny("image_tokenizers", "dvae"), folder / "models/image_tokenizer")
        components.save(tiny("decoders", "unet"), folder / "models/decoder", image_tokenizer=fingerprint)
        components.save(tiny("scorers", "clip"), folder / "models/scorer")
        self.failpoints, self.seconds, self.outputs = {}, {}, {}
        for stage, work in WORK.items():
            done = fork_server.run(folder, stage, *work.argv, count=True)
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
        return self.fork_server.run(folder, stage, *WORK[stage].argv, **options)

    def resume_and_compare(self, folder: Path, stage: str) -> None:
        """Run the stage to its end, and check for the same bytes as in the reference run."""
        done = self.run(folder, stage)
        assert done.code == 0, done.output
        assert outputs_of(folder, stage) == self.outputs[stage]
        assert not [path for path in folder.rglob("*.tmp") if path.is_file() and ".ckpt" not in path.parts]
        assert not [path for path in folder.rglob(".*.lock")]


def outputs_of(folder: Path, stage: str) -> dict[str, object]:
    """{name: bytes} of every file in the outputs, hidden ones too; of a training also its last checkpoint,
    tensor by tensor."""
    files = {}
    for name in WORK[stage].outputs:
        whole = folder / name
        files |= {
            str(path.relative_to(folder)): path.read_bytes()
            for path in [whole, *whole.rglob("*")]
            if path.is_file()
        }
    for run in folder.glob(f".ckpt/{stage}/*"):
        last = Checkpoints(run).newest()
        files["checkpoint"] = (last.step, json.dumps(last.state), sorted(last.tensors))
        files |= {
            f"checkpoint/{name}": (str(tensor.dtype), tensor.numpy().tobytes())
            for name, tensor in last.tensors.items()
        }
    return files


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    fork_server = ForkServer()
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
    return [
        f"{name}:{count}"
        for name in FAILPOINTS
        for count in sorted({1, passed[name] // 2 or 1, passed[name]})
    ]


# --- A: kills --------------------------------------------------------------------------------------------------------


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
    """Each trial is killed one to five times, each time at a random moment between its start and its end, and
    then goes on."""
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
    reference.new_folder(tmp_path / "run", "train_generator")
    write_json(tmp_path / "run/params.yaml", params_of(steps=100_000))
    ended = reference.run(
        tmp_path / "run",
        "train_generator",
        signal_after=0.0,
        once=".ckpt/train_generator/*/step-*",
        number=signal.SIGTERM,
    )
    assert ended.code == 143 and "the next run resumes from there" in ended.output
    assert Checkpoints(next((tmp_path / "run/.ckpt/train_generator").iterdir())).newest().step > 0


@pytest.mark.slow
def test_changed_settings_never_resume_from_other_checkpoints(reference, tmp_path):
    """There is a checkpoint of another learning rate; the run with the old one neither resumes from it nor
    changes it."""
    folder = reference.new_folder(tmp_path / "run", "train_generator")
    write_json(folder / "params.yaml", params_of(steps=30, learning_rate=0.02))
    assert reference.run(folder, "train_generator", failpoint="after-manifest:2").code == -signal.SIGKILL
    assert len(list(folder.glob(".ckpt/train_generator/*/step-*"))) == 1
    other = next((folder / ".ckpt/train_generator").iterdir())

    write_json(folder / "params.yaml", reference.params)
    shutil.copytree(other, tmp_path / "other")
    assert reference.run(folder, "train_generator").code == 0

    files = {
        name: data
        for name, data in outputs_of(folder, "train_generator").items()
        if not name.startswith("checkpoint")
    }
    assert files == {name: reference.outputs["train_generator"][name] for name in files}
    assert sorted(path.name for path in other.iterdir()) == sorted(
        path.name for path in (tmp_path / "other").iterdir()
    )


ENVIRONMENT = environment(PYTHONPATH=str(ROOT))


# --- A6: one writer, and no orphans ----------------------------------------------------------------------------------


def test_a_second_writer_of_an_output_is_rejected_wherever_it_was_started(reference, tmp_path):
    """Another stage, another working folder, the same output by another name."""
    folder = reference.new_folder(tmp_path / "run", "prepare_pairs")
    (tmp_path / "link").symlink_to(folder / "data/pairs")
    with output_lock(tmp_path / "link"):
        rejected = reference.run(folder, "prepare_pairs")
        assert rejected.code == 2
        assert rejected.output == (
            f"prepare_pairs: data/pairs is being written by process {os.getpid()}. Wait for it, or stop it\n"
        )
        assert not (folder / "data/pairs").exists()
    reference.resume_and_compare(folder, "prepare_pairs")


def kill_when_training(folder: Path, command: list[str]) -> set[int]:
    """Start a command that trains, kill it alone once there is a checkpoint; returns the processes left after
    10 s."""
    with open(folder / "output.txt", "w") as file:
        running = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=file, stderr=file)
    wait_for(lambda: list(folder.glob(".ckpt/train_generator/*/step-*")), 180, "there is no checkpoint")
    assert len(processes_at(folder)) > 1
    running.kill()
    running.wait()
    deadline = time.monotonic() + 10
    while processes_at(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes_at(folder)


def processes_at(folder: Path) -> set[int]:
    """The processes whose working directory is this folder."""
    found = psutil.process_iter(["pid", "cwd"])
    return {process.pid for process in found if process.info["cwd"] == str(folder.resolve())}


@pytest.mark.slow
def test_no_worker_outlives_torchrun(reference, tmp_path):
    folder = reference.new_folder(tmp_path / "run", "train_generator")
    write_json(folder / "params.yaml", params_of(steps=100_000, num_processes=2))
    command = [sys.executable, "-m", "stages.train_generator", *WORK["train_generator"].argv]
    assert kill_when_training(folder, command) == set()
    assert Checkpoints(next((folder / ".ckpt/train_generator").iterdir())).newest().step > 0


@pytest.mark.slow
def test_no_stage_outlives_dvc_and_the_next_repro_resumes(reference, tmp_path):
    folder = reference.new_folder(tmp_path / "run", "train_generator")
    write_json(folder / "params.yaml", params_of(steps=1000))
    stage = {
        "cmd": " ".join(("python -m stages.train_generator", *WORK["train_generator"].argv)),
        "outs": ["models/generator", "results/curves.json"],
    }
    write_json(folder / "dvc.yaml", {"stages": {"train_generator": stage}})
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=folder, env=ENVIRONMENT, check=True)

    assert kill_when_training(folder, ["dvc", "repro"]) == set()

    before = Checkpoints(next((folder / ".ckpt/train_generator").iterdir())).newest().step
    done = subprocess.run(["dvc", "repro"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and before > 0, done.stdout + done.stderr
    curves = json.loads((folder / "results/curves.json").read_bytes())
    assert [row["step"] for row in curves] == list(range(10, 1001, 10))


# --- B: full disks ---------------------------------------------------------------------------------------------------


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


def test_an_output_that_cannot_be_written_is_rejected_before_any_work(tmp_path):
    out = tmp_path / "file" / "pairs"
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=f"{tmp_path}/file cannot be written: .*exists"), output_lock(out):
        pytest.fail("the work began")


def on_small_disk(folder: Path, work: Callable[[Path], None]) -> None:
    """Do `work` in a child, on a disk of 2 MB that only that child sees; skipped where mounting is not
    allowed."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            libc = ctypes.CDLL(None)
            is_there = (
                libc.unshare(0x20000) == 0
                and libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=2m") == 0
            )
            if is_there:
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


def write_until_full(write: Callable[[int], object], folder: Path) -> None:
    """Write until the disk is full: earlier files stay intact, and no file is half-written."""
    written = 0
    try:
        for written in range(1, 100):  # noqa: B007
            write(written)
    except DiskFull:
        assert 1 < written < 99 and not [path for path in folder.rglob(".*")]
        for path in folder.rglob("*.whole"):
            assert len(path.read_bytes()) == 100_000
        return
    raise AssertionError("the disk took it all")


def image_work(folder: Path) -> None:
    write_until_full(lambda number: write_bytes(folder / f"{number}.whole", os.urandom(100_000)), folder)


def shard_work(folder: Path) -> None:
    write_until_full(
        lambda number: write_shards(folder / str(number), {"train": 4000}, rows_per_shard=1000), folder
    )
    assert len(read_token_rows(folder / "1", "train")) == 4000


def manifest_work(folder: Path) -> None:
    (folder / "rows").write_bytes(b"rows")
    rows = {"rows": 4}
    write_manifest(folder, rows, {"note": "first"})
    try:
        write_manifest(folder, rows, {"note": os.urandom(1_500_000).hex()})
    except DiskFull:
        assert read_manifest(folder)["facts"] == {"note": "first"}
        return
    raise AssertionError("the disk took it all")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("work", [checkpoint_work, image_work, shard_work, manifest_work])
def test_a_full_disk_of_two_megabytes_keeps_its_files(tmp_path, work):
    on_small_disk(tmp_path, work)
