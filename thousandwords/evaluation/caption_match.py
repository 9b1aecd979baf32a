"""How often a generated scene shows what its caption says."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from thousandwords.evaluation.config import SPLIT_NAMES
from thousandwords.evaluation.metrics import match_rates
from thousandwords.inference.sample_shards import Samples
from thousandwords.scenes.parse import match_caption
from thousandwords.scenes.render import parse_caption


def is_scene_caption(caption: str) -> bool:
    """Whether images can be checked against this caption: it describes one of the built-in scenes."""
    try:
        parse_caption(caption)
    except ValueError:
        return False
    return True


def caption_match(
    samples: Samples, scores: np.ndarray, seed: int, progress: Callable[[Iterable, int], Iterable]
) -> tuple[dict, dict[int, list[dict[str, bool]]]]:
    """({"seen": rates, "unseen": rates}, {prompt: [matches of each candidate]}); empty where captions are
    free text.

    scores (P, N). Each split's rates are those of `metrics.match_rates`.
    """
    prompts = [
        prompt
        for prompt, caption in enumerate(samples.prompts)
        if samples.splits[prompt] in SPLIT_NAMES and is_scene_caption(caption)
    ]
    matches = {
        prompt: [match_caption(image, samples.prompts[prompt]) for image in samples.images(prompt)]
        for prompt in progress(prompts, len(prompts))
    }
    rates = {}
    for split, name in SPLIT_NAMES.items():
        rows = [prompt for prompt in prompts if samples.splits[prompt] == split]
        if rows and len(rows) == samples.splits.count(split):
            attributes = matches[rows[0]][0]
            tables = {key: [[match[key] for match in matches[row]] for row in rows] for key in attributes}
            rates[name] = match_rates(scores[rows], tables, np.random.default_rng(seed))
    return rates, matches
