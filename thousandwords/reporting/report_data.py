"""Choose the images and render the plots that the report shows; `html_report` makes the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
from torch import Tensor

from thousandwords.core.manifest import read_manifest
from thousandwords.data.images import to_uint8
from thousandwords.data.pair_shards import PairReader, open_pairs
from thousandwords.evaluation.config import SPLIT_NAMES, EvaluationConfig
from thousandwords.evaluation.evaluate_run import Evaluation, EvaluationInputs
from thousandwords.evaluation.fid import Overlap
from thousandwords.evaluation.image_fidelity import NearestNeighbors
from thousandwords.evaluation.reconstruction import Reconstructions
from thousandwords.inference.sample_shards import Samples
from thousandwords.ingest.near_duplicates import DUPLICATES
from thousandwords.nn.metrics import codebook_counts, psnr
from thousandwords.reporting import plots
from thousandwords.reporting.report_model import (
    Duplicate,
    MLflowRun,
    NearestPair,
    Plot,
    Prompt,
    Reconstruction,
    ReportData,
    Sample,
)
from thousandwords.reporting.thumbnails import thumbnail

MAX_BEST_SAMPLES = 12  # on the first screen
LARGE, SMALL = 256, 128  # pixels of a single image, and of one among all candidates
MAX_NEAREST = 4  # images of each kind beside their nearest training images
Images = dict[str, bytes]  # key -> PNG or WebP
ImageAndCaption = tuple[bytes, str]

PLOTS = {  # section of the page -> plot -> its alt text
    "match": {
        "caption_match": "Caption match against the number of candidates that the scorer could choose from",
        "clip_score": "Mean CLIP score against the number of candidates",
    },
    "fidelity": {
        "best_of": "Fréchet distance of samples and real images against the number of candidates per caption",
        "best_of_score": "Inception Score against the number of candidates per caption",
        "blur": "Fréchet distance of samples and real images against the blur of both",
        "blur_score": "Inception Score of samples against their blur",
    },
    "memorization": {
        "similarity": "Similarity of the nearest training image to held-out images and to samples"
    },
    "tokens": {"codebook": "How often each token of the codebook is used on held-out images"},
    "training": {
        "tokenizer": "Hard reconstruction of held-out images during training of the image tokenizer",
        "generator_image": "Loss of the transformer on image tokens",
        "generator_text": "Loss of the transformer on text tokens",
        "scorer": "Contrastive loss of CLIP",
    },
    "stages": {"stages": "Time per stage"},
}


def render_plots(evaluation: Evaluation, curves: dict[str, list[dict]]) -> dict[str, bytes]:
    """Render all plots: {name: PNG}."""
    figures, reconstructions = evaluation.figures, evaluation.reconstructions
    counts = {
        "dvae": codebook_counts(reconstructions.tokens, reconstructions.vocab_size).tolist(),
        "k-means": codebook_counts(reconstructions.kmeans_tokens, reconstructions.vocab_size).tolist(),
    }
    generator = curves["train_generator"]
    pngs = {
        "codebook": plots.codebook_curve(counts),
        "clip_score": plots.score_curve(figures["clip_score"]["curve"]),
        "stages": plots.stage_bars(figures["seconds"]),
        "generator_image": plots.loss_curve(_losses(generator, "image_loss"), "Transformer, image tokens"),
        "generator_text": plots.loss_curve(_losses(generator, "text_loss"), "Transformer, text tokens"),
    }
    if tokenizer := _points(curves["train_image_tokenizer"], "validation/psnr_hard"):
        title = "Image tokenizer, hard reconstruction"
        pngs["tokenizer"] = plots.loss_curve({"validation": tokenizer}, title, unit="PSNR, dB")
    if scorer := curves.get("train_scorer"):
        pngs["scorer"] = plots.loss_curve(_losses(scorer, "loss"), "CLIP, contrastive loss", unit="nats")
    pngs |= fidelity_plots(figures["fidelity"])
    if neighbors := evaluation.neighbors:
        overlaps = {"held out": neighbors.held_out, "samples": neighbors.samples}
        similarities = {name: overlap.similarity.numpy() for name, overlap in overlaps.items() if overlap}
        pngs["similarity"] = plots.similarity_histogram(similarities, neighbors.held_out.threshold)
    if "caption_match" in figures:
        pngs["caption_match"] = plots.match_curve(figures["caption_match"])
    return pngs


def fidelity_plots(fidelity: dict) -> dict[str, bytes]:
    """The plots of blur and of best of n, for the features that images were compared by."""
    pngs, best_of = {}, fidelity.get("best_of") or {}
    for name, unit in (("clip_frechet", "Fréchet distance by CLIP"), ("fid", "FID")):
        if name in fidelity:
            pngs["blur"] = plots.blur_curve(fidelity[name], unit=unit)
        if name in best_of:
            pngs["best_of"] = plots.best_of_curve(best_of, name, unit)
    if score := fidelity.get("inception_score"):
        pngs["blur_score"] = plots.blurred_scores(score)
    if "inception_score" in best_of:
        curve = {"n": best_of["n"], "score": best_of["inception_score"]}
        pngs["best_of_score"] = plots.score_curve(curve, "Inception Score, best of n", "Inception Score")
    return pngs


def _losses(rows: list[dict], name: str) -> dict[str, list[tuple[float, float]]]:
    return {"train": _points(rows, name), "validation": _points(rows, f"validation/{name}")}


def _points(rows: list[dict], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


def mlflow_runs(records: dict[str, dict], evaluate_run_id: str | None, address: str) -> dict[str, MLflowRun]:
    """The MLflow run of each stage; a link where it is on the server at `address`, without the server's
    password."""
    url = urlsplit(address)
    host = url.netloc.rpartition("@")[2]
    server = f"{url.scheme}://{host}{url.path.rstrip('/')}" if url.scheme in ("http", "https") else None
    records = {name: record for name, record in records.items() if name != "evaluate"}
    if evaluate_run_id:
        records["evaluate"] = {"run_id": evaluate_run_id, "tracking_uri": "server" if server else "local"}
    return {
        name: _mlflow_run(record["run_id"], server if record.get("tracking_uri") == "server" else None)
        for name, record in records.items()
        if record.get("run_id")
    }


def _mlflow_run(run_id: str, server: str | None) -> MLflowRun:
    return {"run_id": run_id, "link": f"{server}/#/runs/{run_id}"} if server else {"run_id": run_id}


def gather(
    config: EvaluationConfig,
    params: dict,
    inputs: EvaluationInputs,
    evaluation: Evaluation,
    plots: dict[str, bytes],
    pairs: Path,
    records: dict[str, dict],
) -> tuple[ReportData, Images]:
    """The data of the page, except for MLflow's runs, and the images that it names."""
    figures, samples, scores = evaluation.figures, inputs.samples, inputs.scores
    originals = evaluation.held_out.images
    images = {f"plot-{name}": png for name, png in plots.items()}
    data: ReportData = {
        "title": "A picture is worth a thousand words",
        "summary": _summary(params, evaluation.reconstructions, figures),
        "metrics": figures,
        "best_samples": best_samples(samples, scores, images),
        "reconstructions": _reconstructions(config, originals, evaluation.reconstructions, images),
        "prompts": prompt_rows(config, samples, scores, evaluation.matches, images),
        "plots": _plot_sections(plots),
        "counts": read_manifest(pairs)["facts"]["counts"],
        "params": params,
        "seeds": {"seed": params["seed"]},
        "stages": {name: _resources(record) for name, record in records.items()},
        "duplicates": duplicates(pairs, images),
        "versions": figures["protocol"]["versions"],
        "fingerprints": figures["protocol"]["checkpoints"],
    }
    if evaluation.neighbors:
        data |= nearest_pairs(
            evaluation.neighbors, originals, inputs.validation, inputs.training, samples, images
        )
    return data, images


