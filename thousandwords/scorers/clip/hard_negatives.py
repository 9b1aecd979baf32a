"""Captions that are nearly right: one word another, or two words exchanged. A picture's own caption must beat them.

Contrastive batches drawn at random are told apart by their colours and objects alone, and CLIP learns neither which word
belongs to which thing nor who stands left of whom (NegCLIP, arXiv 2210.01936). There, parts of speech say which words may be
exchanged; here, the batch does: two words that occur between the same neighbours may stand for each other. That knows no
language. It needs captions that are alike somewhere; where none is, the words of the caption are shuffled.
"""
from __future__ import annotations

import random
from collections import defaultdict

Rivals = dict[str, list[str]]    # a word -> the words that may stand in its place, sorted


def hard_captions(captions: list[str], count: int, seed: int) -> list[str]:
    """`count` altered captions for each caption, those of the first caption first; their kinds take turns.

    hard_captions(["a red cat", "a blue cat"], 1, seed=0) -> ["a blue cat", "a red cat"]
    """
    rng = random.Random(seed)
    sentences = [caption.split() for caption in captions]
    rivals = _rivals(sentences)
    kinds = (_replace_one, _exchange_all, _exchange_one)
    return [
        " ".join(kinds[turn % len(kinds)](words, rivals, rng)) for words in sentences for turn in range(count)
    ]


def _rivals(sentences: list[list[str]]) -> Rivals:
    """Words that were seen between the same two neighbours are rivals: "a red cat", "a blue cat" -> red: [blue]"""
    between = defaultdict(set)
    for words in sentences:
        framed = ["", *words, ""]
        for before, word, after in zip(framed, framed[1:], framed[2:], strict=False):
            between[before, after].add(word)
    rivals = defaultdict(set)
    for seen in between.values():
        for word in seen:
            rivals[word] |= seen - {word}
    return {word: sorted(others) for word, others in rivals.items()}


def _replace_one(words: list[str], rivals: Rivals, rng: random.Random) -> list[str]:
    """Another word in one place: a wrong colour, a wrong thing, a wrong relation."""
    places = [place for place, word in enumerate(words) if rivals[word]]
    if not places:
        return rng.sample(words, len(words))
    place = rng.choice(places)
    return [*words[:place], rng.choice(rivals[words[place]]), *words[place + 1 :]]


def _exchange_one(words: list[str], rivals: Rivals, rng: random.Random) -> list[str]:
    """Two rivals change places: the right words, one of them with the wrong thing."""
    pairs = _rival_places(words, rivals)
    return _exchange(words, [rng.choice(pairs)]) if pairs else _replace_one(words, rivals, rng)


def _exchange_all(words: list[str], rivals: Rivals, rng: random.Random) -> list[str]:
    """All rivals change places: the right things, the relation the other way round."""
    pairs = _rival_places(words, rivals)
    return _exchange(words, pairs) if pairs else _replace_one(words, rivals, rng)


def _rival_places(words: list[str], rivals: Rivals) -> list[tuple[int, int]]:
    """Pairs of places whose words are rivals, each place in one pair at most."""
    pairs, taken = [], set()
    for first, word in enumerate(words):
        for second in range(first + 1, len(words)):
            if words[second] in rivals[word] and not taken & {first, second}:
                pairs.append((first, second))
                taken |= {first, second}
    return pairs


def _exchange(words: list[str], pairs: list[tuple[int, int]]) -> list[str]:
    exchanged = list(words)
    for first, second in pairs:
        exchanged[first], exchanged[second] = words[second], words[first]
    return exchanged
