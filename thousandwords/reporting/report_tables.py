"""The figures of metrics.json as rows and cards of text for the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thousandwords.reporting.plots import duration
from thousandwords.reporting.report_model import Counts

MATCH_ROWS = {
    "all": "everything",
    "scene": "color, background and relation",
    "colour": "color",
    "shape": "shape",
    "size": "size",
    "relation": "relation",
    "background": "background",
}

ToText = Callable[[float | None], str]

# one key of each is in metrics.json, depending on `evaluation.features`
DISTANCES = {"clip_frechet": "Fréchet distance", "fid": "FID"}
KERNELS = {"clip_kernel": "kernel distance", "kid": "KID"}


def rate(value: float | None) -> str:
    """A share as text: 0.413 -> "41%", 0.004 -> "0.4%", 0.0001 -> "<0.1%", None -> "–"."""
    if value is None:
        return "–"
    if 0 < value < 0.0005 or 0.9995 < value < 1:  # never "0%" or "100%" unless it is exact
        return "<0.1%" if value < 0.5 else ">99.9%"
    digits = 1 if 0 < value < 0.01 or 0.99 < value < 1 else 0
    return f"{100 * value:.{digits}f}%"


def number(value: float | None, digits: int = 2) -> str:
    """A number as text, with a typographic minus sign, and a dash for None: number(-1.5) -> "−1.50"."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def cosine(value: float | None) -> str:
    return number(value, digits=3)


def decibel(value: float | None) -> str:
    return "–" if value is None else f"{number(value, digits=1)} dB"


