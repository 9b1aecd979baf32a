"""How often a generated scene shows what its caption says, by reading the scene back from its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from thousandwords.core.progress import progress
from thousandwords.evaluation.config import SPLIT_NAMES
from thousandwords.evaluation.image_fidelity import SPLIT, NearestNeighbors, overlapping_captions
from thousandwords.evaluation.metrics import match_rates
from thousandwords.inference.sample_shards import Samples
from thousandwords.scenes.parse import match_caption
from thousandwords.scenes.render import parse_caption

Matches = dict[int, list[dict[str, bool]]]  # prompt -> {attribute: whether it is right} of each candidate


def caption_match(samples: Samples, scores: np.ndarray, seed: int) -> tuple[dict, Matches]:
    """({"seen": rates, "unseen": rates}, matches), with scores (P, N); empty where captions are free text."""
    prompts = [
        prompt
        for prompt, caption in enumerate(samples.prompts)
        if samples.splits[prompt] in SPLIT_NAMES and _is_scene_caption(caption)
    ]
    matches = {
        prompt: [match_caption(image, samples.prompts[prompt]) for image in samples.images(prompt)]
        for prompt in progress(prompts, "evaluate: reading images", len(prompts), "prompt")
    }
    rates = {}
    for split, name in SPLIT_NAMES.items():
        rows = [prompt for prompt in prompts if samples.splits[prompt] == split]
        if rows and len(rows) == samples.splits.count(split):
            attributes = matches[rows[0]][0]
            tables = {key: [[match[key] for match in matches[row]] for row in rows] for key in attributes}
            rates[name] = match_rates(scores[rows], tables, seed)
    return rates, matches


def _is_scene_caption(caption: str) -> bool:
    try:
        parse_caption(caption)
    except ValueError:
        return False
    return True


def match_without_overlap(
    neighbors: NearestNeighbors, captions: Sequence[str], samples: Samples, matches: Mapping
) -> dict:
    """{"with", "without"}: the caption match of one candidate for held-out captions, with and without those
    whose image, of the same position in `captions`, has a near duplicate in training; empty without matches."""
    rates = {
        prompt: float(np.mean([all(match.values()) for match in candidates]))
        for prompt, candidates in matches.items()
        if samples.splits[prompt] == SPLIT
    }
    if not rates:
        return {}
    overlapping = overlapping_captions(neighbors, captions)
    without = [rate for prompt, rate in rates.items() if samples.prompts[prompt] not in overlapping]
    return {
        "with": float(np.mean([*rates.values()])),
        "without": float(np.mean(without)) if without else None,
    }
