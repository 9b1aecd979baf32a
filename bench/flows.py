"""The overhead of the flow over `dvc repro` when nothing has changed.

    python -m bench.flows [--rounds 5] [--project FOLDER]

A clone with the smoke preset is run once (or FOLDER is used, a clone that was run before). Then rounds
alternate: `dvc repro`, `python -m flows.pipeline` with the server that Prefect starts for each run, and the
same with a running server. Overhead is the median of a flow minus that of `dvc repro`, in wall time and in
CPU time of the commands.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.ingest import measure as time_command
from tests.helpers.prefect_server import Server, environment
from tests.helpers.smoke_project import new_project, repro
from thousandwords.core.command_line import one_sentence, parser

DVC, FLOW = ("-m", "dvc", "repro"), ("-m", "flows.pipeline")


def run(project: Path, command: tuple[str, ...], api: str = "") -> None:
    """`python COMMAND` in the project, with the Prefect server at `api`, if any."""
    settings = {"PREFECT_API_URL": api} if api else {}
    subprocess.run(
        (sys.executable, *command),
        cwd=project,
        env=environment(project / ".prefect", **settings),
        capture_output=True,
        check=True,
    )


def measure(project: Path, home: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """The (wall, CPU) seconds of each round of each contender; the first round is not counted."""
    server = Server(home)
    contenders = {
        "dvc repro": lambda: run(project, DVC),
        "flow, its own server": lambda: run(project, FLOW),
        "flow, running server": lambda: run(project, FLOW, server.api),
    }
    try:
        results = [{name: time_command(call) for name, call in contenders.items()} for _ in range(rounds + 1)]
    finally:
        server.stop()
    return {name: [result[name] for result in results[1:]] for name in contenders}


def report(results: dict[str, list[tuple[float, float]]]) -> None:
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in results.items()
    }
    for name, rows in results.items():
        walls = [wall for wall, _ in rows]
        overhead = [flow - plain for flow, plain in zip(medians[name], medians["dvc repro"], strict=True)]
        print(
            f"{name:24} {medians[name][0]:6.2f} s ({min(walls):.2f} to {max(walls):.2f})  {medians[name][1]:5.2f} s CPU"
            f"   overhead {overhead[0]:5.2f} s, {overhead[1]:5.2f} s CPU"
        )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--project", type=Path, help="a clone that was run before")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = options.project or new_project(folder / "project")
        if not options.project:
            repro(project)
        before = os.getloadavg()[0]
        results = measure(project, folder / "server", options.rounds)
    print(
        f"{options.rounds} rounds; load {before:.1f} before and {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores"
    )
    report(results)


if __name__ == "__main__":
    with one_sentence("flows"):
        main()
