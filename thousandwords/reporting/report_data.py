"""Which pictures and curves the report shows: the choice is the stage's, the page is `thousandwords.report`'s."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
from torch import Tensor

from stages._pairs import open_pairs
from stages._run import tracking_uri
from thousandwords import evaluation, images, metrics, plots
from thousandwords.duplicates import DUPLICATES
from thousandwords.fidelity import Overlap
from thousandwords.files import read_manifest
from thousandwords.likeness import Found
from thousandwords.pair_shards import PairReader
from thousandwords.report import Duplicate, Facts, Run, Twin
from thousandwords.samples import Samples
from thousandwords.thumbnails import thumbnail

HERO = 12  # pictures on the first screen
LARGE, SMALL = 256, 128  # pixels of a picture by itself, and of one among all candidates
TWINS = 4  # pictures of a kind beside their nearest training pictures


def draw_plots(
    rebuilt: evaluation.Reconstructions, figures: dict, curves: dict[str, list[dict]], found: Found | None
) -> dict[str, bytes]:
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
    drawn |= _likeness_plots(figures["fidelity"])
    if found:
        sides = {"held out": found.held_out, "drawn": found.drawn}
        nearest = {name: side.similarity.numpy() for name, side in sides.items() if side}
        drawn["similarity"] = plots.similarity_histogram(nearest, found.held_out.threshold)
    if "caption_match" in figures:
        drawn["caption_match"] = plots.match_curve(figures["caption_match"])
    return drawn


def _likeness_plots(fidelity: dict) -> dict[str, bytes]:
    """Blur and best of n, by whichever features the pictures were compared with."""
    drawn, best = {}, fidelity.get("best_of") or {}
    for name, unit in (("clip_frechet", "Fréchet distance by CLIP"), ("fid", "FID")):
        if name in fidelity:
            drawn["blur"] = plots.blur_curve(fidelity[name], unit=unit)
        if name in best:
            drawn["best_of"] = plots.best_of_curve(best, name, unit)
    if score := fidelity.get("inception_score"):
        drawn["blur_score"] = plots.blurred_scores(score)
    if "inception_score" in best:
        curve = {"n": best["n"], "score": best["inception_score"]}
        drawn["best_of_score"] = plots.score_curve(curve, "Inception Score, best of n", "Inception Score")
    return drawn


def runs(records: dict[str, dict], own: str | None) -> dict[str, Run]:
    """Each stage's run in MLflow, `own` that of the evaluation; a link where a server keeps it, without what opens the server."""
    address = urlsplit(tracking_uri())
    host = address.netloc.rpartition("@")[2]
    server = f"{address.scheme}://{host}{address.path.rstrip('/')}" if address.scheme in ("http", "https") else None
    kept = {name: record for name, record in records.items() if name != "evaluate"}
    if own:
        kept["evaluate"] = {"run_id": own, "tracking_uri": "server" if server else "local"}
    return {name: _run(record["run_id"], server if record.get("tracking_uri") == "server" else None)
            for name, record in kept.items() if record.get("run_id")}    # fmt: skip


def _run(run_id: str, server: str | None) -> Run:
    return {"run_id": run_id, "link": f"{server}/#/runs/{run_id}"} if server else {"run_id": run_id}


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
        pictures[f"hero-{prompt}"] = thumbnail(drawn.pictures(prompt)[best], LARGE)
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
        pictures[f"original-{row}"], pictures[f"hard-{row}"] = thumbnail(before[row], LARGE), thumbnail(after[row], LARGE)
    return [{"original": f"original-{row}", "hard": f"hard-{row}", "psnr": float(values[row])} for row in range(count)]


def neighbours(
    found: Found, held_out: Tensor, validation: PairReader, training: PairReader, drawn: Samples, pictures: dict[str, bytes]
) -> Facts:
    """Held-out, training and drawn pictures beside the training picture nearest to each: the nearest, and at the threshold."""

    def known(row: int) -> tuple[bytes, str]:
        return thumbnail(images.to_uint8(held_out[[row]])[0], LARGE), validation.captions(row)[0]

    def trained(row: int) -> tuple[bytes, str]:
        return thumbnail(training.images([row])[0], LARGE), training.captions(row)[0]

    def sample(row: int) -> tuple[bytes, str]:
        prompt, candidate = found.draws[row]
        return thumbnail(drawn.pictures(prompt)[candidate], LARGE), drawn.prompts[prompt]

    nearest = found.held_out.closest(TWINS)
    at_threshold = [row for row in found.held_out.around(TWINS) if row not in nearest]
    facts: Facts = {
        "twins": _beside("held-out", found.held_out, nearest, known, trained, pictures),
        "borderline": _beside("borderline", found.held_out, at_threshold, known, trained, pictures),
    }
    if found.within:
        facts["within"] = _beside("within", found.within, _once(found.within), trained, trained, pictures)
    if found.drawn:
        facts["memorised"] = _beside("drawn", found.drawn, found.drawn.closest(TWINS), sample, trained, pictures)
    return facts


