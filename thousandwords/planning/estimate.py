"""Estimate a run before it starts: rows, shards, bytes, hours per GPU and cost of each stage.

Rates are those of the last run here (results/runs), if params.yaml is still the same; else of the newest
benchmark (bench/results.jsonl); else assumed. The output says which.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from thousandwords import components
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.params import read_params
from thousandwords.data.token_shards import TokensConfig
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.sources.base import SourceError
from thousandwords.planning import cost_model
from thousandwords.planning.cost_model import ASSUMED, ModelSizes, Rate, RunSizes, Training
from thousandwords.preflight import TRAINED, check_params
from thousandwords.pretrained import tokenizer_init
from thousandwords.text.bpe import TextTokenizerConfig
from thousandwords.training.config import TrainingConfig


def model_sizes(params: dict) -> ModelSizes:
    """The sizes of the models that `params` describe, counted on torch's meta device: no memory, no
    weights."""
    data = section(params["data"], "data", DataConfig)
    text = section(params["text_tokenizer"], "text_tokenizer", TextTokenizerConfig)
    side = data.image_size
    with torch.device("meta"):
        tokenizer = _build(params, "image_tokenizer", image_size=side)
        generator = _build(
            params,
            "generator",
            text_vocab_size=text.vocab_size,
            text_length=text.text_length,
            image_vocab_size=tokenizer.vocab_size,
            scales=tokenizer.scales,
        )
        scorer = _build(params, "scorer", image_size=side) if _is_trained(params, "scorer") else None
        image, rng = torch.empty(1, 3, side, side), torch.Generator()
        caption = torch.zeros(1, text.text_length, dtype=torch.int64)
        tokens = torch.zeros(1, tokenizer.num_tokens, dtype=torch.int64)
        return ModelSizes(
            image_size=side,
            stored_side=(data.keep_side or side) if data.keep == "whole" else side,
            image_vocab_size=tokenizer.vocab_size,
            num_image_tokens=tokenizer.num_tokens,
            encode=_count_flops(lambda: tokenizer.encode(image)),
            tokenizer_loss=_count_flops(lambda: tokenizer.train().loss(image, 0, rng)),
            generator_loss=_count_flops(
                lambda: generator.eval().loss(caption, tokens, 0, rng, num_text_tokens=1.0)
            ),
            scorer_loss=_scorer_flops(scorer, image) if scorer else 0.0,
            tokenizer_parameters=_count_parameters(tokenizer),
            generator_parameters=_count_parameters(generator),
            scorer_parameters=_count_parameters(scorer) if scorer else 0,
        )


def run_sizes(params: dict, num_pairs: int) -> RunSizes:
    """The sizes in `params`, for `num_pairs` pairs."""
    data = section(params["data"], "data", DataConfig)
    tokens = section(params["tokens"], "tokens", TokensConfig)
    sampling = params["sampling"]
    share = 1 - data.scenes.count / count_pairs(params) if data.source == "scenes" else data.validation_share
    return RunSizes(
        pairs=num_pairs,
        validation_share=share,
        pairs_per_shard=data.rows_per_shard,
        tokens_per_shard=tokens.rows_per_shard,
        views=tokens.views_per_image,
        candidates=sampling.get("candidates", 512),
        prompts=sampling.get("prompts_per_split", 64) * (2 if data.source == "scenes" else 1)
        + len(sampling.get("prompts", [])),
        trainings={f"train_{name}": _training(params, name) for name in TRAINED if _is_trained(params, name)},
    )


def count_pairs(params: dict) -> int:
    """The number of pairs in the source now; raises UserError where it cannot be known."""
    return ingest.check_source(section(params["data"], "data", DataConfig))


def choose_rates(
    params: dict,
    models: ModelSizes,
    device: str,
    tflops: float | None,
    results: Path,
    benchmarks: Sequence[dict] = (),
) -> dict[str, Rate]:
    """The rate of each unit of work: given by `tflops`, from the records in `results`, from benchmarks, or
    assumed."""
    rates = {
        "megapixels": ASSUMED["megapixels"],
        "captions": ASSUMED["captions"],
        "flops": cost_model.benchmarked_rate(benchmarks, device) or ASSUMED[device],
        "bytes_per_pixel": ASSUMED["bytes_per_pixel"],
        "sampling_share": cost_model.benchmarked_sampling_share(benchmarks, device)
        or cost_model.SAMPLING_SHARE,
    }
    if tflops is not None:
        rates["flops"] = Rate(tflops * 1e12, f"given: {tflops:g} TFLOP/s")
    records = [json.loads(path.read_bytes()) for path in sorted(results.glob("runs/*.json"))]
    seconds = {record["stage"]: record["seconds"] for record in records}
    stored = _count_stored_pairs(results.parent / "data" / "pairs")
    if stored and records and records[0]["device"] == {"gpu": "cuda"}.get(device, device) and tflops is None:
        measured = cost_model.measured_rate(run_sizes(params, stored[0]), models, seconds)
        rates["flops"] = measured or rates["flops"]
    if stored and seconds.get("prepare_pairs"):
        num_pairs, num_bytes = stored
        megapixels = num_pairs * models.stored_side**2 / 1e6
        source = f"measured: {num_pairs:,} pairs took {seconds['prepare_pairs']:,.0f} s here"
        rates["megapixels"] = Rate(megapixels / seconds["prepare_pairs"], source)
        rates["bytes_per_pixel"] = Rate(
            num_bytes / megapixels / 1e6, f"measured: data/pairs has {cost_model.format_bytes(num_bytes)}"
        )
    return rates


def read_benchmarks(path: Path) -> list[dict]:
    """The rows of bench/results.jsonl; none where no benchmark was run."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    )


