"""Sampling with a cache gives the tokens of sampling without, one by one and as on a GPU.

Without a GPU the steps of the CUDA graph run uncaptured; with one they are captured.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from tests.helpers.tiny_models import (
    IMAGE_VOCAB_SIZE,
    SEVERAL_SCALES,
    captions_as_tokens,
    image_tokens,
    rngs,
    tiny_transformer,
)
from thousandwords.core.special_tokens import UNKNOWN
from thousandwords.generators.transformer import decoding
from thousandwords.generators.transformer import model as transformer
from thousandwords.generators.transformer.kv_cache import CacheLayout
from thousandwords.generators.transformer.masks import KINDS, attention_mask
from thousandwords.generators.transformer.model import Transformer
from thousandwords.nn import compile

DEVICE, LENGTH = "cuda" if torch.cuda.is_available() else "cpu", 16
# candidates of three captions, not next to each other
TEXT = captions_as_tokens(3)[[0, 1, 0, 2, 1]].to(DEVICE)
LAYERS = [
    *({"kinds": [kind] * 4} for kind in KINDS),
    {},
    {"scales": SEVERAL_SCALES},
    {"activation": "swiglu"},
]
LAYERS += [{"rotary_extent": 4.0}, {"random_order_steps": (2, 6)}]
LAYERS += [{"scales": SEVERAL_SCALES, "rotary_extent": 4.0, "random_order_steps": (2, 6)}]
every_layer_kind = pytest.mark.parametrize("layers", LAYERS, ids=str)


@torch.no_grad()
def sample_without_cache(model: Transformer, text: torch.Tensor) -> torch.Tensor:
    """The reference: run the whole sequence again for every token."""
    length = model.image_length
    tokens = torch.zeros(len(text), length, dtype=torch.int64)
    uniform = torch.stack([torch.rand(length, generator=rng, dtype=torch.float64) for rng in rngs(len(text))])
    for position in range(length):
        probabilities = model.logits(text, tokens)[1][:, position].double().softmax(dim=-1)
        tokens[:, position] = (probabilities.cumsum(dim=-1) <= uniform[:, position, None]).sum(dim=-1)
    return tokens


@every_layer_kind
def test_a_hundred_images_with_the_cache_equal_those_without(layers):
    model, text = tiny_transformer(4, **layers), captions_as_tokens(12).repeat_interleave(9, dim=0)
    assert model.sample(text, rngs(108)).equal(sample_without_cache(model, text))


@pytest.mark.paper("generator: masks")
@every_layer_kind
@pytest.mark.parametrize("cells", [range(5), [0, 1, 3, 8, 9, 15], range(2, 14)])
def test_tokens_are_sampled_from_the_logits_of_the_whole_sequence(layers, cells, monkeypatch):
    model, seen = tiny_transformer(6, **layers), []
    fixed_tokens = torch.full((4, model.image_length), UNKNOWN)
    fixed_tokens[:, list(cells)] = image_tokens(4)[:, list(cells)]
    monkeypatch.setattr(decoding, "truncate", lambda logits, *_: seen.append(logits) or logits)

    sampled = model.sample(captions_as_tokens(4), rngs(4), fixed_tokens=fixed_tokens)

    first = model.image_length - len(seen)
    expected = model.logits(captions_as_tokens(4), sampled)[1][:, first:]
    torch.testing.assert_close(torch.stack(seen, dim=1), expected, rtol=0, atol=1e-5)
    # so the likelihood is the product of the probabilities that the tokens were sampled with
    all_log_probs = torch.stack(seen, dim=1).log_softmax(dim=-1)
    log_probs = all_log_probs.gather(2, sampled[:, first:, None]).sum(dim=(1, 2))
    exact = model.log_probabilities(captions_as_tokens(4), sampled)[1][:, first:].sum(dim=1)
    torch.testing.assert_close(log_probs, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [0, 7, 16])
def test_a_guided_image_whose_own_beginning_is_fixed_stays_the_same(count):
    model, text = tiny_transformer(6), captions_as_tokens(3)
    whole = model.sample(text, rngs(3), guidance=2.5)
    beginning = whole.where(torch.arange(LENGTH) < count, UNKNOWN)
    assert model.sample(text, rngs(3), guidance=2.5, fixed_tokens=beginning).equal(whole)


def test_guided_images_follow_the_guided_logits_of_the_whole_sequence():
    model, text = tiny_transformer(), captions_as_tokens(3)
    sampled = model.sample(text, rngs(3), guidance=2.0, top_k=1)
    with_caption, without = (model.logits(t, sampled)[1] for t in (text, torch.full_like(text, -1)))
    assert (without + 2.0 * (with_caption - without)).argmax(dim=-1).equal(sampled)
    assert model.sample(text, rngs(3), guidance=1.0).equal(model.sample(text, rngs(3)))


def test_no_captions_give_no_images():
    assert tiny_transformer().sample(captions_as_tokens(1)[:0], []).shape == (0, LENGTH)


@pytest.mark.parametrize(
    ("kind", "num_lines", "num_slots"), [("row", 1, 33), ("column", 32, 32), ("convolutional", 1, 166)]
)
def test_of_the_papers_1024_tokens_a_layer_caches_what_its_mask_reaches(kind, num_lines, num_slots):
    layout = CacheLayout(attention_mask(kind, 0, 32, 11), 32, kind == "column")
    assert (layout.num_lines, layout.num_slots) == (num_lines, num_slots)


@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (31, 1), (32, 2)])
def test_small_products_use_one_thread_and_the_setting_is_restored(rows, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), decoding.limit_threads(rows, nn.Linear(128, 512)):
            assert torch.get_num_threads() == threads
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- as on a GPU --------------------------------------------------------------------------------------------


def fixed_at(positions: Sequence[int], length: int) -> torch.Tensor:
    unknown = torch.full((len(TEXT), length), UNKNOWN)
    return unknown.index_fill(1, torch.tensor(positions), 7).to(DEVICE)


SAMPLING = [
    {},
    {"guidance": 2.5},
    {"top_k": 3},
    {"top_p": 0.7, "temperature": 0.9},
    {"top_k": 1, "guidance": 0.0},
]
SAMPLING += [{"fixed_tokens": cells} for cells in ([0, 1, 2, 3, 4], [3, 9, 15], range(15))]
# every setting with layers of all kinds, and layers of each kind with what reaches into the cache
GPU_CASES = [({}, settings) for settings in SAMPLING]
GPU_CASES += [(layers, SAMPLING[index]) for layers in LAYERS if layers for index in (1, 6)]


@pytest.mark.parametrize(("layers", "settings"), GPU_CASES, ids=str)
def test_sampling_on_a_gpu_gives_the_tokens_of_sampling_one_by_one(monkeypatch, layers, settings):
    model, tokens = tiny_transformer(6, **layers).to(DEVICE), []
    if "fixed_tokens" in settings:
        settings = {"fixed_tokens": fixed_at(settings["fixed_tokens"], model.image_length)}
    for sample in (decoding.sample_one_by_one, decoding.sample_with_cuda_graph):
        monkeypatch.setattr(transformer, "sample_one_by_one", sample)
        monkeypatch.setattr(transformer, "sample_with_cuda_graph", sample)
        tokens.append(model.sample(TEXT, rngs(len(TEXT)), **settings))
    assert tokens[0].equal(tokens[1]) and tokens[1].min() >= 0


def test_in_bfloat16_tokens_are_sampled_from_float32_logits(monkeypatch):
    model, dtypes = tiny_transformer(6).to(DEVICE, torch.bfloat16), []
    monkeypatch.setattr(decoding, "truncate", lambda logits, *settings: dtypes.append(logits.dtype) or logits)
    for sample in (decoding.sample_one_by_one, decoding.sample_with_cuda_graph):
        monkeypatch.setattr(transformer, "sample_one_by_one", sample)
        assert model.sample(TEXT, rngs(len(TEXT))).max() < IMAGE_VOCAB_SIZE
    assert set(dtypes) == {torch.float32}


def test_a_step_that_cannot_be_captured_runs_and_one_line_says_so(monkeypatch, capfd):
    def fail(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(compile, "_logged", set())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    done = []

    decoding.capture(lambda: done.append(1))()

    assert done == [1]
    assert capfd.readouterr().err == (
        "sampling could not be captured as a CUDA graph and runs token by token: "
        "RuntimeError: operation not permitted when stream is capturing\n"
    )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_on_a_gpu_the_step_is_captured():
    step = decoding.capture(lambda: torch.ones(3, device="cuda").mul_(2))
    assert step.__name__ == "replay"