Show = Callable[[int], tuple[bytes, str]]    # a row -> its PNG and its caption


def _beside(
    name: str, found: Overlap, rows: list[int], ours: Show, trained: Show, pictures: dict[str, bytes]
) -> list[Twin]:
    shown: list[Twin] = []
    for row in rows:
        (pictures[f"{name}-{row}"], caption), (pictures[f"{name}-twin-{row}"], other) = ours(row), trained(int(found.index[row]))
        shown.append({
            "picture": f"{name}-{row}", "training": f"{name}-twin-{row}", "similarity": float(found.similarity[row]),
            "is_twin": bool(found.is_overlapping[row]), "captions": [caption, other],
        })    # fmt: skip
    return shown


def _once(within: Overlap) -> list[int]:
    """The nearest pairs of training pictures, each pair once, though each of both may be the other's nearest."""
    once: dict[frozenset[int], int] = {}
    for row in within.closest(2 * TWINS):
        once.setdefault(frozenset((row, int(within.index[row]))), row)
    return list(once.values())[:TWINS]


def duplicates(pairs: Path, pictures: dict[str, bytes]) -> list[Duplicate]:
    """Of the pictures that were dropped for their looks the least alike, and of those that stay the most alike."""
    if DUPLICATES not in read_manifest(pairs, verify=False)["files"]:
        return []
    rows = pq.read_table(pairs / DUPLICATES, page_checksum_verification=True).to_pylist()
    dropped = sorted((row for row in rows if row["image"]), key=_looks)[-TWINS:]
    stay = sorted((row for row in rows if not row["is_dropped"]), key=_looks)[:TWINS]
    readers = {split: open_pairs(pairs, split) for split in sorted({row["split"] for row in stay} | _twin_splits(dropped + stay))}
    shown = []
    for row in dropped + stay:
        ours = row["image"], row["captions"][0]
        shown.append(_duplicate(row, ours if row["image"] else _pair(readers[row["split"]], row["key"]),
                                _pair(readers[row["twin_split"]], row["twin"]), pictures))    # fmt: skip
    return shown


def _looks(row: dict) -> tuple:
    return row["distance"], row["colour"], row["key"]


def _twin_splits(rows: list[dict]) -> set[str]:
    return {row["twin_split"] for row in rows}


def _pair(reader: PairReader, key: str) -> tuple[bytes, str]:
    row = reader.find([key])[key]
    return thumbnail(reader.images([row])[0], LARGE), reader.captions(row)[0]


def _duplicate(row: dict, ours: tuple[bytes, str], twin: tuple[bytes, str], pictures: dict[str, bytes]) -> Duplicate:
    key = f"duplicate-{row['key']}"
    (pictures[key], caption), (pictures[f"{key}-twin"], other) = ours, twin
    return {"picture": key, "twin": f"{key}-twin", "captions": [caption, other],
            **{name: row[name] for name in ("distance", "colour", "is_dropped")}}    # fmt: skip


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
        pictures[key] = thumbnail(drawn_pictures[candidate], SMALL)
        one = {"picture": key, "score": float(scores[prompt, candidate])}
        candidates.append(one | ({"matches": read[prompt][candidate]} if prompt in read else {}))
    split = evaluation.NAMES.get(drawn.splits[prompt], drawn.splits[prompt])
    row = {"prompt": drawn.prompts[prompt], "split": split, "candidates": candidates}
    if prompt in drawn.given:
        pictures[f"given-{prompt}"] = thumbnail(drawn.given[prompt], SMALL)
        row["given"] = f"given-{prompt}"
    return row


def _sections(plots: dict[str, bytes]) -> dict[str, list[dict[str, str]]]:
    """Which plot belongs to which part of the page, and what one sees in it."""
    wanted = {
        "match": {
            "caption_match": "Caption match against the number of candidates that the scorer could choose from",
            "clip_score": "Mean CLIP score against the number of candidates",
        },
        "likeness": {
            "best_of": "Fréchet distance of drawn and real pictures against the number of candidates per caption",
            "best_of_score": "Inception Score against the number of candidates per caption",
            "blur": "Fréchet distance of drawn and real pictures against the blur of both",
            "blur_score": "Inception Score of drawn pictures against their blur",
        },
        "memorisation": {"similarity": "How near the nearest training picture is to held-out and to drawn ones"},
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
