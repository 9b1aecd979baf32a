"""The runtime that all stages share: parameters, a lock, a record, signals, and one clear sentence for an
error."""

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

from stages.runtime.inputs import check_inputs, end_when_done
from stages.runtime.locks import end_with_launchers, hold_lock, output_lock
from stages.runtime.tracking import NoTracker, Tracker, git_revision, open_tracker
from thousandwords.core.config import ConfigError
from thousandwords.core.errors import UserError
from thousandwords.core.files import DISK_FULL_ERRNOS, fingerprint, sha256_of, write_json
from thousandwords.core.params import read_params
from thousandwords.core.processes import STOP_SIGNALS, on_signals
from thousandwords.core.run_records import RECORDS, output_paths, outputs_digest
from thousandwords.training.distributed import SINGLE_PROCESS, World, init_processes
from thousandwords.training.loop import Stopped
from thousandwords.training.train_state import NotFinite

# resumable state, outside DVC: DVC removes a stage's outputs before it runs it again
STATE_FOLDER = Path(".ckpt")
# modules that watch, log and distribute work, and change no result
NOT_CODE = (
    "stages.runtime",
    "thousandwords.parallel",
    "thousandwords.core.progress",
    "thousandwords.core.run_records",
)
MAX_RESUMABLE_RUNS = 4  # kept per stage; older ones are removed


@dataclass
class Stage:
    """A running stage: `params`, `log`, `record_metrics`, `record_files`, `state_folder`, `record`."""

    name: str
    params: dict
    tracker: Tracker | NoTracker
    world: World = SINGLE_PROCESS
    started: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0  # of earlier, interrupted executions of the same run
    stop_requested: bool = False
    # while training, a signal asks for a checkpoint instead of ending at once
    is_stoppable: bool = False
    state: Path | None = None
    run: dict = field(default_factory=dict)  # what `shorter_runs` compares
    continued_from: int | None = None  # the step of a shorter run that this one goes on from

    @property
    def seed(self) -> int:
        seed = self.params.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ConfigError(
                f"params.yaml: seed should be a whole number from 0 to 2**63 - 1, found {seed!r}"
            )
        return seed

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log one point of each curve."""
        self.tracker.metrics(values, step)

    def record_metrics(self, values: dict[str, float]) -> None:
        """Log final metrics of the stage."""
        self.tracker.metrics(values, 0)

    def record_files(self, *paths: Path, folder: str | None = None) -> None:
        """Log images and pages as artifacts, in a folder of the run's artifacts."""
        self.tracker.files(paths, folder)

    def record(self) -> dict:
        """This run's id, time, memory, machine, versions and commit: enough to run the same again."""
        return {
            "stage": self.name,
            "run_id": self.tracker.run_id,
            "parent_run_id": self.tracker.parent_id,
            "tracking_uri": "server" if os.environ.get("MLFLOW_TRACKING_URI") else "local",
            **({"continued_from": self.continued_from} if self.continued_from else {}),
            "seconds": round(self.seconds, 2),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "threads": torch.get_num_threads(),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "pyarrow", "pillow")},
            "git": git_revision(),
        }

    def state_folder(self, settings: object, *inputs: str) -> Path:
        """The folder of this run's state, named by its settings, inputs' fingerprints and code."""
        identity = {"settings": settings, "inputs": inputs, "seed": self.seed, "code": code_digest()}
        self.state = STATE_FOLDER / self.name / fingerprint(identity)[:24]
        # equal in two runs that differ in the number of updates only
        steps = settings["training"]["steps"]
        but_steps = settings | {"training": settings["training"] | {"steps": None}}
        self.run = {"but_steps": fingerprint(identity | {"settings": but_steps}), "steps": steps}
        if not self.world.is_main_process:
            self.world.wait()
            return self.state
        self.state.mkdir(parents=True, exist_ok=True)
        os.utime(self.state)
        _remove_oldest(self.state.parent)
        if (self.state / "run.json").is_file():
            earlier = json.loads((self.state / "run.json").read_bytes())
            self.seconds_before = earlier["seconds"]
            self.tracker.resume(earlier["run_id"])
        self.save_state()
        self.world.wait()
        return self.state

    def save_state(self) -> None:
        """Write what a resumed run needs, beside the checkpoints."""
        if self.state and self.world.is_main_process:
            run = {"run_id": self.tracker.run_id, "seconds": self.seconds, **self.run}
            write_json(self.state / "run.json", run)

    def shorter_runs(self) -> list[tuple[Path, int]]:
        """(state, steps) of runs that differ from this one in fewer `training.steps` only; the longest first."""
        runs = []
        for path in self.state.parent.glob("*/run.json"):
            run = json.loads(path.read_bytes())
            if run.get("but_steps") == self.run["but_steps"] and run["steps"] < self.run["steps"]:
                runs.append((path.parent, run["steps"]))
        return sorted(runs, key=lambda run: run[1], reverse=True)


