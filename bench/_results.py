"""What every benchmark shares: timings that alternate, one table, and a dated row per figure in bench/results.jsonl.

A figure is a ratio wherever it can be, of two things measured in the same run: machines are shared, and a time alone says little.
"""
from __future__ import annotations

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

RESULTS = Path(__file__).parent / "results.jsonl"


@dataclass(frozen=True)
class Row:
    """One figure: `ratio` is figure / limit, or what `against` says of it; None where there is nothing to hold it against."""

    id: str  # the figure's name for ever: later rows of the same id can be compared
    what: str
    size: str
    figure: float
    unit: str
    against: str = ""
    limit: float | None = None  # of the peer or the bound, in the same unit
    ratio: float | None = None


def machine() -> str:
    """The processor or GPU, and how many threads torch uses: "AMD EPYC 9B14, 2 threads"."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def revision() -> str:
    """The commit that was measured, with "+" where files were changed since; "" outside a clone, or where there is no git."""
    if not shutil.which("git"):
        return ""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":!{RESULTS.name}")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def record(rows: Sequence[Row], path: Path = RESULTS) -> None:
    """Appends a line per figure: the row, when, on what, with which versions, of which commit."""
    told = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "revision": revision(),
    }
    with path.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps({**asdict(row), **told}) + "\n" for row in rows)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown: id, what, size, figure, peer or limit, ratio."""
    lines = ["| id | what | size | figure | peer or limit | ratio |", "|---|---|---|---|---|---|"]
    for row in rows:
        limit = row.against + (f": {told(row.limit)} {row.unit}" if row.limit is not None else "")
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        lines.append(f"| `{row.id}` | {row.what} | {row.size} | {told(row.figure)} {row.unit} | {limit} | {ratio} |")
    return "\n".join(lines)


def told(figure: float) -> str:
    """told(1234.5) -> "1,234"; told(0.01234) -> "0.0123" """
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def seconds(*works: Callable[[], object], rounds: int = 5, least: float = 0.2) -> list[float]:
    """What one call of each work takes: medians over rounds in which the works alternate, so that noise meets all alike.

    Each is called once before, untimed, and in a round as often as `least` seconds need.
    """
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, kept in zip(works, times, strict=True):
            kept.append(_timed(work, least))
    return [statistics.median(kept) for kept in times]


def _timed(work: Callable[[], object], least: float) -> float:
    calls, start, spent = 0, time.perf_counter(), 0.0
    while calls == 0 or spent < least:
        work()
        calls += 1
        spent = time.perf_counter() - start
    return spent / calls
