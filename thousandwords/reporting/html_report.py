"""One run as an html page: data in, a single file (as a string) out.

The page is self-contained: images are data URIs, there are no scripts, and a content policy forbids it to load
anything. The same data give the same bytes. What to show is chosen by `report_data`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from thousandwords.evaluation.verdict import few_pairs
from thousandwords.reporting.page import image_element, page_environment
from thousandwords.reporting.plots import duration

NUM_UNFOLDED = 8  # candidates of a prompt that are not folded away
# parts of the data that are missing without a search for near duplicates of training images
NEAREST = ("near_duplicates", "borderline", "memorized", "within_training")
MATCH_ROWS = {
    "all": "everything",
    "scene": "color, background and relation",
    "colour": "color",
    "shape": "shape",
    "size": "size",
    "relation": "relation",
    "background": "background",
}
# one key of each is in metrics.json, depending on `evaluation.features`
DISTANCES = {"clip_frechet": "Fréchet distance", "fid": "FID"}
VERDICT_TONES = {"fine": "good", "learning": "plain"}  # all others are bad
KERNELS = {"clip_kernel": "kernel distance", "kid": "KID"}
RETRIEVALS = {
    "captions_of_pictures": "an image's own caption",
    "pictures_of_captions": "a caption's own image",
}
FREE_CAPTIONS = (
    "These captions are free text. Only captions of the built-in scenes can be checked against an image "
    "automatically, so look at the CLIP score and at the images."
)

ToText = Callable[[float | None], str]


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


cosine = partial(number, digits=3)


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


def _interval(interval: Sequence[float] | None, to_text: ToText = rate) -> str:
    """ "38–47%", "29.1–29.4 dB", or "" where no interval was measured."""
    if not interval:
        return ""
    low, high = map(to_text, interval)
    return f"{low.removesuffix('%').removesuffix(' dB')}–{high}"


def _intervals(figures: Mapping, names: Sequence[str], to_text: ToText = rate) -> str:
    """The intervals of several figures, separated by commas."""
    return ", ".join(filter(None, (_interval(figures.get(f"{name}_interval"), to_text) for name in names)))


def headline_cards(metrics: Mapping) -> list[dict]:
    """The figures of the first screen, each card {"title", "section", "figures", "verdict", "tone"}."""
    matches = [_match_card(metrics, split) for split in metrics.get("caption_match", {})]
    if not matches:
        matches = [_card("Caption match", "match", [("–", "not measured", "")], FREE_CAPTIONS)]
    score = metrics["clip_score"]
    figures = [_figure(score, "best", _best_of(metrics), cosine), _figure(score, "n1", "one sample", cosine)]
    verdict = "Cosine of image and caption, by the scorer that also ranks."
    clip_score = _card("CLIP score", "match", figures, verdict)
    cards = [
        *matches,
        clip_score,
        _loss_card(metrics),
        _reconstruction_card(metrics),
        _codebook_card(metrics),
    ]
    if not few_pairs(metrics["held_out_pairs"]):
        return cards
    return [card | {"tone": "plain" if card["tone"] == "good" else card["tone"]} for card in cards]


def verdict_rows(metrics: Mapping) -> list[dict]:
    """Rows {"model", "word", "because", "tone"} of the verdicts on the models."""
    rows = []
    for model, sentence in metrics["verdicts"].items():
        word, _, because = sentence.partition(": ")
        tone = VERDICT_TONES.get(word, "bad")
        tone = "plain" if tone == "good" and few_pairs(metrics["held_out_pairs"]) else tone
        rows.append({"model": model.replace("_", " "), "word": word, "because": because, "tone": tone})
    return rows


def _card(title: str, section: str, figures: list[tuple], verdict: str, tone: str = "plain") -> dict:
    """A card; figures are (value, label, small print) and tone is "good", "bad" or "plain"."""
    return {"title": title, "section": section, "figures": figures, "verdict": verdict, "tone": tone}


def _figure(figures: Mapping, name: str, label: str, to_text: ToText) -> tuple[str, str, str]:
    interval = _interval(figures.get(f"{name}_interval"), to_text)
    return to_text(figures[name]), label, f"CI {interval}" if interval else ""


def _best_of(metrics: Mapping) -> str:
    return f"best of {metrics['n']}"


def _match_card(metrics: Mapping, split: str) -> dict:
    rates = metrics["caption_match"][split]
    figures = [
        _figure(rates["all"], "best", _best_of(metrics), rate),
        _figure(rates["all"], "n1", "one sample", rate),
    ]
    scene = {end: rate(rates["scene"][end]) for end in ("best", "n1")}
    verdict = "Color, background and relation alone: {best} for the best, {n1} for one sample."
    return _card(f"Caption match, {split}", "match", figures, verdict.format_map(scene))


def _loss_card(metrics: Mapping) -> dict:
    text, image = (metrics["generator"].get(f"val_loss_{kind}") for kind in ("text", "image"))
    figures = [(number(image, 3), "image, nats per token", "")]
    if text is not None:
        figures.append((number(text, 3), "text, nats per token", ""))
    vocab_size = metrics["codebook"]["vocab_size"]
    guess = math.log(vocab_size)
    verdict = f"A random guess among {vocab_size:,} image tokens costs {number(guess)}; less is better."
    if text is None:
        verdict += " This generator gives captions no probability, so text has no loss."
    rows = {row["model"]: row for row in verdict_rows(metrics)}
    tone = rows["generator"]["tone"] if "generator" in rows else "plain"
    return _card("Validation loss", "training", figures, verdict, tone if image < guess else "bad")


def _reconstruction_card(metrics: Mapping) -> dict:
    block = metrics["reconstruction"]
    figures = [
        _figure(block, "psnr_hard", "hard PSNR", decibel),
        _figure(block, "psnr_kmeans", "k-means", decibel),
    ]
    difference = block["psnr_hard"] - block["psnr_kmeans"]
    verdict, tone = f"{decibel(difference)} better than k-means with as many tokens.", "good"
    if difference <= 0:
        verdict = f"{decibel(-difference)} worse than k-means: the tokenizer has not learned more than averages yet."
        tone = "bad"
    return _card("Reconstruction", "tokens", figures, verdict, tone)


def _codebook_card(metrics: Mapping) -> dict:
    codebook = metrics["codebook"]
    perplexity, kmeans = (number(codebook[name], 0) for name in ("perplexity", "perplexity_kmeans"))
    used, used_kmeans = (rate(codebook[name]) for name in ("used", "used_kmeans"))
    figures = [
        (perplexity, "perplexity", f"k-means: {kmeans}"),
        (used, f"of {codebook['vocab_size']:,} tokens used", f"k-means: {used_kmeans}"),
    ]
    share = codebook["perplexity"] / codebook["vocab_size"]
    verdict = f"Equivalent to {rate(share)} of the tokens, used evenly. More is no goal in itself: consistent tokens are easier to predict."
    return _card("Codebook", "tokens", figures, verdict)


def overlap_rows(metrics: Mapping) -> list[dict]:
    """Rows of the figures with and without overlapping images: {"title", "with", "without"}, as text."""
    overlap = get(metrics, "fidelity.overlap") or {}
    figures = {
        "psnr_hard": ("hard PSNR of held-out images", decibel),
        **{name: (title, cosine) for name, title in DISTANCES.items()},
        "caption_match": ("caption match of one sample", rate),
    }
    return [
        {"title": title, **{end: to_text(overlap[name][end]) for end in ("with", "without")}}
        for name, (title, to_text) in figures.items()
        if name in overlap
    ]


def frechet_summary(metrics: Mapping) -> dict:
    """The block of the Fréchet distance with its title, and whether it is FID; empty if not measured."""
    for name, title in DISTANCES.items():
        if block := metrics["fidelity"].get(name):
            is_own = not get(metrics, "protocol.features_sha256")
            return {**block, "title": title, "is_fid": name == "fid", "is_own": is_own}
    return {}


def fidelity_rows(metrics: Mapping) -> list[dict]:
    """Rows {"title", "value", "interval", "note"} of image fidelity, of the figures that were measured."""
    fidelity, rows = metrics["fidelity"], []

    def add(title: str, value: str, interval: str, note: str) -> None:
        rows.append({"title": title, "value": value, "interval": interval, "note": note})

    if block := frechet_summary(metrics):
        note = f"{block['drawn']:,} samples to {block['real']:,} held-out images; 0 for equal sets"
        add(block["title"], cosine(block["distance"][0]), _interval(block["interval"], cosine), note)
    best_of = fidelity.get("best_of", {})
    for name in DISTANCES.keys() & best_of.keys():
        distances = best_of[name]
        note = (
            f"of the best of {best_of['n'][-1]} for each of {best_of['captions']:,} captions; "
            f"a single sample for each: {cosine(distances[0])}"
        )
        interval = _interval(best_of[f"{name}_interval"][-1], cosine)
        add(f"{DISTANCES[name]}, best of n", cosine(distances[-1]), interval, note)
    if block := fidelity.get("inception_score"):
        note = "± {deviation:.2g} over {splits} parts of {drawn:,} samples; 1 if all look the same"
        add("Inception Score", number(block["mean"]), "", note.format_map(block))
    for name in KERNELS.keys() & fidelity.keys():
        note = "± {deviation:.2g} over {subsets} random sets of {size}; 0 for equal sets"
        add(KERNELS[name], f"{fidelity[name]['mean']:.2g}", "", note.format_map(fidelity[name]))
    if block := fidelity.get("clip_precision") or fidelity.get("precision"):
        notes = {"precision": "samples among real images", "recall": "real images among samples"}
        for name, note in notes.items():
            note = f"{note}, within the {block['neighbours']} nearest"
            add(name, rate(block[name]), _intervals(block, [name]), note)
    retrieval, ks = fidelity["retrieval"], ("r1", "r5", "r10")
    for name, title in RETRIEVALS.items():
        note = f"of {retrieval['pictures']:,} held-out images; how well the scorer itself tells them apart"
        value = ", ".join(rate(retrieval[name][k]) for k in ks)
        add(f"{title} first, in the first 5, in the first 10", value, _intervals(retrieval[name], ks), note)
    if block := fidelity.get("caption_found"):
        note = "from the best-scored sample, by the scorer, among {among} of {captions} held-out captions; by chance {chance:.0%}"
        add("caption found", rate(block["found"]), _intervals(block, ["found"]), note.format_map(block))
    scaled, ends, to_text = metrics["clip_score"]["scaled"], ("n1", "best"), partial(number, digits=1)
    note = f"100 max(cosine, 0); one sample → {_best_of(metrics)}"
    value = " → ".join(to_text(scaled[end]) for end in ends)
    add("CLIP score, scaled", value, _intervals(scaled, ends, to_text), note)
    return rows


def protocol_rows(metrics: Mapping) -> dict[str, Any]:
    """What must be equal for equal digits; versions and fingerprints have tables of their own."""
    protocol = metrics["protocol"].items()
    rows = flatten({name: value for name, value in protocol if name not in ("versions", "checkpoints")})
    return {name.replace("_", " ").replace(".", ": "): value for name, value in rows if value is not None}


def count_rows(counts: Mapping[str, int]) -> dict:
    """What became of the inputs: {"rows": [{"name", "count", "share"}], "missing": those in no row}."""
    n_in = counts.get("n_in", 0)
    rows = [
        {"name": name, "count": (count := counts.get(f"n_{name}", 0)), "share": count / n_in if n_in else 0}
        for name in ("ok", "quarantined", "duplicate", "filtered")
    ]
    return {"rows": rows, "missing": n_in - sum(row["count"] for row in rows)}


def render_report(data: Mapping[str, Any]) -> str:
    """The page of the data that `report_data.gather` makes."""
    environment, metrics = page_environment(), data["metrics"]
    environment.filters |= {
        **{"rate": rate, "cosine": cosine, "decibel": decibel},
        **{"count": "{:,}".format, "duration": duration},
    }
    return environment.get_template("report.html.j2").render(
        **dict.fromkeys(NEAREST, ()) | data,
        cards=headline_cards(metrics),
        verdicts=verdict_rows(metrics),
        few_pairs=few_pairs(metrics["held_out_pairs"]),
        match_rows=MATCH_ROWS,
        fidelity=metrics["fidelity"],
        overlap_rows=overlap_rows(metrics),
        fidelity_rows=fidelity_rows(metrics),
        frechet=frechet_summary(metrics),
        protocol=protocol_rows(metrics),
        count_rows=count_rows(data["counts"]),
        flat_params=dict(flatten(data["params"])),
        no_caption_match=FREE_CAPTIONS,
        num_unfolded=NUM_UNFOLDED,
        image=image_element,
    )
