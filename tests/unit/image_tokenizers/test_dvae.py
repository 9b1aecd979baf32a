"""The discrete VAE: sizes, likelihood, relaxation, and the settings that are not in the paper."""

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import tiny_models
from tests.helpers.tiny_models import rng
from thousandwords.image_tokenizers.dvae import logit_laplace
from thousandwords.image_tokenizers.dvae.codebook_init import principal_directions, sobol_points
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


@pytest.mark.paper("tokenizer: β")
def test_the_kl_weight_rises_and_the_temperature_falls_along_cosines():
    dvae = tiny(kl_steps=100, temperature_steps=100)
    logs = [dvae.loss(random_images(), step, rng())[1] for step in (0, 50, 100)]
    assert [log["kl_weight"] for log in logs] == pytest.approx([0, 3.3, 6.6])
    assert [log["temperature"] for log in logs] == pytest.approx([1, 0.53125, 0.0625])


@pytest.mark.paper("tokenizer: pixel map")
def test_the_pixel_map_keeps_a_margin_of_a_tenth_and_is_undone():
    images = torch.tensor([0.0, 0.25, 1.0])
    pixels = logit_laplace.to_model_range(images)
    assert torch.allclose(pixels, torch.tensor([0.1, 0.3, 0.9]))
    assert torch.allclose(logit_laplace.to_images(torch.logit(pixels)), images, atol=1e-6)


@pytest.mark.paper("tokenizer: output")
def test_the_logit_laplace_density_integrates_to_one():
    # the model's range is then (0, 1)
    images = torch.linspace(-0.12499, 1.12499, 200_001, dtype=torch.float64)
    density = logit_laplace.log_likelihood(images, torch.tensor(0.4), torch.tensor(-1.0)).exp()
    assert torch.trapezoid(density, logit_laplace.to_model_range(images)).item() == pytest.approx(1, abs=1e-3)


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
    uniform, certain = torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8)
    certain[..., 3] = 100
    kl, usage = kl_and_usage(uniform)
    assert kl.shape == (1, 2, 2) and kl.abs().max() < 1e-6
    assert usage.exp().item() == pytest.approx(8)
    kl, usage = kl_and_usage(certain)
    assert kl[0, 0, 0].item() == pytest.approx(math.log(8))
    assert usage.exp().item() == pytest.approx(1)


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


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"vocab_size": 1}, "dvae.vocab_size is 1"),
        ({"width": 10}, "dvae.width is 10; a bottleneck is a quarter"),
        ({"stem_kernel": 4}, "dvae.stem_kernel is 4; an odd side"),
        ({"temperature_end": 0.0}, "dvae.temperature_end is 0.0"),
        ({"usage_entropy_weight": -1.0}, "dvae.usage_entropy_weight is -1.0"),
        ({"residual_gain": 0.0}, "dvae.residual_gain is 0.0; it needs to be above 0"),
        ({"width": 8, "codebook_init_dims": 9}, "dvae.codebook_init_dims is 9; give 1 to dvae.width, 8"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DVAEConfig(**settings)


def test_an_image_size_that_the_grid_does_not_divide_is_rejected():
    with pytest.raises(ValueError, match=r"image_size is 18, no multiple of the 4 pixels"):
        DiscreteVAE(TINY, image_size=18)


# the settings that are off in the paper


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
    likelihoods = [
        logit_laplace.normal_log_likelihood(images + shift, mu, 0.05).mean().item() for shift in (0, 0.05)
    ]
    assert likelihoods == pytest.approx([peak, peak - 0.5], abs=1e-4)
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


def test_a_trained_tokenizer_reconstructs_its_image():
    settings = {"pixel_deviation": 0.1, "temperature_start": 0.5, "kl_weight": 1.0, "codebook_init_dims": 2}
    dvae = tiny(width=16, init_gain=1.414, usage_entropy_weight=0.01, **settings)
    images = random_images(1).round().expand(2, 3, 16, 16)
    dvae.prepare([images], rng())
    before = (dvae.decode(dvae.encode(images)) - images).abs().mean()
    optimizer = torch.optim.AdamW(dvae.parameters(), lr=1e-2)
    generator = rng()
    for step in range(100):
        optimizer.zero_grad()
        dvae.loss(images, step, generator)[0].backward()
        optimizer.step()
    after = (dvae.decode(dvae.encode(images)) - images).abs().mean()
    assert after < 0.6 * before


def test_muon_parameters_are_the_kernels_of_the_residual_branches():
    model = tiny()
    selected = {id(weight) for weight in model.muon_parameters()}
    names = [name for name, weight in model.named_parameters() if id(weight) in selected]
    assert {"encoder.group_1_block_1.path.conv_1.weight", "decoder.group_2_block_1.path.conv_4.weight"} <= {
        *names
    }
    assert len(names) == 16 and all(".path.conv_" in name and name.endswith("weight") for name in names)


@pytest.mark.parametrize("decoder_only_from", [None, 5])
def test_weights_are_frozen_at_some_steps_only_where_the_decoder_trains_alone(decoder_only_from):
    """DDP has to know before training that the encoder may have no gradient."""
    model = tiny(decoder_only_from=decoder_only_from, pixel_deviation=0.05)
    model.loss(random_images(), 5, rng())[0].backward()
    assert model.has_frozen_steps == all(weight.grad is None for weight in model.encoder.parameters())
    assert all(weight.grad is not None for weight in model.decoder.parameters())
    assert "temperature" in model.loss(random_images(), 4, rng())[1]
