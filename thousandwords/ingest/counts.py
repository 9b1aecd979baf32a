"""Count the outcome of each input, and reject data of which too much is lost."""

from collections import Counter
from collections.abc import Callable, Sequence

from thousandwords.core.errors import UserError
from thousandwords.ingest import caption_filter
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.records import Pair, Rejection

OUTCOMES = ("n_ok", "n_quarantined", "n_duplicate", "n_filtered")  # each input has one; they add up to n_in
UNLISTED = "not_listed"  # an image beside a list that does not name it
# reasons due to a setting or to the list, not to a bad input
FILTERS = ("too_small", "bad_aspect", UNLISTED, *caption_filter.REASONS)

FIXES = {"too_small": "lower data.min_side", "bad_aspect": "raise data.max_aspect"}


class BadData(UserError):
    """The source is readable, but its data cannot be used for training."""


class OutcomeCounter:
    """Counts the inputs one by one."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()  # reasons for captions that accepted pairs have lost
        self.texts = Counter({"original": 0, "recaptioned": 0})  # what accepted pairs are trained on
        self.formats: Counter[str] = Counter()  # of the images of accepted pairs
        self.flags: Counter[str] = Counter()
        self.by_shard: dict[str, Counter[str]] = {}

    def add(self, outcome: Pair | Rejection, count: str) -> None:
        """Count one input; `count` is one of OUTCOMES."""
        if outcome.shard is not None:
            shard = self.by_shard.setdefault(outcome.shard, Counter(dict.fromkeys(("n_in", *OUTCOMES), 0)))
            shard.update(("n_in", count))
        if count == "n_ok":
            self.dropped.update(outcome.dropped)
            self.texts["recaptioned" if outcome.is_recaptioned else "original"] += 1
            self.formats.update(filter(None, [outcome.format]))
            self.flags.update(outcome.flags)

    def image_counts(self) -> dict[str, dict]:
        """Counts of formats, flags and source shards, without empty ones; none for scenes."""
        counts = {
            "formats": dict(self.formats.most_common()),
            "flags": dict(self.flags.most_common()),
            "by_shard": {name: dict(shard) for name, shard in self.by_shard.items()},
        }
        return {name: values for name, values in counts.items() if values}


def counts_of(splits: dict[str, int], rejections: Sequence[Rejection], duplicates: int) -> dict:
    """The counts of all inputs: {"n_in", "n_ok", …, "reasons", "splits"}."""
    reasons = Counter(rejection.reason for rejection in rejections)
    filtered = sum(reasons[reason] for reason in FILTERS)
    return {
        "n_in": sum(splits.values()) + len(rejections) + duplicates,
        "n_ok": sum(splits.values()),
        "n_quarantined": len(rejections) - filtered,
        "n_duplicate": duplicates,
        "n_filtered": filtered,
        "reasons": dict(reasons.most_common()),
        "splits": splits,
    }


def check_counts(
    counts: dict, rejections: Sequence[Rejection], config: DataConfig, needed_share: Callable[[], float]
) -> None:
    """Raise BadData if too many inputs were rejected, or nothing is left, or a split is empty."""
    check_rejections(counts["n_in"], counts["n_ok"], rejections, config)
    for split in ("train", "validation"):
        if split not in counts["splits"]:
            raise BadData(
                f"None of the {counts['n_ok']} pairs of {config.source_name} is in the {split} split. "
                f"Add pairs, or change data.validation_share (now {config.validation_share:g}"
                + (f"; {needed_share():g} holds out one" if split == "validation" else "")
                + ") or data.group_by"
            )


def check_rejections(num_in: int, num_ok: int, rejections: Sequence[Rejection], config: DataConfig) -> None:
    """Raise BadData if too many inputs were rejected, or fewer than two pairs are left.

    Caption filters are off by default, so the inputs that they remove are no sign of bad data and are left
    out of the share, like images that the list does not name.
    """
    no_fault = (UNLISTED, *caption_filter.REASONS)
    rejected = [rejection for rejection in rejections if rejection.reason not in no_fault]
    checked = num_in - (len(rejections) - len(rejected))
    if rejections and not checked:
        raise BadData(
            f"The caption filters leave none of the {num_in} inputs of {config.source_name}: "
            f"{histogram(rejections)}. "
            "Change data.min_caption_words, data.boilerplate or data.language"
        )
    share = len(rejected) / max(1, checked)
    limit = config.max_refused_share
    if share > limit or share == 1:
        reasons = {rejection.reason for rejection in rejected}
        fixes = ["Fix them", *(fix for reason, fix in FIXES.items() if reason in reasons)]
        fixes += [f"raise data.max_refused_share (now {limit:g})"] if share < 1 else []
        raise BadData(
            f"{len(rejected)} of the {checked} inputs of {config.source_name} were rejected "
            f"({share:.0%}): {histogram(rejected)}. {', or '.join(fixes)}"
        )
    if num_ok < 2:
        same = num_in - num_ok - len(rejections)
        raise BadData(
            f"{config.source_name} has {num_ok} pair ({same} more have the same image and caption, {len(rejections)} were "
            "rejected). Training needs 2 or more: one to learn from, one held out. Add images"
        )


def histogram(rejections: Sequence[Rejection]) -> str:
    """Each reason with its count and first case: "2 truncated (cat.png: image file is truncated)"."""
    first = {rejection.reason: rejection for rejection in reversed(rejections)}
    reasons = Counter(rejection.reason for rejection in rejections)
    return ", ".join(
        f"{count} {reason} ({first[reason].id}: {first[reason].detail})"
        for reason, count in reasons.most_common()
    )
