"""From logits (B, V) to tokens: temperature, top-k, top-p, guidance and sampling."""

import pytest
import torch

from thousandwords.nn.logits import (
    TOP_P_CANDIDATES,
    apply_guidance,
    keep_top_p,
    sample_token,
    truncate,
    uniforms,
)

LOGITS = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
NOT = -torch.inf


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def finite_tokens(logits) -> list[bool]:
    return logits[0].isfinite().tolist()


def test_top_k_keeps_the_k_most_likely_tokens():
    assert finite_tokens(truncate(LOGITS, top_k=1)) == [False, True, False, False]
    assert finite_tokens(truncate(LOGITS, top_k=3)) == [False, True, True, True]
    assert finite_tokens(truncate(LOGITS, top_k=99)) == [True, True, True, True]


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    assert finite_tokens(keep_top_p(LOGITS, 0.01)) == [False, True, False, False]
    assert finite_tokens(keep_top_p(LOGITS, 0.6)) == [False, True, False, True]
    assert finite_tokens(keep_top_p(LOGITS, 0.76)) == [False, True, True, True]
    assert finite_tokens(keep_top_p(LOGITS, 1.0)) == [True, True, True, True]


def keep_top_p_by_sorting(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The reference: all tokens sorted, of equal ones the first first."""
    ordered, order = logits.double().softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    is_removed = torch.zeros_like(order, dtype=torch.bool).scatter(
        -1, order, ordered.cumsum(dim=-1) - ordered >= top_p
    )
    return logits.masked_fill(is_removed, -torch.inf)


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("vocab_size", [3, TOP_P_CANDIDATES, TOP_P_CANDIDATES + 1])
@pytest.mark.parametrize("top_p", [0.001, 0.8, 1.0])
def test_top_p_keeps_the_same_tokens_as_sorting_also_among_equals(spread, vocab_size, top_p):
    rng = torch.Generator().manual_seed(vocab_size)
    logits = (torch.randn(40, vocab_size, generator=rng) * spread * 4).round() / 4  # many equals

    assert keep_top_p(logits, top_p).equal(keep_top_p_by_sorting(logits, top_p))


def test_truncation_applies_temperature_then_top_k_then_top_p():
    # squared and normalized .5 .25 .15 .1 are .725 .181 .065 .029; of the first two the first has exactly .8
    assert finite_tokens(truncate(LOGITS, temperature=0.5, top_k=2, top_p=0.79)) == [
        False,
        True,
        False,
        False,
    ]
    assert finite_tokens(truncate(LOGITS, temperature=0.5, top_k=2, top_p=0.81)) == [False, True, False, True]
    assert truncate(LOGITS).equal(LOGITS) and finite_tokens(LOGITS) == [True] * 4
    assert truncate(torch.tensor([[0.0, 2.0]]), temperature=0.5).tolist() == [[0.0, 4.0]]


def test_guidance_moves_away_from_the_logits_without_a_caption():
    with_caption, without = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])

    assert apply_guidance(with_caption, without, 0.0).equal(without)
    assert apply_guidance(with_caption, without, 1.0).equal(with_caption)
    assert apply_guidance(with_caption, without, 3.0).tolist() == [[1.0, 6.0]]


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.5999, 1), (0.6001, 2), (0.7501, 3), (0.9999999, 3)],
)
def test_a_number_selects_the_token_at_which_the_cumulative_probability_exceeds_it(uniform, token):
    assert sample_token(LOGITS, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_a_token_of_probability_zero_is_never_sampled():
    logits = torch.tensor([[NOT, 0.3, NOT, 0.1, NOT]]).repeat(3, 1)
    almost_one = 1 - 2.0**-53

    uniform = torch.tensor([0.0, 0.5, almost_one], dtype=torch.float64)
    assert sample_token(logits, uniform).tolist() == [1, 1, 3]


def test_the_numbers_of_a_row_come_from_its_own_generator():
    together = uniforms(generators(7, 8, 9), 5)

    assert together.shape == (3, 5) and together.dtype == torch.float64
    assert together[1].equal(uniforms(generators(8), 5)[0])
    assert len(together.unique()) == 15
