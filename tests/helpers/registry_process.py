"""A process that imports the registry once and forks a child per command, which may be killed at any moment.

`python -m tests.nursery FOLDER` reads a line of orders, {"do": "promote", "words": ["3"], ...}, does them all at once, answers.
"""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.registering import train

ROOT = Path(__file__).parent.parent


class Nursery:
    """The process that forks, in a copy of a project at `folder`. It has registered that once itself, in a database of its own,
    since most of what a first time takes is imports."""

    def __init__(self, project: Path, folder: Path) -> None:
        root = shutil.copytree(project, folder)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", str(root)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, folder: Path, after: float | None = None, failpoint: str | None = None, do: str = "register") -> tuple:
        """(exit code, or minus the signal's number; seconds; what it returned or said) of a command in `folder`.

        It is killed after some seconds, or at a fail point.
        """
        return self.together([{"folder": str(folder), "after": after, "failpoint": failpoint, "do": do}])[0]

    def together(self, orders: list[dict]) -> list[tuple]:
        """Several commands at once, each in a process of its own; "words" are what each is given besides the folder."""
        uri = os.environ["MLFLOW_TRACKING_URI"]
        lines = [{"after": None, "failpoint": None, "words": [], "uri": uri, **order} for order in orders]
        self.process.stdin.write(json.dumps(lines) + "\n")
        self.process.stdin.flush()
        return [tuple(answer) for answer in json.loads(self.process.stdout.readline())]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def serve(root: Path) -> None:
    """A child per order of each line of standard input."""
    from flows import registry

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(root / ".mlflow/mlflow.db", folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        train(root, seed=50)
        registry.register(root)
    answers = os.fdopen(os.dup(1), "w")  # what the children say goes elsewhere
    os.dup2(2, 1)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as said:
            children = [raise_child(registry, order, Path(said) / str(number)) for number, order in enumerate(json.loads(line))]
            print(json.dumps(watch(children)), file=answers, flush=True)


def raise_child(registry, order: dict, said: Path) -> dict:
    child = os.fork()
    if child:
        return {"pid": child, "after": order["after"], "said": said}
    try:
        os.environ["MLFLOW_TRACKING_URI"] = order["uri"]
        if order["failpoint"]:
            os.environ["THOUSANDWORDS_FAILPOINT"] = order["failpoint"]
        said.write_text(getattr(registry, order["do"])(Path(order["folder"]), *order["words"]))
        os._exit(0)
    except BaseException as error:
        said.write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def watch(children: list[dict]) -> list[list]:
    """[exit code, seconds, what it returned or said] of each, once all have ended."""
    began, ends = time.monotonic(), {}
    while len(ends) < len(children):
        for number, one in enumerate(children):
            if number in ends:
                continue
            seconds = time.monotonic() - began
            pid, status = os.waitpid(one["pid"], os.WNOHANG)
            if pid:
                said = one["said"].read_text() if one["said"].is_file() else ""
                ends[number] = [os.waitstatus_to_exitcode(status), seconds, said]
            elif one["after"] is not None and seconds >= one["after"]:
                os.kill(one["pid"], signal.SIGKILL)
                one["after"] = None
        time.sleep(0.0005)
    return [ends[number] for number in range(len(children))]


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