@contextlib.contextmanager
def stage(name: str, options: argparse.Namespace, *sections: str) -> Iterator[Stage]:
    """Run a stage: read the params, take the locks, open the MLflow run, and write the record at the end.

    `sections` are the parts of params.yaml that are logged with the run. An error that the user can fix ends
    the program with one sentence and exit code 2; a signal with 130 or 143, after the state was saved. Of
    several processes started by torchrun only the first locks and records.
    """
    try:
        params = read_params(options.params)
        check_inputs()  # before the long work
        end_with_launchers()
        with (
            init_processes(device_kind(params)) as world,
            _locks(name, options) if world.is_main_process else contextlib.nullcontext(),
        ):
            logged_params = {key: params.get(key) for key in ("seed", *sections)}
            tracker = open_tracker(name, logged_params) if world.is_main_process else NoTracker()
            tracker.log_pipeline_params(params)
            context = Stage(name, params, tracker, world)
            with _signals(context), _recorded(context, options.out if world.is_main_process else None):
                yield context
        end_when_done()
    except (UserError, FileNotFoundError, NotFinite) as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        print(f"{name}: the disk is full ({error}). Make room, then run the same again", file=sys.stderr)
        raise SystemExit(2) from error
    except Stopped as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes only the first prints it
            print(f"{name}: {error}; the next run resumes from there", file=sys.stderr)
        raise SystemExit(143) from error
    except KeyboardInterrupt as error:
        print(f"{name}: stopped; no file was left half-written", file=sys.stderr)
        raise SystemExit(130) from error


@contextlib.contextmanager
def _recorded(context: Stage, out: Path | None) -> Iterator[None]:
    status = "FAILED"
    try:
        yield
        check_inputs()
        status = "FINISHED"
        if out:
            record = context.record() | {"outputs": _written(context.name, out)}
            write_json(RECORDS / f"{context.name}.json", record)
            context.tracker.record(record)
            context.tracker.summarize_pipeline()
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        try:
            context.save_state()
        finally:  # on a full disk, too, the MLflow run is ended
            context.tracker.metrics({"seconds": context.seconds}, 0)
            context.tracker.end(status)


def _written(stage: str, out: Path) -> str | None:
    """The digest of the stage's outputs; None if it wrote to another folder than dvc.yaml says."""
    path = Path(os.path.relpath(out))
    is_usual = any(Path(output).is_relative_to(path) for output in output_paths().get(stage, ()))
    return outputs_digest(stage) if is_usual else None


def device_kind(params: dict) -> str:
    """`device` of params.yaml: cpu or cuda; auto is cuda where there is a GPU."""
    device = params.get("device", "auto")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def code_digest() -> str:
    """The sha256 of all library and stage files that this process has loaded, without those of NOT_CODE."""
    files = {
        module.__file__
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] in ("thousandwords", "stages")
        and getattr(module, "__file__", None)
        and not name.startswith(NOT_CODE)
    }
    digests = sorted(sha256_of(Path(file)) for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _remove_oldest(folder: Path) -> None:
    runs = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in runs[:-MAX_RESUMABLE_RUNS]:
        shutil.rmtree(old)


@contextlib.contextmanager
def _locks(name: str, options: argparse.Namespace) -> Iterator[None]:
    """No other run of this stage, as both would use the same state, and no other that writes `--out`."""
    message = "another run of this stage ({holder}) is active in this folder. Wait for it, or stop it"
    with hold_lock(STATE_FOLDER / "locks" / name, message), output_lock(options.out):
        yield


def _signals(context: Stage) -> contextlib.AbstractContextManager[None]:
    def on_signal(number: int) -> None:
        # a cancel may signal the whole process group, and the end of `dvc` signals again: only a second
        # Ctrl-C ends at once
        if context.is_stoppable and (number != signal.SIGINT or not context.stop_requested):
            context.stop_requested = True
            return
        raise KeyboardInterrupt

    return on_signals(on_signal, signal.SIGINT, *STOP_SIGNALS)
