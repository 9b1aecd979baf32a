"""Hard negative captions: one word replaced, or words exchanged; an image's own must score higher.

From a random batch CLIP learns neither which word belongs to which object nor which object is on the left
(NegCLIP, arXiv 2210.01936). NegCLIP exchanges words of one part of speech; here words are exchanged that occur
between the same neighbors in the batch, in any language. Where there are none, the caption is shuffled.
"""

import random
from collections import defaultdict
from functools import partial

Substitutes = dict[str, list[str]]  # a word -> the words that may replace it, sorted


def hard_captions(captions: list[str], count: int, seed: int) -> list[str]:
    """`count` altered captions for each caption, those of the first caption first; the three kinds alternate.

    hard_captions(["a red cat", "a blue cat"], 1, seed=0) -> ["a blue cat", "a red cat"]
    """
    rng = random.Random(seed)
    sentences = [caption.split() for caption in captions]
    substitutes = _substitutes(sentences)
    kinds = (_replace_one, _exchange, partial(_exchange, is_one=True))
    return [
        " ".join(kinds[turn % len(kinds)](words, substitutes, rng))
        for words in sentences
        for turn in range(count)
    ]


def _substitutes(sentences: list[list[str]]) -> Substitutes:
    """Words that occur between the same neighbors: "a red cat", "a blue cat" -> {"red": ["blue"], …}"""
    between = defaultdict(set)
    for words in sentences:
        framed = ["", *words, ""]
        for before, word, after in zip(framed, framed[1:], framed[2:], strict=False):
            between[before, after].add(word)
    substitutes = defaultdict(set)
    for group in between.values():
        for word in group:
            substitutes[word] |= group - {word}
    return {word: sorted(others) for word, others in substitutes.items()}


def _replace_one(words: list[str], substitutes: Substitutes, rng: random.Random) -> list[str]:
    """Replace one word: a wrong color, a wrong object or a wrong relation."""
    positions = [position for position, word in enumerate(words) if substitutes[word]]
    if not positions:
        return rng.sample(words, len(words))
    position = rng.choice(positions)
    return [*words[:position], rng.choice(substitutes[words[position]]), *words[position + 1 :]]


def _exchange(
    words: list[str], substitutes: Substitutes, rng: random.Random, is_one: bool = False
) -> list[str]:
    """Exchange all pairs of substitutes (the relation reversed), or one (a word with the wrong object)."""
    pairs = _substitute_pairs(words, substitutes)
    if not pairs:
        return _replace_one(words, substitutes, rng)
    exchanged = list(words)
    for first, second in [rng.choice(pairs)] if is_one else pairs:
        exchanged[first], exchanged[second] = words[second], words[first]
    return exchanged


def _substitute_pairs(words: list[str], substitutes: Substitutes) -> list[tuple[int, int]]:
    """Pairs of positions whose words may replace each other, each position in one pair at most."""
    pairs, used = [], set()
    for first, word in enumerate(words):
        for second in range(first + 1, len(words)):
            if words[second] in substitutes[word] and not used & {first, second}:
                pairs.append((first, second))
                used |= {first, second}
    return pairs
