"""The discrete VAE: likelihood, relaxation, the settings that are not in the paper, and float16."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import tiny_models
from tests.helpers.tiny_models import rng
from thousandwords.image_tokenizers.dvae import logit_laplace
from thousandwords.image_tokenizers.dvae.codebook_init import principal_directions, sobol_points
from thousandwords.image_tokenizers.dvae.float16 import decode_float16, encode_float16
from thousandwords.image_tokenizers.dvae.model import DiscreteVAE, DVAEConfig
from thousandwords.nn.gumbel_softmax import gumbel_softmax, kl_and_usage

TINY = replace(DVAEConfig(**tiny_models.TINY["image_tokenizers"]["dvae"]), init_gain=1.0)


def tiny(**settings) -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(replace(TINY, **settings), image_size=16)


def random_images(count: int = 4) -> torch.Tensor:
    return tiny_models.random_images(count, seed=1)


@pytest.mark.paper("tokenizer: init")
def test_weights_start_normal_with_the_inverse_root_of_their_inputs_and_biases_at_zero():
    output = tiny(vocab_size=4096, width=64).encoder.output
    assert output.weight.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.02)
    assert torch.allclose(tiny(init_gain=2.0).encoder.input.weight, 2 * tiny().encoder.input.weight)
    assert output.bias.abs().max() == 0
    assert tiny(residual_gain=0.5).encoder.group_1_block_1.gain == 0.5


@pytest.mark.paper("tokenizer: pixel map")
def test_the_pixel_map_keeps_a_margin_of_a_tenth_and_is_undone():
    images = torch.tensor([0.0, 0.25, 1.0])
    pixels = logit_laplace.to_model_range(images)
    assert torch.allclose(pixels, torch.tensor([0.1, 0.3, 0.9]))
    assert torch.allclose(logit_laplace.to_images(torch.logit(pixels)), images, atol=1e-6)


@pytest.mark.paper("tokenizer: relaxation")
def test_gumbel_samples_are_as_frequent_as_the_logits_say():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(40_000, 3)
    warm, cold = gumbel_softmax(logits, 1.0, rng()), gumbel_softmax(logits, 1 / 16, rng())
    tokens = warm.argmax(dim=-1)
    assert torch.allclose(warm.sum(dim=-1), torch.ones(40_000), atol=1e-5)
    assert cold.amax(dim=-1).mean() > warm.amax(dim=-1).mean()
    assert tokens.bincount().div(40_000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.01)


@pytest.mark.paper("tokenizer: input, latent")
def test_the_kl_is_zero_for_uniform_logits_and_ln_v_for_certain_ones():
    certain = torch.zeros(1, 2, 2, 8)
    certain[..., 3] = 100
    kl, usage = kl_and_usage(torch.zeros(1, 2, 2, 8))
    assert kl.shape == (1, 2, 2) and kl.abs().max() < 1e-6 and usage.exp().item() == pytest.approx(8)
    kl, usage = kl_and_usage(certain)
    assert kl[0, 0, 0].item() == pytest.approx(math.log(8)) and usage.exp().item() == pytest.approx(1)


def test_an_unused_token_leaves_the_gradient_finite():
    logits = torch.tensor([[0.0, -200.0]], requires_grad=True)
    kl_and_usage(logits)[1].backward()
    assert logits.grad.isfinite().all()


@pytest.mark.paper("tokenizer: tokens for stage two")
def test_tokens_are_the_argmax_of_the_logits_in_raster_order():
    dvae = tiny()
    tokens = dvae.encode(random_images())
    assert tokens.shape == (4, 16) and tokens.dtype == torch.int64
    logits = dvae.encoder(logit_laplace.to_model_range(random_images()))
    assert tokens[1, 6] == logits[1, :, 1, 2].argmax()


@pytest.mark.parametrize("groups, patch", [(1, 4), (2, 2), (3, 1)])
def test_groups_and_patch_together_give_the_grid(groups, patch):
    dvae = tiny(groups=groups, patch=patch)
    assert dvae.scales == (4,)
    assert dvae.decode(dvae.encode(random_images())).shape == (4, 3, 16, 16)


# --- the settings that are off in the paper -----------------------------------------------------------------


def test_without_noise_the_cold_sample_is_the_argmax():
    logits = torch.randn(50, 12, generator=rng(3))
    relaxed = gumbel_softmax(logits, 1e-3, rng(), noise=0.0)
    assert torch.equal(relaxed.argmax(dim=-1), logits.argmax(dim=-1))
    assert relaxed.amax(dim=-1).mean() > 0.99
    dvae = tiny(noise_end=0.0, temperature_steps=10)  # the noise falls with the temperature
    losses = [dvae.loss(random_images(), step, rng(seed))[0] for step in (0, 10) for seed in (1, 2)]
    assert losses[0] != losses[1] and losses[2] == losses[3]


def test_a_normal_likelihood_of_the_right_image_is_its_peak():
    images = random_images()
    mu = torch.logit(logit_laplace.to_model_range(images))
    peak = -math.log(0.05 * math.sqrt(2 * math.pi))
    right, shifted = (logit_laplace.normal_log_likelihood(each, mu, 0.05) for each in (images, images + 0.05))
    assert right.mean().item() == pytest.approx(peak, abs=1e-4)
    assert shifted.mean().item() == pytest.approx(peak - 0.5, abs=1e-4)
    assert tiny(pixel_deviation=0.1).loss(images, 0, rng())[0] != tiny().loss(images, 0, rng())[0]


def test_after_the_codebook_init_a_token_is_the_nearest_point_to_its_feature():
    dvae = tiny(codebook_init_dims=2)
    dvae.prepare([random_images(8)], rng())
    pixels = logit_laplace.to_model_range(random_images(8))
    features = dvae.encoder[:-1](pixels).permute(0, 2, 3, 1).flatten(0, 2)
    directions, mean = principal_directions(features, 2)
    nearest = torch.cdist((features - mean) @ directions.T, sobol_points(12, 2)).argmin(dim=1)
    assert torch.equal(dvae.encode(random_images(8)).flatten(), nearest)
    assert nearest.unique().numel() > 6
    between, apart = (torch.cdist(each, each).flatten() for each in (sobol_points(12, 2), dvae.codebook))
    assert torch.corrcoef(torch.stack([between, apart]))[0, 1] > 0.8  # vectors are as close as their points


# --- in float16, as on a GPU --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_32_pixels() -> DiscreteVAE:
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "width": 32, "groups": 3, "codebook_width": 32}
    config = DVAEConfig(**sizes, init_gain=1.414, residual_gain=0.25)
    return DiscreteVAE(config, 32).eval().requires_grad_(False)


def test_in_float16_99_of_100_tokens_are_those_of_float32_and_images_within_one_of_256_shades(of_32_pixels):
    images = torch.rand(32, 3, 32, 32, generator=rng(1))
    exact = of_32_pixels.encode(images)

    tokens = encode_float16(of_32_pixels.encoder, logit_laplace.to_model_range(images))
    decoded = logit_laplace.to_images(decode_float16(of_32_pixels.decoder, exact, 8)[:, :3])

    assert tokens.shape == (32, 64) and tokens.dtype == torch.int64
    assert (tokens == exact).float().mean() >= 0.99
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, of_32_pixels.decode(exact), atol=1 / 256, rtol=0)


def test_an_overflow_of_float16_gives_none(of_32_pixels):
    overflowing = copy.deepcopy(of_32_pixels)
    overflowing.load_state_dict({name: each * 1000 for name, each in of_32_pixels.state_dict().items()})

    assert encode_float16(overflowing.encoder, torch.full((2, 3, 32, 32), 0.5)) is None
    assert decode_float16(overflowing.decoder, torch.zeros(2, 64, dtype=torch.int64), 8) is None
