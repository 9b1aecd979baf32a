"""What quality to expect of a run: the figures of the nearest recorded run (bench/runs.yaml)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from thousandwords.core.config import section

FAR = 3.0  # times as many pairs, or as few, are no longer "about the same"


@dataclass(frozen=True)
class RecordedRun:
    """One run that was made, and the figures of its held-out pairs."""

    name: str
    pairs: int
    grid: int  # tokens a side
    vocab_size: int
    updates: dict[str, int]  # of image_tokenizer and generator
    psnr: float  # dB, of hard reconstruction
    loss: float | None = None  # nats per image token

    def __str__(self) -> str:
        steps = " and ".join(f"{count:,}" for count in self.updates.values())
        return f"{self.name} ({self.pairs:,} pairs, {self.grid} × {self.grid} of {self.vocab_size:,}, {steps} updates)"


def read_runs(path: Path) -> list[RecordedRun]:
    """The recorded runs; none without the file."""
    rows = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else []
    return [section(row, f"run {number}", RecordedRun, path.name) for number, row in enumerate(rows)]


def expectation(runs: Sequence[RecordedRun], grid: int, pairs: int, updates: dict[str, int]) -> str:
    """What to expect, in one line: the figures of the run whose grid, then number of pairs, is nearest, and in what it
    differs."""
    if not runs:
        return "expect: no run is recorded in bench/runs.yaml"
    run = min(runs, key=lambda run: (abs(math.log(run.grid / grid)), abs(math.log(run.pairs / pairs))))
    loss = "" if run.loss is None else f", {run.loss:.2f} nats per image token"
    notes = [f"no run with a grid of {grid} × {grid} is recorded"] * (run.grid != grid)
    counts = {"pairs": (run.pairs, pairs)}
    counts |= {f"{name.replace('_', ' ')} updates": (run.updates[name], updates[name]) for name in updates}
    for name, (there, here) in counts.items():
        if not 1 / FAR <= there / here <= FAR:
            amount = "many" if there > here else "few"
            notes.append(f"it had {max(there, here) / min(there, here):,.0f} times as {amount} {name}")
    return "; ".join([f"expect: like {run}: reconstruction {run.psnr:.1f} dB{loss}, held out", *notes])
