"""How like the held-out pictures the drawn ones are, and which of both training has all but seen: models in, figures out.

How like they are is measured by the features that `evaluation.features` names. The scorer's own embedding is at hand but is not
Inception's: `clip_frechet` compares runs of one scorer with each other, and no run with a published FID. A distance depends on
the number of pictures too, which is told beside it. Neighbours and retrieval are always the scorer's.

A drawn picture that is as near to a training picture as a twin may be learned by heart; the share of held-out pictures that
are so near, which nobody learned, stands beside it. Mind that drawn pictures come from the image tokenizer, which smooths them:
that takes a picture learned by heart a little away from its original.

Left out: the best of n (`best_of`), and the raters (`metrics.majority`).

Axes: R radii of blur, N held-out and M drawn pictures, D the embedding's width, K classes.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandwords import fidelity, neighbours
from thousandwords.evaluation import Config
from thousandwords.features import Extractor, own_clip
from thousandwords.fidelity import Overlap
from thousandwords.retrieval import retrieval
from thousandwords.samples import Samples
from thousandwords.sides import BATCH_SIZE, SPLIT, Draw, Pictures, Progress, Sides, embed, embed_drawn, embed_sides
from thousandwords.twins import by_chance

PAIRED = 1024    # held-out and training pictures, each with each, whose cosines tell what chance is
ALL_BUT_EQUAL = 1 - 1e-7    # Fisher's z of equal pictures is infinite


@dataclass(frozen=True)
class HeldOut:
    """N held-out pictures, and what is known of each."""

    images: Tensor    # (N, 3, H, W)
    captions: list[str]    # as the generator was given them
    psnr: Tensor    # (N,) dB, of its reconstruction


@dataclass(frozen=True)
class Found:
    """The nearest training picture of each held-out, drawn and training one."""

    held_out: Overlap
    within: Overlap | None    # of the training pictures themselves, each without itself; None of a single one
    drawn: Overlap | None
    draws: list[Draw]    # of the drawn ones


def measure(
    scorer: nn.Module, held_out: HeldOut, training: Pictures, seen: int, drawn: Samples, config: Config, progress: Progress,
    seed: int = 0, by: Extractor | None = None,
) -> tuple[dict, Found | None, Sides | None]:
    """The block `fidelity` of metrics.json, the neighbours that it speaks of, and the two sides that were compared.

    `training` gives pictures by row, and `seen` of them are looked at; `seed` picks subsets; `by` is what the two sides are
    compared by, the scorer where it is None. What has too few pictures, or is off, is absent.
    """
    own = own_clip(scorer)
    by, is_own = by or own, by is None
    real = held_out.images[: config.frechet_pictures]
    ours = embed(own, held_out.images.__getitem__, len(held_out.images), [0], progress)[0]    # (1, N, D)
    trained = embed(own, training, seen, [0], progress)[0][0] if seen else None    # (seen, D)
    sides = embed_sides(by, real, drawn, progress, ours[:, : len(real)] if is_own else None)
    figures = {**sides.spread(seed), **sides.scores()} if sides else {}
    figures["retrieval"] = retrieval(ours[0], embed_captions(scorer, held_out.captions), seed)
    if sides:
        enough = seen >= len(real)
        yardstick = trained if is_own or not enough else embed(by, training, len(real), [0], progress)[0][0]
        figures[by.names.frechet] = sides.sweep(seed) | (sides.yardstick(yardstick) if enough else {})
    if trained is None:
        return figures, None, sides
    towards = None
    if sides:
        towards = sides.drawn[0] if is_own else embed_drawn(own, drawn, sides.draws, [0], progress)[0][0]
    found = find(ours[0], trained, towards, sides.draws if sides else [], config.overlap_threshold)
    if sides:
        is_known = found.held_out.is_overlapping[: len(real)]
        figures[by.names.frechet]["without_overlap"] = sides.sweep_without(is_known, known_captions(found, held_out.captions))
        figures["memorisation"] = memorisation_figures(found, seen, sides)
    overlap = overlap_figures(found, held_out, seen, figures, by.names.frechet)
    return figures | {"overlap": overlap | {"by_chance": threshold_by_chance(ours[0], trained)}}, found, sides


def find(
    ours: Tensor, trained: Tensor, drawn: Tensor | None, draws: list[Draw], threshold: float | None
) -> Found:
    """Neighbours of held-out (N, D), training (seen, D) and drawn pictures (M, D) among the training ones, by one threshold."""
    threshold = threshold_by_chance(ours, trained) if threshold is None else threshold
    within = fidelity.Overlap(*neighbours.nearest_other(trained), threshold) if len(trained) > 1 else None
    towards = None if drawn is None else fidelity.overlap(drawn, trained, threshold)
    return Found(fidelity.overlap(ours, trained, threshold), within, towards, draws)


def threshold_by_chance(ours: Tensor, trained: Tensor) -> float:
    """The cosine above which 1 held-out picture in 100 has a training neighbour that is none but by chance (`twins.by_chance`).

    On the scale of Fisher's z a tail that is carried on ends short of 1.
    """
    others = len(trained)
    ours, trained = (rows[:: max(1, len(rows) // PAIRED)] for rows in (ours, trained))
    cosines = functional.normalize(ours.float(), dim=1) @ functional.normalize(trained.float(), dim=1).T
    apart = -torch.atanh(cosines.double().clamp(-ALL_BUT_EQUAL, ALL_BUT_EQUAL)).flatten().numpy()
    return round(float(np.tanh(-by_chance(apart, others))), 7)


def overlap_figures(found: Found, held_out: HeldOut, seen: int, figures: dict, distance: str) -> dict:
    """The block `overlap` of metrics.json: the headline figures with and without what overlaps.

    Without a held-out picture means without what was drawn for its caption as well. `distance` is the name of the Fréchet
    distance among the `figures`, where it was measured.
    """
    is_new = ~found.held_out.is_overlapping
    told = {
        "threshold": found.held_out.threshold,
        "held_out": len(is_new),
        "training": seen,
        "share": found.held_out.share,
        "share_within_training": found.within.share if found.within else None,
        "psnr_hard": {"with": float(held_out.psnr.mean()), "without": _mean(held_out.psnr[is_new])},
    }
    if sweep := figures.get(distance):
        told[distance] = {"with": sweep["distance"][0], "without": sweep["without_overlap"][0]}
    return told


def counts(held_out: HeldOut, seen: int, sides: Sides | None) -> dict[str, int]:
    """How many pictures were looked at: a part of the protocol."""
    told = {"held_out": len(held_out.images), "training": seen}
    return told | ({"real": sides.real.shape[1], "drawn": len(sides.draws), "captions": len(set(sides.prompts))} if sides else {})


def known_captions(found: Found, captions: Sequence[str]) -> set[str]:
    """Those of the held-out pictures' captions whose picture training has all but seen."""
    return {caption for caption, one in zip(captions, found.held_out.is_overlapping.tolist(), strict=True) if one}


