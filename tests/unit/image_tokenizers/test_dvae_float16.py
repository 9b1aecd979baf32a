"""The tokenizer in float16, as a GPU runs it: the same words but for near ties, the same pictures to the eye. Here on a CPU."""
from __future__ import annotations

import pytest
import torch

from thousandwords.tokenizers._halves import decoded_in_halves, encoded_in_halves, is_settled_on_a_gpu, summed_in_float32
from thousandwords.tokenizers._likelihood import to_images, to_model_range
from thousandwords.tokenizers.dvae import Config, DiscreteVAE

SIDE = 32


@pytest.fixture(scope="module")
def model() -> DiscreteVAE:
    torch.manual_seed(0)
    config = Config(vocab_size=512, width=32, groups=3, codebook_width=32, init_gain=1.414, residual_gain=0.25)
    return DiscreteVAE(config, SIDE).eval().requires_grad_(False)


def pictures(count: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_in_halves_at_least_99_of_100_words_are_those_of_float32(model):
    found = encoded_in_halves(model.encoder, to_model_range(pictures()))

    assert found.shape == (32, 64) and found.dtype == torch.int64
    assert (found == model.encode(pictures())).float().mean() >= 0.99


def test_pictures_decoded_in_halves_are_within_one_of_256_shades(model):
    tokens = model.encode(pictures())

    found = to_images(decoded_in_halves(model.decoder, tokens, 8)[:, :3])

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.decode(tokens), atol=1 / 256, rtol=0)


def test_what_float16_cannot_hold_is_left_to_float32(model):
    beyond = DiscreteVAE(model.config, SIDE).requires_grad_(False)
    beyond.load_state_dict({name: weight * 1000 for name, weight in model.state_dict().items()})

    assert encoded_in_halves(beyond.encoder, to_model_range(pictures(2))) is None
    assert decoded_in_halves(beyond.decoder, torch.zeros(2, 64, dtype=torch.int64), 8) is None


def test_a_product_in_two_parts_is_that_of_float32():
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randn(5, 64, generator=rng).half(), torch.randn(9, 64, generator=rng)
    torch.testing.assert_close(summed_in_float32(left, right), left.float() @ right.T, atol=1e-5, rtol=1e-5)


def test_on_a_cpu_and_in_training_nothing_is_halved(model):
    assert not is_settled_on_a_gpu(model)
