"""Drawing as a GPU does it, every position by the same work on tensors that stay: word for word what is drawn otherwise.

Without a GPU the work is not captured, only done; with one it is, and both are compared.
"""
from __future__ import annotations

import pytest
import torch

from thousandwords import compiling, sampling
from thousandwords.generators import _graph
from thousandwords.generators._masks import KINDS
from thousandwords.generators.transformer import Config, Transformer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT = torch.tensor([[1, 2, 3, -1, -1, -1], [4, 5, 6, 7, 8, 9]], device=DEVICE)


def tiny(kinds: list[str] | None = None) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(Config(num_layers=6, num_heads=2, width=16, kernel=3, init_std=0.3), 11, 6, 13, (4,))
    model.kinds = kinds or model.kinds
    return model.to(DEVICE)


def rngs(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


def both_ways(model: Transformer, monkeypatch, text: torch.Tensor, **settings) -> list[torch.Tensor]:
    """What is drawn word by word, and as on a GPU."""
    drawn = []
    for name in ("_draw_rest", "_draw_rest_on_device"):
        way = getattr(Transformer, name)
        monkeypatch.setattr(model, "_draw_rest", way.__get__(model))
        monkeypatch.setattr(model, "_draw_rest_on_device", way.__get__(model))
        drawn.append(model.sample(text, rngs(len(text)), **settings))
    return drawn


@pytest.mark.parametrize("kinds", [[kind] * 6 for kind in KINDS] + [None])
def test_the_words_are_those_of_the_other_path_for_every_kind_of_layer(monkeypatch, kinds):
    text = TEXT[[0] * 10 + [1] * 10]

    word_by_word, on_device = both_ways(tiny(kinds), monkeypatch, text)

    assert on_device.equal(word_by_word) and on_device.min() >= 0


@pytest.mark.parametrize(
    "settings", [{"guidance": 2.5}, {"top_k": 3}, {"top_p": 0.7, "temperature": 0.9}, {"top_k": 1, "guidance": 0.0}]
)
def test_guidance_and_truncation_are_those_of_the_other_path(monkeypatch, settings):
    text = TEXT[[0, 1, 0, 1, 1]]  # candidates of a caption that do not lie side by side

    word_by_word, on_device = both_ways(tiny(), monkeypatch, text, **settings)

    assert on_device.equal(word_by_word)


@pytest.mark.parametrize("cells", [[0, 1, 2, 3, 4], [3, 9, 15], list(range(13)), list(range(15))])
def test_given_words_are_kept_wherever_they_are(monkeypatch, cells):
    given = torch.full((2, 16), -1, device=DEVICE)
    given[:, cells] = 7

    word_by_word, on_device = both_ways(tiny(), monkeypatch, TEXT, given=given)

    assert on_device.equal(word_by_word) and on_device[:, cells].eq(7).all()


def test_in_bfloat16_pictures_are_drawn_from_float32_logits(monkeypatch):
    model, seen = tiny().to(torch.bfloat16), []
    monkeypatch.setattr(_graph, "draw", lambda logits, uniform: seen.append(logits.dtype) or sampling.draw(logits, uniform))

    drawn = both_ways(model, monkeypatch, TEXT)[1]

    assert drawn.min() >= 0 and drawn.max() < 13 and set(seen) == {torch.float32}


def test_a_step_that_cannot_be_captured_is_done_and_one_line_says_so(monkeypatch, capfd):
    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(compiling, "TOLD", set())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    done = []

    _graph.captured(lambda: done.append(1))()

    assert done == [1]
    assert capfd.readouterr().err == (
        "drawing could not be captured as a CUDA graph, and goes word by word: "
        "RuntimeError: operation not permitted when stream is capturing\n"
    )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_on_a_gpu_it_is_captured():
    step = _graph.captured(lambda: torch.ones(3, device="cuda").mul_(2))
    assert step.__name__ == "replay"
