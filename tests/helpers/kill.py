"""Kill stages: a process that imports them once, and forks a child per trial, which can be killed at any
moment.

A child runs `main(argv)` of a stage as `python -m stages.X` would, in its own process group and its own
folder. Two things differ: its imports are done (they write nothing, and would take most of the time), and it
does not log to MLflow (which makes no artefact).
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

STAGES = ("prepare_pairs", "tokenize_pairs", "train_generator", "sample_images", "rank_images")

MODELS = {"image_tokenizers": "dvae", "generators": "transformer", "scorers": "clip"}


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal's number; seconds; output; {fail point: times
    passed}."""

    code: int
    seconds: float
    output: str
    failpoints: dict[str, int]


class ForkServer:
    """The process that forks. `run` starts a child and waits for its end."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.kill"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(
        self,
        folder: Path,
        stage: str,
        *argv: str,
        signal_after: float | None = None,
        once: str = "",
        number: int = signal.SIGKILL,
        failpoint: str | None = None,
        count: bool = False,
    ) -> Ended:
        """`stage` with `argv` in `folder`; its process group gets signal `number` after some seconds, unless
        it has ended.

        `once` is a pattern of files in `folder`: the signal waits until there is one.
        """
        order = {
            "folder": str(folder),
            "stage": stage,
            "argv": argv,
            "after": signal_after,
            "once": once,
            "number": number,
            "failpoint": failpoint,
            "count": count,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def serve() -> None:
    """One child per line of standard input."""
    import torch

    from thousandwords import components

    torch.set_num_threads(1)
    for family, kind in MODELS.items():
        components.component(family, kind)
    mains = {name: importlib.import_module(f"stages.{name}").main for name in STAGES}
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(_fork_child(mains[order["stage"]], order)), flush=True)


def _fork_child(main, order: dict) -> dict:
    folder = Path(order["folder"])
    output, failpoints = folder / "output.txt", folder / "failpoints.json"
    output.write_text("")
    failpoints.unlink(missing_ok=True)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_child(main, order, output, failpoints)
    os.setpgid(child, child)  # in the parent: the group must exist however early the child is killed
    code = _wait(child, start, order)
    seconds = time.monotonic() - start
    counts = json.loads(failpoints.read_text()) if failpoints.exists() else {}
    return {"code": code, "seconds": seconds, "output": output.read_text(), "failpoints": counts}


def _wait(child: int, start: float, order: dict) -> int:
    """Wait for the child's end, and send the requested signal to its group at the requested moment."""
    is_due = order["after"] is not None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if is_due and time.monotonic() - start >= order["after"] and _exists(order["folder"], order["once"]):
            os.killpg(child, order["number"])
            is_due = False
        time.sleep(0.0005)


def _exists(folder: str, pattern: str) -> bool:
    return not pattern or any(Path(folder).glob(pattern))


def _run_child(main, order: dict, output: Path, failpoints: Path) -> None:
    """Run the stage in the child; never returns."""
    from stages.runtime import stage, tracking
    from thousandwords.core import files, manifest

    code = 1
    try:
        os.chdir(order["folder"])
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(descriptor, 1)  # the server answers on its own stdout
        os.dup2(descriptor, 2)
        stage.open_tracker = lambda name, params: tracking.NoTracker()
        if order["failpoint"]:
            os.environ["THOUSANDWORDS_FAILPOINT"] = order["failpoint"]
        if order["count"]:
            files.failpoint = manifest.failpoint = lambda name: files._passed.update([name])
        main(order["argv"])
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        if order["count"]:
            failpoints.write_text(json.dumps(files._passed))
        os._exit(code)


if __name__ == "__main__":
    serve()
