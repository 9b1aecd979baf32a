"""python -m bench.growth [--quick]: how time and memory grow with length, candidates, batch, weights and rows, on a CPU.

Each figure is an exponent: the slope of log(time) over log(size), by least squares over the three largest sizes, held against
what theory says of large ones. What does not grow keeps it below theory; an exponent above theory is a defect. All sizes of one
figure take turns in the same rounds, so that noise meets all alike. Memory is the peak of a fresh process above what it began
with.
"""
from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from bench import _results as results
from bench._results import Row
from bench.loader import captions, memory, parts
from thousandwords import text
from thousandwords.generators.transformer import Config, Transformer
from thousandwords.loader import TokenLoader, positions
from thousandwords.rows import Rows, write_rows
from thousandwords.shards import StoredTokenRows, TokenHeader

TEXT_LENGTH, TEXT_WORDS, IMAGE_WORDS = 16, 64, 64
SIDES = (16, 24, 32, 48, 64)  # 256 to 4,096 words
CANDIDATES = (1, 8, 64, 512)
BATCHES = (1, 4, 16, 64)
WIDTHS = (64, 128, 256, 512)
ROWS = (100, 1_000, 10_000, 100_000)
ROW_LENGTH, ROW_BATCH = 64, 64
LARGEST = 3  # sizes that the line goes through: at smaller ones what does not grow weighs more


def exponent(sizes: Sequence[float], figures: Sequence[float]) -> float:
    """The slope of a line through (log size, log figure) of the three largest: exponent([1, 2, 4], [3, 12, 48]) -> 2.0"""
    return float(np.polyfit(np.log(sizes[-LARGEST:]), np.log(figures[-LARGEST:]), 1)[0])


def row(id: str, what: str, sizes: Sequence[float], figures: Sequence[float], unit: str, theory: float, why: str) -> Row:
    """The exponent of some figures beside that of theory."""
    found = exponent(sizes, figures)
    told = f"{sizes[0]:,} to {sizes[-1]:,}: {results.told(figures[0])} to {results.told(figures[-1])} {unit}"
    return Row(id, what, told, found, "", why, theory, found / theory if theory else None)


def model(side: int = 8, width: int = 64, layers: int = 4, attention: str = "auto") -> Transformer:
    torch.manual_seed(0)
    config = Config(num_layers=layers, num_heads=max(1, width // 64), width=width, kernel=3, attention=attention)
    return Transformer(config, TEXT_WORDS, TEXT_LENGTH, IMAGE_WORDS, (side,))


def learning(one: Transformer, batch: int) -> Callable[[], None]:
    """A forward and a backward pass over so many sequences."""
    words = torch.randint(TEXT_WORDS, (batch, TEXT_LENGTH)), torch.randint(IMAGE_WORDS, (batch, one.image_length))

    def learn() -> None:
        one.zero_grad(set_to_none=True)
        one.loss(*words, 0, torch.Generator())[0].backward()

    return learn


def drawing(one: Transformer, candidates: int) -> Callable[[], object]:
    caption = torch.randint(TEXT_WORDS, (1, TEXT_LENGTH)).expand(candidates, -1)
    return lambda: one.sample(caption, [torch.Generator().manual_seed(row) for row in range(candidates)])


def timed(works: Sequence[Callable[[], object]]) -> list[float]:
    return results.seconds(*works, rounds=3, least=0.05)


# ---- what grows


def by_length(sides: Sequence[int]) -> list[Row]:
    """Training by the number of a picture's words: a line meets few lines, so that a picture costs less than its square."""
    words = [side**2 for side in sides]
    lines = timed([learning(model(side), 1) for side in sides])
    whole = timed([learning(model(side, attention="dense"), 1) for side in sides])
    held = [peak(side) for side in sides]
    return [
        row("growth_length", "training time, words", words, lines, "s", 1.5, "L lines of sqrt(L) keys"),
        row("growth_length_dense", "the same under whole masks", words, whole, "s", 2.0, "L x L scores"),
        row("growth_length_memory", "its memory, words", words, held, "MB", 2.0, "three masks of L x L"),
    ]


def by_candidates(counts: Sequence[int]) -> list[Row]:
    taken = timed([drawing(model(), count) for count in counts])
    return [row("growth_candidates", "drawing time, candidates of a caption", counts, taken, "s", 1.0, "each is drawn")]


def by_batch(sizes: Sequence[int]) -> list[Row]:
    taken = timed([learning(model(), size) for size in sizes])
    return [row("growth_batch", "training time, sequences at once", sizes, taken, "s", 1.0, "each is read")]


def by_weights(widths: Sequence[int]) -> list[Row]:
    models = [model(width=width) for width in widths]
    taken = timed([learning(one, 4) for one in models])
    weights = [sum(weight.numel() for weight in one.layers.parameters()) for one in models]
    return [row("growth_weights", "training time, weights of the layers", weights, taken, "s", 1.0, "2 operations a weight")]


def by_rows(counts: Sequence[int]) -> list[Row]:
    """A batch out of shuffled rows on disk: what it costs must not hang on how many there are."""
    words = text.train(captions(2_000, np.random.default_rng(2)), text.Config(2048, 64))
    header = TokenHeader("dvae", "0" * 64, 8192, (round(ROW_LENGTH**0.5),), 64)
    with tempfile.TemporaryDirectory() as name:
        works = [_batches(Path(name) / str(count), count, header, words) for count in counts]
        taken = timed(works)
    return [row("growth_rows", "time of a batch, rows on disk", counts, taken, "s", 0.0, "rows are read by number")]


def _batches(folder: Path, count: int, header: TokenHeader, words: text.TextTokenizer) -> Callable[[], object]:
    folder.mkdir()
    write_rows(folder, parts(count, ROW_LENGTH))
    loader, steps = TokenLoader(StoredTokenRows(header, Rows(folder)), words, seed=0), iter(range(10**9))
    return lambda: loader.batch(positions(next(steps), ROW_BATCH))


def peak(side: int) -> float:
    """MB that a training step adds to a fresh process."""
    command = [sys.executable, "-m", "bench.growth", "--peak", str(side)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_here(side: int) -> float:
    before = memory()["VmHWM"]
    learning(model(side), 1)()
    return memory()["VmHWM"] - before


PARTS: list[tuple[Callable[[Sequence[int]], list[Row]], Sequence[int]]] = [
    (by_length, SIDES), (by_candidates, CANDIDATES), (by_batch, BATCHES), (by_weights, WIDTHS), (by_rows, ROWS),
]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first two sizes of each, to see that all of it runs")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="where the rows are added")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)  # one measurement, in a process of its own
    options = parser.parse_args(argv)
    if options.peak:
        print(peak_here(options.peak))
        return
    rows = [row for grow, sizes in PARTS for row in grow(sizes[:2] if options.quick else sizes)]
    assert all(math.isfinite(row.figure) for row in rows)
    results.record(rows, options.out)
    print(results.table(rows))


if __name__ == "__main__":
    main()
