"""One run as a page to look at: facts and pictures in, a single html file (as a string) out.

The page stands alone: pictures are data URIs, the style is inline, there are no scripts, and a content policy
forbids it to load anything. It holds no clock, so the same facts give the same bytes. The layout is
`report.html.j2`; this file turns numbers into words. What the facts lack is left out or said to be absent.
Left out: drawing the curves (`plots`) and the choice of what to show (the stage).
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from thousandwords.plots import duration

OPTIONAL = {"summary": str, "no_caption_match": lambda: FREE_CAPTIONS, "hero": list, "reconstructions": list, "twins": list,
            "borderline": list, "memorised": list, "within": list, "duplicates": list,
            "prompts": list, "plots": dict, "stages": dict, "runs": dict, "counts": dict, "params": dict, "versions": dict,
            "seeds": dict, "fingerprints": dict}    # facts that may be missing, and what stands for them
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_ART_WIDTH = 128    # up to this width a picture is shown with its pixels sharp, as the model drew it
SHOWN_AT_ONCE = 8        # further candidates of a prompt are folded away
MATCH_ROWS = {"all": "everything", "scene": "colour, background and relation", "colour": "colour",
              "shape": "shape", "size": "size", "relation": "relation", "background": "background"}
DISTANCES = {"clip_frechet": "Fréchet distance", "fid": "FID"}    # of which one is there, by what `evaluation.features` says
KERNELS = {"clip_kernel": "kernel distance", "kid": "KID"}
FREE_CAPTIONS = ("These captions are free text. Only the captions of the built-in scenes can be checked by "
                 "reading a picture back, so here the CLIP score and your own eyes stand in.")


class Sample(TypedDict, total=False):
    """One generated picture."""
    picture: str                 # key into `pictures`
    caption: str                 # the prompt; may be left out within a Prompt
    score: float                 # the scorer's cosine
    matches: dict[str, bool]     # attribute -> seen in the picture; scenes only


class Reconstruction(TypedDict, total=False):
    """An original beside what its words alone give back."""
    original: str                # keys into `pictures`
    hard: str
    psnr: float                  # dB, of this picture


class Twin(TypedDict):
    """A picture beside the training picture nearest to it."""
    picture: str                 # keys into `pictures`
    training: str
    similarity: float            # the scorer's cosine of both
    is_twin: bool                # above the threshold
    captions: list[str]          # of both; a drawn picture's is its prompt


class Duplicate(TypedDict):
    """A picture beside the earlier one that it looks like."""
    picture: str                 # keys into `pictures`
    twin: str
    distance: int                # bits of 64
    colour: int                  # largest difference of a cell, of 255
    is_dropped: bool
    captions: list[str]          # of both


class Prompt(TypedDict, total=False):
    prompt: str
    split: str                   # "seen", "unseen", "completed", ... ; shown as a tag
    given: str                   # key into `pictures`: what was given of the picture that this row completes
    candidates: list[Sample]     # best first


class Plot(TypedDict, total=False):
    picture: str                 # key into `pictures`
    title: str                   # becomes the alt text
    note: str                    # what one sees; shown below


class Run(TypedDict, total=False):
    """Where MLflow keeps what a stage did."""
    run_id: str
    link: str                    # to its page, where a server keeps it


class Counts(TypedDict, total=False):
    """What became of the inputs: n_in = n_ok + n_quarantined + n_duplicate + n_filtered."""
    n_in: int
    n_ok: int
    n_quarantined: int
    n_duplicate: int
    n_filtered: int
    reasons: dict[str, int]      # why inputs were quarantined or filtered
    splits: dict[str, int]       # pairs per split
    near_duplicates: dict[str, Any]     # `duplicates.NearTwins.summary`, where they were dropped
    captions_dropped: dict[str, int]    # why pairs that stay have lost captions, where captions are filtered


class Facts(TypedDict, total=False):
    """All that the page tells. Only `title` and `metrics` are needed.

    `metrics` is metrics.json as it is, and any part of it may be missing:
      reconstruction  {psnr_hard, psnr_kmeans} in dB
      codebook        {used, used_kmeans (shares 0..1), perplexity, perplexity_kmeans, vocab_size}
      generator       {val_loss_text, val_loss_image} in nats per token
      n               candidates per prompt
      clip_score      what `evaluation.clip_score` gives
      caption_match   {"seen", "unseen"}: what `metrics.match_rates` gives; absent for real data
      fidelity        {clip_frechet or fid, clip_kernel or kid, clip_precision or precision, inception_score, best_of, retrieval,
                      overlap, memorisation}: what `likeness.measure` and `best_of.curve` give; each absent where not measured
      protocol        {what was done: in words}: what has to be the same for the same digits
      seconds         {stage: seconds}
    """
    title: str
    summary: str                           # one or two sentences under the title
    metrics: dict[str, Any]
    no_caption_match: str                  # why caption_match is absent, as sentences; default FREE_CAPTIONS
    hero: list[Sample]                     # the best pictures, each with a caption
    reconstructions: list[Reconstruction]
    twins: list[Twin]                      # held-out pictures: the nearest ones, nearest first
    borderline: list[Twin]                 # held-out pictures: those just above and just below the threshold
    memorised: list[Twin]                  # drawn pictures: the nearest ones
    within: list[Twin]                     # training pictures beside the nearest other one
    duplicates: list[Duplicate]            # dropped as pairs were prepared, and the nearest that were not
    prompts: list[Prompt]
    plots: dict[str, list[Plot]]           # by section: "match", "likeness", "words", "training", "stages"
    stages: dict[str, str]                 # stage -> what it made, in words; times are metrics.seconds
    runs: dict[str, Run]                   # stage -> its run in MLflow
    counts: Counts
    params: dict[str, Any]                 # params.yaml, nested
    versions: dict[str, str]
    seeds: dict[str, int]
    fingerprints: dict[str, str]           # artefact -> sha256 or fingerprint


def render_report(facts: Facts, pictures: Mapping[str, bytes]) -> str:
    """The page: facts as described in `Facts`, pictures {key: PNG bytes} -> html."""
    # autoescape is set outright: jinja2 would guess it from the file's last suffix, and .j2 guesses wrong
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"rate": rate, "cosine": cosine, "decibel": decibel, "count": "{:,}".format}
    template = environment.get_template("report.html.j2")
    whole = {**{name: kind() for name, kind in OPTIONAL.items()}, **facts}
    seconds = whole["metrics"].get("seconds", {})
    return template.render(**whole, cards=headline_cards(whole), match_rows=match_rows(whole["metrics"]),
                           fidelity=whole["metrics"].get("fidelity", {}), overlap_rows=overlap_rows(whole["metrics"]),
                           likeness_rows=likeness_rows(whole["metrics"]), compared=compared(whole["metrics"]),
                           protocol=protocol_rows(whole["metrics"]),
                           stage_rows=stage_rows(seconds, whole["stages"]),
                           total_time=duration(sum(seconds.values())), flow=count_rows(whole["counts"]),
                           flat_params=dict(flatten(whole["params"])), shown=SHOWN_AT_ONCE,
                           image=lambda key: image(key, pictures))


def image(key: str, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """What an img element needs, from a PNG or a lossy WebP: {"src": data URI, "width", "height", "pixel_art"}."""
    if key not in pictures:
        raise ValueError(f"the report's facts name picture '{key}', which is not among the {len(pictures)} "
                         "given; add its PNG bytes to `pictures` under that key")
    data = pictures[key]
    if data.startswith(PNG_SIGNATURE) and len(data) >= 24:
        kind, (width, height) = "png", struct.unpack(">II", data[16:24])
    elif data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 " and len(data) >= 30:
        kind, (width, height) = "webp", (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))    # RFC 6386, §9.1
    else:
        raise ValueError(f"picture '{key}' begins with {data[:8]!r}, which is no PNG; encode it as PNG or as lossy WebP first")
    return {"src": f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii"),
            "width": width, "height": height, "pixel_art": width <= PIXEL_ART_WIDTH}


def rate(value: float | None) -> str:
    """A share as one says it: 0.413 -> "41%", 0.004 -> "0.4%", 0.0001 -> "<0.1%", None -> "–"."""
    if value is None:
        return "–"
    if 0 < value < 0.0005 or 0.9995 < value < 1:    # neither none nor all, so never "0%" or "100%"
        return "<0.1%" if value < 0.5 else ">99.9%"
    near_an_end = 0 < value < 0.01 or 0.99 < value < 1
    return f"{100 * value:.{1 if near_an_end else 0}f}%"


def number(value: float | None, digits: int = 2) -> str:
    """A figure with its digits, a real minus sign, and a dash for None: number(-1.5) -> "−1.50"."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def cosine(value: float | None) -> str:
    return number(value, digits=3)


