"""Whether a version may become the champion: figures against the champion's, and what is known against it. Pure.

A figure is compared only where both versions can be held to the same yardstick: `if_same` names the part (the scorer of a CLIP
score, say) that has to be the very same in both, and a figure that neither has counts for nothing. Left out: significance; the
margin stands for it.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from thousandwords.config import ConfigError

PARTS = ("text_tokenizer", "image_tokenizer", "generator", "scorer")


@dataclass(frozen=True)
class Rule:
    """One figure of results/metrics.json, by its dotted name."""

    name: str
    better: Literal["higher", "lower"]
    margin: float = 0.0  # how much worse than the champion's it may be
    limit: float | None = None  # worse than this is refused, champion or not; null: no such limit
    if_same: str | None = None  # compared only if both versions have this part in common
    required: bool = False  # refused where the candidate lacks it; else a figure that is not there is passed over

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise ConfigError(f"params.yaml: gate.metrics: {self.name} has the margin {self.margin}; it needs to be 0 or more")
        if self.if_same is not None and self.if_same not in PARTS:
            raise ConfigError(
                f"params.yaml: gate.metrics: {self.name} has if_same {self.if_same!r}; it can be: {', '.join(PARTS)}"
            )

    def is_worse(self, value: float, bar: float) -> bool:
        return value < bar if self.better == "higher" else value > bar

    def bar(self, champions: float) -> float:
        """The worst value that still passes beside the champion's."""
        return champions - self.margin if self.better == "higher" else champions + self.margin


RULES = (
    Rule("reconstruction.psnr_hard", "higher", margin=0.3, required=True),  # dB
    Rule("caption_match.seen.all.n1", "higher", margin=0.03),
    Rule("caption_match.unseen.all.n1", "higher", margin=0.05),
    Rule("generator.val_loss_image", "lower", margin=0.02, if_same="image_tokenizer"),  # nats; of that tokenizer's words
    Rule("clip_score.n1", "higher", margin=0.01, if_same="scorer"),  # a cosine, in that scorer's opinion
)


@dataclass(frozen=True)
class Config:
    """The section `gate` of params.yaml; it may be left out."""

    minimum_prompts: int = 64  # that the figures of drawn pictures come from
    metrics: tuple[Rule, ...] = RULES

    def __post_init__(self) -> None:
        if self.minimum_prompts < 1:
            raise ValueError(f"gate.minimum_prompts is {self.minimum_prompts}; it needs to be 1 or more")
        if not self.metrics:
            raise ValueError("gate.metrics is empty; it needs a figure to compare, or leave it out for the usual ones")


@dataclass(frozen=True)
class Evidence:
    """What is known of a version: its figures, how many prompts they come from, its parts, and what speaks against it."""

    metrics: dict[str, float] | None  # by dotted name; None: never evaluated
    prompts: int = 0
    parts: dict[str, str] = field(default_factory=dict)  # part -> fingerprint
    problems: tuple[str, ...] = ()  # sentences, each with its mend


def decide(config: Config, candidate: Evidence, champion: Evidence | None) -> list[str]:
    """Why the candidate may not become champion, one sentence each; empty: it may. Without a champion only limits count."""
    refusals = list(candidate.problems)
    if candidate.metrics is None:
        return [*refusals, "it was never evaluated: results/metrics.json is missing. Run: dvc repro, then register it again"]
    if candidate.prompts < config.minimum_prompts:
        refusals.append(
            f"its figures come from {candidate.prompts} prompts, but gate.minimum_prompts is {config.minimum_prompts}. "
            "Raise sampling.prompts_per_split and run: dvc repro, then register it again"
        )
    return refusals + [said for rule in config.metrics for said in _judge(rule, candidate, champion)]


def _judge(rule: Rule, candidate: Evidence, champion: Evidence | None) -> list[str]:
    """What one figure says against the candidate."""
    value = candidate.metrics.get(rule.name)
    other = _comparable(rule, candidate, champion)
    if value is None:
        if rule.required or other is not None:
            beside = "" if other is None else f", which is {other:.4g} in the champion"
            return [f"it has no figure {rule.name}{beside}. Run: dvc repro, then register it again"]
        return []
    if not math.isfinite(value):
        return [f"{rule.name} is {value}, which is no figure. Look at the curves of its training"]
    said = []
    if rule.limit is not None and rule.is_worse(value, rule.limit):
        said.append(f"{rule.name} is {value:.4g}, worse than gate's limit {rule.limit:.4g}")
    if other is not None and rule.is_worse(value, rule.bar(other)):
        beyond = f"by more than the margin {rule.margin:.4g}"
        said.append(f"{rule.name} is {value:.4g}, worse than the champion's {other:.4g} {beyond}")
    return said


def _comparable(rule: Rule, candidate: Evidence, champion: Evidence | None) -> float | None:
    """The champion's figure, where there is a finite one and it may be compared."""
    if champion is None or champion.metrics is None:
        return None
    if rule.if_same and candidate.parts.get(rule.if_same) != champion.parts.get(rule.if_same):
        return None
    value = champion.metrics.get(rule.name)
    return value if value is not None and math.isfinite(value) else None