def memorisation_figures(found: Found, seen: int, sides: Sides) -> dict:
    """The block `memorisation` of metrics.json: how near drawn pictures come to training ones, and held-out ones do."""
    both = {"drawn": found.drawn, "held_out": found.held_out}
    return {
        "threshold": found.drawn.threshold,
        "drawn": len(found.drawn.similarity),
        "captions": len(set(sides.captions)),
        "training": seen,
        "share": {name: side.share for name, side in both.items()},
        "median_similarity": {name: float(side.similarity.quantile(0.5)) for name, side in both.items()},
    }


def match_figures(found: Found, captions: Sequence[str], drawn: Samples, read: Mapping[int, list[dict[str, bool]]]) -> dict:
    """{"with", "without"}: the caption match of one draw for held-out captions, with those of overlapping pictures and without.

    `captions` are those of the held-out pictures, `read` what `evaluation.caption_match` read; empty where nothing was.
    """
    known = known_captions(found, captions)
    rates = {prompt: float(np.mean([all(one.values()) for one in rows])) for prompt, rows in read.items()
             if drawn.splits[prompt] == SPLIT}    # fmt: skip
    new = [rate for prompt, rate in rates.items() if drawn.prompts[prompt] not in known]
    return {"with": float(np.mean([*rates.values()])), "without": float(np.mean(new)) if new else None} if rates else {}


@torch.no_grad()
def embed_captions(scorer: nn.Module, captions: Sequence[str]) -> Tensor:
    """The scorer's vectors of captions: (N, D), on the CPU."""
    parts = [scorer.embed_captions(captions[start : start + BATCH_SIZE]).cpu() for start in range(0, len(captions), BATCH_SIZE)]
    return torch.cat(parts)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