def decibel(value: float | None) -> str:
    return "–" if value is None else f"{number(value, digits=1)} dB"


def get(metrics: Mapping, path: str) -> Any:
    """A value by its dotted name, or None: get({"a": {"b": 1}}, "a.b") -> 1."""
    value: Any = metrics
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def flatten(nested: Mapping, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted rows: {"a": {"b": 1}} -> [("a.b", 1)]."""
    rows: list[tuple[str, Any]] = []
    for name, value in nested.items():
        is_branch = isinstance(value, Mapping) and value
        rows += flatten(value, f"{prefix}{name}.") if is_branch else [(f"{prefix}{name}", value)]
    return rows


def headline_cards(facts: Mapping) -> list[dict]:
    """The figures of the first screen, each card {"title", "figures", "verdict", "tone", "section"}."""
    metrics = facts["metrics"]
    match = metrics.get("caption_match")
    absent = [_absent_card(facts["no_caption_match"])]
    cards = [_match_card(metrics, split) for split in match] if match else absent
    return cards + [card(metrics) for card in (_score_card, _loss_card, _reconstruction_card, _codebook_card)]


def _card(title: str, section: str, figures: list[tuple], verdict: str = "", tone: str = "plain") -> dict:
    """A card; figures are (value, what it is, small print) and tone is "good", "bad" or "plain"."""
    return {"title": title, "section": section, "figures": figures, "verdict": verdict, "tone": tone}


def _best_of_words(metrics: Mapping) -> str:
    return f"best of {metrics['n']}" if metrics.get("n") else "best of all"


def _interval(rates: Mapping, end: str, words=rate) -> str:
    """"CI 38–47%", or nothing where no interval was measured."""
    between = _between(rates.get(f"{end}_interval"), words)
    return f"CI {between}" if between else ""


def _between(interval: list[float] | None, words=rate) -> str:
    """"38–47%", "29.1–29.4 dB", or nothing."""
    return f"{words(interval[0]).removesuffix('%').removesuffix(' dB')}–{words(interval[1])}" if interval else ""


def _match_card(metrics: Mapping, split: str) -> dict:
    rates, scene = (get(metrics, f"caption_match.{split}.{name}") or {} for name in ("all", "scene"))
    figures = [(rate(rates.get("best")), _best_of_words(metrics), _interval(rates, "best")),
               (rate(rates.get("n1")), "one draw", _interval(rates, "n1"))]
    verdict = (f"Colour, background and relation alone: {rate(scene.get('best'))} best, "
               f"{rate(scene.get('n1'))} one draw.")
    return _card(f"Caption match, {split}", "match", figures, verdict)


def _absent_card(reason: str) -> dict:
    return _card("Caption match", "match", [("–", "not measured", "")], reason)


def _score_card(metrics: Mapping) -> dict:
    score = metrics.get("clip_score") or {}
    figures = [(cosine(score.get("best")), _best_of_words(metrics), _interval(score, "best", cosine)),
               (cosine(score.get("n1")), "one draw", _interval(score, "n1", cosine))]
    verdict = "Cosine of picture and caption, by the scorer that also ranks."
    return _card("CLIP score", "match", figures, verdict)


def _loss_card(metrics: Mapping) -> dict:
    text, picture = (get(metrics, f"generator.val_loss_{kind}") for kind in ("text", "image"))
    figures = [(number(picture, 3), "image, nats per token", ""),
               (number(text, 3), "text, nats per token", "")]
    vocab_size = get(metrics, "codebook.vocab_size")
    if picture is None or not vocab_size:
        return _card("Validation loss", "training", figures)
    blind = math.log(vocab_size)
    verdict = f"A blind guess among {vocab_size:,} image words costs {number(blind)}; less is better."
    return _card("Validation loss", "training", figures, verdict, "good" if picture < blind else "bad")


def _reconstruction_card(metrics: Mapping) -> dict:
    hard, kmeans = (get(metrics, f"reconstruction.psnr_{kind}") for kind in ("hard", "kmeans"))
    rebuilt = metrics.get("reconstruction") or {}
    figures = [(decibel(hard), "hard PSNR", _interval(rebuilt, "psnr_hard", decibel)),
               (decibel(kmeans), "k-means", _interval(rebuilt, "psnr_kmeans", decibel))]
    if hard is None or kmeans is None:
        return _card("Reconstruction", "words", figures)
    gain = decibel(abs(hard - kmeans))
    verdict, tone = ((f"{gain} better than k-means with as many words.", "good") if hard > kmeans else
                     (f"{gain} behind k-means: the tokenizer has yet to learn more than averages.", "bad"))
    return _card("Reconstruction", "words", figures, verdict, tone)


def _codebook_card(metrics: Mapping) -> dict:
    codebook = metrics.get("codebook") or {}
    perplexity, vocab_size = codebook.get("perplexity"), codebook.get("vocab_size")
    of_words = f"of {vocab_size:,} words" if vocab_size else "of the words"
    kmeans = (number(codebook.get("perplexity_kmeans"), 0), rate(codebook.get("used_kmeans")))
    figures = [(number(perplexity, 0), "perplexity", f"k-means: {kmeans[0]}"),
               (rate(codebook.get("used")), of_words, f"k-means: {kmeans[1]}")]
    if perplexity is None or not vocab_size:
        return _card("Codebook", "words", figures)
    share = perplexity / vocab_size    # a collapsed codebook speaks with one or two words
    if share < 0.05:
        verdict = "Very few words do the work: the codebook is collapsing."
        return _card("Codebook", "words", figures, verdict, "bad")
    verdict = f"As rich as {rate(share)} of the words used evenly."
    return _card("Codebook", "words", figures, verdict, "good" if share >= 0.25 else "plain")


def match_rows(metrics: Mapping) -> list[dict]:
    """Rows of the table of attributes: {"name", "title", "cells": [{"split", "n1", "best"}]}."""
    splits = metrics.get("caption_match") or {}
    return [{"name": name, "title": title,
             "cells": [{"split": split, **(rates.get(name) or {"n1": None, "best": None})}
                       for split, rates in splits.items()]}
            for name, title in MATCH_ROWS.items() if any(name in rates for rates in splits.values())]


def overlap_rows(metrics: Mapping) -> list[dict]:
    """Rows of the table of figures with and without overlapping pictures: {"title", "with", "without"}, as words."""
    overlap = get(metrics, "fidelity.overlap") or {}
    figures = {"psnr_hard": ("hard PSNR of held-out pictures", decibel),
               **{name: (title, cosine) for name, title in DISTANCES.items()},
               "caption_match": ("caption match of one draw", rate)}
    return [{"title": title, "with": words(overlap[name]["with"]), "without": words(overlap[name]["without"])}
            for name, (title, words) in figures.items() if overlap.get(name)]


def compared(metrics: Mapping) -> dict:
    """The block of the Fréchet distance, with what it is called and whether it is FID; empty where it was not measured."""
    found = metrics.get("fidelity") or {}
    return next(({**found[name], "title": title, "is_fid": name == "fid", "is_own": not get(metrics, "protocol.features_sha256")}
                 for name, title in DISTANCES.items() if found.get(name)), {})


def likeness_rows(metrics: Mapping) -> list[dict]:
    """Rows of the table of likeness, as words: {"title", "value", "interval", "note"}; what was not measured has no row."""
    found = metrics.get("fidelity") or {}
    rows = [*_distance_rows(metrics, found), *_kernel_rows(found), *_spread_rows(found), *_recall_rows(found)]
    if scaled := get(metrics, "clip_score.scaled"):
        value = " → ".join(number(scaled[end], 1) for end in ("n1", "best"))
        between = ", ".join(filter(None, (_between(scaled.get(f"{end}_interval"), lambda one: number(one, 1))
                                          for end in ("n1", "best"))))
        rows.append(_row("CLIP score, scaled", value, between, f"100 max(cosine, 0); one draw → {_best_of_words(metrics)}"))
    return rows


def _row(title: str, value: str, interval: str, note: str) -> dict:
    return {"title": title, "value": value, "interval": interval, "note": note}


def _distance_rows(metrics: Mapping, found: Mapping) -> list[dict]:
    rows, it = [], compared(metrics)
    if it:
        note = f"{it['drawn']:,} drawn pictures to {it['real']:,} held-out ones; 0 for equal ones"
        rows.append(_row(it["title"], cosine(it["distance"][0]), _between(it.get("interval"), cosine), note))
    for name, title in DISTANCES.items():
        if best := (found.get("best_of") or {}).get(name):
            note = (f"of the best of {found['best_of']['n'][-1]} for each of {found['best_of']['captions']:,} captions; "
                    f"a single draw for each: {cosine(best[0])}")    # fmt: skip
            between = _between((found["best_of"].get(f"{name}_interval") or [None])[-1], cosine)
            rows.append(_row(f"{title}, best of n", cosine(best[-1]), between, note))
    if score := found.get("inception_score"):
        note = f"± {score['deviation']:.2g} over {score['splits']} parts of {score['drawn']:,} drawn pictures; 1 for all alike"
        rows.append(_row("Inception Score", number(score["mean"]), "", note))
    return rows


def _kernel_rows(found: Mapping) -> list[dict]:
    note = "± {deviation:.2g} over {subsets} random sets of {size}; 0 for equal ones"
    return [_row(title, f"{found[name]['mean']:.2g}", "", note.format_map(found[name]))
            for name, title in KERNELS.items() if found.get(name)]


def _spread_rows(found: Mapping) -> list[dict]:
    spread = found.get("clip_precision") or found.get("precision")
    if not spread:
        return []
    among = f"within the {spread['neighbours']} nearest"
    of = {"precision": "drawn pictures among real ones", "recall": "real pictures among drawn ones"}
    return [_row(name, rate(spread[name]), _between(spread.get(f"{name}_interval")), f"{what}, {among}")
            for name, what in of.items()]


def _recall_rows(found: Mapping) -> list[dict]:
    rows = []
    for name, what in (("captions_of_pictures", "the own caption"), ("pictures_of_captions", "the own picture")):
        if recall := (found.get("retrieval") or {}).get(name):
            value = ", ".join(rate(recall[k]) for k in ("r1", "r5", "r10"))
            between = ", ".join(filter(None, (_between(recall.get(f"{k}_interval")) for k in ("r1", "r5", "r10"))))
            note = f"of {found['retrieval']['pictures']:,} held-out ones; how well the scorer itself tells them apart"
            rows.append(_row(f"{what} first, in the first 5, in the first 10", value, between, note))
    return rows


def protocol_rows(metrics: Mapping) -> dict[str, Any]:
    """What has to be the same for the same digits, in a row each; versions and fingerprints have tables of their own."""
    told = {name: value for name, value in (metrics.get("protocol") or {}).items() if name not in ("versions", "checkpoints")}
    return {name.replace("_", " ").replace(".", ": "): value for name, value in flatten(told) if value is not None}


def stage_rows(seconds: Mapping[str, float], words: Mapping[str, str]) -> list[dict]:
    """Rows of the stage table, in the order of `seconds`; stages without a time follow with a dash."""
    total = sum(seconds.values())
    names = [*seconds, *(name for name in words if name not in seconds)]
    return [{"name": name, "words": words.get(name, ""),
             "time": duration(seconds[name]) if name in seconds else "–",
             "share": seconds.get(name, 0) / total if total else 0} for name in names]


def count_rows(counts: Counts) -> dict:
    """What became of the inputs: {"rows": [{"name", "count", "share"}], "missing": those in no row}."""
    n_in = counts.get("n_in", 0)
    rows = [{"name": name, "count": counts.get(f"n_{name}", 0),
             "share": counts.get(f"n_{name}", 0) / n_in if n_in else 0}
            for name in ("ok", "quarantined", "duplicate", "filtered")]
    return {"rows": rows, "missing": n_in - sum(row["count"] for row in rows)}
