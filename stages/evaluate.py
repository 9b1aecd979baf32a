"""Everything measured and everything to look at: results/metrics.json, plots, results/report.html."""
from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from stages import _report
from stages._pairs import open_pairs
from stages._progress import progress
from stages._stage import Stage, arguments, stage
from thousandwords import best_of, components, evaluation, features, images, likeness, neighbours
from thousandwords.config import section
from thousandwords.files import read_manifest, write_bytes, write_json
from thousandwords.pair_shards import PairReader
from thousandwords.report import render_report
from thousandwords.samples import Samples, read_samples
from thousandwords.text import normalise


def evaluate(
    pairs: Path, tokenizer: Path, scorer: Path, samples: Path, ranked: Path, history: Path, out: Path, run: Stage
) -> None:
    config = section(run.params.get("evaluation"), "evaluation", evaluation.Config)
    known, validation = open_pairs(pairs, "train"), open_pairs(pairs, "validation")
    neighbours.check(min(config.overlap_pictures, len(known)), "evaluation.overlap_pictures")
    by = features.extractor(config.features) if config.features else None
    drawn, scores = read_samples(samples), read_scores(ranked)
    model = components.load("tokenizers", tokenizer, mend="dvc repro train_image_tokenizer")
    held_out = _pictures(validation, config.pictures)
    training = _pictures(known, config.kmeans_pictures)
    with ThreadPoolExecutor(1) as reader:  # scenes are read in Python, pictures compared in torch, which lets Python go on
        reading = reader.submit(
            evaluation.caption_match, drawn, scores, run.seed,
            lambda rows, total: progress(rows, "evaluate: reading pictures", total, "prompt"),
        )  # fmt: skip
        rebuilt = evaluation.reconstruct(model, held_out, training, config.kmeans_iterations, run.seed)
        seen = likeness.HeldOut(
            images=held_out,
            captions=[normalise(validation.captions(row)[0]) for row in range(len(held_out))],
            psnr=rebuilt.psnr_hard,
        )
        fidelity, found, measured = compare(scorer, by, known, seen, drawn, scores, config, run)
        match, read = reading.result()
    curves = {path.stem: json.loads(path.read_bytes()) for path in sorted((history / "curves").glob("*.json"))}
    records = {path.stem: json.loads(path.read_bytes()) for path in sorted((history / "runs").glob("*.json"))}
    figures = collect(rebuilt, match, drawn, scores, curves["train_generator"], run)
    figures["fidelity"] = fidelity
    if found and (with_and_without := likeness.match_figures(found, seen.captions, drawn, read)):
        figures["fidelity"]["overlap"]["caption_match"] = with_and_without
    checkpoints = fingerprints(pairs, tokenizer, scorer, samples, ranked)
    figures["protocol"] = measured | protocol(known.image_size, run.seed, checkpoints)
    figures["seconds"] = {name: record["seconds"] for name, record in records.items()}
    figures["seconds"]["evaluate"] = round(run.seconds, 2)
    plots = _report.draw_plots(rebuilt, figures, curves, found)
    for name, data in plots.items():
        write_bytes(out / "plots" / f"{name}.png", data)
    facts, pictures = _report.gather(
        config=config, params=run.params, figures=figures, held_out=held_out, rebuilt=rebuilt, drawn=drawn,
        scores=scores, read=read, plots=plots, counts=read_manifest(pairs)["facts"]["counts"], records=records,
    )  # fmt: skip
    if found:
        facts |= _report.neighbours(found, held_out, validation, known, drawn, pictures)
    facts["duplicates"] = _report.duplicates(pairs, pictures)
    facts["runs"] = _report.runs(records, run.tracker.run_id)
    facts["versions"] = figures["protocol"]["versions"]
    facts["fingerprints"] = figures["protocol"]["checkpoints"]
    write_bytes(out / "report.html", render_report(facts, pictures).encode())
    write_json(out / "metrics.json", figures)
    run.record_metrics(_numbers(figures))
    run.record_files(out / "report.html", out / "metrics.json")


