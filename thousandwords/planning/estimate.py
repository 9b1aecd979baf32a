"""The time, memory and disk of a run before it starts, by arithmetic: rows, files, bytes, operations and hours of
each stage.

The time of a stage is its work divided by a rate. The work follows from params.yaml and the sizes of the models,
counted on torch's meta device. Rates are those of the last run here (results/runs), if params.yaml is still the
same; else of the newest benchmark (bench/results.jsonl); else assumed. Left out: stages that take minutes at any
size (check_params, rank_images, package_model, evaluate).
"""

import json
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.params import read_params
from thousandwords.core.run_records import read_records
from thousandwords.data import pair_shards
from thousandwords.data.token_shards import MAX_BYTES_IN_MEMORY, TEXT_BYTES_PER_ROW, TokensConfig
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.sources.base import SourceError
from thousandwords.planning.budget import Seconds, planned_minutes
from thousandwords.planning.presets import read_preset
from thousandwords.planning.recorded_runs import expectation, read_runs
from thousandwords.preflight import TRAINED, build_models, check_params
from thousandwords.text.bpe import read_config
from thousandwords.training.config import TrainingConfig

NUM_CHECKPOINTS = 2
TEXT_BYTES = 100  # of a caption of some dozen words with its key, unpacked
PROGRAM_BYTES = 600e6  # Python, torch and its libraries: the resident memory of the stage package_model
BACKWARD = 2  # times the work of a forward pass


Unit = Literal["hours", "minutes"]


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
    # token by token, memory bandwidth limits sampling more than arithmetic
    "sampling_share": Rate(0.1, "assumed: a tenth of the training's FLOP/s"),
}


@dataclass(frozen=True)
class Model:
    """A model and its training; `flops` are multiplications and additions of a forward pass, per row."""

    flops: float
    parameters: int
    rows: int = 0  # read by training in total; 0: it is not trained
    activations: float = 0.0  # bytes that a forward pass of a batch keeps, in float32; 0: not counted
    passes: int = 1 + BACKWARD  # forward passes per update: one more with activation checkpointing
    keeps_best: bool = False

    @property
    def work(self) -> float:
        """The operations of its training."""
        return self.rows * self.passes * self.flops


@dataclass(frozen=True)
class Sizes:
    """What the cost of a run depends on."""

    pairs: int
    train_pairs: int
    pairs_per_shard: int
    stored_side: int  # pixels a side of an image in data/pairs
    image_vocab_size: int
    scales: tuple[int, ...]  # sides of the token grids
    encode: float  # operations per image
    views: int
    tokens_per_shard: int
    samples: int
    models: dict[str, Model]  # by their names in params.yaml
    is_token_by_token: bool = True  # how the generator samples; else a whole grid at a time

    @property
    def num_image_tokens(self) -> int:
        """L, the number of tokens of one image."""
        return sum(side**2 for side in self.scales)


@dataclass(frozen=True)
class Step:
    """One stage: its work in `unit`s, and its files on disk; without a name a store beside a stage's output."""

    stage: str
    rows: int
    work: float = 0.0
    unit: str = "flops"  # where the models run; megapixels, captions: on a CPU
    folder: str = ""
    files: int = 0
    bytes: float = 0.0


