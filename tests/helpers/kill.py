"""Stages that die: a process that imports them once, and forks a child per trial, which may be killed at any moment.

A child runs `main(argv)` of a stage as `python -m stages.X` would, in a process group of its own, in a folder of its own. Two
things differ from the real thing: its imports are done (they write nothing, and would be most of the time), and it keeps no
MLflow diary (no artefact; a stage goes on without it).
"""
from __future__ import annotations

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

ROOT = Path(__file__).parent.parent
STAGES = ("prepare_pairs", "tokenize_pairs", "train_generator", "sample_images", "rank_images")

MODELS = {"tokenizers": "dvae", "generators": "transformer", "scorers": "clip"}


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal's number; after how long; what it had said; what it passed."""

    code: int
    seconds: float
    said: str
    passed: dict[str, int]


class Nursery:
    """The process that forks. `run` starts a child and waits for its end."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, folder: Path, stage: str, *argv: str, signal_after: float | None = None, once: str = "",
            number: int = signal.SIGKILL, failpoint: str | None = None, count: bool = False) -> Ended:
        """`stage` with `argv` in `folder`; its process group gets signal `number` after some seconds, unless it has ended.

        `once` is a pattern of files in `folder`: the signal waits until there is one.
        """
        order = {"folder": str(folder), "stage": stage, "argv": argv, "after": signal_after, "once": once, "number": number,
                 "failpoint": failpoint, "count": count}  # fmt: skip
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
        print(json.dumps(_raise_child(mains[order["stage"]], order)), flush=True)


def _raise_child(main, order: dict) -> dict:
    folder = Path(order["folder"])
    said, passed = folder / "said.txt", folder / "passed.json"
    said.write_text("")
    passed.unlink(missing_ok=True)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _live(main, order, said, passed)
    os.setpgid(child, child)  # here, not in the child: the group must be there however early it is killed
    code = _wait(child, began, order)
    seconds = time.monotonic() - began
    counted = json.loads(passed.read_text()) if passed.exists() else {}
    return {"code": code, "seconds": seconds, "said": said.read_text(), "passed": counted}


def _wait(child: int, began: float, order: dict) -> int:
    """Waits for the child's end and sends its group what is ordered, at its moment."""
    is_due = order["after"] is not None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if is_due and time.monotonic() - began >= order["after"] and _is_there(order["folder"], order["once"]):
            os.killpg(child, order["number"])
            is_due = False
        time.sleep(0.0005)


def _is_there(folder: str, pattern: str) -> bool:
    return not pattern or any(Path(folder).glob(pattern))


def _live(main, order: dict, said: Path, passed: Path) -> None:
    """The child's whole life; never returns."""
    from stages import _stage
    from thousandwords import files

    code = 1
    try:
        os.chdir(order["folder"])
        heard = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(heard, 1)  # the nursery's own is where it answers
        os.dup2(heard, 2)
        _stage.Tracker = lambda name, params: _stage.NoTracker()
        if order["failpoint"]:
            os.environ["THOUSANDWORDS_FAILPOINT"] = order["failpoint"]
        if order["count"]:
            files.failpoint = lambda name: files._passed.update([name])
        main(order["argv"])
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        if order["count"]:
            passed.write_text(json.dumps(files._passed))
        os._exit(code)


if __name__ == "__main__":
    serve()
