"""VQGAN's tokenizer: its loss, its tokens, what has no gradient when, and its settings."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.helpers import tiny_models
from tests.helpers.tiny_models import rng
from thousandwords.image_tokenizers.vqgan.model import VQGAN, VQGANConfig
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import SINGLE_PROCESS
from thousandwords.training.train_state import TrainState

TINY = VQGANConfig(**tiny_models.TINY["image_tokenizers"]["vqgan"])
TAMING = {"l2_normalize": False, "pixel_loss": "absolute", "commitment_weight": 1.0, "codebook_weight": 0.25}


def tiny(**settings) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(replace(TINY, **settings), image_size=16)


def random_images(count: int = 4) -> torch.Tensor:
    return tiny_models.random_images(count, seed=1)


# --- the trunk --------------------------------------------------------------------------------------------------------


@pytest.mark.paper("vqgan: norms")
def test_every_norm_has_32_groups_and_the_published_epsilon():
    with torch.device("meta"):
        norms = [module for module in VQGAN(VQGANConfig(), 256).modules() if isinstance(module, nn.GroupNorm)]
    assert {(module.num_groups, module.eps) for module in norms} == {(32, 1e-6)}


@pytest.mark.paper("vqgan: attention")
def test_attention_is_in_the_last_level_and_in_the_middle_or_nowhere():
    names = {name.rsplit(".", 2)[0] for name in tiny().state_dict() if "attention" in name}
    assert names == {
        *("encoder.level_3_attention_1", "encoder.middle_attention", "decoder.middle_attention"),
        *("decoder.level_3_attention_1", "decoder.level_3_attention_2"),
    }
    assert not [name for name in tiny(attention=False).state_dict() if "attention" in name]


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.paper("vqgan: pixels, reconstruction", "vqgan: quantizer loss")
@pytest.mark.parametrize(
    ("settings", "weight"),
    [({}, 1.25), (TAMING, 1.25), ({"codebook": "ema", "l2_normalize": False}, 0.25)],
    ids=["llamagen", "taming", "averaged codes"],
)
def test_the_loss_is_the_pixels_error_and_both_terms_of_the_quantizer(settings, weight):
    model, images = tiny(**settings), random_images()
    vectors = model.encoder(2 * images - 1).permute(0, 2, 3, 1).reshape(-1, 4)
    if not settings:
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
    nearest = model.codebook[model.encode(images).flatten()]
    difference = model.decoder(nearest.view(4, 4, 4, 4).permute(0, 3, 1, 2)) - (2 * images - 1)
    error = (vectors - nearest).square().mean()  # both terms have this value, and other gradients
    expected = difference.abs().mean() if settings == TAMING else difference.square().mean()

    loss, logged = model.loss(images, 0, rng())

    torch.testing.assert_close(loss, expected + weight * error)
    torch.testing.assert_close(logged["reconstruction_loss"], expected)
    torch.testing.assert_close(logged["commitment_loss"], error)


@pytest.mark.paper("vqgan: quantizer loss")
@pytest.mark.parametrize(
    ("weight", "is_moved"), [("commitment_weight", (True, False)), ("codebook_weight", (False, True))]
)
def test_each_term_of_the_quantizer_moves_one_side(weight, is_moved):
    gradients = []
    for value in (0.0, 1.0):
        model = tiny(**{"commitment_weight": 0.0, "codebook_weight": 0.0, weight: value})
        model.loss(random_images(), 0, rng())[0].backward()
        gradients.append((model.encoder.to_code.weight.grad, model.quantizer.vectors.grad))
    without, with_term = gradients
    assert tuple(not a.equal(b) for a, b in zip(without, with_term, strict=True)) == is_moved
    # straight through: without either term the pixels' gradient reaches the encoder, and not the codes
    assert without[0].abs().sum() > 0 and without[1].abs().sum() == 0


GUMBEL = {"quantizer": "gumbel", "pixel_loss": "absolute", "kl_weight": 0.5}


@pytest.mark.paper("vqgan: relaxation")
def test_with_gumbel_the_loss_is_the_pixels_error_on_sampled_tokens_and_the_kl():
    model, images = tiny(**GUMBEL), random_images()
    logits = model.encoder(2 * images - 1).permute(0, 2, 3, 1).reshape(-1, 12)
    uniform = torch.rand(logits.shape, generator=rng())
    tokens = (logits - (-uniform.log()).log()).argmax(dim=1)  # an exact sample at any temperature
    decoded = model.decoder(model.quantizer.vectors[tokens].view(4, 4, 4, 4).permute(0, 3, 1, 2))
    error = (decoded - (2 * images - 1)).abs().mean()
    kl = (logits.softmax(1) * (logits.log_softmax(1) + math.log(12))).sum(dim=1).mean()

    loss, logged = model.loss(images, 0, rng())

    assert not tokens.equal(logits.argmax(dim=1))
    torch.testing.assert_close(loss, error + 0.5 * kl)
    torch.testing.assert_close(logged["kl_loss"], kl)


@pytest.mark.paper("vqgan: relaxation")
def test_with_gumbel_the_gradient_is_that_of_the_relaxed_tokens():
    """Straight through: the pixels' gradient at the sampled codes passes on as if they had been relaxed."""
    settings = GUMBEL | {"kl_weight": 0.0, "temperature_start": 0.7}
    model, images = tiny(**settings), random_images()
    model.loss(images, 0, rng())[0].backward()
    gradients = model.encoder.to_logits.weight.grad.clone(), model.quantizer.vectors.grad.clone()
    model.zero_grad()

    logits = model.encoder(2 * images - 1).permute(0, 2, 3, 1).reshape(-1, 12)
    noise = -(-torch.rand(logits.shape, generator=rng()).log()).log()
    tokens = (logits + noise).argmax(dim=1)
    codes = model.quantizer.vectors.detach()[tokens].requires_grad_()
    decoded = model.decoder(codes.view(4, 4, 4, 4).permute(0, 3, 1, 2))
    (decoded - (2 * images - 1)).abs().mean().backward()
    relaxed = ((logits + noise) / 0.7).softmax(dim=1) @ model.quantizer.vectors.detach()
    relaxed.backward(codes.grad)

    torch.testing.assert_close(gradients[0], model.encoder.to_logits.weight.grad)
    expected = torch.zeros(12, 4).index_add(0, tokens, codes.grad)
    torch.testing.assert_close(gradients[1], expected)


