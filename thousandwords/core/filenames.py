"""File names that read like what is in the file."""
from __future__ import annotations

import itertools
import re
from collections.abc import Sequence


def slug(prompt: str) -> str:
    """A file name that reads like the prompt: slug("A red star!") -> "a-red-star" """
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "prompt"


def distinct_slugs(prompts: Sequence[str]) -> list[str]:
    """A slug for each prompt, none of them twice: ["A star", "a star!"] -> ["a-star", "a-star-2"]"""
    names: list[str] = []
    for name in map(slug, prompts):
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names.append(next(one for one in itertools.chain([name], numbered) if one not in names))
    return names
