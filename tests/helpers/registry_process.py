"""A process that imports the registry once and forks a child per command, which can be killed at any moment.

`python -m tests.helpers.registry_process FOLDER` reads a line of orders, {"do": "promote", "args": ["3"],
...}, runs them all at once, and answers.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.helpers.registering import train


class RegistryProcess:
    """The forking process, in a copy of a project at `folder`. It first registers that project once in its
    own database, since most of the time of a first registration is imports."""

    def __init__(self, project: Path, folder: Path) -> None:
        root = shutil.copytree(project, folder)
        command = [sys.executable, "-m", "tests.helpers.registry_process", str(root)]
        pipes = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes
        )

    def run(
        self, folder: Path, after: float | None = None, failpoint: str | None = None, do: str = "register"
    ) -> tuple:
        """(exit code, or minus the signal's number; seconds; result or error) of a command in `folder`. It is
        killed after some seconds, or at a fail point."""
        return self.run_all([{"folder": str(folder), "after": after, "failpoint": failpoint, "do": do}])[0]

    def run_all(self, orders: list[dict]) -> list[tuple]:
        """Several commands at once, each in its own process; "args" are the arguments after the folder."""
        uri = os.environ["MLFLOW_TRACKING_URI"]
        lines = [{"after": None, "failpoint": None, "args": [], "uri": uri, **order} for order in orders]
        self.process.stdin.write(json.dumps(lines) + "\n")
        self.process.stdin.flush()
        return [tuple(answer) for answer in json.loads(self.process.stdout.readline())]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def serve(root: Path) -> None:
    """Fork a child per order of each line of standard input."""
    from flows.registry import commands as registry

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(root / ".mlflow/mlflow.db", folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        train(root, seed=50)
        registry.register(root)
    answers = os.fdopen(os.dup(1), "w")  # the children's output goes to stderr
    os.dup2(2, 1)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as outputs:
            children = [
                start_child(registry, order, Path(outputs) / str(number))
                for number, order in enumerate(json.loads(line))
            ]
            print(json.dumps(watch(children)), file=answers, flush=True)


def start_child(registry, order: dict, output: Path) -> dict:
    child = os.fork()
    if child:
        return {"pid": child, "after": order["after"], "output": output}
    try:
        os.environ["MLFLOW_TRACKING_URI"] = order["uri"]
        if order["failpoint"]:
            os.environ["THOUSANDWORDS_FAILPOINT"] = order["failpoint"]
        output.write_text(getattr(registry, order["do"])(Path(order["folder"]), *order["args"]))
        os._exit(0)
    except BaseException as error:
        output.write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def watch(children: list[dict]) -> list[list]:
    """[exit code, seconds, result or error] of each, once all have ended."""
    began, ends = time.monotonic(), {}
    while len(ends) < len(children):
        for number, child in enumerate(children):
            if number in ends:
                continue
            seconds = time.monotonic() - began
            pid, status = os.waitpid(child["pid"], os.WNOHANG)
            if pid:
                output = child["output"].read_text() if child["output"].is_file() else ""
                ends[number] = [os.waitstatus_to_exitcode(status), seconds, output]
            elif child["after"] is not None and seconds >= child["after"]:
                os.kill(child["pid"], signal.SIGKILL)
                child["after"] = None
        time.sleep(0.0005)
    return [ends[number] for number in range(len(children))]


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
