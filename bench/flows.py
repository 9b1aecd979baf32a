"""What the flow adds to `dvc repro` where nothing has changed.

    python -m bench.flows [--rounds 5] [--project FOLDER]

A clone with the smoke preset is run once (or FOLDER is taken, a clone that was run before). Then rounds alternate: `dvc repro`,
`python -m flows.pipeline` with the server that Prefect starts for each run, and the same with a server that is up. Overhead is
the median of a flow less that of `dvc repro`, by the clock and by the CPU time of the commands themselves.
"""
from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.ingest import measured
from tests.orchestra import Server, environment
from tests.test_pipeline import new_project, repro

DVC, FLOW = ("-m", "dvc", "repro"), ("-m", "flows.pipeline")


def run(project: Path, words: tuple[str, ...], api: str = "") -> None:
    """`python WORDS` in the project, by the Prefect server at `api`, if any."""
    settings = {"PREFECT_API_URL": api} if api else {}
    words = (sys.executable, *words)
    subprocess.run(words, cwd=project, env=environment(project / ".prefect", **settings), capture_output=True, check=True)


def measure(project: Path, home: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """{contender: (wall, CPU) seconds of each round}; the first round of each is not counted."""
    server = Server(home)
    contenders = {
        "dvc repro": lambda: run(project, DVC),
        "flow, server of its own": lambda: run(project, FLOW),
        "flow, server that is up": lambda: run(project, FLOW, server.api),
    }
    try:
        taken = [{name: measured(call) for name, call in contenders.items()} for _ in range(rounds + 1)]
    finally:
        server.stop()
    return {name: [one[name] for one in taken[1:]] for name in contenders}


def report(taken: dict[str, list[tuple[float, float]]]) -> None:
    middle = {name: [statistics.median(kind) for kind in zip(*rows, strict=True)] for name, rows in taken.items()}
    for name, rows in taken.items():
        walls = [wall for wall, _ in rows]
        more = [one - plain for one, plain in zip(middle[name], middle["dvc repro"], strict=True)]
        print(f"{name:24} {middle[name][0]:6.2f} s ({min(walls):.2f} to {max(walls):.2f})  {middle[name][1]:5.2f} s CPU"
              f"   overhead {more[0]:5.2f} s, {more[1]:5.2f} s CPU")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--project", type=Path, help="a clone that was run before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = options.project or new_project(folder / "project")
        if not options.project:
            repro(project)
        before = os.getloadavg()[0]
        taken = measure(project, folder / "server", options.rounds)
    print(f"{options.rounds} rounds; load {before:.1f} before and {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")
    report(taken)


if __name__ == "__main__":
    main()