def _summary(params: dict, reconstructions: Reconstructions, figures: dict) -> str:
    size, num_tokens = params["data"]["image_size"], reconstructions.tokens.shape[1]
    return (
        f"{size} × {size} images as {num_tokens} tokens of a codebook of {reconstructions.vocab_size}, generated by a "
        f"transformer from a caption, {figures['n']} candidates each, and ranked by CLIP."
    )


def _resources(record: dict) -> str:
    return f"{record['peak_memory_mb'] / 1024:.1f} GB of memory at most, {record['threads']} threads"


def _plot_sections(plots: dict[str, bytes]) -> dict[str, list[Plot]]:
    return {
        section: [
            {"image": f"plot-{name}", "title": title} for name, title in titles.items() if name in plots
        ]
        for section, titles in PLOTS.items()
    }


def best_samples(samples: Samples, scores: np.ndarray, images: Images) -> list[Sample]:
    """The best candidate of prompts that are spread evenly over all text-only prompts, so none is chosen for
    its looks."""
    prompts = np.array(samples.text_only_prompts())
    rows: list[Sample] = []
    for prompt in prompts[np.unique(np.linspace(0, len(prompts) - 1, MAX_BEST_SAMPLES).astype(int))]:
        best = int(scores[prompt].argmax())
        key = f"best-{prompt}"
        images[key] = thumbnail(samples.images(prompt)[best], LARGE)
        rows.append({"image": key, "caption": samples.prompts[prompt], "score": float(scores[prompt, best])})
    return rows