def read_sizes(params: dict, num_pairs: int | None = None) -> Sizes:
    """The sizes in `params`, for `num_pairs` pairs or those in the source; raises UserError."""
    data = section(params["data"], "data", DataConfig)
    text = read_config(params["text_tokenizer"])
    tokens = section(params["tokens"], "tokens", TokensConfig)
    sampling, side, is_scenes = params["sampling"], data.image_size, data.source == "scenes"
    num_stored = ingest.check_source(data) if is_scenes or num_pairs is None else None
    num_pairs = num_pairs or num_stored
    validation_share = 1 - data.scenes.count / num_stored if is_scenes else data.validation_share
    prompts = sampling.get("prompts_per_split", 64) * (2 if is_scenes else 1)
    models = build_models(params)
    tokenizer, decoder, generator, scorer, captioner = (models.get(name) for name in TRAINED)
    with torch.device("meta"):
        image, rng = torch.empty(1, 3, side, side), torch.Generator()
        caption = torch.zeros(1, text.text_length, dtype=torch.int64)
        image_tokens = torch.zeros(1, tokenizer.num_tokens, dtype=torch.int64)
        encode = _count_flops(lambda: tokenizer.encode(image))
        forwards = {
            "image_tokenizer": lambda: tokenizer.train().loss(image, 0, rng),
            "generator": lambda: generator.eval().loss(caption, image_tokens, 0, rng, num_text_tokens=1.0),
        }
        if decoder.is_trainable:  # each update encodes and decodes its images
            forwards["decoder"] = lambda: decoder.loss(image, image_tokens, image, 0, rng)
        if captioner.is_trainable:
            forwards["captioner"] = lambda: captioner.loss(image, caption, 0, rng)
        if scorer:
            scorer.eval()  # a batch of one has no variance
            forwards["scorer"] = lambda: (scorer.embed_images(image), scorer.embed_captions(["a"]))
        flops = {name: _count_flops(forward) for name, forward in forwards.items()}
        kept = {name: _count_kept_bytes(forward, models[name]) for name, forward in forwards.items()}
    return Sizes(
        pairs=num_pairs,
        train_pairs=round(num_pairs * (1 - validation_share)),
        pairs_per_shard=data.rows_per_shard,
        stored_side=(data.keep_side or side) if data.keep == "whole" else side,
        image_vocab_size=tokenizer.vocab_size,
        scales=tokenizer.scales,
        encode=encode,
        views=tokens.views_per_image,
        tokens_per_shard=tokens.rows_per_shard,
        samples=(prompts + len(sampling.get("prompts", []))) * sampling.get("candidates", 512),
        models={name: _model(params[name], name, models[name], flops[name], kept[name]) for name in flops},
        is_token_by_token=generator.is_token_by_token,
    )


def _model(block: dict, name: str, model: torch.nn.Module, flops: float, kept: float) -> Model:
    parameters = sum(weight.numel() for weight in model.parameters())
    is_copied = name == "image_tokenizer" and block.get("init") and block.get("tune", "none") == "none"
    if "training" not in block or is_copied:
        return Model(flops, parameters)
    config = section(block["training"], f"{name}.training", TrainingConfig)
    is_recomputed = bool((block.get(block["kind"]) or {}).get("activation_checkpointing"))
    rows, passes = config.steps * config.batch_size, 1 + BACKWARD + is_recomputed
    processes = config.num_processes if isinstance(config.num_processes, int) else 1
    batch_size = config.batch_size / config.gradient_accumulation / processes
    activations = 0.0 if is_recomputed else kept * batch_size
    return Model(flops, parameters, rows, activations, passes, config.keep == "best")


