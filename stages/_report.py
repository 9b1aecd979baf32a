"""Which pictures and curves the report shows: the choice is the stage's, the page is `thousandwords.report`'s."""
from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from thousandwords import evaluation, images, metrics, plots
from thousandwords.fidelity import Overlap
from thousandwords.pair_shards import PairReader
from thousandwords.report import Facts, Twin
from thousandwords.samples import Samples

HERO = 12  # pictures on the first screen
TWINS = 4  # held-out pictures beside their nearest training pictures


def draw_plots(rebuilt: evaluation.Reconstructions, figures: dict, curves: dict[str, list[dict]]) -> dict[str, bytes]:
    """{name: PNG}"""
    counts = {
        "dvae": metrics.codebook_counts(rebuilt.tokens, rebuilt.vocab_size).tolist(),
        "k-means": metrics.codebook_counts(rebuilt.kmeans_tokens, rebuilt.vocab_size).tolist(),
    }
    generator = curves["train_generator"]
    drawn = {
        "codebook": plots.codebook_curve(counts),
        "clip_score": plots.score_curve(figures["clip_score"]["curve"]),
        "stages": plots.stage_bars(figures["seconds"]),
        "generator_image": plots.loss_curve(_losses(generator, "image_loss"), "Transformer, words of the picture"),
        "generator_text": plots.loss_curve(_losses(generator, "text_loss"), "Transformer, words of the caption"),
    }
    if tokenizer := _points(curves["train_image_tokenizer"], "validation/psnr_hard"):
        title = "Image tokenizer, hard reconstruction"
        drawn["tokenizer"] = plots.loss_curve({"validation": tokenizer}, title, unit="PSNR, dB")
    if scorer := curves.get("train_scorer"):
        drawn["scorer"] = plots.loss_curve(_losses(scorer, "loss"), "CLIP, contrastive loss", unit="nats")
    if "clip_frechet" in figures["fidelity"]:
        drawn["blur"] = plots.blur_curve(figures["fidelity"]["clip_frechet"])
    if "caption_match" in figures:
        drawn["caption_match"] = plots.match_curve(figures["caption_match"])
    return drawn


def _losses(rows: list[dict], name: str) -> dict[str, list[tuple[float, float]]]:
    return {"train": _points(rows, name), "validation": _points(rows, f"validation/{name}")}