def get(metrics: Mapping, dotted_name: str) -> Any:
    """A value by its dotted name, or None: get({"a": {"b": 1}}, "a.b") -> 1."""
    value: Any = metrics
    for name in dotted_name.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def flatten(nested: Mapping, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted rows: {"a": {"b": 1}} -> [("a.b", 1)]."""
    rows: list[tuple[str, Any]] = []
    for name, value in nested.items():
        is_nested = isinstance(value, Mapping) and value
        rows += flatten(value, f"{prefix}{name}.") if is_nested else [(f"{prefix}{name}", value)]
    return rows


def headline_cards(data: Mapping) -> list[dict]:
    """The figures of the first screen, each card {"title", "figures", "verdict", "tone", "section"}."""
    metrics = data["metrics"]
    cards = [_match_card(metrics, split) for split in metrics.get("caption_match") or {}]
    cards = cards or [_no_match_card(data["no_caption_match"])]
    return cards + [card(metrics) for card in (_score_card, _loss_card, _reconstruction_card, _codebook_card)]


def _card(title: str, section: str, figures: list[tuple], verdict: str = "", tone: str = "plain") -> dict:
    """A card; figures are (value, label, small print) and tone is "good", "bad" or "plain"."""
    return {"title": title, "section": section, "figures": figures, "verdict": verdict, "tone": tone}


def _best_of_n_label(metrics: Mapping) -> str:
    return f"best of {metrics['n']}" if metrics.get("n") else "best of all"


def _interval_note(figures: Mapping, name: str, to_text: ToText = rate) -> str:
    """ "CI 38–47%", or "" where no interval was measured."""
    interval = _interval(figures.get(f"{name}_interval"), to_text)
    return f"CI {interval}" if interval else ""


def _interval(interval: list[float] | None, to_text: ToText = rate) -> str:
    """ "38–47%", "29.1–29.4 dB", or ""."""
    if not interval:
        return ""
    low, high = (to_text(bound) for bound in interval)
    return f"{low.removesuffix('%').removesuffix(' dB')}–{high}"


def _intervals(figures: Mapping, names: Sequence[str], to_text: ToText = rate) -> str:
    """The intervals of several figures, separated by commas."""
    intervals = (_interval(figures.get(f"{name}_interval"), to_text) for name in names)
    return ", ".join(filter(None, intervals))


def _match_card(metrics: Mapping, split: str) -> dict:
    rates, scene = (get(metrics, f"caption_match.{split}.{name}") or {} for name in ("all", "scene"))
    figures = [
        (rate(rates.get("best")), _best_of_n_label(metrics), _interval_note(rates, "best")),
        (rate(rates.get("n1")), "one sample", _interval_note(rates, "n1")),
    ]
    verdict = (
        f"Color, background and relation alone: {rate(scene.get('best'))} for the best, "
        f"{rate(scene.get('n1'))} for one sample."
    )
    return _card(f"Caption match, {split}", "match", figures, verdict)


def _no_match_card(reason: str) -> dict:
    return _card("Caption match", "match", [("–", "not measured", "")], reason)


def _score_card(metrics: Mapping) -> dict:
    score = metrics.get("clip_score") or {}
    figures = [
        (cosine(score.get("best")), _best_of_n_label(metrics), _interval_note(score, "best", cosine)),
        (cosine(score.get("n1")), "one sample", _interval_note(score, "n1", cosine)),
    ]
    verdict = "Cosine of image and caption, by the scorer that also ranks."
    return _card("CLIP score", "match", figures, verdict)


def _loss_card(metrics: Mapping) -> dict:
    text, image = (get(metrics, f"generator.val_loss_{kind}") for kind in ("text", "image"))
    figures = [(number(image, 3), "image, nats per token", ""), (number(text, 3), "text, nats per token", "")]
    vocab_size = get(metrics, "codebook.vocab_size")
    if image is None or not vocab_size:
        return _card("Validation loss", "training", figures)
    random_guess = math.log(vocab_size)
    verdict = (
        f"A random guess among {vocab_size:,} image tokens costs {number(random_guess)}; less is better."
    )
    return _card("Validation loss", "training", figures, verdict, "good" if image < random_guess else "bad")


def _reconstruction_card(metrics: Mapping) -> dict:
    hard, kmeans = (get(metrics, f"reconstruction.psnr_{kind}") for kind in ("hard", "kmeans"))
    reconstruction = metrics.get("reconstruction") or {}
    figures = [
        (decibel(hard), "hard PSNR", _interval_note(reconstruction, "psnr_hard", decibel)),
        (decibel(kmeans), "k-means", _interval_note(reconstruction, "psnr_kmeans", decibel)),
    ]
    if hard is None or kmeans is None:
        return _card("Reconstruction", "tokens", figures)
    difference = decibel(abs(hard - kmeans))
    if hard > kmeans:
        verdict = f"{difference} better than k-means with as many tokens."
        return _card("Reconstruction", "tokens", figures, verdict, "good")
    verdict = f"{difference} worse than k-means: the tokenizer has not learned more than averages yet."
    return _card("Reconstruction", "tokens", figures, verdict, "bad")


def _codebook_card(metrics: Mapping) -> dict:
    codebook = metrics.get("codebook") or {}
    perplexity, vocab_size = codebook.get("perplexity"), codebook.get("vocab_size")
    of_tokens = f"of {vocab_size:,} tokens used" if vocab_size else "of the tokens used"
    figures = [
        (number(perplexity, 0), "perplexity", f"k-means: {number(codebook.get('perplexity_kmeans'), 0)}"),
        (rate(codebook.get("used")), of_tokens, f"k-means: {rate(codebook.get('used_kmeans'))}"),
    ]
    if perplexity is None or not vocab_size:
        return _card("Codebook", "tokens", figures)
    share = perplexity / vocab_size  # a collapsed codebook uses one or two tokens
    if share < 0.05:
        verdict = "Very few tokens are used: the codebook is collapsing."
        return _card("Codebook", "tokens", figures, verdict, "bad")
    verdict = f"Equivalent to {rate(share)} of the tokens, used evenly."
    return _card("Codebook", "tokens", figures, verdict, "good" if share >= 0.25 else "plain")


def match_rows(metrics: Mapping) -> list[dict]:
    """Rows of the table of attributes: {"name", "title", "cells": [{"split", "n1", "best"}]}."""
    splits = metrics.get("caption_match") or {}
    return [
        {
            "name": name,
            "title": title,
            "cells": [
                {"split": split, **(rates.get(name) or {"n1": None, "best": None})}
                for split, rates in splits.items()
            ],
        }
        for name, title in MATCH_ROWS.items()
        if any(name in rates for rates in splits.values())
    ]


def overlap_rows(metrics: Mapping) -> list[dict]:
    """Rows of the table of figures with and without overlapping images: {"title", "with", "without"}, as
    text."""
    overlap = get(metrics, "fidelity.overlap") or {}
    figures = {
        "psnr_hard": ("hard PSNR of held-out images", decibel),
        **{name: (title, cosine) for name, title in DISTANCES.items()},
        "caption_match": ("caption match of one sample", rate),
    }
    return [
        {"title": title, "with": to_text(overlap[name]["with"]), "without": to_text(overlap[name]["without"])}
        for name, (title, to_text) in figures.items()
        if overlap.get(name)
    ]


def frechet_summary(metrics: Mapping) -> dict:
    """The block of the Fréchet distance with its title, and whether it is FID; empty where it was not
    measured."""
    fidelity = metrics.get("fidelity") or {}
    for name, title in DISTANCES.items():
        if fidelity.get(name):
            is_own = not get(metrics, "protocol.features_sha256")
            return {**fidelity[name], "title": title, "is_fid": name == "fid", "is_own": is_own}
    return {}


def fidelity_rows(metrics: Mapping) -> list[dict]:
    """Rows of the table of image fidelity: {"title", "value", "interval", "note"}; a figure that is missing
    has no row."""
    fidelity = metrics.get("fidelity") or {}
    rows = [
        *_distance_rows(metrics, fidelity),
        *_kernel_rows(fidelity),
        *_precision_rows(fidelity),
        *_retrieval_rows(fidelity),
    ]
    if scaled := get(metrics, "clip_score.scaled"):
        rows.append(
            _row(
                "CLIP score, scaled",
                " → ".join(number(scaled[end], 1) for end in ("n1", "best")),
                _intervals(scaled, ("n1", "best"), lambda value: number(value, 1)),
                f"100 max(cosine, 0); one sample → {_best_of_n_label(metrics)}",
            )
        )
    return rows


def _row(title: str, value: str, interval: str, note: str) -> dict:
    return {"title": title, "value": value, "interval": interval, "note": note}


def _distance_rows(metrics: Mapping, fidelity: Mapping) -> list[dict]:
    rows, frechet, best_of = [], frechet_summary(metrics), fidelity.get("best_of") or {}
    if frechet:
        interval = _interval(frechet.get("interval"), cosine)
        note = f"{frechet['drawn']:,} samples to {frechet['real']:,} held-out images; 0 for equal sets"
        rows.append(_row(frechet["title"], cosine(frechet["distance"][0]), interval, note))
    for name, title in DISTANCES.items():
        if distances := best_of.get(name):
            interval = _interval((best_of.get(f"{name}_interval") or [None])[-1], cosine)
            note = (
                f"of the best of {best_of['n'][-1]} for each of {best_of['captions']:,} captions; "
                f"a single sample for each: {cosine(distances[0])}"
            )
            rows.append(_row(f"{title}, best of n", cosine(distances[-1]), interval, note))
    if score := fidelity.get("inception_score"):
        note = f"± {score['deviation']:.2g} over {score['splits']} parts of {score['drawn']:,} samples; 1 if all look the same"
        rows.append(_row("Inception Score", number(score["mean"]), "", note))
    return rows


def _kernel_rows(fidelity: Mapping) -> list[dict]:
    note = "± {deviation:.2g} over {subsets} random sets of {size}; 0 for equal sets"
    return [
        _row(title, f"{fidelity[name]['mean']:.2g}", "", note.format_map(fidelity[name]))
        for name, title in KERNELS.items()
        if fidelity.get(name)
    ]


def _precision_rows(fidelity: Mapping) -> list[dict]:
    figures = fidelity.get("clip_precision") or fidelity.get("precision")
    if not figures:
        return []
    neighbors = f"within the {figures['neighbours']} nearest"
    notes = {"precision": "samples among real images", "recall": "real images among samples"}
    return [
        _row(name, rate(figures[name]), _interval(figures.get(f"{name}_interval")), f"{note}, {neighbors}")
        for name, note in notes.items()
    ]


def _retrieval_rows(fidelity: Mapping) -> list[dict]:
    retrieval, ks = fidelity.get("retrieval") or {}, ("r1", "r5", "r10")
    titles = {
        "captions_of_pictures": "an image's own caption first, in the first 5, in the first 10",
        "pictures_of_captions": "a caption's own image first, in the first 5, in the first 10",
    }
    return [
        _row(
            title,
            ", ".join(rate(retrieval[name][k]) for k in ks),
            _intervals(retrieval[name], ks),
            f"of {retrieval['pictures']:,} held-out images; how well the scorer itself tells them apart",
        )
        for name, title in titles.items()
        if retrieval.get(name)
    ]


def protocol_rows(metrics: Mapping) -> dict[str, Any]:
    """What must be equal for equal digits, one row each; versions and fingerprints have tables of their
    own."""
    protocol = metrics.get("protocol") or {}
    nested = {name: value for name, value in protocol.items() if name not in ("versions", "checkpoints")}
    return {
        name.replace("_", " ").replace(".", ": "): value
        for name, value in flatten(nested)
        if value is not None
    }


def stage_rows(seconds: Mapping[str, float], notes: Mapping[str, str]) -> list[dict]:
    """Rows of the stage table, in the order of `seconds`; stages without a time follow with a dash."""
    total = sum(seconds.values())
    names = [*seconds, *(name for name in notes if name not in seconds)]
    return [
        {
            "name": name,
            "note": notes.get(name, ""),
            "time": duration(seconds[name]) if name in seconds else "–",
            "share": seconds.get(name, 0) / total if total else 0,
        }
        for name in names
    ]


def count_rows(counts: Counts) -> dict:
    """What became of the inputs: {"rows": [{"name", "count", "share"}], "missing": those in no row}."""
    n_in = counts.get("n_in", 0)
    rows = []
    for name in ("ok", "quarantined", "duplicate", "filtered"):
        count = counts.get(f"n_{name}", 0)
        rows.append({"name": name, "count": count, "share": count / n_in if n_in else 0})
    return {"rows": rows, "missing": n_in - sum(row["count"] for row in rows)}
