"""Sampling as on a GPU, with tensors that keep their addresses, gives the same tokens as sampling one by one.

Without a GPU the same steps run uncaptured; with one they are captured.
"""

from __future__ import annotations

import pytest
import torch

from thousandwords.generators.transformer import cuda_graph
from thousandwords.generators.transformer import model as transformer
from thousandwords.generators.transformer.cuda_graph import sample_with_cuda_graph
from thousandwords.generators.transformer.decode_loop import sample_one_by_one
from thousandwords.generators.transformer.masks import KINDS
from thousandwords.generators.transformer.model import Transformer, TransformerConfig
from thousandwords.nn import compile
from thousandwords.nn.logits import sample_token

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT = torch.tensor([[1, 2, 3, -1, -1, -1], [4, 5, 6, 7, 8, 9]], device=DEVICE)


def tiny(kinds: list[str] | None = None) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(num_layers=6, num_heads=2, width=16, kernel=3, init_std=0.3), 11, 6, 13, (4,)
    )
    model.kinds = kinds or model.kinds
    return model.to(DEVICE)


def rngs(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


def both_ways(model: Transformer, monkeypatch, text: torch.Tensor, **settings) -> list[torch.Tensor]:
    """The tokens sampled one by one, and as on a GPU."""
    tokens = []
    for sample in (sample_one_by_one, sample_with_cuda_graph):
        monkeypatch.setattr(transformer, "sample_one_by_one", sample)
        monkeypatch.setattr(transformer, "sample_with_cuda_graph", sample)
        tokens.append(model.sample(text, rngs(len(text)), **settings))
    return tokens


@pytest.mark.parametrize("kinds", [[kind] * 6 for kind in KINDS] + [None])
def test_the_tokens_are_equal_for_every_kind_of_layer(monkeypatch, kinds):
    text = TEXT[[0] * 10 + [1] * 10]

    one_by_one, on_device = both_ways(tiny(kinds), monkeypatch, text)

    assert on_device.equal(one_by_one) and on_device.min() >= 0


@pytest.mark.parametrize(
    "settings",
    [{"guidance": 2.5}, {"top_k": 3}, {"top_p": 0.7, "temperature": 0.9}, {"top_k": 1, "guidance": 0.0}],
)
def test_the_tokens_are_equal_under_guidance_and_truncation(monkeypatch, settings):
    text = TEXT[[0, 1, 0, 1, 1]]  # candidates of one caption that are not next to each other

    one_by_one, on_device = both_ways(tiny(), monkeypatch, text, **settings)

    assert on_device.equal(one_by_one)


@pytest.mark.parametrize("cells", [[0, 1, 2, 3, 4], [3, 9, 15], list(range(13)), list(range(15))])
def test_fixed_tokens_are_kept_wherever_they_are(monkeypatch, cells):
    fixed_tokens = torch.full((2, 16), -1, device=DEVICE)
    fixed_tokens[:, cells] = 7

    one_by_one, on_device = both_ways(tiny(), monkeypatch, TEXT, fixed_tokens=fixed_tokens)

    assert on_device.equal(one_by_one) and on_device[:, cells].eq(7).all()


def test_in_bfloat16_tokens_are_sampled_from_float32_logits(monkeypatch):
    model, dtypes = tiny().to(torch.bfloat16), []
    monkeypatch.setattr(
        cuda_graph,
        "sample_token",
        lambda logits, uniform: dtypes.append(logits.dtype) or sample_token(logits, uniform),
    )

    tokens = both_ways(model, monkeypatch, TEXT)[1]

    assert tokens.min() >= 0 and tokens.max() < 13 and set(dtypes) == {torch.float32}


def test_a_step_that_cannot_be_captured_runs_and_one_line_says_so(monkeypatch, capfd):
    def fail(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(compile, "_logged", set())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    done = []

    cuda_graph.capture(lambda: done.append(1))()

    assert done == [1]
    assert capfd.readouterr().err == (
        "sampling could not be captured as a CUDA graph and runs token by token: "
        "RuntimeError: operation not permitted when stream is capturing\n"
    )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_on_a_gpu_the_step_is_captured():
    step = cuda_graph.capture(lambda: torch.ones(3, device="cuda").mul_(2))
    assert step.__name__ == "replay"
