"""python -m bench.growth [--quick]: how time and memory grow with size, on a CPU.

Each figure is an exponent: the slope of log(time) over log(size), by least squares over the three largest
sizes, compared with theory for large sizes. Constant costs keep it below theory; an exponent above theory is
a defect. All sizes of one figure alternate in the same rounds, so that noise affects all equally. Memory is
the peak of a fresh process above its start.
"""

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
from thousandwords.core.command_line import one_sentence
from thousandwords.core.row_store import RowStore, write_rows
from thousandwords.data.loader import TokenLoader
from thousandwords.data.sampler import positions
from thousandwords.data.token_shards import StoredTokenRows, TokenHeader
from thousandwords.generators.transformer.model import Transformer, TransformerConfig
from thousandwords.text.bpe import TextTokenizer, TextTokenizerConfig, train

TEXT_LENGTH, TEXT_VOCAB_SIZE, IMAGE_VOCAB_SIZE = 16, 64, 64
SIDES = (16, 24, 32, 48, 64)  # 256 to 4,096 tokens
CANDIDATES = (1, 8, 64, 512)
BATCHES = (1, 4, 16, 64)
WIDTHS = (64, 128, 256, 512)
ROWS = (100, 1_000, 10_000, 100_000)
ROW_LENGTH, ROW_BATCH = 64, 64
LARGEST = 3  # sizes that the line is fitted to: at smaller ones constant costs dominate


def exponent(sizes: Sequence[float], figures: Sequence[float]) -> float:
    """The log-log slope of the three largest sizes: exponent([1, 2, 4], [3, 12, 48]) -> 2.0"""
    return float(np.polyfit(np.log(sizes[-LARGEST:]), np.log(figures[-LARGEST:]), 1)[0])


def row(
    id: str, what: str, sizes: Sequence[float], figures: Sequence[float], unit: str, theory: float, why: str
) -> Row:
    """The exponent of some figures compared with that of theory."""
    measured = exponent(sizes, figures)
    first, last = results.format_figure(figures[0]), results.format_figure(figures[-1])
    size = f"{sizes[0]:,} to {sizes[-1]:,}: {first} to {last} {unit}"
    return Row(id, what, size, measured, "", why, theory)


def build_model(side: int = 8, width: int = 64, layers: int = 4) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(num_layers=layers, num_heads=max(1, width // 64), width=width, kernel=3)
    return Transformer(config, TEXT_VOCAB_SIZE, TEXT_LENGTH, IMAGE_VOCAB_SIZE, (side,))


def training_step(model: Transformer, batch: int) -> Callable[[], None]:
    """A forward and a backward pass over a batch of sequences."""
    tokens = (
        torch.randint(TEXT_VOCAB_SIZE, (batch, TEXT_LENGTH)),
        torch.randint(IMAGE_VOCAB_SIZE, (batch, model.image_length)),
    )

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model.loss(*tokens, 0, torch.Generator())[0].backward()

    return step


def sampling(model: Transformer, candidates: int) -> Callable[[], object]:
    caption = torch.randint(TEXT_VOCAB_SIZE, (1, TEXT_LENGTH)).expand(candidates, -1)
    return lambda: model.sample(caption, [torch.Generator().manual_seed(row) for row in range(candidates)])


def timed(functions: Sequence[Callable[[], object]]) -> list[float]:
    return results.seconds(*functions, rounds=3, min_seconds=0.05)


# ---- the figures


def by_length(sides: Sequence[int]) -> list[Row]:
    """Training by the number of image tokens: attention compares each with all before it."""
    lengths = [side**2 for side in sides]
    taken = timed([training_step(build_model(side), 1) for side in sides])
    memory = [peak(side) for side in sides]
    return [
        row("growth_length", "training time, tokens", lengths, taken, "s", 2.0, "L x L scores"),
        row("growth_length_memory", "its memory, tokens", lengths, memory, "MB", 2.0, "three masks of L x L"),
    ]


def by_candidates(counts: Sequence[int]) -> list[Row]:
    taken = timed([sampling(build_model(), count) for count in counts])
    return [
        row(
            "growth_candidates",
            "sampling time, candidates of a caption",
            counts,
            taken,
            "s",
            1.0,
            "each is sampled",
        )
    ]


def by_batch(sizes: Sequence[int]) -> list[Row]:
    taken = timed([training_step(build_model(), size) for size in sizes])
    return [
        row("growth_batch", "training time, sequences at once", sizes, taken, "s", 1.0, "each is computed")
    ]


def by_weights(widths: Sequence[int]) -> list[Row]:
    models = [build_model(width=width) for width in widths]
    taken = timed([training_step(model, 4) for model in models])
    weights = [sum(weight.numel() for weight in model.layers.parameters()) for model in models]
    return [
        row(
            "growth_weights",
            "training time, weights of the layers",
            weights,
            taken,
            "s",
            1.0,
            "2 operations a weight",
        )
    ]


def by_rows(counts: Sequence[int]) -> list[Row]:
    """A batch of shuffled rows on disk: its cost must not depend on their number."""
    text_tokenizer = train(captions(2_000, np.random.default_rng(2)), TextTokenizerConfig(2048, 64))
    header = TokenHeader("dvae", "0" * 64, 8192, (round(ROW_LENGTH**0.5),), 64)
    with tempfile.TemporaryDirectory() as name:
        functions = [_batches(Path(name) / str(count), count, header, text_tokenizer) for count in counts]
        taken = timed(functions)
    return [
        row(
            "growth_rows", "time of a batch, rows on disk", counts, taken, "s", 0.0, "rows are read by number"
        )
    ]


def _batches(
    folder: Path, count: int, header: TokenHeader, text_tokenizer: TextTokenizer
) -> Callable[[], object]:
    folder.mkdir()
    write_rows(folder, parts(count, ROW_LENGTH))
    loader, steps = (
        TokenLoader(StoredTokenRows(header, RowStore(folder)), text_tokenizer, seed=0),
        iter(range(10**9)),
    )
    return lambda: loader.batch(positions(next(steps), ROW_BATCH))


def peak(side: int) -> float:
    """MB that a training step adds to a fresh process."""
    command = [sys.executable, "-m", "bench.growth", "--peak", str(side)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_this_process(side: int) -> float:
    before = memory()["VmHWM"]
    training_step(build_model(side), 1)()
    return memory()["VmHWM"] - before


PARTS: list[tuple[Callable[[Sequence[int]], list[Row]], Sequence[int]]] = [
    (by_length, SIDES),
    (by_candidates, CANDIDATES),
    (by_batch, BATCHES),
    (by_weights, WIDTHS),
    (by_rows, ROWS),
]


def main(argv: list[str] | None = None) -> None:
    arguments = results.parser_of(__doc__)
    arguments.add_argument(
        "--quick", action="store_true", help="only the first two sizes of each, to test the code"
    )
    # one measurement in its own process
    arguments.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = arguments.parse_args(argv)
    if options.peak:
        print(peak_of_this_process(options.peak))
        return
    rows = [row for measure, sizes in PARTS for row in measure(sizes[:2] if options.quick else sizes)]
    assert all(math.isfinite(row.figure) for row in rows)
    results.finish(rows, options.out)


if __name__ == "__main__":
    with one_sentence("growth"):
        main()
