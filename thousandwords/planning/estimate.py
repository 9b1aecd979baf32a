"""What a run will take before it starts: rows, shards, bytes, hours per GPU and cost of each stage.

python -m stages.plan                                       the knobs in params.yaml, on a machine like this
python -m stages.plan --preset paper --pairs 250000000 --on gpu --gpus 256 --price-per-hour 2.5

Rates are those of the last run here (results/runs), if params.yaml is still what it was made with; else of the newest benchmark
(bench/results.jsonl); else assumed. Each says which.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from stages import _pretrained
from stages._stage import read_params
from stages.check_params import TRAINED, check_params
from thousandwords import components, pairs, plan, text, training
from thousandwords.config import section
from thousandwords.errors import UserError
from thousandwords.plan import ASSUMED, Rate, Settings, Sizes, Training
from thousandwords.shards import Config as TokensConfig
from thousandwords.sources import SourceError


def sizes_of(params: dict) -> Sizes:
    """The sizes of the models that `params` describe, counted on torch's meta device: no memory, no weights."""
    data = section(params["data"], "data", pairs.Config)
    words = section(params["text_tokenizer"], "text_tokenizer", text.Config)
    side = data.image_size
    with torch.device("meta"):
        tokenizer = _built(params, "image_tokenizer", image_size=side)
        generator = _built(
            params,
            "generator",
            text_vocab_size=words.vocab_size,
            text_length=words.text_length,
            image_vocab_size=tokenizer.vocab_size,
            scales=tokenizer.scales,
        )
        scorer = _built(params, "scorer", image_size=side) if _is_trained(params, "scorer") else None
        length, picture, rng = sum(scale * scale for scale in tokenizer.scales), torch.empty(1, 3, side, side), torch.Generator()
        caption, tokens = torch.zeros(1, words.text_length, dtype=torch.int64), torch.zeros(1, length, dtype=torch.int64)
        return Sizes(
            image_size=side,
            kept_side=(data.keep_side or side) if data.keep == "whole" else side,
            image_vocab_size=tokenizer.vocab_size,
            words=length,
            encode=_operations(lambda: tokenizer.encode(picture)),
            tokenizer_loss=_operations(lambda: tokenizer.train().loss(picture, 0, rng)),
            generator_loss=_operations(lambda: generator.eval().loss(caption, tokens, 0, rng, text_words=1.0)),
            scorer_loss=_scored(scorer, picture) if scorer else 0.0,
            tokenizer_parameters=_weights(tokenizer),
            generator_parameters=_weights(generator),
            scorer_parameters=_weights(scorer) if scorer else 0,
        )


def settings_of(params: dict, count: int) -> Settings:
    """What `params` say of lengths, for `count` pairs."""
    data = section(params["data"], "data", pairs.Config)
    tokens = section(params["tokens"], "tokens", TokensConfig)
    sampling = params["sampling"]
    share = 1 - data.scenes.count / count_of(params) if data.source == "scenes" else data.validation_share
    return Settings(
        pairs=count,
        validation_share=share,
        pairs_per_shard=data.rows_per_shard,
        tokens_per_shard=tokens.rows_per_shard,
        views=tokens.views_per_image,
        candidates=sampling.get("candidates", 512),
        prompts=sampling.get("prompts_per_split", 64) * (2 if data.source == "scenes" else 1) + len(sampling.get("prompts", [])),
        trainings={f"train_{name}": _training(params, name) for name in TRAINED if _is_trained(params, name)},
    )


def count_of(params: dict) -> int:
    """How many pairs there are now; UserError where nobody can tell."""
    data = section(params["data"], "data", pairs.Config)
    return pairs.check_source(data)


def rates_of(
    params: dict, sizes: Sizes, on: str, tflops: float | None, folder: Path, benchmarks: Sequence[dict] = ()
) -> dict[str, Rate]:
    """The rate of each unit of work: given, measured by the records in `folder`, by the benchmarks, or assumed."""
    rates = {"megapixels": ASSUMED["megapixels"], "captions": ASSUMED["captions"],
             "flops": plan.benchmarked_rate(benchmarks, on) or ASSUMED[on], "bytes_per_pixel": ASSUMED["bytes_per_pixel"],
             "drawing_share": plan.benchmarked_drawing_share(benchmarks, on) or plan.DRAWING_SHARE}  # fmt: skip
    if tflops is not None:
        rates["flops"] = Rate(tflops * 1e12, f"given: {tflops:g} TFLOP/s")
    records = [json.loads(path.read_bytes()) for path in sorted(folder.glob("runs/*.json"))]
    seconds = {record["stage"]: record["seconds"] for record in records}
    known = _counted(folder.parent / "data" / "pairs")
    if known and records and records[0]["device"] == {"gpu": "cuda"}.get(on, on) and tflops is None:
        rates["flops"] = plan.measured_rate(settings_of(params, known[0]), sizes, seconds) or rates["flops"]
    if known and seconds.get("prepare_pairs"):
        megapixels = known[0] * sizes.kept_side**2 / 1e6
        told = f"measured: {known[0]:,} pairs took {seconds['prepare_pairs']:,.0f} s here"
        rates["megapixels"] = Rate(megapixels / seconds["prepare_pairs"], told)
        rates["bytes_per_pixel"] = Rate(known[1] / megapixels / 1e6, f"measured: data/pairs has {plan.told_bytes(known[1])}")
    return rates


