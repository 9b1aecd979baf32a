"""Decide whether a model version may become the champion: its figures against the champion's, and known
problems. Left out: significance tests; the margin replaces them."""

import math
from dataclasses import dataclass, field
from typing import Literal

from thousandwords.core.config import ConfigError, check_minimums

PARTS = ("text_tokenizer", "image_tokenizer", "decoder", "generator", "scorer")
TEXT_LOSS, IMAGE_LOSS = "generator.val_loss_text", "generator.val_loss_image"


@dataclass(frozen=True)
class Rule:
    """One figure of results/metrics.json, by its dotted name."""

    name: str
    better: Literal["higher", "lower"]
    margin: float = 0.0  # how much worse than the champion's it may be
    limit: float | None = None  # a worse figure is rejected even without a champion; null: no limit
    if_same: str | None = None  # compared only if both versions have this part in common
    required: bool = False  # whether a candidate without this figure is rejected

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise ConfigError(
                f"params.yaml: gate.metrics: {self.name} has the margin {self.margin}; it needs to be 0 or more"
            )
        if self.if_same is not None and self.if_same not in PARTS:
            raise ConfigError(
                f"params.yaml: gate.metrics: {self.name} has if_same {self.if_same!r}; it can be: {', '.join(PARTS)}"
            )

    def is_worse(self, value: float, limit: float, margin: float = 0.0) -> bool:
        return value < limit - margin if self.better == "higher" else value > limit + margin


RULES = (
    Rule("reconstruction.psnr_hard", "higher", margin=0.3, required=True),  # dB
    Rule("caption_match.seen.all.n1", "higher", margin=0.03),
    Rule("caption_match.unseen.all.n1", "higher", margin=0.05),
    Rule("generator.val_loss_image", "lower", margin=0.02, if_same="image_tokenizer"),  # nats per image token
    Rule("clip_score.n1", "higher", margin=0.01, if_same="scorer"),  # cosine by that scorer
)


@dataclass(frozen=True)
class GateConfig:
    """The section `gate` of params.yaml; it may be left out."""

    minimum_prompts: int = 64  # prompts that the figures of generated images must come from
    metrics: tuple[Rule, ...] = RULES

    def __post_init__(self) -> None:
        check_minimums(self, "gate", minimum_prompts=1)
        if not self.metrics:
            raise ValueError(
                "gate.metrics is empty; it needs a figure to compare, or leave it out for the default ones"
            )


@dataclass(frozen=True)
class Evidence:
    """What is known of a version: its figures, their number of prompts, its parts and known problems."""

    metrics: dict[str, float] | None  # by dotted name; None: never evaluated
    prompts: int = 0
    parts: dict[str, str] = field(default_factory=dict)  # part -> fingerprint
    problems: tuple[str, ...] = ()  # sentences, each with its fix


def decide(config: GateConfig, candidate: Evidence, champion: Evidence | None) -> list[str]:
    """Why the candidate may not become the champion, one sentence each. Without one only limits count."""
    reasons = list(candidate.problems)
    again = "dvc repro, then register it again"
    if candidate.metrics is None:
        return [*reasons, f"it was never evaluated: results/metrics.json is missing. Run: {again}"]
    if candidate.prompts < config.minimum_prompts:
        reasons.append(
            f"its figures come from {candidate.prompts} prompts, but gate.minimum_prompts is {config.minimum_prompts}. "
            f"Raise sampling.prompts_per_split and run: {again}"
        )
    for rule in config.metrics:
        reasons += _check_figure(rule, candidate, champion)
    return reasons


def _check_figure(rule: Rule, candidate: Evidence, champion: Evidence | None) -> list[str]:
    """Why one figure rejects the candidate."""
    value = candidate.metrics.get(rule.name)
    champion_value = _comparable_value(rule, candidate, champion)
    if value is None and rule.name == TEXT_LOSS and IMAGE_LOSS in candidate.metrics:
        # a kind of generator that does not model text: no run of it would have the figure
        fix = "Remove gate's rule for it, or set required: false"
        return [f"it has no figure {rule.name}: its generator does not model text. {fix}"] * rule.required
    if value is None:
        if rule.required or champion_value is not None:
            of_champion = "" if champion_value is None else f", which is {champion_value:.4g} in the champion"
            return [f"it has no figure {rule.name}{of_champion}. Run: dvc repro, then register it again"]
        return []
    if not math.isfinite(value):
        return [f"{rule.name} is {value}, which is not a finite number. Look at its training curves"]
    reasons = []
    if rule.limit is not None and rule.is_worse(value, rule.limit):
        reasons.append(f"{rule.name} is {value:.4g}, worse than gate's limit {rule.limit:.4g}")
    if champion_value is not None and rule.is_worse(value, champion_value, rule.margin):
        reasons.append(
            f"{rule.name} is {value:.4g}, worse than the champion's {champion_value:.4g} "
            f"by more than the margin {rule.margin:.4g}"
        )
    return reasons


def _comparable_value(rule: Rule, candidate: Evidence, champion: Evidence | None) -> float | None:
    """The champion's figure, where it is finite and may be compared."""
    if champion is None or champion.metrics is None:
        return None
    if rule.if_same and candidate.parts.get(rule.if_same) != champion.parts.get(rule.if_same):
        return None
    value = champion.metrics.get(rule.name)
    return value if value is not None and math.isfinite(value) else None
