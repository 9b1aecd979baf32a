"""Which version may become the champion, and why the others are rejected."""

from __future__ import annotations

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


def with_figures(**figures: float) -> Evidence:
    """The champion with other figures; a double underscore is a dot."""
    return replace(
        CHAMPION, metrics={**FIGURES, **{name.replace("__", "."): value for name, value in figures.items()}}
    )


def test_an_equal_version_passes():
    assert decide(GATE, CHAMPION, CHAMPION) == []


def test_the_first_version_passes_without_a_champion():
    assert decide(GATE, CHAMPION, None) == []


@pytest.mark.parametrize(
    "psnr, passes", [(45.0, True), (30.0, True), (29.7, True), (29.69, False), (5.0, False)]
)
def test_a_figure_may_be_worse_by_the_margin_and_no_more(psnr, passes):
    assert (decide(GATE, with_figures(reconstruction__psnr_hard=psnr), CHAMPION) == []) is passes


def test_a_lower_figure_beyond_the_margin_is_rejected_with_both_figures():
    assert decide(GATE, with_figures(reconstruction__psnr_hard=29.0), CHAMPION) == [
        "reconstruction.psnr_hard is 29, worse than the champion's 30 by more than the margin 0.3"
    ]


def test_where_lower_is_better_a_higher_figure_is_rejected():
    assert decide(GATE, with_figures(generator__val_loss_image=0.1), CHAMPION) == []
    assert decide(GATE, with_figures(generator__val_loss_image=1.53), CHAMPION) == [
        "generator.val_loss_image is 1.53, worse than the champion's 1.5 by more than the margin 0.02"
    ]


def test_every_figure_that_is_worse_is_named():
    assert len(decide(GATE, with_figures(reconstruction__psnr_hard=1.0, clip_score__n1=0.1), CHAMPION)) == 2


def test_losses_over_tokens_of_different_tokenizers_are_not_compared():
    other = replace(with_figures(generator__val_loss_image=9.0), parts={**PARTS, "image_tokenizer": "b2"})
    assert decide(GATE, other, CHAMPION) == []


def test_scores_of_different_scorers_are_not_compared():
    other = replace(with_figures(clip_score__n1=0.1), parts={**PARTS, "scorer": "d2"})
    assert decide(GATE, other, CHAMPION) == []


def test_a_version_that_was_never_evaluated_is_rejected():
    assert decide(GATE, Evidence(None), None) == [
        "it was never evaluated: results/metrics.json is missing. Run: dvc repro, then register it again"
    ]


def test_too_few_prompts_are_rejected():
    assert decide(GATE, replace(CHAMPION, prompts=63), None) == [
        "its figures come from 63 prompts, but gate.minimum_prompts is 64. "
        "Raise sampling.prompts_per_split and run: dvc repro, then register it again"
    ]


def test_known_problems_of_a_version_are_reported_unchanged():
    assert decide(GATE, replace(CHAMPION, problems=("the tree was dirty", "a hash was wrong")), CHAMPION) == [
        "the tree was dirty",
        "a hash was wrong",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_never_passes(value):
    assert decide(GATE, with_figures(clip_score__n1=value), None) == [
        f"clip_score.n1 is {value}, which is not a finite number. Look at its training curves"
    ]


def test_a_figure_of_the_champion_that_is_no_number_is_ignored():
    assert decide(GATE, CHAMPION, with_figures(reconstruction__psnr_hard=math.nan)) == []


def test_figures_that_neither_version_has_are_ignored():
    free = replace(CHAMPION, metrics={name: value for name, value in FIGURES.items() if "match" not in name})
    assert decide(GATE, free, free) == []


def test_a_figure_that_only_the_champion_has_is_required():
    free = replace(
        CHAMPION, metrics={name: value for name, value in FIGURES.items() if "seen.all" not in name}
    )
    assert decide(GATE, free, CHAMPION)[0] == (
        "it has no figure caption_match.seen.all.n1, which is 0.92 in the champion. Run: dvc repro, then register it again"
    )


def test_a_required_figure_is_required_even_without_a_champion():
    assert decide(GATE, replace(CHAMPION, metrics={}), None) == [
        "it has no figure reconstruction.psnr_hard. Run: dvc repro, then register it again"
    ]


def test_a_limit_applies_without_a_champion():
    gate = GateConfig(metrics=(Rule("reconstruction.psnr_hard", "higher", limit=25.0),))
    assert decide(gate, CHAMPION, None) == []
    assert decide(gate, with_figures(reconstruction__psnr_hard=24.5), None) == [
        "reconstruction.psnr_hard is 24.5, worse than gate's limit 25"
    ]


# --- the section of params.yaml --------------------------------------------------------------------------------------


def test_the_section_is_read_like_every_other():
    gate = section(
        {"minimum_prompts": 8, "metrics": [{"name": "clip_score.best", "better": "higher"}]},
        "gate",
        GateConfig,
    )
    assert gate == GateConfig(8, (Rule("clip_score.best", "higher"),))
    assert section({}, "gate", GateConfig) == GateConfig()


@pytest.mark.parametrize(
    "block, message",
    [
        ({"minimum_promts": 8}, "gate has no key 'minimum_promts'. Did you mean 'minimum_prompts'?"),
        ({"minimum_prompts": 0}, "gate.minimum_prompts is 0; it needs to be 1 or more"),
        ({"metrics": []}, "gate.metrics is empty; it needs a figure to compare"),
        ({"metrics": [{"name": "n"}]}, "gate.metrics[0] lacks the key 'better'"),
        (
            {"metrics": [{"name": "n", "better": "up"}]},
            "gate.metrics[0].better is 'up'; it can be: higher, lower",
        ),
        (
            {"metrics": [{"name": "n", "better": "lower", "margin": -1}]},
            "gate.metrics: n has the margin -1.0; it needs",
        ),
        (
            {"metrics": [{"name": "n", "better": "lower", "if_same": "clip"}]},
            "gate.metrics: n has if_same 'clip'; it can be",
        ),
    ],
)
def test_a_wrong_section_is_rejected(block, message):
    with pytest.raises(ConfigError) as caught:
        section(block, "gate", GateConfig)
    assert str(caught.value).startswith(f"params.yaml: {message}")
