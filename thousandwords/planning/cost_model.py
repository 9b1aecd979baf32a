"""What a run will take, before it starts: rows, shards, bytes, hours and money of each stage, by arithmetic.

A stage's time is its work over a rate. The work follows from params.yaml and the models' sizes; a rate was measured by the last
run on this machine, or by the benchmarks, or is one of `ASSUMED`, and the plan says which. Left out: what takes minutes at any
size (check_params, rank_images, package_model, evaluate).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thousandwords import pair_shards
from thousandwords.shards import BYTES_OF_TEXT, MOST_IN_MEMORY

TRAINED = ("train_image_tokenizer", "train_generator", "train_scorer")
KEPT_CHECKPOINTS = 2
TEXT_BYTES = 100  # a caption of some dozen words with its key, unpacked
BACKWARD = 2  # times the work of a forward pass


@dataclass(frozen=True)
class Rate:
    """Something per second, and how it is known."""

    value: float
    source: str


ASSUMED = {
    "megapixels": Rate(7.5, "assumed: 50 pictures of 384 × 384 a second, decoded, cut and packed as PNG by one process"),
    "captions": Rate(25_000, "assumed: one CPU core, as measured on 20,000 captions of the default preset"),
    "cpu": Rate(0.05e12, "assumed: two CPU cores on the default preset, 0.05 TFLOP/s"),
    "gpu": Rate(400e12, "assumed: 40 % of what a GPU with 989 TFLOP/s in bfloat16 promises; give --tflops to correct it"),
    "bytes_per_pixel": Rate(2.0, "assumed: photographs as PNG"),
}
# of the training's FLOP/s: word by word, weights are read more than they are multiplied
DRAWING_SHARE = Rate(0.1, "assumed: a tenth of the training's FLOP/s")


@dataclass(frozen=True)
class Sizes:
    """What the models make of one row: operations of a forward pass (multiplications and additions), weights."""

    image_size: int
    kept_side: int  # pixels a side of a picture in data/pairs
    image_vocab_size: int
    words: int  # of a picture, L
    encode: float
    tokenizer_loss: float
    generator_loss: float
    scorer_loss: float
    tokenizer_parameters: int
    generator_parameters: int
    scorer_parameters: int


@dataclass(frozen=True)
class Training:
    """Of one section `training`: rows seen in all, and forward passes an update costs (4 if it recomputes activations)."""

    rows: int
    passes: int = 1 + BACKWARD


@dataclass(frozen=True)
class Settings:
    """What the plan needs of params.yaml."""

    pairs: int
    validation_share: float
    pairs_per_shard: int
    tokens_per_shard: int
    views: int
    candidates: int
    prompts: int
    trainings: dict[str, Training]  # stage -> its training; a stage that trains nothing is missing


@dataclass(frozen=True)
class Step:
    """One stage: its work in `unit`s, and what it leaves on disk."""

    stage: str
    rows: int
    work: float
    unit: str  # megapixels, captions: on a CPU; flops: where the models run
    folder: str = ""
    shards: int = 0
    bytes: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What a step takes: hours on one device, hours by the clock, money."""

    step: Step
    device_hours: float
    hours: float
    money: float


def steps(
    settings: Settings, sizes: Sizes, bytes_per_pixel: float, drawing_share: float = DRAWING_SHARE.value
) -> list[Step]:
    """The stages in their order; what the stores keep beside a stage's output is a line of its own, without work."""
    pairs, views, words = settings.pairs, settings.views, settings.views * sizes.words  # of all views
    trained = round(pairs * (1 - settings.validation_share))
    drawn = trained * views + (pairs - trained)  # held-out pictures have one view, in all places
    token_bytes = pairs * token_row_bytes(words, sizes.image_vocab_size)
    is_unpacked = trained * (2 * words + BYTES_OF_TEXT) > MOST_IN_MEMORY
    shards = math.ceil(pairs / settings.pairs_per_shard)
    picture_bytes = sizes.kept_side**2 * bytes_per_pixel
    are_pairs_unpacked = trained * picture_bytes > pair_shards.MOST_IN_MEMORY
    drawings = settings.prompts * settings.candidates
    found = [
        Step("prepare_pairs", pairs, pairs * sizes.kept_side**2 / 1e6, "megapixels", "data/pairs", shards,
             pairs * picture_bytes),
        Step("", trained, 0, "flops", ".store/pairs", 1, trained * picture_bytes) if are_pairs_unpacked else None,
        Step("train_text_tokenizer", trained, trained, "captions"),
        _trained("train_image_tokenizer", settings, sizes.tokenizer_loss, sizes.tokenizer_parameters),
        Step("tokenize_pairs", drawn, drawn * sizes.encode, "flops", "data/tokens",
             math.ceil(pairs / settings.tokens_per_shard), token_bytes),
        Step("", pairs, 0, "flops", ".store/tokens", shards, token_bytes),
        Step("", trained, 0, "flops", ".store/rows", 1, trained * (2 * words + TEXT_BYTES)) if is_unpacked else None,
        _trained("train_generator", settings, sizes.generator_loss, sizes.generator_parameters),
        _trained("train_scorer", settings, sizes.scorer_loss, sizes.scorer_parameters),
        Step("sample_images", drawings, drawings * sizes.generator_loss / drawing_share, "flops"),
    ]  # fmt: skip
    return [step for step in found if step is not None]


