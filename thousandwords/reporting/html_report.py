"""One run as an html page: data in, a single file (as a string) out.

The page is self-contained: images are data URIs, there are no scripts, and a content policy forbids it to load
anything. The same data give the same bytes. What to show is chosen by `report_data`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from thousandwords.core.params import flatten
from thousandwords.evaluation.verdict import few_pairs
from thousandwords.reporting.page import image_element, page_environment

NUM_UNFOLDED = 8  # candidates of a prompt that are not folded away
# parts of the data that some runs do not have
OPTIONAL = ("near_duplicates", "borderline", "memorized", "within_training", "scale_rows")
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
    """The figures of the first screen: cards {"title", "section", "figures": (value, label, small print), "verdict",
    "tone": "good", "bad" or "plain"}."""
    matches = [_match_card(metrics, split) for split in metrics.get("caption_match", {})]
    if not matches:
        matches = [_card("Caption match", "match", [("–", "not measured", "")], FREE_CAPTIONS)]
    verdict = "Cosine of image and caption, by the scorer that also ranks."
    clip_score = _card("CLIP score", "match", _both_ends(metrics, metrics["clip_score"], cosine), verdict)
    cards = [
        *matches,
        clip_score,
        _loss_card(metrics),
        _reconstruction_card(metrics),
        _codebook_card(metrics),
    ]
    return [card | {"tone": _tone(metrics, card["tone"])} for card in cards]


def verdict_rows(metrics: Mapping) -> list[dict]:
    """Rows {"model", "word", "because", "tone"} of the verdicts on the models."""
    rows = []
    for model, sentence in metrics["verdicts"].items():
        word, _, because = sentence.partition(": ")
        tone = _tone(metrics, VERDICT_TONES.get(word, "bad"))
        rows.append({"model": model.replace("_", " "), "word": word, "because": because, "tone": tone})
    return rows


def _tone(metrics: Mapping, tone: str) -> str:
    """Nothing is good by figures over a few pairs."""
    return "plain" if tone == "good" and few_pairs(metrics["held_out_pairs"]) else tone


def _card(title: str, section: str, figures: list[tuple], verdict: str, tone: str = "plain") -> dict:
    return {"title": title, "section": section, "figures": figures, "verdict": verdict, "tone": tone}


def _figure(figures: Mapping, name: str, label: str, to_text: ToText) -> tuple[str, str, str]:
    interval = _interval(figures.get(f"{name}_interval"), to_text)
    return to_text(figures[name]), label, f"CI {interval}" if interval else ""


def _both_ends(metrics: Mapping, figures: Mapping, to_text: ToText) -> list[tuple[str, str, str]]:
    labels = {"best": f"best of {metrics['n']}", "n1": "one sample"}
    return [_figure(figures, end, label, to_text) for end, label in labels.items()]


def _match_card(metrics: Mapping, split: str) -> dict:
    rates = metrics["caption_match"][split]
    best, one = (rate(rates["scene"][end]) for end in ("best", "n1"))
    verdict = f"Color, background and relation alone: {best} for the best, {one} for one sample."
    return _card(f"Caption match, {split}", "match", _both_ends(metrics, rates["all"], rate), verdict)


def _loss_card(metrics: Mapping) -> dict:
    text, image = (metrics["generator"].get(f"val_loss_{kind}") for kind in ("text", "image"))
    figures = [(number(image, 3), "image, nats per token", "")]
    vocab_size = metrics["codebook"]["vocab_size"]
    guess = math.log(vocab_size)
    verdict = f"A random guess among {vocab_size:,} image tokens costs {number(guess)}; less is better."
    if text is None:
        verdict += " This generator gives captions no probability, so text has no loss."
    else:
        figures.append((number(text, 3), "text, nats per token", ""))
    tones = {row["model"]: row["tone"] for row in verdict_rows(metrics)}
    tone = tones.get("generator", "plain") if image < guess else "bad"
    return _card("Validation loss", "training", figures, verdict, tone)


def _reconstruction_card(metrics: Mapping) -> dict:
    block, labels = metrics["reconstruction"], {"psnr_hard": "hard PSNR", "psnr_kmeans": "k-means"}
    figures = [_figure(block, name, label, decibel) for name, label in labels.items()]
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
    label = f"of {codebook['vocab_size']:,} tokens used"
    figures = [(perplexity, "perplexity", f"k-means: {kmeans}"), (used, label, f"k-means: {used_kmeans}")]
    share = rate(codebook["perplexity"] / codebook["vocab_size"])
    verdict = f"Equivalent to {share} of the tokens, used evenly. More is no goal in itself: consistent tokens are easier to predict."
    return _card("Codebook", "tokens", figures, verdict)


def overlap_rows(metrics: Mapping) -> list[dict]:
    """Rows of the figures with and without overlapping images: {"title", "with", "without"}, as text."""
    overlap = metrics["fidelity"].get("overlap", {})
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
            is_own = not metrics["protocol"]["features_sha256"]
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
        note = f"of the best of {best_of['n'][-1]} for each of {best_of['captions']:,} captions; "
        note += f"a single sample for each: {cosine(distances[0])}"
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
    note = f"100 max(cosine, 0); one sample → best of {metrics['n']}"
    value = " → ".join(to_text(scaled[end]) for end in ends)
    add("CLIP score, scaled", value, _intervals(scaled, ends, to_text), note)
    return rows


def protocol_rows(metrics: Mapping) -> dict[str, Any]:
    """What must be equal for equal digits; versions and fingerprints have tables of their own."""
    protocol = metrics["protocol"].items()
    rows = flatten({name: value for name, value in protocol if name not in ("versions", "checkpoints")})
    return {
        name.replace("_", " ").replace(".", ": "): value for name, value in rows.items() if value is not None
    }


def count_rows(counts: Mapping[str, int]) -> dict:
    """What became of the inputs: {"rows": [{"name", "count", "share"}], "missing": those in no row}."""
    n_in, rows = counts["n_in"], []
    for name in ("ok", "quarantined", "duplicate", "filtered"):
        count = counts.get(f"n_{name}", 0)
        rows.append({"name": name, "count": count, "share": count / n_in})
    return {"rows": rows, "missing": n_in - sum(row["count"] for row in rows)}


def render_report(data: Mapping[str, Any]) -> str:
    """The page of the data that `report_data.gather` makes."""
    environment, metrics = page_environment(), data["metrics"]
    environment.filters |= {"rate": rate, "cosine": cosine, "decibel": decibel, "count": "{:,}".format}
    return environment.get_template("report.html.j2").render(
        **dict.fromkeys(OPTIONAL, ()) | data,
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
        flat_params=flatten(data["params"]),
        no_caption_match=FREE_CAPTIONS,
        num_unfolded=NUM_UNFOLDED,
        image=image_element,
    )