def _points(rows: list[dict], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


def gather(
    *,
    config: evaluation.Config,
    params: dict,
    figures: dict,
    held_out: Tensor,
    rebuilt: evaluation.Reconstructions,
    drawn: Samples,
    scores: np.ndarray,
    read: dict[int, list[dict[str, bool]]],
    plots: dict[str, bytes],
    counts: dict,
    records: dict[str, dict],
) -> tuple[Facts, dict[str, bytes]]:
    """The facts of the page and the pictures that they name."""
    pictures = {f"plot-{name}": data for name, data in plots.items()}
    facts: Facts = {
        "title": "A picture is worth a thousand words",
        "summary": _summary(params, rebuilt, figures),
        "metrics": figures,
        "hero": _hero(drawn, scores, pictures),
        "reconstructions": _reconstructions(config, held_out, rebuilt, pictures),
        "prompts": _prompts(config, drawn, scores, read, pictures),
        "plots": _sections(plots),
        "counts": counts,
        "params": params,
        "seeds": {"seed": params["seed"]},
        "stages": {name: _memory(record) for name, record in records.items()},
    }
    return facts, pictures


def _summary(params: dict, rebuilt: evaluation.Reconstructions, figures: dict) -> str:
    size, words = params["data"]["image_size"], rebuilt.tokens.shape[1]
    return (
        f"{size} × {size} pictures as {words} words of a vocabulary of {rebuilt.vocab_size}, drawn by a transformer from a "
        f"caption, {figures['n']} candidates each, and ranked by CLIP."
    )


def _memory(record: dict) -> str:
    return f"{record['peak_memory_mb'] / 1024:.1f} GB of memory at most, {record['threads']} threads"


def _hero(drawn: Samples, scores: np.ndarray, pictures: dict[str, bytes]) -> list[dict[str, Any]]:
    """The best candidate of prompts spread evenly over all that had no picture: not a choice of the prettiest."""
    rows = drawn.from_text()
    chosen = np.array(rows)[np.unique(np.linspace(0, len(rows) - 1, HERO).astype(int))]
    shown = []
    for prompt in chosen:
        best = int(scores[prompt].argmax())
        pictures[f"hero-{prompt}"] = images.encode_png(drawn.pictures(prompt)[best])
        shown.append(
            {"picture": f"hero-{prompt}", "caption": drawn.prompts[prompt], "score": float(scores[prompt, best])}
        )
    return shown


def _reconstructions(
    config: evaluation.Config, held_out: Tensor, rebuilt: evaluation.Reconstructions, pictures: dict[str, bytes]
) -> list[dict[str, Any]]:
    count = min(config.shown, len(held_out))
    before, after = images.to_uint8(held_out[:count]), images.to_uint8(rebuilt.hard[:count])
    values = metrics.psnr(held_out[:count], rebuilt.hard[:count])
    for row in range(count):
        pictures[f"original-{row}"], pictures[f"hard-{row}"] = images.encode_png(before[row]), images.encode_png(after[row])
    return [{"original": f"original-{row}", "hard": f"hard-{row}", "psnr": float(values[row])} for row in range(count)]


def twins(overlap: Overlap, held_out: Tensor, training: PairReader, pictures: dict[str, bytes]) -> list[Twin]:
    """The held-out pictures that are nearest to a training picture, beside it."""
    shown: list[Twin] = []
    for row in overlap.closest(TWINS):
        pictures[f"held-out-{row}"] = images.encode_png(images.to_uint8(held_out[[row]])[0])
        pictures[f"twin-{row}"] = images.encode_png(training.images([int(overlap.index[row])])[0])
        shown.append({"held_out": f"held-out-{row}", "training": f"twin-{row}", "similarity": float(overlap.similarity[row])})
    return shown


def _prompts(
    config: evaluation.Config,
    drawn: Samples,
    scores: np.ndarray,
    read: dict[int, list[dict[str, bool]]],
    pictures: dict[str, bytes],
) -> list[dict[str, Any]]:
    """The first prompts of each split, each with all its candidates, best first."""
    shown = []
    for split in dict.fromkeys(drawn.splits):
        rows = [prompt for prompt, where in enumerate(drawn.splits) if where == split][: config.shown]
        shown += [_prompt(prompt, drawn, scores, read, pictures) for prompt in rows]
    return shown


def _prompt(
    prompt: int, drawn: Samples, scores: np.ndarray, read: dict[int, list[dict[str, bool]]], pictures: dict[str, bytes]
) -> dict[str, Any]:
    candidates = []
    drawn_pictures = drawn.pictures(prompt)
    for candidate in np.argsort(-scores[prompt], kind="stable").tolist():
        key = f"sample-{prompt}-{candidate}"
        pictures[key] = images.encode_png(drawn_pictures[candidate])
        one = {"picture": key, "score": float(scores[prompt, candidate])}
        candidates.append(one | ({"matches": read[prompt][candidate]} if prompt in read else {}))
    split = evaluation.NAMES.get(drawn.splits[prompt], drawn.splits[prompt])
    row = {"prompt": drawn.prompts[prompt], "split": split, "candidates": candidates}
    if prompt in drawn.given:
        pictures[f"given-{prompt}"] = images.encode_png(drawn.given[prompt])
        row["given"] = f"given-{prompt}"
    return row


def _sections(plots: dict[str, bytes]) -> dict[str, list[dict[str, str]]]:
    """Which plot belongs to which part of the page, and what one sees in it."""
    wanted = {
        "match": {
            "caption_match": "Caption match against the number of candidates that the scorer could choose from",
            "clip_score": "Mean CLIP score against the number of candidates",
        },
        "likeness": {"blur": "Fréchet distance of drawn and real pictures against the blur of both"},
        "words": {"codebook": "How often each word of the codebook is used on held-out pictures"},
        "training": {
            "tokenizer": "Hard reconstruction of held-out pictures while the image tokenizer learns",
            "generator_image": "Loss of the transformer on the words of the picture",
            "generator_text": "Loss of the transformer on the words of the caption",
            "scorer": "Contrastive loss of CLIP",
        },
        "stages": {"stages": "Time per stage"},
    }
    return {
        section: [{"picture": f"plot-{name}", "title": title} for name, title in titles.items() if name in plots]
        for section, titles in wanted.items()
    }
