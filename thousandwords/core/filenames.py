"""File names made from prompts."""

import re
import unicodedata
from collections.abc import Sequence

# file systems allow 255 bytes; what is added to a slug (-inpainted-seed…, .png, a number) needs at most 70
MAX_CHARACTERS, MAX_BYTES = 60, 180


def slug(prompt: str) -> str:
    """A prompt as a file name: slug("A red star!") -> "a-red-star"; letters of any script and emoji stay."""
    kept = "".join(character if _is_kept(character) else "-" for character in prompt.lower())
    name = re.sub("-+", "-", kept).strip("-")[:MAX_CHARACTERS]
    # a letter of another script has up to 4 bytes
    return name.encode()[:MAX_BYTES].decode(errors="ignore").strip("-") or "prompt"


def _is_kept(character: str) -> bool:
    """Letters, digits, the marks on them, and symbols such as emoji."""
    category = unicodedata.category(character)
    return category[0] in "LMN" or category == "So" or character == "_"


def distinct_slugs(prompts: Sequence[str]) -> list[str]:
    """One slug per prompt, all different: ["A star", "a star!"] -> ["a-star", "a-star-2"]"""
    names: dict[str, None] = {}
    next_numbers: dict[str, int] = {}  # of a slug that many prompts have
    for name in map(slug, prompts):
        option = name
        while option in names:
            next_numbers[name] = next_numbers.get(name, 1) + 1
            option = f"{name}-{next_numbers[name]}"
        names[option] = None
    return list(names)