def token_row_bytes(words: int, vocab_size: int) -> float:
    """A row of a token shard: zstd leaves little more than the bits that `words` draws of the vocabulary have, and a text."""
    return words * math.log2(vocab_size) / 8 * 1.02 + TEXT_BYTES / 2


def checkpoint_bytes(parameters: int) -> int:
    """Weights, their average and two moments in float32, of two checkpoints."""
    return parameters * 4 * 4 * KEPT_CHECKPOINTS


def _trained(stage: str, settings: Settings, loss: float, parameters: int) -> Step | None:
    if stage not in settings.trainings:
        return None
    told = settings.trainings[stage]
    work = told.rows * told.passes * loss
    return Step(stage, told.rows, work, "flops", f".ckpt/{stage}", KEPT_CHECKPOINTS, checkpoint_bytes(parameters))


def cost(step: Step, rates: dict[str, Rate], devices: int, price_per_hour: float) -> Cost:
    """What a step takes on `devices` GPUs (or CPUs); what no model works on takes one CPU, whatever there is, and its hours."""
    device_hours = step.work / rates[step.unit].value / 3600
    if step.unit != "flops":
        return Cost(step, 0.0, device_hours, 0.0)
    return Cost(step, device_hours, device_hours / devices, device_hours * price_per_hour)


def total(costs: Sequence[Cost]) -> Cost:
    """All of it: one stage after the other, everything kept on disk."""
    whole = Step("total", 0, 0, "flops", "", sum(one.step.shards for one in costs), sum(one.step.bytes for one in costs))
    sums = (sum(getattr(one, name) for one in costs) for name in ("device_hours", "hours", "money"))
    return Cost(whole, *sums)


def measured_rate(settings: Settings, sizes: Sizes, seconds: dict[str, float]) -> Rate | None:
    """Operations a second of the longest training that a record tells of; None where there is none.

    The longest: start and evaluation weigh least in it.
    """
    known = [stage for stage in TRAINED if seconds.get(stage) and stage in settings.trainings]
    if not known:
        return None
    longest = max(known, key=lambda stage: seconds[stage])
    work = next(step.work for step in steps(settings, sizes, 1.0) if step.stage == longest)
    return Rate(work / seconds[longest], f"measured: {longest} took {seconds[longest]:,.0f} s here")


def newest(rows: Sequence[dict], id: str) -> dict | None:
    """The last row of bench/results.jsonl with that id; None where it was never measured."""
    return next((row for row in reversed(rows) if row["id"] == id), None)


def benchmarked_rate(rows: Sequence[dict], on: str) -> Rate | None:
    """Operations a second of training on a "cpu" or "gpu": the machine's own matrix product times the share that was reached."""
    product, trained = newest(rows, f"{on}_matmul"), newest(rows, f"{on}_train")
    if product is None or trained is None or not trained["ratio"]:
        return None
    return Rate(product["figure"] * 1e12 * trained["ratio"], f"benchmark of {_when_and_where(trained)}")


def benchmarked_drawing_share(rows: Sequence[dict], on: str) -> Rate | None:
    """Drawing's FLOP/s over training's, where both were measured."""
    trained, drawn = benchmarked_rate(rows, on), newest(rows, f"{on}_draw")
    if trained is None or drawn is None:
        return None
    return Rate(drawn["figure"] * 1e12 / trained.value, f"benchmark of {_when_and_where(drawn)}")


def _when_and_where(row: dict) -> str:
    return f"{row['date'][:10]} on {row['machine']}"


def table(costs: Sequence[Cost], currency: str = "$") -> str:
    """The plan as lines of equal columns; the last is the total."""
    head = ["stage", "rows", "keeps", "files", "disk", "device hours", "hours", f"cost ({currency})"]
    lines = [head, *(_line(one) for one in [*costs, total(costs)])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(_aligned(cells, widths)).rstrip() for cells in lines)


def _line(one: Cost) -> list[str]:
    step, is_total = one.step, one.step.stage == "total"
    is_work = is_total or step.work > 0
    return [
        step.stage,
        "" if is_total else f"{step.rows:,}",
        step.folder,
        f"{step.shards:,}" if step.shards else "",
        told_bytes(step.bytes) if step.bytes else "",
        told_hours(one.device_hours) if is_work and step.unit == "flops" else "",
        told_hours(one.hours) if is_work else "",
        f"{one.money:,.0f}" if one.money else "",
    ]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if number in (0, 2) else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def told_bytes(count: float) -> str:
    """told_bytes(3.2e12) -> "3.2 TB" """
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"


def told_hours(hours: float) -> str:
    """told_hours(0.5) -> "0.50"; told_hours(1234.5) -> "1,234" """
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 10 else f"{hours:.2f}"

