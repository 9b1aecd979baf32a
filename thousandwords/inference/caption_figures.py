"""Figures of captions: how varied they are, and of scenes how many are right."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from thousandwords.scenes.parse import ATTRIBUTES, match_caption
from thousandwords.scenes.render import parse_caption


def distinct_ngrams(captions: Sequence[str], n: int) -> float:
    """The number of different n-grams of words, divided by that of all (arXiv 1510.03055 §5): low where captions repeat.

    distinct_ngrams(["a red star", "a red ring"], 2) -> 0.75
    """
    counts: Counter = Counter()
    for caption in captions:
        words = caption.split()
        counts.update(zip(*(words[start:] for start in range(n)), strict=False))
    return len(counts) / max(1, counts.total())


def describe_captions(captions: Sequence[str]) -> dict[str, float]:
    """How varied captions are: {"words", "distinct_1", "distinct_2", "distinct_3", "different"}."""
    figures = {f"distinct_{n}": distinct_ngrams(captions, n) for n in (1, 2, 3)}
    words = sum(len(caption.split()) for caption in captions) / len(captions)
    return {"words": words, **figures, "different": len(set(captions)) / len(captions)}


def scene_accuracy(images: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """The shares of scenes uint8 (B, H, W, 3) whose caption is right: {"all", each attribute, "readable", "with_background"}.

    A caption that is none of a scene's is wrong in everything; one that names no background is right about it.
    """
    counts: Counter = Counter()
    for image, caption in zip(images, captions, strict=True):
        try:
            scene, matches = parse_caption(caption), match_caption(image, caption)
        except ValueError:
            continue
        counts.update(name for name, is_right in matches.items() if is_right)
        counts.update(["readable", *["all"] * all(matches.values())])
        counts.update(["with_background"] * (scene.background is not None))
    names = ("all", *ATTRIBUTES, "readable", "with_background")
    return {name: counts[name] / len(captions) for name in names}
