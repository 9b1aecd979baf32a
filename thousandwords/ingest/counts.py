"""What became of the inputs: counted one by one as they go by, added up, and too great a loss refused."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thousandwords import captions
from thousandwords.errors import UserError
from thousandwords.pair_settings import Config

if TYPE_CHECKING:
    from thousandwords.pairs import Pair, Refusal

FATES = ("n_ok", "n_quarantined", "n_duplicate", "n_filtered")    # each input has one; they add up to n_in
FILTERS = ("too_small", "bad_aspect", *captions.REASONS)    # reasons that lie in a setting, not in the input


class BadData(UserError):
    """The source can be read, but what it gave is not fit to train on."""


class Tally:
    """What is counted of the inputs as they go by."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()    # reasons of captions that pairs which stay have lost
        self.texts = Counter(original=0, recaptioned=0)    # which of the two each pair that stays is trained on
        self.formats: Counter[str] = Counter()    # of the pictures that stay, as are their flags
        self.flags: Counter[str] = Counter()
        self.by_shard: dict[str, Counter[str]] = {}

    def add(self, outcome: Pair | Refusal, fate: str) -> None:
        """One input; `fate` is the name of the count that it falls to."""
        if outcome.shard is not None:
            shard = self.by_shard.setdefault(outcome.shard, Counter(dict.fromkeys(("n_in", *FATES), 0)))
            shard.update(("n_in", fate))
        if fate == "n_ok":
            self.dropped.update(outcome.dropped)
            self.texts["recaptioned" if outcome.is_recaptioned else "original"] += 1
            self.formats.update(filter(None, [outcome.format]))
            self.flags.update(outcome.flags)

    def found(self) -> dict[str, dict]:
        """What there was of formats, flags and shards; of scenes none."""
        shards = {name: dict(counts) for name, counts in self.by_shard.items()}
        found = {"formats": dict(self.formats.most_common()), "flags": dict(self.flags.most_common()), "by_shard": shards}
        return {name: counts for name, counts in found.items() if counts}


def counts_of(splits: dict[str, int], refusals: Sequence[Refusal], duplicates: int) -> dict:
    """What became of the inputs."""
    reasons = Counter(refusal.reason for refusal in refusals)
    filtered = sum(reasons[reason] for reason in FILTERS)
    return {
        "n_in": sum(splits.values()) + len(refusals) + duplicates, "n_ok": sum(splits.values()),
        "n_quarantined": len(refusals) - filtered, "n_duplicate": duplicates, "n_filtered": filtered,
        "reasons": dict(reasons.most_common()), "splits": splits,
    }


def check_counts(counts: dict, refusals: Sequence[Refusal], config: Config) -> None:
    """BadData where too much was refused, or nothing is left, or a split has nothing.

    Captions are sifted only on request, so what they take with them is no sign of bad data and stays out of the share.
    """
    place = config.place
    refused = [refusal for refusal in refusals if refusal.reason not in captions.REASONS]
    looked_at = counts["n_in"] - (len(refusals) - len(refused))
    if refusals and not looked_at:
        raise BadData(f"The caption filters leave none of the {counts['n_in']} inputs of {place}: {_histogram(refusals)}. "
                      "Change data.min_caption_words, data.boilerplate or data.language")
    share = len(refused) / max(1, looked_at)
    if share > config.max_refused_share or share == 1:
        raise BadData(f"{len(refused)} of the {looked_at} inputs of {place} were refused "
                      f"({share:.0%}): {_histogram(refused)}. "
                      f"Mend them, or raise data.max_refused_share (now {config.max_refused_share:g})")
    for split in ("train", "validation"):
        if split not in counts["splits"]:
            raise BadData(f"None of the {counts['n_ok']} pairs of {place} fell to the {split} split. "
                          f"Add pairs, or change data.validation_share (now {config.validation_share:g}) "
                          "or data.group_by")


def _histogram(refusals: Sequence[Refusal]) -> str:
    """Each reason with its count and its first case: "2 truncated (cat.png: image file is truncated)"."""
    first = {refusal.reason: refusal for refusal in reversed(refusals)}
    reasons = Counter(refusal.reason for refusal in refusals)
    return ", ".join(f"{count} {reason} ({first[reason].id}: {first[reason].detail})"
                     for reason, count in reasons.most_common())