def collect(
    rebuilt: evaluation.Reconstructions,
    match: dict,
    drawn: Samples,
    scores: np.ndarray,
    curve: list[dict[str, float]],
    run: Stage,
) -> dict:
    """The nested, stable layout of metrics.json; a picture that was given in part counts in no figure of drawn ones."""
    last = next(row for row in reversed(curve) if "validation/image_loss" in row)
    figures = {
        "reconstruction": rebuilt.psnr(run.seed),
        "codebook": rebuilt.codebook(),
        "generator": {"val_loss_text": last["validation/text_loss"], "val_loss_image": last["validation/image_loss"]},
        "clip_score": evaluation.clip_score(scores[drawn.from_text()], run.seed),
        "n": int(scores.shape[1]),
    }
    return figures | ({"caption_match": match} if match else {})


def compare(
    scorer: Path,
    by: features.Extractor | None,
    training: PairReader,
    seen: likeness.HeldOut,
    drawn: Samples,
    scores: np.ndarray,
    config: evaluation.Config,
    run: Stage,
) -> tuple[dict, likeness.Found | None, dict]:
    """The block `fidelity`, the training pictures nearest to held-out, drawn and other training ones, and what it was done by."""
    model = components.load("scorers", scorer, mend="dvc repro train_scorer").to(run.world.device)
    if by:
        by.network.to(run.world.device)

    def watched(batches: Iterable, total: int) -> Iterable:
        return progress(batches, "evaluate: comparing pictures", total, "batch")

    known = min(config.overlap_pictures, len(training))
    figures, found, sides = likeness.measure(
        model, seen, lambda rows: images.to_float(training.images(rows)), known, drawn, config, watched, run.seed, by
    )
    by = by or features.own_clip(model)
    if sides and (curve := best_of.curve(by, sides, drawn, scores, watched, run.seed)):
        figures["best_of"] = curve
    return figures, found, by.protocol() | {"counts": likeness.counts(seen, known, sides)}


def read_scores(ranked: Path) -> np.ndarray:
    """scores (P, N), verified."""
    manifest = read_manifest(ranked, mend="dvc repro rank_images")
    table = pq.read_table(ranked / "scores.parquet", page_checksum_verification=True)
    return table["score"].to_numpy().reshape(manifest["facts"]["prompts"], manifest["facts"]["candidates"])


def versions() -> dict[str, str]:
    """What the figures were made with."""
    names = ("torch", "open-clip-torch", "torch-fidelity", "numpy", "tokenizers", "pyarrow", "pillow", "dvc", "mlflow")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def protocol(image_size: int, seed: int, checkpoints: dict[str, str]) -> dict:
    """What has to be the same for the same digits: the block `protocol` of metrics.json."""
    return {
        "preprocessing": f"held-out and training pictures: the middle square at {image_size} pixels; drawn: as decoded; uint8",
        "blur": "a Gaussian of that standard deviation in pixels on both sides, reflected at the edges",
        "intervals": "95 %, by bootstrap over pictures and, of drawn ones, over captions; of a Fréchet distance about itself",
        "clip_score": "raw cosine; scaled: 100 max(cosine, 0)",
        "seed": seed,
        "threads": torch.get_num_threads(),  # other sums round otherwise, in the ninth digit
        "versions": versions(),
        "checkpoints": checkpoints,
    }


def fingerprints(pairs: Path, tokenizer: Path, scorer: Path, samples: Path, ranked: Path) -> dict[str, str]:
    """The sha256 of each input's manifest: which very bytes these figures are about."""
    folders = {"pairs": pairs, "image_tokenizer": tokenizer, "scorer": scorer, "samples": samples, "ranked": ranked}
    return {name: read_manifest(folder, verify=False)["sha256"] for name, folder in folders.items()}


def _pictures(reader: PairReader, count: int) -> torch.Tensor:
    return images.to_float(reader.images(list(range(min(count, len(reader))))))


def _numbers(figures: dict, prefix: str = "") -> dict[str, float]:
    """Every single number of metrics.json, under its dotted name, for MLflow."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            flat |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def main(argv: list[str] | None = None) -> None:
    options = arguments(
        __doc__, "pairs", "image-tokenizer", "scorer", "samples", "ranked", "history", "out", argv=argv
    )
    with stage("evaluate", options, "evaluation") as run:
        evaluate(
            options.pairs, options.image_tokenizer, options.scorer, options.samples, options.ranked, options.history,
            options.out, run,
        )  # fmt: skip


if __name__ == "__main__":
    main()
