"""Which version may become the champion, and why the others are rejected."""

import math
from dataclasses import replace

import pytest

from thousandwords.core.config import ConfigError, section
from thousandwords.evaluation.gate import Evidence, GateConfig, Rule, decide

PARTS = {"text_tokenizer": "a1", "image_tokenizer": "b1", "generator": "c1", "scorer": "d1"}
FIGURES = {
    "reconstruction.psnr_hard": 30.0,
    "caption_match.seen.all.n1": 0.92,
    "caption_match.unseen.all.n1": 0.64,
    "generator.val_loss_image": 1.5,
    "clip_score.n1": 0.8,
}
CHAMPION = Evidence(FIGURES, prompts=193, parts=PARTS)
GATE = GateConfig()


def with_figures(figures: dict[str, float], **changes: object) -> Evidence:
    """The champion with other figures."""
    return replace(CHAMPION, metrics=FIGURES | figures, **changes)


PSNR, LOSS, SCORE = "reconstruction.psnr_hard", "generator.val_loss_image", "clip_score.n1"
NO_MATCH = {name: value for name, value in FIGURES.items() if "match" not in name}
FREE = replace(CHAMPION, metrics=NO_MATCH)


@pytest.mark.parametrize(
    ("candidate", "champion"),
    [
        (CHAMPION, CHAMPION),
        (CHAMPION, None),
        (with_figures({PSNR: 45.0}), CHAMPION),
        (with_figures({PSNR: 29.7}), CHAMPION),  # worse by the margin
        (with_figures({LOSS: 0.1}), CHAMPION),  # lower is better
        # figures that do not mean the same are not compared
        (with_figures({LOSS: 9.0}, parts={**PARTS, "image_tokenizer": "b2"}), CHAMPION),
        (with_figures({SCORE: 0.1}, parts={**PARTS, "scorer": "d2"}), CHAMPION),
        (CHAMPION, with_figures({PSNR: math.nan})),
        (FREE, FREE),  # neither has the figure
    ],
)
def test_a_version_that_is_not_worse_passes(candidate, champion):
    assert decide(GATE, candidate, champion) == []


AGAIN = " Run: dvc repro, then register it again"
WORSE = " by more than the margin "
TOO_FEW_PROMPTS = (
    "its figures come from 63 prompts, but gate.minimum_prompts is 64. "
    "Raise sampling.prompts_per_split and run: dvc repro, then register it again"
)


@pytest.mark.parametrize(
    ("candidate", "champion", "reasons"),
    [
        (with_figures({PSNR: 29.69}), CHAMPION, [f"{PSNR} is 29.69, worse than the champion's 30{WORSE}0.3"]),
        (with_figures({LOSS: 1.53, SCORE: 0.1}), CHAMPION,
         [f"{LOSS} is 1.53, worse than the champion's 1.5{WORSE}0.02",
          f"{SCORE} is 0.1, worse than the champion's 0.8{WORSE}0.01"]),
        (Evidence(None), None, [f"it was never evaluated: results/metrics.json is missing.{AGAIN}"]),
        (replace(CHAMPION, prompts=63), None, [TOO_FEW_PROMPTS]),
        (replace(CHAMPION, problems=("a hash was wrong",)), CHAMPION, ["a hash was wrong"]),
        (with_figures({SCORE: -math.inf}), None,
         [f"{SCORE} is -inf, which is not a finite number. Look at its training curves"]),
        (replace(CHAMPION, metrics={}), None, [f"it has no figure {PSNR}.{AGAIN}"]),
        (replace(FREE, metrics={**NO_MATCH, "caption_match.unseen.all.n1": 0.64}), CHAMPION,
         [f"it has no figure caption_match.seen.all.n1, which is 0.92 in the champion.{AGAIN}"]),
    ],
)  # fmt: skip
def test_a_worse_version_is_rejected_with_every_reason(candidate, champion, reasons):
    assert decide(GATE, candidate, champion) == reasons


def test_a_limit_applies_without_a_champion():
    gate = GateConfig(metrics=(Rule(PSNR, "higher", limit=25.0),))
    assert decide(gate, CHAMPION, None) == []
    assert decide(gate, with_figures({PSNR: 24.5}), None) == [f"{PSNR} is 24.5, worse than gate's limit 25"]


def test_a_generator_that_does_not_model_text_is_not_asked_for_a_text_loss():
    champion = with_figures({"generator.val_loss_text": 2.0})
    rule = Rule("generator.val_loss_text", "lower", margin=0.1)
    assert decide(GateConfig(metrics=(rule,)), CHAMPION, champion) == []
    assert decide(GateConfig(metrics=(rule,)), with_figures({"generator.val_loss_text": 3.0}), champion) != []
    (reason,) = decide(GateConfig(metrics=(replace(rule, required=True),)), CHAMPION, champion)
    assert reason.startswith(
        "it has no figure generator.val_loss_text: its generator does not model text. Remove gate's rule for it, or"
    )


def test_the_section_is_read_like_every_other():
    metrics = [{"name": "clip_score.best", "better": "higher"}]
    gate = section({"minimum_prompts": 8, "metrics": metrics}, "gate", GateConfig)
    assert gate == GateConfig(8, (Rule("clip_score.best", "higher"),))
    assert section({}, "gate", GateConfig) == GateConfig()


RULE = {"name": "n", "better": "lower"}


@pytest.mark.parametrize(
    "block, message",
    [
        ({"minimum_promts": 8}, "gate has no key 'minimum_promts'. Did you mean 'minimum_prompts'?"),
        ({"minimum_prompts": 0}, "gate.minimum_prompts is 0; it needs to be 1 or more"),
        ({"metrics": []}, "gate.metrics is empty; it needs a figure to compare"),
        ({"metrics": [{"name": "n"}]}, "gate.metrics[0] lacks the key 'better'"),
        ({"metrics": [RULE | {"better": "up"}]}, "gate.metrics[0].better is 'up'; it can be: higher, lower"),
        ({"metrics": [RULE | {"margin": -1}]}, "gate.metrics: n has the margin -1.0; it needs"),
        ({"metrics": [RULE | {"if_same": "clip"}]}, "gate.metrics: n has if_same 'clip'; it can be"),
    ],
)
def test_a_wrong_section_is_rejected(block, message):
    with pytest.raises(ConfigError) as caught:
        section(block, "gate", GateConfig)
    assert str(caught.value).startswith(f"params.yaml: {message}")