def benchmarks_of(path: Path) -> list[dict]:
    """The rows of bench/results.jsonl; none where no benchmark was run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _counted(folder: Path) -> tuple[int, int] | None:
    """(pairs, bytes) of a folder of pair shards; None where there is none."""
    if not (folder / "manifest.json").is_file():
        return None
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return manifest["facts"]["counts"]["n_ok"], sum(entry["bytes"] for entry in manifest["files"].values())


def _built(params: dict, name: str, **sizes: object) -> torch.nn.Module:
    block = params[name]
    if name == "image_tokenizer" and _pretrained.folder_of(block):
        return _pretrained.architecture(block, sizes["image_size"])
    config = components.model_config(TRAINED[name], block, name)
    return components.build(TRAINED[name], block["kind"], config, **sizes)


def _is_trained(params: dict, name: str) -> bool:
    block = params[name]
    return "training" in block and not block.get("init") and not (block.get(block["kind"]) or {}).get("pretrained")


def _training(params: dict, name: str) -> Training:
    block = params[name]
    config = section(block["training"], f"{name}.training", training.Config)
    recomputed = bool((block.get(block["kind"]) or {}).get("recompute"))
    return Training(config.steps * config.batch_size, 1 + plan.BACKWARD + recomputed)


def _operations(forward: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return float(counter.get_total_flops())


def _scored(scorer: torch.nn.Module, picture: torch.Tensor) -> float:
    scorer.eval()  # a batch of one has no variance
    return _operations(lambda: (scorer.embed_images(picture), scorer.embed_captions(["a"])))


def _weights(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def show(options: argparse.Namespace) -> str:
    """The whole answer, as it is printed."""
    path = Path("presets") / f"{options.preset}.yaml" if options.preset else options.params
    params = read_params(path)
    if options.pairs is None:
        _check_with_pictures(params)
    sizes = sizes_of(params)
    settings = settings_of(params, options.pairs or count_of(params))
    is_in_use = path.read_bytes() == options.params.read_bytes() if options.params.is_file() else False
    results = options.results if is_in_use else Path("nowhere/results")
    rates = rates_of(params, sizes, options.on, options.tflops, results, benchmarks_of(options.benchmarks))
    steps = plan.steps(settings, sizes, rates["bytes_per_pixel"].value, rates["drawing_share"].value)
    costs = [plan.cost(step, rates, options.gpus, options.price_per_hour) for step in steps]
    epochs = settings.trainings["train_generator"].rows / max(1, settings.pairs * (1 - settings.validation_share))
    return "\n".join([
        f"{settings.pairs:,} pairs, {path}, on {options.gpus} {options.on.upper()}{'s' if options.gpus > 1 else ''}; "
        f"the generator sees each training pair {epochs:.3g} times",
        f"weights: image tokenizer {sizes.tokenizer_parameters:,}, generator {sizes.generator_parameters:,}, "
        f"scorer {sizes.scorer_parameters:,}",
        "", plan.table(costs), "",
        *(f"{unit}: {_told(unit, rate.value)} ({rate.source})" for unit, rate in rates.items()),
        "DVC's cache holds data/ and models/ once more, unless its links are reflinks or hard links.",
    ])  # fmt: skip


def _check_with_pictures(params: dict) -> None:
    try:
        check_params(params, params["seed"])
    except SourceError as error:
        raise UserError(f"{error}. To plan without them, say how many there will be, like --pairs 1000000") from error


def _told(unit: str, value: float) -> str:
    return f"{value / 1e12:.3g} TFLOP/s on each device" if unit == "flops" else f"{value:,.3g}" + (
        "" if unit in ("bytes_per_pixel", "drawing_share") else " a second")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the knobs (default: params.yaml)")
    parser.add_argument("--preset", help="the knobs of presets/NAME.yaml instead")
    parser.add_argument("--pairs", type=int, help="how many pairs (default: those that data.path holds)")
    parser.add_argument("--on", choices=("cpu", "gpu"), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gpus", type=int, default=1, help="how many, side by side")
    parser.add_argument("--tflops", type=float, help="what one GPU sustains, in 10^12 operations a second")
    parser.add_argument("--price-per-hour", type=float, default=0.0, help="of one GPU")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where the records of the last run lie")
    parser.add_argument("--benchmarks", type=Path, default=Path("bench/results.jsonl"), help="what make bench measured")
    options = parser.parse_args(argv)
    try:
        for name, value in (("pairs", options.pairs), ("gpus", options.gpus), ("tflops", options.tflops)):
            if value is not None and value <= 0:
                raise UserError(f"--{name} is {value:g}; it needs to be above 0")
        print(show(options))
    except (UserError, FileNotFoundError) as error:
        print(f"plan: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
