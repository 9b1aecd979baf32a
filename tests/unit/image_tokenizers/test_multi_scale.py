"""The multi-scale tokenizer: how grids add up to the latents, its loss, the scales it stops at, and its settings."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.helpers import multi_scale_reference, tiny_models
from tests.helpers.tiny_models import rng
from thousandwords.core.config import section
from thousandwords.image_tokenizers.multi_scale.model import MultiScale, MultiScaleConfig
from thousandwords.image_tokenizers.multi_scale.trunks import VQGANTrunk
from thousandwords.nn.metrics import figures_by_scale, mean_psnr
from thousandwords.nn.residual_scales import ResidualScales
from thousandwords.training.config import TrainingConfig

TINY = section(tiny_models.TINY["image_tokenizers"]["multi_scale"], "multi_scale", MultiScaleConfig)
SMALL_VQGAN = VQGANTrunk(width=8, multipliers=(1, 1, 2), blocks=1, norm_groups=4)
# what VAR published, for images of 256 pixels
VAR = MultiScaleConfig(
    **{"vocab_size": 4096, "latent_width": 32, "trunk": "vqgan", "codebook": "gradient"},
    scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
)


def tiny(**settings) -> MultiScale:
    torch.manual_seed(0)
    return MultiScale(replace(TINY, **settings), image_size=16)


@torch.no_grad()
def mixed(**settings) -> MultiScale:
    """A model whose phi convolutions are not the identity, with codes as large as its latents."""
    model = tiny(**settings)
    for convolution in model.residual.phi:
        convolution.weight.normal_(0, 0.2, generator=rng(1))
        convolution.bias.normal_(0, 0.2, generator=rng(2))
    model.prepare([random_images()], rng())
    return model


def random_images(count: int = 4) -> torch.Tensor:
    return tiny_models.random_images(count, seed=1)


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.paper("multi_scale: one scale", "multi_scale: tokens")
@pytest.mark.parametrize("scales", [(1, 2, 4), (4,)])
def test_tokens_and_latents_after_each_scale_are_those_of_the_papers_algorithms(scales):
    model = mixed(scales=scales, num_phi=4, vocab_size=24)
    kernels = [(each.weight, each.bias) for each in model.residual.phi]
    latents = model._latents(random_images())
    expected, sums = multi_scale_reference.quantize(latents, model.codebook, kernels, scales)

    tokens = model.encode(random_images())

    assert tokens.equal(expected)
    for found, after in zip(model.latents_so_far(tokens), sums, strict=True):
        torch.testing.assert_close(found.double(), after, atol=1e-5, rtol=0)


@pytest.mark.paper("multi_scale: phi")
def test_each_scale_uses_the_phi_whose_place_is_nearest():
    def used(num_scales: int, num_phi: int) -> list[int]:
        residual = ResidualScales(range(1, num_scales + 1), 1, num_phi)
        return [residual.phi_of(scale) for scale in range(num_scales)]

    assert used(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]  # VAR's
    assert used(4, 4) == [0, 1, 2, 3] and used(6, 4) == [0, 0, 1, 2, 3, 3]
    assert used(6, 2) == [0, 0, 0, 1, 1, 1] and used(1, 3) == [0] and used(5, 1) == [0] * 5


def test_the_latents_after_the_first_scales_need_their_tokens_only():
    model = mixed()
    tokens = model.encode(random_images())
    for scales, length in ((1, 1), (2, 5)):
        first = model.latents_so_far(tokens[:, :length])
        assert len(first) == scales
        torch.testing.assert_close(first[-1], model.latents_so_far(tokens)[scales - 1])


def test_a_direction_decides_where_lengths_are_set_aside_and_codes_keep_theirs():
    model = mixed(l2_normalize=True, vocab_size=3, latent_width=2)
    codes = torch.tensor([[0.1, 0.0], [0.0, 9.0], [-3.0, -3.0]])
    model.quantizer._place(torch.arange(3), codes, torch.ones(3))

    tokens = model.quantizer.tokens(torch.tensor([[8.0, 1.0], [0.1, 0.2], [-1.0, -0.9]]))

    assert tokens.tolist() == [0, 1, 2]
    torch.testing.assert_close(model.codebook, codes)


# --- the published tokenizer ------------------------------------------------------------------------------------------


@pytest.mark.paper("multi_scale: scales", "multi_scale: size", "multi_scale: tokens")
def test_the_published_tokenizer_has_108_948_355_weights_and_680_or_2240_tokens():
    larger = replace(VAR, scales=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
    with torch.device("meta"):
        model = MultiScale(VAR, image_size=256)
        assert model.num_tokens == 680 and MultiScale(larger, 512).num_tokens == 2240

    def count(module: torch.nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    assert count(model) == 108_989_315 - 10 * 4096  # it has a buffer of how often codes were used
    assert count(model.encoder) - count(model.encoder.to_code) == 44_107_872
    assert count(model.decoder) - count(model.decoder.from_code) == 64_653_923
    assert model.codebook.shape == (4096, 32)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.paper("multi_scale: loss of tokens")
def test_the_loss_of_the_tokens_is_the_mean_over_scales_of_what_the_latents_so_far_miss():
    model, images = mixed(codebook="gradient", stop_share=0.0), random_images()
    latents, tokens = model._latents(images), model.encode(images)
    so_far = model.latents_so_far(tokens)
    missing = torch.stack([(each - latents).square().mean() for each in so_far])
    pixels = model.decoder(so_far[-1]) + 0.5

    loss, logged = model.loss(images, 0, rng())

    torch.testing.assert_close(logged["reconstruction_loss"], 20 * (pixels - images).square().mean())
    torch.testing.assert_close(loss, logged["reconstruction_loss"] + 1.25 * missing.mean())
    by_scale = torch.stack([logged[f"commitment_loss_scale_{side}"] for side in (1, 2, 4)])
    torch.testing.assert_close(by_scale, missing)
    torch.testing.assert_close(logged["commitment_loss"], missing.mean())


@pytest.mark.paper("multi_scale: loss of tokens")
@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_the_latents_get_the_gradient_of_the_sum_and_of_the_commitment_alone(codebook):
    """Straight through once: what the decoder sees of the coarse scales has no gradient of its own."""
    model, images = mixed(codebook=codebook, stop_share=0.0), random_images()
    latents = model._latents(images).detach().requires_grad_()
    model._latents = lambda images: latents
    decode, shown = model._pixels, []

    def pixels(latents: torch.Tensor) -> torch.Tensor:
        latents.retain_grad()
        shown.append(latents)
        return decode(latents)

    model._pixels = pixels
    model.loss(images, 0, rng())[0].backward()

    so_far = torch.stack(model.latents_so_far(model._tokens_and_points(latents.detach())[0])).detach()
    torch.testing.assert_close(shown[0], so_far[-1])
    commitment = 0.25 * 2 * (latents - so_far).mean(dim=0) / latents.numel()
    torch.testing.assert_close(latents.grad, shown[0].grad + commitment)
    assert all(each.weight.grad.abs().sum() > 0 for each in model.residual.phi)
    if codebook == "gradient":
        assert model.quantizer.vectors.grad.abs().sum() > 0


@pytest.mark.paper("multi_scale: training")
def test_the_decoder_sees_some_images_after_an_earlier_scale():
    so_far = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 6000, 1, 1, 1)

    def stops(share: float, seed: int = 0) -> torch.Tensor:
        return tiny(stop_share=share)._stopped(so_far, rng(seed)).flatten()

    shares = stops(0.3).long().bincount() / 6000
    assert shares.tolist() == pytest.approx([0.15, 0.15, 0.7], abs=0.02)
    assert stops(0.0).eq(2).all() and stops(1.0).lt(2).all()
    assert stops(0.3).equal(stops(0.3)) and not stops(0.3).equal(stops(0.3, seed=1))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"trunk": "vqgan", "vqgan": SMALL_VQGAN}], ids=["dvae", "vqgan"])
def test_training_brings_images_closer_and_each_scale_adds_to_them(settings):
    model = tiny(first_steps_without_codes=20, stop_share=0.3, vocab_size=24, **settings)
    coarse, fine = torch.rand(2, 8, 3, 4, 4, generator=rng(3))[:, :4]
    images = functional.interpolate(functional.avg_pool2d(coarse, 2), 16) * 0.7  # squares of 8 pixels
    images = images + functional.interpolate(fine, 16) * 0.3  # and of 4
    model.prepare([images], rng())
    before = mean_psnr(images, model.decode(model.encode(images)))

    config = TrainingConfig(steps=40, batch_size=4, learning_rate=5e-3, clip_norm=1.0, ema_decay=0.9)
    trained, _ = tiny_models.fit_batch(model, config, (images,))
    model.load_state_dict(trained)

    figures = figures_by_scale(model, images, model.encode(images))
    assert [*figures] == [1, 2, 4]
    first, second, third = (each["psnr"] for each in figures.values())
    assert before < first < second < third, (before, figures)
    assert third == pytest.approx(mean_psnr(images, model.decode(model.encode(images))))


def test_the_use_of_codes_is_that_of_each_grid():
    tokens = torch.cat([torch.zeros(2, 4, dtype=torch.int64), torch.arange(32).view(2, 16) % 12], dim=1)
    figures = figures_by_scale(tiny_models.two_grids(), random_images(2), tokens)
    assert [*figures] == [2, 4] and [each["used_words"] for each in figures.values()] == [1, 12]
    assert figures[2]["perplexity"] == 1


def test_the_codes_start_among_what_all_scales_have_to_approximate():
    """As many codes as points: every point is a code, so nothing is left over."""
    model = tiny(vocab_size=4 * 21)
    model.prepare([random_images()], rng())
    after = model.latents_so_far(model.encode(random_images()))
    torch.testing.assert_close(after[-1], model._latents(random_images()), atol=1e-5, rtol=0)
