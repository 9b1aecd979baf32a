"""What every stage shares: its parameters, one lock, one record, one clear sentence when something is wrong."""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from stages._guard import end_with_starters, locked, sole_writer
from stages._run import NoTracker, Tracker, git_revision
from thousandwords.config import ConfigError
from thousandwords.distributed import ALONE, World, joined
from thousandwords.errors import UserError
from thousandwords.files import FULL, fingerprint, sha256_of, write_json
from thousandwords.training import Stopped
from thousandwords.updates import NotFinite

STATE = Path(".ckpt")  # resumable state, outside DVC: DVC removes a stage's outputs before it runs it again
# they watch, log and share work out, and change no result
NOT_CODE = (
    "_run.py", "_stage.py", "_progress.py", "_environment.py", "_launch.py", "_guard.py", "_engine.py", "_hand.py", "_ray.py",
)  # fmt: skip
KEPT_RUNS = 4  # resumable runs kept per stage; older ones go


def arguments(description: str, *paths: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The command line of a stage: --params, and a required --<path> for each name in `paths`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the knobs (default: params.yaml)")
    for name in paths:
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="PATH")
    parser.add_argument("--record", type=Path, help="where the record of this run goes (JSON)")
    return parser.parse_args(argv)


def read_params(path: Path) -> dict:
    """params.yaml as a dict; raises ConfigError where it is missing or no YAML."""
    if not Path(path).is_file():
        raise ConfigError(f"{path} is missing. Start from one of presets/: cp presets/default.yaml {path}")
    try:
        params = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(params, dict):
        raise ConfigError(f"{path} should be a set of named sections, found {type(params).__name__}")
    return params


@dataclass
class Stage:
    """One running stage, as its function sees it: `params`, `log`, `record_metrics`, `record_files`, `state_folder`."""

    name: str
    params: dict
    tracker: Tracker | NoTracker
    world: World = ALONE
    started: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0  # spent by earlier, interrupted goes at the same run
    stop_requested: bool = False
    is_stoppable: bool = False  # while training: a signal then asks for a checkpoint instead of ending at once
    state: Path | None = None

    @property
    def seed(self) -> int:
        seed = self.params.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"params.yaml: seed should be a whole number from 0 on, found {seed!r}")
        return seed

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def log(self, step: int, values: dict[str, float]) -> None:
        """One point on each of the curves."""
        self.tracker.metrics(values, step)

    def record_metrics(self, values: dict[str, float]) -> None:
        """Final figures of the stage."""
        self.tracker.metrics(values, 0)

    def record_files(self, *paths: Path) -> None:
        """Pictures and pages that one would rather look at."""
        self.tracker.files(paths)

    def state_folder(self, settings: object, *inputs: str) -> Path:
        """Where this very run may be resumed: named by its settings, its inputs' fingerprints and the code."""
        name = fingerprint({"settings": settings, "inputs": inputs, "seed": self.seed, "code": code_digest()})
        self.state = STATE / self.name / name[:24]
        if not self.world.is_first:
            self.world.wait()
            return self.state
        self.state.mkdir(parents=True, exist_ok=True)
        os.utime(self.state)
        _forget_oldest(self.state.parent)
        if (self.state / "run.json").is_file():
            earlier = json.loads((self.state / "run.json").read_bytes())
            self.seconds_before = earlier["seconds"]
            self.tracker.take_up(earlier["run_id"])
        self.save_state()
        self.world.wait()
        return self.state

    def save_state(self) -> None:
        """Notes beside the checkpoints what a resumed run should know."""
        if self.state and self.world.is_first:
            write_json(self.state / "run.json", {"run_id": self.tracker.run_id, "seconds": self.seconds})


@contextlib.contextmanager
def stage(name: str, options: argparse.Namespace, *sections: str) -> Iterator[Stage]:
    """Runs a stage: reads params, takes the lock, opens the MLflow run, and writes the record at the end.

    `sections` are the parts of params.yaml that the run is recorded with. An error that a user can mend ends the
    program with one sentence and code 2; a signal with 130 or 143, after whatever was safe to keep has been kept. Of several
    processes that torchrun started the first alone locks and records.
    """
    try:
        params = read_params(options.params)
        end_with_starters()
        with joined(device_kind(params)) as world, _alone(name, options) if world.is_first else contextlib.nullcontext():
            recorded = {key: params.get(key) for key in ("seed", *sections)}
            tracker = Tracker(name, recorded) if world.is_first else NoTracker()
            running = Stage(name, params, tracker, world)
            with _signals(running), _recorded(running, options.record if world.is_first else None):
                yield running
    except (UserError, FileNotFoundError, NotFinite) as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"{name}: the disk is full ({error}). Make room, then run the same again", file=sys.stderr)
        raise SystemExit(2) from error
    except Stopped as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes one tells it for all
            print(f"{name}: {error}; the next run goes on from there", file=sys.stderr)
        raise SystemExit(143) from error
    except KeyboardInterrupt as error:
        print(f"{name}: stopped; nothing half-written was left", file=sys.stderr)
        raise SystemExit(130) from error


@contextlib.contextmanager
def _recorded(running: Stage, record: Path | None) -> Iterator[None]:
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
        if record:
            write_json(record, _record(running))
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        try:
            running.save_state()
        finally:  # a full disk is no reason to leave the run open in the diary
            running.tracker.metrics({"seconds": running.seconds}, 0)
            running.tracker.end(status)


def _record(running: Stage) -> dict:
    """Who ran, where, on what: enough to ask for the same again."""
    return {
        "stage": running.name,
        "run_id": running.tracker.run_id,
        "parent_run_id": running.tracker.parent_id,
        "tracking_uri": "server" if os.environ.get("MLFLOW_TRACKING_URI") else "local",
        "seconds": round(running.seconds, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "pyarrow", "pillow")},
        "git": git_revision(),
    }


def device_kind(params: dict) -> str:
    """params.yaml `device`: cpu, cuda, or auto for whichever there is."""
    wanted = params.get("device", "auto")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def code_digest() -> str:
    """The sha256 of every library and stage file that this process has loaded, this one and its like aside."""
    files = {
        module.__file__
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] in ("thousandwords", "stages") and getattr(module, "__file__", None)
    }
    digests = sorted(sha256_of(Path(file)) for file in files if Path(file).name not in NOT_CODE)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _forget_oldest(folder: Path) -> None:
    runs = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in runs[:-KEPT_RUNS]:
        shutil.rmtree(old)


@contextlib.contextmanager
def _alone(name: str, options: argparse.Namespace) -> Iterator[None]:
    """No other run of this stage in this folder, since both would keep their state there, and no other that writes `--out`."""
    told = "another run of this stage ({holder}) is at work in this folder. Wait for it, or stop it"
    with locked(STATE / "locks" / name, told), sole_writer(options.out):
        yield


@contextlib.contextmanager
def _signals(running: Stage) -> Iterator[None]:
    def on_signal(number: int, _: object) -> None:
        # who cancels may signal the whole group, and the death of `dvc` signals again: only a second Ctrl-C is impatience
        if running.is_stoppable and (number == signal.SIGTERM or not running.stop_requested):
            running.stop_requested = True
            return
        raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


