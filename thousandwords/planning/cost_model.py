"""The cost of a run before it starts: rows, shards, bytes, hours and money of each stage, by arithmetic.

The time of a stage is its work divided by a rate. The work follows from params.yaml and the sizes of the
models. A rate comes from the last run on this machine, from the benchmarks, or from `ASSUMED`, and the output
says which. Left out: stages that take minutes at any size (check_params, rank_images, package_model,
evaluate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thousandwords.data import pair_shards
from thousandwords.data.token_shards import MAX_BYTES_IN_MEMORY, TEXT_BYTES_PER_ROW

TRAINED = ("train_image_tokenizer", "train_generator", "train_scorer")
NUM_CHECKPOINTS = 2
TEXT_BYTES = 100  # of a caption of some dozen words with its key, unpacked
BACKWARD = 2  # times the work of a forward pass


@dataclass(frozen=True)
class Rate:
    """An amount of work per second, and where the number comes from."""

    value: float
    source: str


ASSUMED = {
    "megapixels": Rate(
        7.5, "assumed: 50 images of 384 × 384 a second, decoded, cropped and packed as PNG by one process"
    ),
    "captions": Rate(25_000, "assumed: one CPU core, as measured on 20,000 captions of the default preset"),
    "cpu": Rate(0.05e12, "assumed: two CPU cores on the default preset, 0.05 TFLOP/s"),
    "gpu": Rate(
        400e12, "assumed: 40 % of a GPU's peak of 989 TFLOP/s in bfloat16; give --tflops to correct it"
    ),
    "bytes_per_pixel": Rate(2.0, "assumed: photographs as PNG"),
}
# token by token, memory bandwidth limits sampling more than arithmetic
SAMPLING_SHARE = Rate(0.1, "assumed: a tenth of the training's FLOP/s")


@dataclass(frozen=True)
class ModelSizes:
    """Per row: operations (multiplications and additions) of a forward pass; and the number of weights."""

    image_size: int
    stored_side: int  # pixels a side of an image in data/pairs
    image_vocab_size: int
    num_image_tokens: int  # L
    encode: float
    tokenizer_loss: float
    generator_loss: float
    scorer_loss: float
    tokenizer_parameters: int
    generator_parameters: int
    scorer_parameters: int


@dataclass(frozen=True)
class Training:
    """One section `training`: rows read in total, and forward passes per update (4 with activation
    checkpointing)."""

    rows: int
    passes: int = 1 + BACKWARD


@dataclass(frozen=True)
class RunSizes:
    """The sizes in params.yaml that the cost depends on."""

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
    """One stage: its work in `unit`s, and its files on disk."""

    stage: str
    rows: int
    work: float
    unit: str  # megapixels, captions: on a CPU; flops: where the models run
    folder: str = ""
    shards: int = 0
    bytes: float = 0.0


@dataclass(frozen=True)
class Cost:
    """The cost of a step: hours on one device, elapsed hours, money."""

    step: Step
    device_hours: float
    hours: float
    money: float


def steps(
    sizes: RunSizes, models: ModelSizes, bytes_per_pixel: float, sampling_share: float = SAMPLING_SHARE.value
) -> list[Step]:
    """The stages in their order; a store beside a stage's output is a step of its own, without work."""
    pairs, views, tokens = sizes.pairs, sizes.views, sizes.views * models.num_image_tokens  # of all views
    train_pairs = round(pairs * (1 - sizes.validation_share))
    encoded_images = train_pairs * views + (pairs - train_pairs)  # a held-out image has one view, repeated
    token_bytes = pairs * token_row_bytes(tokens, models.image_vocab_size)
    are_tokens_unpacked = train_pairs * (2 * tokens + TEXT_BYTES_PER_ROW) > MAX_BYTES_IN_MEMORY
    shards = math.ceil(pairs / sizes.pairs_per_shard)
    image_bytes = models.stored_side**2 * bytes_per_pixel
    are_pairs_unpacked = train_pairs * image_bytes > pair_shards.MAX_BYTES_IN_MEMORY
    samples = sizes.prompts * sizes.candidates
    all_steps = [
        Step(
            "prepare_pairs",
            pairs,
            pairs * models.stored_side**2 / 1e6,
            "megapixels",
            "data/pairs",
            shards,
            pairs * image_bytes,
        ),
        Step("", train_pairs, 0, "flops", ".store/pairs", 1, train_pairs * image_bytes)
        if are_pairs_unpacked
        else None,
        Step("train_text_tokenizer", train_pairs, train_pairs, "captions"),
        _training_step("train_image_tokenizer", sizes, models.tokenizer_loss, models.tokenizer_parameters),
        Step(
            "tokenize_pairs",
            encoded_images,
            encoded_images * models.encode,
            "flops",
            "data/tokens",
            math.ceil(pairs / sizes.tokens_per_shard),
            token_bytes,
        ),
        Step("", pairs, 0, "flops", ".store/tokens", shards, token_bytes),
        Step("", train_pairs, 0, "flops", ".store/rows", 1, train_pairs * (2 * tokens + TEXT_BYTES))
        if are_tokens_unpacked
        else None,
        _training_step("train_generator", sizes, models.generator_loss, models.generator_parameters),
        _training_step("train_scorer", sizes, models.scorer_loss, models.scorer_parameters),
        Step("sample_images", samples, samples * models.generator_loss / sampling_share, "flops"),
    ]
    return [step for step in all_steps if step is not None]


