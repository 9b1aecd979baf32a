"""The loss in chunks: the plain loss and its gradients, without all logits in memory at once."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import tiny_models
from thousandwords.nn import chunked_cross_entropy
from thousandwords.nn.chunked_cross_entropy import chunked_mean_loss, mean_loss, should_chunk

WIDTH, VOCAB = 24, 50


def case(rows: int = 3, length: int = 7, dtype=torch.float32) -> tuple[Tensor, nn.Linear, Tensor]:
    """Hidden states (3, 7, 24), an output layer for 50 tokens, and tokens of which some are padding."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    tokens = torch.randint(-1, VOCAB, (rows, length), generator=rng)
    tokens[0, :4] = -1
    hidden_states = torch.randn(rows, length, WIDTH, generator=rng, dtype=dtype)
    return hidden_states, nn.Linear(WIDTH, VOCAB, dtype=dtype), tokens


def loss_and_grads(loss_of, hidden_states: Tensor, output: nn.Linear) -> list[Tensor]:
    """The loss, and its gradients by hidden states, weights and biases."""
    hidden_states = hidden_states.clone().requires_grad_()
    output.zero_grad()
    loss = loss_of(hidden_states)
    (3 * loss).backward()  # as in a weighted sum
    return [loss.detach(), hidden_states.grad, output.weight.grad.clone(), output.bias.grad.clone()]


def plain(output: nn.Linear, tokens: Tensor, count: float | None = None):
    return lambda hidden_states: mean_loss(output(hidden_states), tokens, count)


def chunked(output: nn.Linear, tokens: Tensor, count: float | None = None, chunk: int = 4 * VOCAB):
    return lambda hidden_states: chunked_mean_loss(hidden_states, output, tokens, count, chunk)


@pytest.mark.parametrize("chunk", [1, 4 * VOCAB, 1000 * VOCAB])
@pytest.mark.parametrize("count", [None, 5.5, 0.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_chunks_of_any_size_give_the_plain_loss_and_its_gradients(chunk, count, dtype, tolerance):
    hidden_states, output, tokens = case(dtype=dtype)

    with torch.autocast("cpu", torch.float16):  # float16 would overflow: it is not used
        actual = loss_and_grads(chunked(output, tokens, count, chunk), hidden_states, output)
    expected = loss_and_grads(plain(output, tokens, count), hidden_states, output)

    for tensor, reference in zip(actual, expected, strict=True):
        assert (tensor - reference).norm() <= tolerance * reference.norm()


def test_in_bfloat16_it_is_no_less_exact_than_a_plain_loss_in_bfloat16():
    hidden_states, output, tokens = case(rows=40, length=50)
    exact = loss_and_grads(plain(output, tokens), hidden_states, output)

    def relative_errors(loss_of) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            actual = loss_and_grads(loss_of, hidden_states, output)
        return [float((a - b).norm() / b.norm()) for a, b in zip(actual, exact, strict=True)]

    errors, plain_errors = relative_errors(chunked(output, tokens)), relative_errors(plain(output, tokens))
    assert errors[0] < 1e-3
    assert all(error <= 1.1 * other for error, other in zip(errors[1:], plain_errors[1:], strict=True))
    assert errors[1] > 0  # it was computed in bfloat16


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that was made."""

    numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        result = function(*arguments, **(settings or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            self.numel = max(self.numel, tensor.numel()) if isinstance(tensor, Tensor) else self.numel
        return result


def test_no_tensor_is_as_large_as_all_logits():
    hidden_states, output, tokens = case(rows=40, length=50)
    with LargestTensor() as unchunked:
        loss_and_grads(plain(output, tokens), hidden_states, output)
    with LargestTensor() as in_chunks:
        loss_and_grads(chunked(output, tokens, chunk=100 * VOCAB), hidden_states, output)

    assert unchunked.numel == 40 * 50 * VOCAB
    assert in_chunks.numel == max(40 * 50 * WIDTH, 100 * VOCAB)


def test_a_transformer_has_the_same_loss_and_gradients_in_chunks(monkeypatch):
    model, results = tiny_models.tiny_transformer(2), []
    text, tokens = tiny_models.captions_as_tokens(3), tiny_models.image_tokens(3)
    for min_logits in (2**24, 1):
        monkeypatch.setattr(chunked_cross_entropy, "MIN_CHUNKED_LOGITS", min_logits)
        model.zero_grad()
        loss, parts = model.loss(text, tokens, 0, torch.Generator(), num_text_tokens=9.0)
        loss.backward()
        results.append([loss.detach(), *parts.values(), *(weight.grad for weight in model.parameters())])

    for chunked_result, expected in zip(*results, strict=True):
        torch.testing.assert_close(chunked_result, expected, atol=1e-6, rtol=1e-5)


def test_the_default_sizes_are_not_chunked_and_the_papers_are():
    assert not should_chunk(64 * 64, 512) and not should_chunk(256 * 64, 512)
    assert should_chunk(4 * 1024, 8192)
