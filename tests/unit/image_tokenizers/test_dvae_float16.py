"""The tokenizer in float16, as on a GPU, has nearly the same tokens and images."""

import pytest
import torch

from thousandwords.image_tokenizers.dvae.float16 import decode_float16, encode_float16
from thousandwords.image_tokenizers.dvae.logit_laplace import to_images, to_model_range
from thousandwords.image_tokenizers.dvae.model import DiscreteVAE, DVAEConfig

SIDE = 32


@pytest.fixture(scope="module")
def model() -> DiscreteVAE:
    torch.manual_seed(0)
    config = DVAEConfig(
        vocab_size=512, width=32, groups=3, codebook_width=32, init_gain=1.414, residual_gain=0.25
    )
    return DiscreteVAE(config, SIDE).eval().requires_grad_(False)


def random_images(count: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_at_least_99_of_100_tokens_are_those_of_float32(model):
    tokens = encode_float16(model.encoder, to_model_range(random_images()))

    assert tokens.shape == (32, 64) and tokens.dtype == torch.int64
    assert (tokens == model.encode(random_images())).float().mean() >= 0.99


def test_images_decoded_in_float16_are_within_one_of_256_shades(model):
    tokens = model.encode(random_images())

    images = to_images(decode_float16(model.decoder, tokens, 8)[:, :3])

    assert images.dtype == torch.float32
    torch.testing.assert_close(images, model.decode(tokens), atol=1 / 256, rtol=0)


def test_an_overflow_of_float16_gives_none(model):
    overflowing = DiscreteVAE(model.config, SIDE).requires_grad_(False)
    overflowing.load_state_dict({name: weight * 1000 for name, weight in model.state_dict().items()})

    assert encode_float16(overflowing.encoder, to_model_range(random_images(2))) is None
    assert decode_float16(overflowing.decoder, torch.zeros(2, 64, dtype=torch.int64), 8) is None