def _reconstructions(
    config: EvaluationConfig, originals: Tensor, reconstructions: Reconstructions, images: Images
) -> list[Reconstruction]:
    count = min(config.report_images, len(originals))
    before, after = to_uint8(originals[:count]), to_uint8(reconstructions.hard[:count])
    values = psnr(originals[:count], reconstructions.hard[:count])
    for row in range(count):
        images[f"original-{row}"] = thumbnail(before[row], LARGE)
        images[f"hard-{row}"] = thumbnail(after[row], LARGE)
    return [
        {"original": f"original-{row}", "hard": f"hard-{row}", "psnr": float(values[row])}
        for row in range(count)
    ]


def prompt_rows(
    config: EvaluationConfig,
    samples: Samples,
    scores: np.ndarray,
    matches: dict[int, list[dict[str, bool]]],
    images: Images,
) -> list[Prompt]:
    """The first prompts of each split, each with all its candidates, best first."""
    rows = []
    for split in dict.fromkeys(samples.splits):
        prompts = [prompt for prompt, name in enumerate(samples.splits) if name == split]
        rows += [
            _prompt_row(prompt, samples, scores, matches, images)
            for prompt in prompts[: config.report_images]
        ]
    return rows


def _prompt_row(
    prompt: int,
    samples: Samples,
    scores: np.ndarray,
    matches: dict[int, list[dict[str, bool]]],
    images: Images,
) -> Prompt:
    candidates: list[Sample] = []
    candidate_images = samples.images(prompt)
    for candidate in np.argsort(-scores[prompt], kind="stable").tolist():
        key = f"sample-{prompt}-{candidate}"
        images[key] = thumbnail(candidate_images[candidate], SMALL)
        sample: Sample = {"image": key, "score": float(scores[prompt, candidate])}
        if prompt in matches:
            sample["matches"] = matches[prompt][candidate]
        candidates.append(sample)
    split = SPLIT_NAMES.get(samples.splits[prompt], samples.splits[prompt])
    row: Prompt = {"prompt": samples.prompts[prompt], "split": split, "candidates": candidates}
    if prompt in samples.kept_parts:
        row["kept_part"] = f"kept-{prompt}"
        images[row["kept_part"]] = thumbnail(samples.kept_parts[prompt], SMALL)
    return row