@pytest.mark.paper("vqgan: relaxation")
@pytest.mark.parametrize(("step", "temperature"), [(0, 0.9), (500_000, 0.4500012), (1_000_001, 1e-6)])
def test_the_temperature_falls_as_taming_transformers_has_it(step, temperature):
    model = tiny(quantizer="gumbel")
    logged = model.loss(random_images(1), step, rng())[1]
    assert logged["temperature"] == pytest.approx(temperature, rel=1e-6) and model.config.kl_weight == 1e-8


@pytest.mark.paper("vqgan: optimizer", "vqvae: optimizer")
@pytest.mark.parametrize(
    ("batch_size", "rate", "betas", "settings"),
    [
        (12, 12 * 4.5e-6, (0.5, 0.9), {}),  # taming-transformers
        (128, 1e-4, (0.9, 0.95), {"clip_norm": 1.0}),  # LlamaGen
        (32, 3e-4, (0.9, 0.999), {}),  # VQ-VAE
        (128, 3e-4, (0.9, 0.999), {}),  # VQ-VAE-2
    ],
)
def test_the_published_trainings_can_be_set(batch_size, rate, betas, settings):
    settings |= dict(zip(("beta1", "beta2"), betas, strict=True)) | {"precision": "float32"}
    config = TrainingConfig(1000, batch_size, learning_rate=rate, final_learning_rate=rate, **settings)
    state = TrainState(tiny(), config, SINGLE_PROCESS)
    assert [state.learning_rate(step) for step in (0, 500, 999)] == [pytest.approx(rate)] * 3
    assert {group["betas"] for group in state.optimizers[0].param_groups} == {betas}
    assert config.ema_decay is None


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, TAMING, {"quantizer": "gumbel"}])
def test_the_published_kinds_learn_their_codes_by_gradient_alone(settings):
    model, images = tiny(**settings), random_images()
    model.prepare([images], rng())
    before = model.codebook.clone()
    model.loss(images, 0, rng())
    assert model.after_update(0, rng(), lambda tensor: [tensor]) == {} and model.codebook.equal(before)
    assert not model.needs_whole_weights and not model.has_frozen_steps
    names = [name for name in model.state_dict() if not name.startswith(("encoder.", "decoder."))]
    assert names == ["quantizer.vectors"]


def test_what_moves_outside_of_the_gradient_is_known_before_training():
    """FSDP has no whole codebook to move, and DDP has to know of weights without a gradient."""
    assert tiny(codebook="ema").needs_whole_weights and tiny(restart_every=4).needs_whole_weights
    late = tiny(first_steps_without_codes=2)
    assert late.needs_whole_weights and late.has_frozen_steps
    late.loss(random_images(), 1, rng())[0].backward()
    assert late.quantizer.vectors.grad is None
    assert not tiny(codebook="ema", first_steps_without_codes=2).has_frozen_steps


@pytest.mark.paper("vqgan: tokens", "vqgan: codebook start")
def test_codes_start_uniform_and_have_unit_length_where_it_is_set():
    codes = tiny(vocab_size=500, l2_normalize=False).quantizer.vectors
    assert codes.abs().max() <= 1 / 500 and abs(codes.std() * 500 - 3**-0.5) < 0.02
    model = tiny(vocab_size=500)
    assert torch.allclose(model.quantizer.vectors.norm(dim=1), torch.ones(500))
    with torch.no_grad():
        model.quantizer.vectors *= 3
    assert torch.allclose(model.codebook.norm(dim=1), torch.ones(500))


def test_muon_parameters_are_the_kernels_of_the_residual_branches():
    model = tiny()
    selected = {id(weight) for weight in model.muon_parameters()}
    names = {name for name, weight in model.named_parameters() if id(weight) in selected}
    assert {
        "encoder.level_1_block_1.path.conv_1.weight",
        "decoder.middle_block_2.path.conv_2.weight",
    } <= names
    assert len(names) == 2 * (3 + 2) + 2 * (6 + 2)
    assert all(".path.conv_" in name and name.endswith("weight") for name in names)
