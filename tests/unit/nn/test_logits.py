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


@pytest.mark.parametrize(
    ("settings", "is_kept"),  # of tokens of probability .1, .5, .15 and .25
    [
        ({}, [1, 1, 1, 1]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 3}, [0, 1, 1, 1]),
        ({"top_k": 99}, [1, 1, 1, 1]),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 1, 0, 1]),
        ({"top_p": 0.76}, [0, 1, 1, 1]),
        ({"top_p": 1.0}, [1, 1, 1, 1]),
        # in this order: squared and normalized .725, .181, .065 and .029; of the first two the first has exactly .8
        ({"temperature": 0.5, "top_k": 2, "top_p": 0.79}, [0, 1, 0, 0]),
        ({"temperature": 0.5, "top_k": 2, "top_p": 0.81}, [0, 1, 0, 1]),
    ],
)
def test_truncation_keeps_the_k_most_likely_tokens_and_the_fewest_that_reach_p(settings, is_kept):
    assert truncate(LOGITS, **settings)[0].isfinite().tolist() == is_kept


def test_temperature_divides_the_logits_and_without_settings_nothing_changes():
    assert truncate(torch.tensor([[0.0, 2.0]]), temperature=0.5).tolist() == [[0.0, 4.0]]
    assert truncate(LOGITS).equal(LOGITS) and LOGITS.isfinite().all()


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