def _count_flops(forward: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return float(counter.get_total_flops())


def _count_kept_bytes(forward: Callable[[], object], model: torch.nn.Module) -> float:
    """Bytes that a forward pass keeps for the backward pass, weights aside."""
    weights = {weight.untyped_storage()._cdata for weight in model.state_dict().values()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return float(sum(storage.nbytes() for number, storage in kept.items() if number not in weights))


def steps(sizes: Sizes, bytes_per_pixel: float, sampling_share: float) -> list[Step]:
    """The stages in their order."""
    pairs, train_pairs, models = sizes.pairs, sizes.train_pairs, sizes.models
    tokens = sizes.views * sizes.num_image_tokens  # of all views
    encoded_images = train_pairs * sizes.views + (pairs - train_pairs)  # a held-out image has one view
    token_bytes = pairs * token_row_bytes(tokens, sizes.image_vocab_size)
    shards, token_shards = (math.ceil(pairs / per) for per in (sizes.pairs_per_shard, sizes.tokens_per_shard))
    pixels = sizes.stored_side**2
    image_bytes = pixels * bytes_per_pixel
    megapixels = pairs * pixels / 1e6
    packed = pairs * image_bytes
    found = [Step("prepare_pairs", pairs, megapixels, "megapixels", "data/pairs", shards, packed)]
    if train_pairs * image_bytes > pair_shards.MAX_BYTES_IN_MEMORY:
        found.append(Step("", train_pairs, folder=".store/pairs", files=1, bytes=train_pairs * image_bytes))
    found.append(Step("train_text_tokenizer", train_pairs, train_pairs, "captions"))
    found += _training_step("captioner", models, "recaption")
    found += _training_step("image_tokenizer", models) + _training_step("decoder", models)
    work = encoded_images * sizes.encode
    found += [
        Step("tokenize_pairs", encoded_images, work, "flops", "data/tokens", token_shards, token_bytes),
        Step("", pairs, folder=".store/tokens", files=shards, bytes=token_bytes),
    ]
    if train_pairs * (2 * tokens + TEXT_BYTES_PER_ROW) > MAX_BYTES_IN_MEMORY:
        row_bytes = 2 * tokens + TEXT_BYTES
        found.append(Step("", train_pairs, folder=".store/rows", files=1, bytes=train_pairs * row_bytes))
    found += _training_step("generator", models) + _training_step("scorer", models)
    # a whole grid at a time is a pass as in training
    work = sizes.samples * models["generator"].flops / (sampling_share if sizes.is_token_by_token else 1)
    return [*found, Step("sample_images", sizes.samples, work)]


def _training_step(name: str, models: dict[str, Model], stage: str | None = None) -> list[Step]:
    if name not in models or not models[name].rows:
        return []
    model, stage = models[name], stage or f"train_{name}"
    # weights, their average, two moments and, with `keep: best`, the best weights, in float32
    size = NUM_CHECKPOINTS * (20 if model.keeps_best else 16) * model.parameters
    return [Step(stage, model.rows, model.work, "flops", f".ckpt/{stage}", NUM_CHECKPOINTS, size)]


def token_row_bytes(num_tokens: int, vocab_size: int) -> float:
    """A row of a token shard: zstd leaves the entropy of uniform tokens, and half of the text."""
    return num_tokens * math.log2(vocab_size) / 8 * 1.02 + TEXT_BYTES / 2


def choose_rates(
    sizes: Sizes, device: str, tflops: float | None, project: Path, benchmarks: Sequence[dict] = ()
) -> dict[str, Rate]:
    """The rate of each unit of work: given, from the records of a project's run, from benchmarks, or assumed."""
    names = ("megapixels", "captions", "flops", "bytes_per_pixel", "sampling_share")
    rates = {name: ASSUMED[device if name == "flops" else name] for name in names}
    rates |= benchmarked_rates(benchmarks, device)
    records = read_records(project)
    seconds = {stage: record["seconds"] for stage, record in records.items()}
    manifest_path = project / "data/pairs/manifest.json"
    is_stored = manifest_path.is_file()
    if tflops is not None:
        rates["flops"] = Rate(tflops * 1e12, f"given: {tflops:g} TFLOP/s")
    elif is_stored and {"gpu": "cuda"}.get(device, device) in {
        record["device"] for record in records.values()
    }:
        rates["flops"] = measured_rate(sizes, seconds) or rates["flops"]
    if is_stored and seconds.get("prepare_pairs"):
        manifest = json.loads(manifest_path.read_bytes())
        num_pairs = manifest["facts"]["counts"]["n_ok"]
        num_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
        megapixels = num_pairs * sizes.stored_side**2 / 1e6
        source = f"measured: {num_pairs:,} pairs took {seconds['prepare_pairs']:,.0f} s here"
        rates["megapixels"] = Rate(megapixels / seconds["prepare_pairs"], source)
        source = f"measured: data/pairs has {format_bytes(num_bytes)}"
        rates["bytes_per_pixel"] = Rate(num_bytes / megapixels / 1e6, source)
    return rates


def measured_rate(sizes: Sizes, seconds: dict[str, float]) -> Rate | None:
    """Operations per second of the longest training with a record: start-up and evaluation weigh least in it."""
    taken = {
        name: seconds[f"train_{name}"]
        for name, model in sizes.models.items()
        if model.rows and seconds.get(f"train_{name}")
    }
    if not taken:
        return None
    name = max(taken, key=taken.get)
    source = f"measured: train_{name} took {taken[name]:,.0f} s here"
    return Rate(sizes.models[name].work / taken[name], source)


def benchmarked_rates(rows: Sequence[dict], device: str) -> dict[str, Rate]:
    """The rates that bench/results.jsonl gives: training's operations per second (the machine's own matrix product
    times the share it reaches), and those of sampling over them."""
    newest = {row["id"].removeprefix(f"{device}_"): row for row in rows if row["id"].startswith(f"{device}_")}
    product, training, sampling = (newest.get(name) for name in ("matmul", "train", "draw"))
    if not (product and training and training["ratio"]):
        return {}
    flops = product["figure"] * 1e12 * training["ratio"]
    rates = {"flops": Rate(flops, _benchmark(training))}
    if sampling:
        rates["sampling_share"] = Rate(sampling["figure"] * 1e12 / flops, _benchmark(sampling))
    return rates


def _benchmark(row: dict) -> str:
    return f"benchmark of {row['date'][:10]} on {row['machine']}"


def table(steps: Sequence[Step], rates: dict[str, Rate], devices: int, unit: Unit = "hours") -> str:
    """The steps as lines of aligned columns; the last line is the sum: one stage after the other, all files on
    disk. A step without a model takes one CPU. A rate of the stage itself comes before that of its unit."""
    seconds_per_unit = {"hours": 3600, "minutes": 60}[unit]
    numbers = []  # of each step, as `_cells` takes them
    for step in steps:
        hours = step.work / rates.get(step.stage, rates[step.unit]).value / seconds_per_unit
        flops = step.work if step.unit == "flops" else 0
        device_hours = hours if flops else 0
        numbers.append((step.files, step.bytes, flops, device_hours, hours / devices if flops else hours))
    lines = [("stage", "rows", "keeps", "files", "disk", "FLOP", f"device {unit}", unit)]
    for step, row in zip(steps, numbers, strict=True):
        lines.append((step.stage, f"{step.rows:,}", step.folder, *_cells(*row)))
    lines.append(("total", "", "", *_cells(*map(sum, zip(*numbers, strict=True)))))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    row = "  ".join(f"{{:{'<' if column in (0, 2) else '>'}{width}}}" for column, width in enumerate(widths))
    return "\n".join(row.format(*line).rstrip() for line in lines)


def _cells(files: int, size: float, flops: float, device_hours: float, hours: float) -> tuple[str, ...]:
    """The numbers of a line as text, "" for 0."""
    return (
        f"{files:,}" if files else "",
        format_bytes(size) if size else "",
        f"{flops:.2e}" if flops else "",
        format_hours(device_hours) if flops else "",
        format_hours(hours) if hours else "",
    )


def format_bytes(count: float) -> str:
    """format_bytes(3.2e12) -> "3.2 TB" """
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"


def format_hours(hours: float) -> str:
    """format_hours(0.5) -> "0.50"; format_hours(1234.5) -> "1,234" """
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 10 else f"{hours:.2f}"


def format_estimate(options: Namespace) -> str:
    """The whole estimate as text, for the options of `scripts.plan`."""
    path = Path("presets") / f"{options.preset}.yaml" if options.preset else options.params
    params = read_preset(options.preset) if options.preset else read_params(path)
    if options.pairs is None:
        try:
            check_params(params, params["seed"])
        except SourceError as error:
            fix = "To plan without images, give their number, for example --pairs 1000000"
            raise UserError(f"{error}. {fix}") from error
    sizes = read_sizes(params, options.pairs)
    is_in_use = options.params.is_file() and params == read_params(options.params)
    project = options.project if is_in_use else Path("nowhere")
    rates = choose_rates(sizes, options.on, options.tflops, project, read_benchmarks(options.benchmarks))
    epochs = sizes.models["generator"].rows / max(1, sizes.train_pairs)
    devices = f"{options.gpus} {options.on.upper()}{'s' if options.gpus > 1 else ''}"
    first = f"{sizes.pairs:,} pairs, {path}, on {devices}; the generator sees each training pair {epochs:.3g} times"
    return format_plan([first], sizes, rates, options.gpus)


def format_own_images(params: dict, seconds: Seconds, options: Namespace) -> str:
    """The estimate of a run on own images, whose settings were resolved with the measured seconds."""
    sizes = read_sizes(params, params["budget"]["pairs"])
    benchmarks = read_benchmarks(options.benchmarks)
    rates = choose_rates(sizes, options.on, None, Path("nowhere"), benchmarks)
    for name, value in seconds.updates.items():
        work = sizes.models[name].work / params[name]["training"]["steps"]
        rates[f"train_{name}"] = Rate(work / value, f"measured: {value:.3g} s for an update here")
    rates["flops"] = rates["train_generator"]
    epochs = ", ".join(
        f"{name.replace('_', ' ')} {model.rows / max(1, sizes.train_pairs):.3g}"
        for name, model in sizes.models.items()
        if model.rows
    )
    tokens = sizes.pairs * sizes.num_image_tokens
    trained = [name for name in ("image_tokenizer", "generator") if name in seconds.updates]
    updates = {name: params[name]["training"]["steps"] for name in trained}
    planned, minutes = planned_minutes(params, seconds), params["budget"]["minutes"]
    note = "" if planned > 0.9 * minutes else "; with more pairs it would take all of them"
    first = [
        f"epochs: {epochs}; {tokens:,} image tokens in all, {sizes.num_image_tokens} an image",
        f"time: about {planned:.0f} of the {minutes:g} minutes{note}",
        expectation(read_runs(options.runs), max(sizes.scales), sizes.pairs, updates),
    ]
    return format_plan(first, sizes, rates, 1, "minutes")


def format_plan(
    first: list[str], sizes: Sizes, rates: dict[str, Rate], devices: int, unit: Unit = "hours"
) -> str:
    """The first lines, memory, the table and where its rates come from."""
    weights = [f"{name.replace('_', ' ')} {_memory(model)}" for name, model in sizes.models.items()]
    planned = steps(sizes, rates["bytes_per_pixel"].value, rates["sampling_share"].value)
    lines = [
        *first,
        f"weights: {', '.join(weights)}; a stage's program takes some {format_bytes(PROGRAM_BYTES)} besides",
        "",
        table(planned, rates, devices, unit),
        "",
        *(f"{name}: {_format_rate(name, rate.value)} ({rate.source})" for name, rate in rates.items()),
        "DVC's cache holds data/ and models/ a second time, unless its links are reflinks or hard links.",
    ]
    return "\n".join(lines)


def read_benchmarks(path: Path) -> list[dict]:
    """The rows of bench/results.jsonl; none without the file."""
    return list(map(json.loads, path.read_text("utf-8").splitlines())) if path.is_file() else []


def _memory(model: Model) -> str:
    if not model.rows:
        return f"{model.parameters:,}"
    # in float32: weights, gradients, average and two moments
    states = f"{format_bytes(20 * model.parameters)} of memory in training"
    activations = f"about {format_bytes(model.activations)} of" if model.activations else "its"
    return f"{model.parameters:,} ({states}, and {activations} activations)"


def _format_rate(unit: str, value: float) -> str:
    if unit == "flops" or unit.startswith("train_"):
        return f"{value / 1e12:.3g} TFLOP/s on each device"
    per_second = " a second" if unit in ("megapixels", "captions") else ""
    return f"{value:,.3g}{per_second}"