def nearest_pairs(
    neighbors: NearestNeighbors,
    held_out: Tensor,
    validation: PairReader,
    training: PairReader,
    samples: Samples,
    images: Images,
) -> ReportData:
    """Held-out images, training images and samples beside the nearest training image: the nearest pairs, and
    those at the threshold."""

    def show_held_out(row: int) -> ImageAndCaption:
        return thumbnail(to_uint8(held_out[[row]])[0], LARGE), validation.captions(row)[0]

    def show_training(row: int) -> ImageAndCaption:
        return thumbnail(training.images([row])[0], LARGE), training.captions(row)[0]

    def show_sample(row: int) -> ImageAndCaption:
        prompt, candidate = neighbors.sample_ids[row]
        return thumbnail(samples.images(prompt)[candidate], LARGE), samples.prompts[prompt]

    def pairs(
        name: str, overlap: Overlap, rows: list[int], show: Callable[[int], ImageAndCaption]
    ) -> list[NearestPair]:
        return [_nearest_pair(f"{name}-{row}", overlap, row, show, show_training, images) for row in rows]

    nearest = neighbors.held_out.closest(MAX_NEAREST)
    at_threshold = [row for row in neighbors.held_out.around_threshold(MAX_NEAREST) if row not in nearest]
    data: ReportData = {
        "near_duplicates": pairs("held-out", neighbors.held_out, nearest, show_held_out),
        "borderline": pairs("borderline", neighbors.held_out, at_threshold, show_held_out),
    }
    if within := neighbors.within_training:
        data["within_training"] = pairs("within", within, _without_mirrored(within), show_training)
    if neighbors.samples:
        rows = neighbors.samples.closest(MAX_NEAREST)
        data["memorized"] = pairs("memorized", neighbors.samples, rows, show_sample)
    return data


def _nearest_pair(
    key: str,
    overlap: Overlap,
    row: int,
    show: Callable[[int], ImageAndCaption],
    show_training: Callable[[int], ImageAndCaption],
    images: Images,
) -> NearestPair:
    images[key], caption = show(row)
    images[f"{key}-nearest"], training_caption = show_training(int(overlap.index[row]))
    return {
        "image": key,
        "training_image": f"{key}-nearest",
        "similarity": float(overlap.similarity[row]),
        "is_near_duplicate": bool(overlap.is_overlapping[row]),
        "captions": [caption, training_caption],
    }


def _without_mirrored(within_training: Overlap) -> list[int]:
    """The nearest pairs of training images, each once, though each image of a pair may be the other's
    nearest."""
    rows: dict[frozenset[int], int] = {}
    for row in within_training.closest(2 * MAX_NEAREST):
        rows.setdefault(frozenset((row, int(within_training.index[row]))), row)
    return list(rows.values())[:MAX_NEAREST]


def duplicates(pairs: Path, images: Images) -> list[Duplicate]:
    """The least similar of the images that were dropped as near duplicates, and the most similar of those
    that were not."""
    if DUPLICATES not in read_manifest(pairs, verify=False)["files"]:
        return []
    rows = pq.read_table(pairs / DUPLICATES, page_checksum_verification=True).to_pylist()
    dropped = sorted((row for row in rows if row["image"]), key=_distance)[-MAX_NEAREST:]
    accepted = sorted((row for row in rows if not row["is_dropped"]), key=_distance)[:MAX_NEAREST]
    splits = {row["split"] for row in accepted} | {row["twin_split"] for row in dropped + accepted}
    readers = {split: open_pairs(pairs, split) for split in sorted(splits)}
    return [_duplicate(row, readers, images) for row in dropped + accepted]


def _distance(row: dict) -> tuple:
    return row["distance"], row["colour"], row["key"]


def _duplicate(row: dict, readers: dict[str, PairReader], images: Images) -> Duplicate:
    key = f"duplicate-{row['key']}"
    earlier_image, earlier_caption = _pair(readers[row["twin_split"]], row["twin"])
    # a dropped image is only in the list of duplicates
    image, caption = (
        (row["image"], row["captions"][0]) if row["image"] else _pair(readers[row["split"]], row["key"])
    )
    images[key], images[f"{key}-earlier"] = image, earlier_image
    return {
        "image": key,
        "earlier_image": f"{key}-earlier",
        "distance": row["distance"],
        "color": row["colour"],
        "is_dropped": row["is_dropped"],
        "captions": [caption, earlier_caption],
    }


def _pair(reader: PairReader, key: str) -> ImageAndCaption:
    row = reader.find([key])[key]
    return thumbnail(reader.images([row])[0], LARGE), reader.captions(row)[0]