def _count_stored_pairs(folder: Path) -> tuple[int, int] | None:
    """(pairs, bytes) of a folder of pair shards; None where there is none."""
    if not (folder / "manifest.json").is_file():
        return None
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return manifest["facts"]["counts"]["n_ok"], sum(entry["bytes"] for entry in manifest["files"].values())


def _build(params: dict, name: str, **sizes: object) -> torch.nn.Module:
    block = params[name]
    if name == "image_tokenizer" and tokenizer_init.folder_of(block):
        return tokenizer_init.architecture(block, sizes["image_size"])
    config = components.model_config(TRAINED[name], block, name)
    return components.build(TRAINED[name], block["kind"], config, **sizes)


def _is_trained(params: dict, name: str) -> bool:
    block = params[name]
    return (
        "training" in block
        and not block.get("init")
        and not (block.get(block["kind"]) or {}).get("pretrained")
    )


def _training(params: dict, name: str) -> Training:
    block = params[name]
    config = section(block["training"], f"{name}.training", TrainingConfig)
    is_recomputed = bool((block.get(block["kind"]) or {}).get("activation_checkpointing"))
    return Training(config.steps * config.batch_size, 1 + cost_model.BACKWARD + is_recomputed)


def _count_flops(forward: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return float(counter.get_total_flops())


def _scorer_flops(scorer: torch.nn.Module, image: torch.Tensor) -> float:
    scorer.eval()  # a batch of one has no variance
    return _count_flops(lambda: (scorer.embed_images(image), scorer.embed_captions(["a"])))


def _count_parameters(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def format_estimate(options: Namespace) -> str:
    """The whole estimate as text, for the options of `scripts.plan`."""
    path = Path("presets") / f"{options.preset}.yaml" if options.preset else options.params
    params = read_params(path)
    if options.pairs is None:
        _check_with_images(params)
    models = model_sizes(params)
    sizes = run_sizes(params, options.pairs or count_pairs(params))
    is_in_use = path.read_bytes() == options.params.read_bytes() if options.params.is_file() else False
    results = options.results if is_in_use else Path("nowhere/results")
    benchmarks = read_benchmarks(options.benchmarks)
    rates = choose_rates(params, models, options.on, options.tflops, results, benchmarks)
    steps = cost_model.steps(sizes, models, rates["bytes_per_pixel"].value, rates["sampling_share"].value)
    costs = [cost_model.cost(step, rates, options.gpus, options.price_per_hour) for step in steps]
    epochs = sizes.trainings["train_generator"].rows / max(1, sizes.pairs * (1 - sizes.validation_share))
    return "\n".join(
        [
            f"{sizes.pairs:,} pairs, {path}, on {options.gpus} {options.on.upper()}{'s' if options.gpus > 1 else ''}; "
            f"the generator sees each training pair {epochs:.3g} times",
            f"weights: image tokenizer {models.tokenizer_parameters:,}, generator {models.generator_parameters:,}, "
            f"scorer {models.scorer_parameters:,}",
            "",
            cost_model.table(costs),
            "",
            *(f"{unit}: {_format_rate(unit, rate.value)} ({rate.source})" for unit, rate in rates.items()),
            "DVC's cache holds data/ and models/ a second time, unless its links are reflinks or hard links.",
        ]
    )


def _check_with_images(params: dict) -> None:
    try:
        check_params(params, params["seed"])
    except SourceError as error:
        raise UserError(
            f"{error}. To plan without images, give their number, for example --pairs 1000000"
        ) from error


def _format_rate(unit: str, value: float) -> str:
    if unit == "flops":
        return f"{value / 1e12:.3g} TFLOP/s on each device"
    return f"{value:,.3g}" + ("" if unit in ("bytes_per_pixel", "sampling_share") else " a second")