def token_row_bytes(num_tokens: int, vocab_size: int) -> float:
    """A row of a token shard: zstd leaves little more than the entropy of uniform tokens, and half of the
    text."""
    return num_tokens * math.log2(vocab_size) / 8 * 1.02 + TEXT_BYTES / 2


def checkpoint_bytes(parameters: int) -> int:
    """Weights, their average and two moments in float32, of all checkpoints that are kept."""
    return parameters * 4 * 4 * NUM_CHECKPOINTS


def _training_step(stage: str, sizes: RunSizes, loss: float, parameters: int) -> Step | None:
    if stage not in sizes.trainings:
        return None
    training = sizes.trainings[stage]
    work = training.rows * training.passes * loss
    return Step(
        stage, training.rows, work, "flops", f".ckpt/{stage}", NUM_CHECKPOINTS, checkpoint_bytes(parameters)
    )


def cost(step: Step, rates: dict[str, Rate], devices: int, price_per_hour: float) -> Cost:
    """The cost of a step on `devices` GPUs (or CPUs); a step without a model takes one CPU, at no price."""
    device_hours = step.work / rates[step.unit].value / 3600
    if step.unit != "flops":
        return Cost(step, 0.0, device_hours, 0.0)
    return Cost(step, device_hours, device_hours / devices, device_hours * price_per_hour)


def total(costs: Sequence[Cost]) -> Cost:
    """The sum: one stage after the other, all files on disk."""
    shards, size = sum(cost.step.shards for cost in costs), sum(cost.step.bytes for cost in costs)
    sums = (sum(getattr(cost, name) for cost in costs) for name in ("device_hours", "hours", "money"))
    return Cost(Step("total", 0, 0, "flops", "", shards, size), *sums)


def measured_rate(sizes: RunSizes, models: ModelSizes, seconds: dict[str, float]) -> Rate | None:
    """Operations per second of the longest training with a record; None where there is no record.

    The longest, because start-up and evaluation weigh least in it.
    """
    recorded = [stage for stage in TRAINED if seconds.get(stage) and stage in sizes.trainings]
    if not recorded:
        return None
    longest = max(recorded, key=lambda stage: seconds[stage])
    work = next(step.work for step in steps(sizes, models, 1.0) if step.stage == longest)
    return Rate(work / seconds[longest], f"measured: {longest} took {seconds[longest]:,.0f} s here")


def newest(rows: Sequence[dict], id: str) -> dict | None:
    """The last row of bench/results.jsonl with that id; None where it was never measured."""
    return next((row for row in reversed(rows) if row["id"] == id), None)


def benchmarked_rate(rows: Sequence[dict], device: str) -> Rate | None:
    """Training's operations per second on a "cpu" or "gpu": the machine's own matrix product times the share
    it reaches."""
    product, training = newest(rows, f"{device}_matmul"), newest(rows, f"{device}_train")
    if product is None or training is None or not training["ratio"]:
        return None
    return Rate(product["figure"] * 1e12 * training["ratio"], f"benchmark of {_date_and_machine(training)}")


def benchmarked_sampling_share(rows: Sequence[dict], device: str) -> Rate | None:
    """Sampling's FLOP/s over training's, where both were measured."""
    training, sampling = benchmarked_rate(rows, device), newest(rows, f"{device}_draw")
    if training is None or sampling is None:
        return None
    return Rate(sampling["figure"] * 1e12 / training.value, f"benchmark of {_date_and_machine(sampling)}")


def _date_and_machine(row: dict) -> str:
    return f"{row['date'][:10]} on {row['machine']}"


def table(costs: Sequence[Cost], currency: str = "$") -> str:
    """The costs as lines of aligned columns; the last line is the total."""
    head = ["stage", "rows", "keeps", "files", "disk", "device hours", "hours", f"cost ({currency})"]
    lines = [head, *(_line(cost) for cost in [*costs, total(costs)])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(_align(cells, widths)).rstrip() for cells in lines)


def _line(cost: Cost) -> list[str]:
    step, is_total = cost.step, cost.step.stage == "total"
    has_work = is_total or step.work > 0
    return [
        step.stage,
        "" if is_total else f"{step.rows:,}",
        step.folder,
        f"{step.shards:,}" if step.shards else "",
        format_bytes(step.bytes) if step.bytes else "",
        format_hours(cost.device_hours) if has_work and step.unit == "flops" else "",
        format_hours(cost.hours) if has_work else "",
        f"{cost.money:,.0f}" if cost.money else "",
    ]


def _align(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if number in (0, 2) else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def format_bytes(count: float) -> str:
    """format_bytes(3.2e12) -> "3.2 TB" """
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"


def format_hours(hours: float) -> str:
    """format_hours(0.5) -> "0.50"; format_hours(1234.5) -> "1,234" """
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 10 else f"{hours:.2f}"
