"""Likeness of the best of n, from the one set of samples there is: as the paper's figure 9c (arXiv 2102.12092, §3.3).

Of the first n candidates of each caption the scorer's favourite stands for it, so that every n compares as many pictures.
A picture that several n pick is embedded once, and not at all where it has been.

Axes: P prompts, N held-out pictures, C candidates, D features, K classes.
"""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from thousandwords import fidelity, metrics
from thousandwords.features import Extractor
from thousandwords.samples import Samples
from thousandwords.sides import Draw, Progress, Sides, embed_drawn


def curve(by: Extractor, sides: Sides, drawn: Samples, scores: np.ndarray, progress: Progress, seed: int) -> dict:
    """The block `best_of` of metrics.json, scores (P, C); empty where fewer than 2 captions were drawn for.

    {"n": [1, 2, 4, ..., C], "captions", "real", the distance and the Inception Score by their names: one for each n, and
    "<distance>_interval": [low, high] for each n}.
    """
    steps = metrics.candidate_counts(drawn.candidates)
    prompts = list(dict.fromkeys(sides.prompts))
    if len(prompts) < 2:
        return {}
    best = {n: [(prompt, int(scores[prompt, :n].argmax())) for prompt in prompts] for n in steps}
    rows, features, logits = _embedded(by, sides, drawn, best, progress)
    told: dict = {"n": steps, "captions": len(prompts), "real": sides.real.shape[1]}
    chosen = [[rows[draw] for draw in best[n]] for n in steps]
    name, real, rng = sides.names.frechet, sides.real[0], np.random.default_rng(seed)
    told[name] = [fidelity.frechet_distance(features[picked], real) for picked in chosen]
    told[f"{name}_interval"] = [fidelity.frechet_interval(features[picked], real, prompts, rng) for picked in chosen]
    if logits.shape[1] and len(prompts) >= fidelity.SPLITS:
        told[sides.names.score] = [fidelity.inception_score(logits[picked])["mean"] for picked in chosen]
    return told


def _embedded(
    by: Extractor, sides: Sides, drawn: Samples, best: Mapping[int, list[Draw]], progress: Progress
) -> tuple[dict[Draw, int], Tensor, Tensor]:
    """{(prompt, candidate): row} of the pictures compared before and those picked now, features (rows, D), logits (rows, K)."""
    known = set(sides.draws)
    new = sorted({draw for picked in best.values() for draw in picked} - known)
    rows = {draw: row for row, draw in enumerate([*sides.draws, *new])}
    features, logits = sides.drawn[0], sides.logits[0]
    if new:
        more = embed_drawn(by, drawn, new, [0], progress)
        features, logits = torch.cat([features, more[0][0]]), torch.cat([logits, more[1][0]])
    return rows, features, logits
