"""The loss in chunks: the plain loss and its gradients, without the table of all logits."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from thousandwords.generators import _loss
from thousandwords.generators._loss import mean_loss, mean_loss_in_chunks, pays
from thousandwords.generators.transformer import Config, Transformer

WIDTH, VOCAB = 24, 50


def case(rows: int = 3, length: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear, Tensor]:
    """States (3, 7, 24), an output map to 50 words, words of which some are pads."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    words = torch.randint(-1, VOCAB, (rows, length), generator=rng)
    words[0, :4] = -1
    return torch.randn(rows, length, WIDTH, generator=rng, dtype=dtype), nn.Linear(WIDTH, VOCAB, dtype=dtype), words


def taken(loss_of, states: Tensor, output: nn.Linear) -> list[Tensor]:
    """The loss, and its gradients by states, weights and biases."""
    states = states.clone().requires_grad_()
    output.zero_grad()
    loss = loss_of(states)
    (3 * loss).backward()  # as a weighted sum would
    return [loss.detach(), states.grad, output.weight.grad.clone(), output.bias.grad.clone()]


def plain(output: nn.Linear, words: Tensor, count: float | None = None):
    return lambda states: mean_loss(output(states), words, count)


def chunked(output: nn.Linear, words: Tensor, count: float | None = None, chunk: int = 4 * VOCAB):
    return lambda states: mean_loss_in_chunks(states, output, words, count, chunk)


@pytest.mark.parametrize("chunk", [1, VOCAB, 4 * VOCAB, 1000 * VOCAB])
@pytest.mark.parametrize("count", [None, 5.5, 0.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_in_chunks_of_any_size_it_is_the_plain_loss_with_its_gradients(chunk, count, dtype, tolerance):
    states, output, words = case(dtype=dtype)

    found = taken(chunked(output, words, count, chunk), states, output)

    for one, wanted in zip(found, taken(plain(output, words, count), states, output), strict=True):
        assert (one - wanted).norm() <= tolerance * wanted.norm()


def test_pads_are_free_and_nothing_but_pads_costs_nothing():
    states, output, words = case()
    pads = torch.full_like(words, -1)

    loss, *slopes = taken(chunked(output, pads), states, output)

    assert loss == 0 and all(slope.count_nonzero() == 0 for slope in slopes)
    assert taken(chunked(output, words), states, output)[1][words == -1].count_nonzero() == 0


def test_in_bfloat16_it_is_no_further_from_the_truth_than_a_plain_loss_in_bfloat16():
    states, output, words = case(rows=40, length=50)
    truth = taken(plain(output, words), states, output)

    def rounded(loss_of) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            found = taken(loss_of, states, output)
        return [float((one - wanted).norm() / wanted.norm()) for one, wanted in zip(found, truth, strict=True)]

    own, others = rounded(chunked(output, words)), rounded(plain(output, words))
    assert own[0] < 1e-3 and all(one <= 1.1 * other for one, other in zip(own[1:], others[1:], strict=True))
    assert own[1] > 0  # that is, it was in bfloat16


def test_under_float16_it_stays_in_float32():
    states, output, words = case()
    with torch.autocast("cpu", torch.float16):
        found = taken(chunked(output, words), states, output)
    for one, wanted in zip(found, taken(plain(output, words), states, output), strict=True):
        assert (one - wanted).norm() <= 1e-5 * wanted.norm()


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that was made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        made = function(*arguments, **(settings or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            self.numbers = max(self.numbers, one.numel()) if isinstance(one, Tensor) else self.numbers
        return made


def test_no_tensor_is_ever_as_large_as_the_table_of_all_logits():
    states, output, words = case(rows=40, length=50)
    with Largest() as whole:
        taken(plain(output, words), states, output)
    with Largest() as parts:
        taken(chunked(output, words, chunk=100 * VOCAB), states, output)

    assert whole.numbers == 40 * 50 * VOCAB
    assert parts.numbers == max(40 * 50 * WIDTH, 100 * VOCAB)


def test_the_default_sizes_are_below_the_border_and_the_papers_above():
    assert not pays(64 * 64, 512) and not pays(256 * 64, 512)
    assert pays(4 * 1024, 8192)


def test_a_transformer_beyond_the_border_has_the_loss_and_gradients_that_it_had(monkeypatch):
    torch.manual_seed(0)
    model = Transformer(Config(num_layers=2, num_heads=2, width=16, init_std=0.3), 11, 6, 13, (4,))
    text, tokens = torch.randint(-1, 11, (3, 6)), torch.randint(13, (3, 16))
    results = []
    for border in (2**24, 1):
        monkeypatch.setattr(_loss, "LARGE", border)
        model.zero_grad()
        loss, parts = model.loss(text, tokens, 0, torch.Generator(), text_words=9.0)
        loss.backward()
        results.append([loss.detach(), *parts.values(), *(one.grad for one in model.parameters())])

    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_without_gradients_it_makes_none():
    states, output, words = case()
    with torch.no_grad():
        loss = mean_loss_in_chunks(states, output, words)
    assert not loss.requires_grad and loss == pytest.approx(mean_loss(output(states), words).item())
