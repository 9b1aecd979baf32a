"""File names made from prompts."""

import itertools
import re
from collections.abc import Sequence


def slug(prompt: str) -> str:
    """A prompt as a file name: slug("A red star!") -> "a-red-star" """
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "prompt"


def distinct_slugs(prompts: Sequence[str]) -> list[str]:
    """One slug per prompt, all different: ["A star", "a star!"] -> ["a-star", "a-star-2"]"""
    names: list[str] = []
    for name in map(slug, prompts):
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names.append(next(option for option in itertools.chain([name], numbered) if option not in names))
    return names
