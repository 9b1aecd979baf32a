"""Shared by all benchmarks: alternating timings, one table, and dated rows in bench/results.jsonl.

Where possible a figure is a ratio of two measurements in the same run: machines are shared, and a time alone
says little.
"""

import argparse
import datetime
import json
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from thousandwords.core.command_line import parser

RESULTS = Path(__file__).parent / "results.jsonl"


@dataclass(frozen=True)
class Row:
    """One figure, and what it is compared with."""

    id: str  # never changes: later rows of the same id can be compared
    what: str
    size: str
    figure: float
    unit: str
    against: str = ""
    limit: float | None = None  # of the peer or the bound, in the same unit

    @property
    def ratio(self) -> float | None:
        """Figure / limit, or as `against` says; None without a limit."""
        return self.figure / self.limit if self.limit else None


def machine() -> str:
    """The processor or GPU, and the number of threads torch uses: "AMD EPYC 9B14, 2 threads"."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def revision() -> str:
    """The measured commit, with "+" if files have changed since; "" outside a clone or without git."""
    if not shutil.which("git"):
        return ""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":!{RESULTS.name}")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def record(rows: Sequence[Row], path: Path = RESULTS) -> None:
    """Append a line per row, with date, machine, versions and commit."""
    context = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "revision": revision(),
    }
    with path.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps({**asdict(row), "ratio": row.ratio, **context}) + "\n" for row in rows)


def finish(rows: Sequence[Row], path: Path) -> None:
    """Record the rows and print them."""
    record(rows, path)
    print(table(rows))


def parser_of(description: str) -> argparse.ArgumentParser:
    """The parser of a benchmark, with its option --out."""
    arguments = parser(description)
    arguments.add_argument("--out", type=Path, default=RESULTS, help="file the rows are appended to")
    return arguments


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown: id, what, size, figure, peer or limit, ratio."""
    lines = ["| id | what | size | figure | peer or limit | ratio |", "|---|---|---|---|---|---|"]
    for row in rows:
        limit = row.against + (f": {format_figure(row.limit)} {row.unit}" if row.limit is not None else "")
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        lines.append(
            f"| `{row.id}` | {row.what} | {row.size} | {format_figure(row.figure)} {row.unit} | {limit} | {ratio} |"
        )
    return "\n".join(lines)


def format_figure(figure: float) -> str:
    """format_figure(1234.5) -> "1,234"; format_figure(0.01234) -> "0.0123" """
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def seconds(*functions: Callable[[], object], rounds: int = 5, min_seconds: float = 0.2) -> list[float]:
    """Seconds per call of each function: medians over rounds in which the functions alternate.

    Each is called once before, untimed, and in each round repeatedly for at least `min_seconds`.
    """
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, measured in zip(functions, times, strict=True):
            measured.append(_time(function, min_seconds))
    return [statistics.median(measured) for measured in times]


def _time(function: Callable[[], object], min_seconds: float) -> float:
    calls, start, spent = 0, time.perf_counter(), 0.0
    while calls == 0 or spent < min_seconds:
        function()
        calls += 1
        spent = time.perf_counter() - start
    return spent / calls
