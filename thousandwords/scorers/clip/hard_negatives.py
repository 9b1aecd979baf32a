"""Hard negative captions: one word replaced, or words exchanged; an image's own must score higher.

The captions of a random batch differ in colors and objects, which is enough to tell them apart; so CLIP
learns neither which word belongs to which object nor which object is on the left (NegCLIP, arXiv 2210.01936).
NegCLIP exchanges words of one part of speech. Here the batch itself says what may be exchanged: two words
that occur between the same neighbors. That works in any language. It needs captions that share phrases; where
there are none, the words of the caption are shuffled.
"""

from __future__ import annotations

import random
from collections import defaultdict

Substitutes = dict[str, list[str]]  # a word -> the words that may replace it, sorted


def hard_captions(captions: list[str], count: int, seed: int) -> list[str]:
    """`count` altered captions for each caption, those of the first caption first; the three kinds alternate.

    hard_captions(["a red cat", "a blue cat"], 1, seed=0) -> ["a blue cat", "a red cat"]
    """
    rng = random.Random(seed)
    sentences = [caption.split() for caption in captions]
    substitutes = _substitutes(sentences)
    kinds = (_replace_one, _exchange_all, _exchange_one)
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


def _exchange_one(words: list[str], substitutes: Substitutes, rng: random.Random) -> list[str]:
    """Exchange one pair of substitutes: the right words, one of them with the wrong object."""
    pairs = _substitute_pairs(words, substitutes)
    return _exchange(words, [rng.choice(pairs)]) if pairs else _replace_one(words, substitutes, rng)


def _exchange_all(words: list[str], substitutes: Substitutes, rng: random.Random) -> list[str]:
    """Exchange all pairs of substitutes: the right objects, the relation reversed."""
    pairs = _substitute_pairs(words, substitutes)
    return _exchange(words, pairs) if pairs else _replace_one(words, substitutes, rng)


def _substitute_pairs(words: list[str], substitutes: Substitutes) -> list[tuple[int, int]]:
    """Pairs of positions whose words may replace each other, each position in one pair at most."""
    pairs, used = [], set()
    for first, word in enumerate(words):
        for second in range(first + 1, len(words)):
            if words[second] in substitutes[word] and not used & {first, second}:
                pairs.append((first, second))
                used |= {first, second}
    return pairs


def _exchange(words: list[str], pairs: list[tuple[int, int]]) -> list[str]:
    exchanged = list(words)
    for first, second in pairs:
        exchanged[first], exchanged[second] = words[second], words[first]
    return exchanged
