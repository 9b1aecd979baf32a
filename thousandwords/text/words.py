"""The words of a text in any script: words("A 红星, it's 👩‍🚀") -> ["a", "红", "星", "it's", "👩‍🚀"]

Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) count by character, and each emoji
is a word. Left out: a dictionary of words for these scripts.
"""

import functools
import re
import unicodedata

from thousandwords.core.unspaced_scripts import WITHOUT_SPACES
from thousandwords.text.normalize import normalize

# classes of characters: L letter or digit, S a word by itself, R half a flag, M added to the one before,
# Z joins emoji, J joins letters (it's, t-shirt)
_WORD = re.compile(r"L[LMZ]*(?:J[LMZ]+)*|SM*(?:ZSM*)*|RR?M*")


def words(text: str) -> list[str]:
    """The words of a text, normalized, without punctuation."""
    clean = normalize(text)
    classes = "".join(map(_class_of, clean))
    return [clean[match.start() : match.end()] for match in _WORD.finditer(classes)]


@functools.lru_cache(maxsize=2**16)
def _class_of(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\u200d":
        return "Z"
    if category.startswith("M") or "\U0001f3fb" <= character <= "\U0001f3ff":  # marks, skin tones
        return "M"
    if category == "Cf":  # no width; U+200B is where a word ends
        return " " if character == "\u200b" else "M"
    if "\U0001f1e6" <= character <= "\U0001f1ff":
        return "R"
    if WITHOUT_SPACES.match(character) and category[0] in "LN" or category == "So" and character > "\u2190":
        return "S"
    if category[0] in "LN" or character == "_":
        return "L"
    return "J" if character in "'’-" else " "
