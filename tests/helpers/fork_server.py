"""A process that imports part of the project once, and forks a child per call, which can be killed at any moment.

A child calls a function as `python -m` would, in its own process group and folder; the imports, which would take most
of the time, are done.
"""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

STAGES = ("prepare_pairs", "tokenize_pairs", "train_generator", "sample_images", "rank_images")
MODELS = {"image_tokenizers": "dvae", "decoders": "unet", "generators": "transformer", "scorers": "clip"}


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int  # its exit code, or minus the signal's number
    seconds: float
    output: str
    result: object  # of the function, or "ValueError: its message"
    failpoints: dict[str, int]  # how often it passed each, if one was set


class ForkServer:
    """`prepare` is a function of this module that returns the functions to call, by name."""

    def __init__(self, prepare: str, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.helpers.fork_server", prepare, *map(str, arguments)]
        own, pipes = (
            {**os.environ, "OMP_NUM_THREADS": "1"},
            dict.fromkeys(("stdin", "stdout"), subprocess.PIPE),
        )
        self.process = subprocess.Popen(command, cwd=ROOT, env=own, text=True, **pipes)

    def run(self, name: str, *args: object, **options: object) -> Ended:
        """Call a function. Options: the folder; a fail point; and a signal's number (default: SIGKILL), which is sent
        signal_after so many seconds, and not before a file matches the pattern `once`."""
        return self.run_all([{"name": name, "args": args, **options}])[0]

    def run_all(self, orders: list[dict]) -> list[Ended]:
        """Several calls at once, each in its own process."""
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        print(json.dumps([{"uri": uri, **order} for order in orders]), file=self.process.stdin, flush=True)
        return [Ended(*answer) for answer in json.loads(self.process.stdout.readline())]

    def close(self) -> None:
        with self.process:
            self.process.kill()


class RegistryProcess(ForkServer):
    """Runs the commands of the registry; it works in a copy of a project at `folder`."""

    def __init__(self, project: Path, folder: Path) -> None:
        super().__init__("registry", shutil.copytree(project, folder))


def stages() -> dict[str, Callable]:
    """The stages, which do not log to MLflow: that makes no artefact."""
    import torch

    from stages.runtime import stage, tracking
    from thousandwords import components

    torch.set_num_threads(1)
    stage.open_tracker = lambda name, params: tracking.NoTracker()
    for family, kind in MODELS.items():
        components.component(family, kind)
    return {name: importlib.import_module(f"stages.{name}").main for name in STAGES}


def registry(root: str) -> dict[str, Callable]:
    """Commands of the registry; a first registration is made already, most of whose time is imports."""
    from flows.registry import commands
    from tests.helpers.registering import train

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(f"{root}/.mlflow/mlflow.db", folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        train(Path(root), seed=50)
        commands.register(Path(root))
    here = Path(".")
    return {
        "register": lambda: commands.register(here),
        "promote": lambda *version: commands.promote(here, *version),
        "rollback": lambda: commands.rollback(here),
    }


class Child:
    """A child process, which has begun."""

    def __init__(self, function: Callable, order: dict, output: Path) -> None:
        self.order, self.output, self.code = order, output, None
        self.start, self.pid = time.monotonic(), os.fork()
        if not self.pid:
            run_child(function, order, output)
        os.setpgid(
            self.pid, self.pid
        )  # in the parent: the group must exist however early the child is killed

    def has_ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code, self.seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self.start
            elif self.is_due():
                os.killpg(self.pid, self.order.get("number", signal.SIGKILL))
                self.order["signal_after"] = None
        return self.code is not None

    def is_due(self) -> bool:
        after, once = self.order.get("signal_after"), self.order.get("once")
        if after is None or time.monotonic() - self.start < after:
            return False
        return not once or any(Path(self.order["folder"]).glob(once))

    def answer(self) -> list:
        result = self.output.with_suffix(".json")
        text = self.output.read_text() if self.output.is_file() else ""
        return [
            self.code,
            self.seconds,
            text,
            *(json.loads(result.read_text()) if result.is_file() else [None, {}]),
        ]


def run_child(function: Callable, order: dict, output: Path) -> None:
    """Run the function in the child; never returns."""
    from thousandwords.core import files

    code, result = 1, None
    try:
        os.chdir(order["folder"])
        os.environ["MLFLOW_TRACKING_URI"] = order["uri"]
        if order.get("failpoint"):
            os.environ["THOUSANDWORDS_FAILPOINT"] = order["failpoint"]
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        result = function(*order["args"])
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    finally:
        output.with_suffix(".json").write_text(json.dumps([result, files._passed]))
        os._exit(code)


def serve(functions: dict[str, Callable]) -> None:
    """One line of standard input is one list of calls at once."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            orders = enumerate(json.loads(line))
            children = [Child(functions[each["name"]], each, Path(folder, str(n))) for n, each in orders]
            while not all([child.has_ended() for child in children]):
                time.sleep(0.0005)
            print(json.dumps([child.answer() for child in children]), file=answers, flush=True)


if __name__ == "__main__":
    serve(globals()[sys.argv[1]](*sys.argv[2:]))
