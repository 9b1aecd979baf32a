"""What the report shows, with its images and plots; `html_report` makes the page. An image is PNG or WebP bytes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from thousandwords.core.manifest import read_manifest
from thousandwords.data.images import to_uint8
from thousandwords.data.pair_shards import PairReader, open_pairs
from thousandwords.evaluation.config import split_name
from thousandwords.evaluation.evaluate_run import ChosenPairs, Evaluation, EvaluationInputs, Matches
from thousandwords.evaluation.image_fidelity import NearestNeighbors
from thousandwords.evaluation.overlap import Overlap
from thousandwords.evaluation.verdict import points_of
from thousandwords.inference.sample_shards import Samples
from thousandwords.ingest.near_duplicates import DUPLICATES
from thousandwords.nn.metrics import psnr
from thousandwords.reporting import plots
from thousandwords.reporting.page import thumbnail

MAX_BEST_SAMPLES = 12  # on the first screen
LARGE, SMALL = 256, 128  # pixels of a single image, and of one among all candidates
MAX_SCALE_ROWS = 4  # images shown after each grid of tokens
MAX_NEAREST = 4  # images of each kind beside their nearest training images
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
        "decoder": "Reconstruction of held-out images from their tokens during training of the decoder",
        "generator_image": "Loss of the transformer on image tokens",
        "generator_text": "Loss of the transformer on text tokens",
        "scorer": "Contrastive loss of CLIP",
    },
}


def render_plots(evaluation: Evaluation, curves: dict[str, list[dict]]) -> dict[str, bytes]:
    """Render all plots: {name: PNG}."""
    figures, counts = evaluation.figures, evaluation.reconstructions.counts()
    image, text = (_losses(curves["train_generator"], name) for name in ("image_loss", "text_loss"))
    pngs = {
        "codebook": plots.codebook_curve(dict(zip(("image tokenizer", "k-means"), counts, strict=True))),
        "clip_score": plots.score_curve(figures["clip_score"]["curve"]),
        "generator_image": plots.loss_curve(image, title="Generator, image tokens"),
    }
    if any(text.values()):  # not every kind of generator models text
        pngs["generator_text"] = plots.loss_curve(text, title="Generator, text tokens")
    for name, stage, title in (
        ("tokenizer", "train_image_tokenizer", "Image tokenizer, hard reconstruction"),
        ("decoder", "train_decoder", "Decoder, from the same tokens"),
    ):
        if psnrs := points_of(curves.get(stage, ()), "validation/psnr_hard"):
            pngs[name] = plots.loss_curve({"validation": psnrs}, "PSNR, dB", title=title)
    if scorer := curves.get("train_scorer"):
        pngs["scorer"] = plots.loss_curve(_losses(scorer, "loss"), "nats", title="CLIP, contrastive loss")
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
            pngs["blur"] = plots.blur_curve(fidelity[name], unit)
        if name in best_of:
            pngs["best_of"] = plots.best_of_curve(best_of, name, unit)
    if score := fidelity.get("inception_score"):
        pngs["blur_score"] = plots.blurred_scores(score)
    if "inception_score" in best_of:
        curve, title = {"n": best_of["n"], "score": best_of["inception_score"]}, "Inception Score, best of n"
        pngs["best_of_score"] = plots.score_curve(curve, "Inception Score", title=title)
    return pngs


def _losses(rows: list[dict], name: str) -> dict[str, list[tuple[int, float]]]:
    return {"train": points_of(rows, name), "validation": points_of(rows, f"validation/{name}")}


def gather(
    report_images: int,
    params: dict,
    inputs: EvaluationInputs,
    evaluation: Evaluation,
    plots: dict[str, bytes],
    pairs: Path,
) -> dict:
    """The data of the page."""
    figures, samples, scores = evaluation.figures, inputs.samples, inputs.scores
    num_tokens, size = evaluation.reconstructions.tokens.shape[1], params["data"]["image_size"]
    summary = f"{size} × {size} images as {num_tokens} tokens of a codebook of {evaluation.reconstructions.vocab_size}, "
    summary += f"generated from a caption, {figures['n']} candidates each, and ranked by CLIP."
    more = partial(_true_and_nearest, evaluation)
    data = {
        "title": "A picture is worth a thousand words",
        "summary": summary,
        "metrics": figures,
        "best_samples": best_samples(samples, scores),
        "reconstructions": _reconstructions(evaluation, report_images),
        "prompts": prompt_rows(report_images, samples, scores, evaluation.matches, more),
        "plots": {
            section: [
                {"image": plots[name], "title": title} for name, title in titles.items() if name in plots
            ]
            for section, titles in PLOTS.items()
        },
        "counts": read_manifest(pairs)["facts"]["counts"],
        "params": params,
        "seeds": {"seed": params["seed"]},
        "duplicates": duplicates(pairs),
        "versions": figures["protocol"]["versions"],
        "fingerprints": figures["protocol"]["checkpoints"],
    }
    if "scales" in figures:
        data["scale_rows"] = scale_rows(inputs.tokenizer, evaluation)
    if neighbors := evaluation.neighbors:
        data |= nearest_pairs(neighbors, evaluation.validation, evaluation.training, samples)
    return data


def best_samples(samples: Samples, scores: np.ndarray) -> list[dict]:
    """The best candidate of evenly spaced text-only prompts, so that none is chosen for its looks."""
    prompts = np.array(samples.text_only_prompts())
    rows = []
    for prompt in prompts[np.unique(np.linspace(0, len(prompts) - 1, MAX_BEST_SAMPLES).astype(int))]:
        best = int(scores[prompt].argmax())
        image = thumbnail(samples.image(prompt, best), LARGE)
        rows.append(
            {"image": image, "caption": samples.prompts[prompt], "score": float(scores[prompt, best])}
        )
    return rows


def _reconstructions(evaluation: Evaluation, count: int) -> list[dict]:
    """The first held-out images beside their reconstructions from tokens, and the PSNR of each; and those of the
    decoder, if there is one."""
    images, decoded = evaluation.held_out.images[:count], evaluation.reconstructions.decoded
    held_out, hard = (to_uint8(each[:count]) for each in (images, evaluation.reconstructions.hard))
    rows = [
        {"original": thumbnail(before, LARGE), "hard": thumbnail(after, LARGE), "psnr": float(psnr)}
        for before, after, psnr in zip(held_out, hard, evaluation.held_out.psnr, strict=False)
    ]
    if decoded is not None:
        values = psnr(images, decoded[:count])
        for row, image, value in zip(rows, to_uint8(decoded[:count]), values, strict=True):
            row |= {"decoded": thumbnail(image, LARGE), "psnr_decoded": float(value)}
    return rows


def scale_rows(tokenizer: nn.Module, evaluation: Evaluation) -> list[list[dict]]:
    """The first held-out images, each as a row: the image after each grid of its tokens, then the original."""
    tokens = evaluation.reconstructions.tokens[:MAX_SCALE_ROWS]
    with torch.no_grad():
        after = [to_uint8(images) for images in tokenizer.images_so_far(tokens)]
    labels = [*(f"{side} × {side}" for side in tokenizer.scales), "original"]
    originals = to_uint8(evaluation.held_out.images[: len(tokens)])
    return [
        [{"image": thumbnail(image, SMALL), "label": label} for image, label in zip(row, labels, strict=True)]
        for row in zip(*after, originals, strict=True)
    ]


def prompt_rows(
    count: int,
    samples: Samples,
    scores: np.ndarray,
    matches: Matches,
    more: Callable[[int], dict] = lambda prompt: {},
) -> list[dict]:
    """The first `count` prompts of each split, each with all its candidates, best first, and what `more` adds."""
    splits, rows = np.array(samples.splits), []
    for split in dict.fromkeys(samples.splits):
        for prompt in np.flatnonzero(splits == split)[:count].tolist():
            row = _prompt_row(prompt, samples, scores[prompt], matches.get(prompt))
            rows.append(row | more(prompt))
    return rows


def _true_and_nearest(evaluation: Evaluation, prompt: int) -> dict:
    """The true image and the training image nearest to the best candidate; empty unless a held-out caption."""
    row, training = evaluation.true_or_nearest.get(prompt), evaluation.training
    if row is None:
        return {}
    true_image = to_uint8(evaluation.held_out.images[[row.true_row]])[0]
    return {
        "true": {"image": thumbnail(true_image, SMALL), "psnr": row.psnr_true},
        "nearest": {
            "image": thumbnail(training.images([row.training_row])[0], SMALL),
            "psnr": row.psnr_nearest,
            "caption": training.caption(row.training_row),
        },
        "is_closer_to_true": row.is_closer_to_true,
    }


def _prompt_row(prompt: int, samples: Samples, scores: np.ndarray, matches: list[dict] | None) -> dict:
    images, split = samples.images(prompt), samples.splits[prompt]
    candidates = [
        {"image": thumbnail(images[candidate], SMALL), "score": float(scores[candidate])}
        | ({"matches": matches[candidate]} if matches else {})
        for candidate in np.argsort(-scores, kind="stable").tolist()
    ]
    row = {
        "prompt": samples.prompts[prompt],
        "split": split_name(split, is_scene=matches is not None),
        "candidates": candidates,
    }
    if prompt in samples.kept_parts:
        row["kept_part"] = thumbnail(samples.kept_parts[prompt], SMALL)
    return row


def nearest_pairs(
    neighbors: NearestNeighbors, validation: ChosenPairs, training: ChosenPairs, samples: Samples
) -> dict[str, list[dict]]:
    """Images beside the training image nearest to them: the nearest pairs, and those at the threshold."""

    def show_held_out(row: int) -> ImageAndCaption:
        return thumbnail(validation.images([row])[0], LARGE), validation.caption(row)

    def show_training(row: int) -> ImageAndCaption:
        return thumbnail(training.images([row])[0], LARGE), training.caption(row)

    def show_sample(row: int) -> ImageAndCaption:
        prompt, candidate = neighbors.sample_ids[row]
        return thumbnail(samples.image(prompt, candidate), LARGE), samples.prompts[prompt]

    def pairs(overlap: Overlap, rows: list[int], show: Callable[[int], ImageAndCaption]) -> list[dict]:
        shown = []
        for row in rows:
            image, caption = show(row)
            training_image, training_caption = show_training(int(overlap.index[row]))
            shown.append(
                {
                    "image": image,
                    "training_image": training_image,
                    "similarity": float(overlap.similarity[row]),
                    "is_near_duplicate": bool(overlap.is_overlapping[row]),
                    "captions": [caption, training_caption],
                }
            )
        return shown

    nearest = neighbors.held_out.closest(MAX_NEAREST)
    at_threshold = [row for row in neighbors.held_out.around_threshold(MAX_NEAREST) if row not in nearest]
    data = {
        "near_duplicates": pairs(neighbors.held_out, nearest, show_held_out),
        "borderline": pairs(neighbors.held_out, at_threshold, show_held_out),
    }
    if within := neighbors.within_training:
        rows: dict[frozenset, int] = {}  # each pair once, though each image of it may be the other's nearest
        for row in within.closest(2 * MAX_NEAREST):
            rows.setdefault(frozenset((row, int(within.index[row]))), row)
        data["within_training"] = pairs(within, [*rows.values()][:MAX_NEAREST], show_training)
    if neighbors.samples:
        data["memorized"] = pairs(neighbors.samples, neighbors.samples.closest(MAX_NEAREST), show_sample)
    return data


def duplicates(pairs: Path) -> list[dict]:
    """The least similar of the images that were dropped as near duplicates, and the most similar others."""
    if DUPLICATES not in read_manifest(pairs, verify=False)["files"]:
        return []
    rows = pq.read_table(pairs / DUPLICATES, page_checksum_verification=True).to_pylist()
    rows.sort(key=lambda row: (row["distance"], row["colour"], row["key"]))
    dropped = [row for row in rows if row["image"]][-MAX_NEAREST:]
    accepted = [row for row in rows if not row["is_dropped"]][:MAX_NEAREST]
    splits = {row["split"] for row in accepted} | {row["twin_split"] for row in dropped + accepted}
    readers = {split: open_pairs(pairs, split) for split in sorted(splits)}
    return [_duplicate(row, readers) for row in dropped + accepted]


def _duplicate(row: dict, readers: dict[str, PairReader]) -> dict:
    def show(split: str, key: str) -> ImageAndCaption:
        number = readers[split].find([key])[key]
        return thumbnail(readers[split].images([number])[0], LARGE), readers[split].captions(number)[0]

    earlier_image, earlier_caption = show(row["twin_split"], row["twin"])
    # a dropped image is only in the list of duplicates
    image, caption = (row["image"], row["captions"][0]) if row["image"] else show(row["split"], row["key"])
    return {
        "image": image,
        "earlier_image": earlier_image,
        "distance": row["distance"],
        "color": row["colour"],
        "is_dropped": row["is_dropped"],
        "captions": [caption, earlier_caption],
    }
