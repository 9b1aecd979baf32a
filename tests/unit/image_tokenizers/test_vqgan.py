"""VQGAN's tokenizer: its loss, its tokens, what has no gradient when, and its settings."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.helpers import tiny_models
from tests.helpers.tiny_models import rng
from thousandwords.image_tokenizers.vqgan.model import VQGAN, VQGANConfig
from thousandwords.image_tokenizers.vqvae.model import VQVAEConfig
from thousandwords.nn.quantizers import VectorQuantizer
from thousandwords.nn.vqgan_trunk import Block
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import SINGLE_PROCESS
from thousandwords.training.train_state import TrainState

TINY = VQGANConfig(**tiny_models.TINY["image_tokenizers"]["vqgan"])
TAMING = {
    **{"l2_normalize": False, "pixel_loss": "absolute"},
    **{"commitment_weight": 1.0, "codebook_weight": 0.25},
}


def tiny(**settings) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(replace(TINY, **settings), image_size=16)


def random_images(count: int = 4) -> torch.Tensor:
    return tiny_models.random_images(count, seed=1)


def colored_cells() -> torch.Tensor:
    """(4, 3, 16, 16): each cell of a token has one of four colors."""
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    cells = colors[torch.randint(4, (4, 4, 4), generator=rng())].permute(0, 3, 1, 2)
    return cells.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


# --- the trunk --------------------------------------------------------------------------------------------------------


def full(**settings) -> VQGAN:
    """A model of the published sizes, on the meta device."""
    with torch.device("meta"):
        return VQGAN(VQGANConfig(**settings), image_size=256)


@pytest.mark.paper("vqgan: trunk")
def test_the_levels_have_the_published_widths_and_the_decoder_a_block_more():
    model = full()
    widths = {
        half: [each.path.conv_2.out_channels for each in getattr(model, half) if isinstance(each, Block)]
        for half in ("encoder", "decoder")
    }
    assert widths["encoder"] == [128] * 4 + [256] * 4 + [512] * 4  # two blocks a level, and two in the middle
    assert widths["decoder"] == [512] * 5 + [256] * 6 + [128] * 6
    assert (model.encoder.input.in_channels, model.encoder.input.out_channels) == (3, 128)
    assert (model.decoder.output.in_channels, model.decoder.output.out_channels) == (128, 3)
    assert model.scales == (16,)


@pytest.mark.paper("vqgan: norms")
def test_every_norm_has_32_groups_and_the_published_epsilon():
    norms = [module for module in full().modules() if isinstance(module, nn.GroupNorm)]
    assert {(module.num_groups, module.eps) for module in norms} == {(32, 1e-6)}


@pytest.mark.paper("vqgan: latent", "vqgan: tokens")
@pytest.mark.parametrize(("vocab_size", "code_width"), [(16_384, 8), (16_384, 256), (1024, 256)])
def test_latents_of_256_channels_become_codes_by_a_1x1_convolution_and_back(vocab_size, code_width):
    model = full(vocab_size=vocab_size, code_width=code_width)
    into, back = model.encoder.to_code, model.decoder.from_code
    assert into.weight.shape == (code_width, 256, 1, 1) and back.weight.shape == (256, code_width, 1, 1)
    assert model.codebook.shape == (vocab_size, code_width)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.paper("vqgan: pixels, reconstruction", "vqgan: quantizer loss")
@pytest.mark.parametrize("settings", [{}, TAMING], ids=["llamagen", "taming"])
def test_the_loss_is_the_pixels_error_and_both_terms_of_the_quantizer(settings):
    model, images = tiny(**settings), random_images()
    vectors = model.encoder(2 * images - 1).permute(0, 2, 3, 1).reshape(-1, 4)
    codes = model.quantizer.vectors
    if not settings:
        vectors, codes = (each / each.norm(dim=1, keepdim=True) for each in (vectors, codes))
    nearest = codes[model.encode(images).flatten()]
    difference = model.decoder(nearest.view(4, 4, 4, 4).permute(0, 3, 1, 2)) - (2 * images - 1)
    error = (vectors - nearest).square().mean()  # both terms have this value, and other gradients
    expected = difference.abs().mean() if settings else difference.square().mean()

    loss, logged = model.loss(images, 0, rng())

    torch.testing.assert_close(loss, expected + 1.25 * error)
    torch.testing.assert_close(logged["reconstruction_loss"], expected)
    torch.testing.assert_close(logged["commitment_loss"], error)


@pytest.mark.paper("vqgan: quantizer loss")
@pytest.mark.parametrize(
    ("weight", "is_moved"), [("commitment_weight", "encoder"), ("codebook_weight", "codes")]
)
def test_each_term_of_the_quantizer_moves_one_side(weight, is_moved):
    gradients = {}
    for value in (0.0, 1.0):
        settings = {"commitment_weight": 0.0, "codebook_weight": 0.0, weight: value}
        model = tiny(**settings)
        model.loss(random_images(), 0, rng())[0].backward()
        gradients[value] = model.encoder.to_code.weight.grad, model.quantizer.vectors.grad
    changed = {
        name: not torch.equal(without, with_it)
        for name, without, with_it in zip(("encoder", "codes"), gradients[0.0], gradients[1.0], strict=True)
    }
    assert changed == {"encoder": is_moved == "encoder", "codes": is_moved == "codes"}
    # straight through: without either term the pixels' gradient reaches the encoder, and not the codes
    assert gradients[0.0][0].abs().sum() > 0 and gradients[0.0][1].abs().sum() == 0


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


OPTIMIZERS = {  # batch size, settings, betas
    "taming": (12, {"beta1": 0.5, "beta2": 0.9, "learning_rate": 12 * 4.5e-6}, (0.5, 0.9)),
    "llamagen": (128, {"beta1": 0.9, "beta2": 0.95, "learning_rate": 1e-4, "clip_norm": 1.0}, (0.9, 0.95)),
}


@pytest.mark.paper("vqgan: optimizer")
@pytest.mark.parametrize(("batch_size", "settings", "betas"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_published_trainings_can_be_set(batch_size, settings, betas):
    rate = settings["learning_rate"]
    config = TrainingConfig(1000, batch_size, final_learning_rate=rate, precision="float32", **settings)
    state = TrainState(tiny(), config, SINGLE_PROCESS)
    assert [state.learning_rate(step) for step in (0, 500, 999)] == [pytest.approx(rate)] * 3
    assert {group["betas"] for group in state.optimizers[0].param_groups} == {betas}
    assert config.ema_decay is None


@pytest.mark.parametrize("decoder_only_from", [None, 5])
def test_weights_are_frozen_at_some_steps_only_where_the_decoder_trains_alone(decoder_only_from):
    """DDP has to know before training that the encoder may have no gradient."""
    model = tiny(decoder_only_from=decoder_only_from)
    model.loss(random_images(), 5, rng())[0].backward()
    assert model.has_frozen_steps == all(weight.grad is None for weight in model.encoder.parameters())
    assert all(weight.grad is not None for weight in model.decoder.parameters())
    assert "commitment_loss" in model.loss(random_images(), 4, rng())[1]


@pytest.mark.parametrize("settings", [{}, {"quantizer": "gumbel"}], ids=["nearest", "gumbel"])
def test_some_updates_bring_the_images_closer_to_their_originals(settings):
    model, images = tiny(**settings).train(), colored_cells()
    before = (model.decode(model.encode(images)) - images).abs().mean()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        model.loss(images, step, rng(step))[0].backward()
        optimizer.step()
    after = (model.decode(model.encode(images)) - images).abs().mean()
    assert after < 0.8 * before


# --- codes that start from vectors, move and settle, as those of vqvae ------------------------------------------------

MOVING = {"first_steps_without_codes": 2, "restart_every": 4, "restart_until": 8, "codebook_decay": 0.5}


def alone(tensor: torch.Tensor) -> list[torch.Tensor]:
    """`gather` in a single process."""
    return [tensor]


@pytest.mark.parametrize("is_unit", [False, True])
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_codes_start_among_vectors_and_unused_ones_move_where_it_is_set(codebook, is_unit):
    model, images = tiny(codebook=codebook, l2_normalize=is_unit, **MOVING), random_images(8)
    model.prepare([images], rng())
    moves, restarts = [], {}
    for step in range(12):
        before, logged = model.codebook.clone(), model.loss(images, step, rng())[1]
        assert ("batch_perplexity" in logged) == (step >= 2)
        if step == 3:
            with torch.no_grad():  # a code that no vector is near to
                model.quantizer._place(torch.tensor([5]), -9 * model.codebook[5:6], torch.zeros(1))
        moved = model.after_update(step, rng(), alone)
        moves.append(not model.codebook.equal(before))
        if moved:
            restarts[step] = moved["codes_restarted"]
        if step == 1:
            vectors, tokens = model._encode(images), model.encode(images).flatten()
            means = torch.stack([vectors[tokens == token].mean(dim=0) for token in tokens.unique()])
            distances = (model.codebook[tokens.unique()] - means).norm(dim=1)
            assert len(tokens.unique()) >= 8 and distances.mean() < 0.2 * vectors.std()

    assert moves[:3] == [False, True, codebook == "ema"]
    assert list(restarts) == list(range(2, 12))
    assert restarts[3] >= 1 and not any(count for step, count in restarts.items() if step not in (3, 7))


def test_averaged_codes_are_those_of_vqvae_and_have_no_loss_of_their_own():
    model, images = tiny(codebook="ema", l2_normalize=False), random_images()
    assert "quantizer.vectors" not in model.state_dict()
    points, tokens = model._encode(images).detach(), model.encode(images).flatten()
    reference = VectorQuantizer(VQVAEConfig(vocab_size=12, latent_width=4))
    reference.load_state_dict(model.quantizer.state_dict())
    error = (points - model.codebook[tokens]).square().mean()

    loss, logged = model.loss(images, 0, rng())
    model.after_update(0, rng(), alone)
    reference.after_update(points, 0, rng(), alone)

    torch.testing.assert_close(loss, logged["reconstruction_loss"] + 0.25 * error)
    assert model.codebook.equal(reference.codebook)


@pytest.mark.parametrize("settings", [{}, TAMING, {"quantizer": "gumbel"}])
def test_the_published_kinds_learn_their_codes_by_gradient_alone(settings):
    model, images = tiny(**settings), random_images()
    model.prepare([images], rng())
    before = model.codebook.clone()
    model.loss(images, 0, rng())
    assert model.after_update(0, rng(), alone) == {} and model.codebook.equal(before)
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


# --- tokens and codes -------------------------------------------------------------------------------------------------


def test_of_equal_codes_the_first_is_the_token():
    model = tiny()
    with torch.no_grad():
        model.quantizer.vectors[6:] = model.quantizer.vectors[:6]
    assert model.encode(random_images()).max() < 6


@pytest.mark.paper("vqgan: tokens", "vqgan: codebook start")
def test_codes_start_uniform_and_have_unit_length_where_it_is_set():
    codes = tiny(vocab_size=500, l2_normalize=False).quantizer.vectors
    assert codes.abs().max() <= 1 / 500 and abs(codes.std() * 500 - 3**-0.5) < 0.02
    model = tiny(vocab_size=500)
    assert torch.allclose(model.quantizer.vectors.norm(dim=1), torch.ones(500))
    with torch.no_grad():
        model.quantizer.vectors *= 3
    assert torch.allclose(model.codebook.norm(dim=1), torch.ones(500))


@pytest.mark.paper("vqgan: attention")
def test_attention_is_in_the_last_level_and_in_the_middle_or_nowhere():
    names = {name.rsplit(".", 2)[0] for name in tiny().state_dict() if "attention" in name}
    assert names == {
        *("encoder.level_3_attention_1", "encoder.middle_attention", "decoder.middle_attention"),
        *("decoder.level_3_attention_1", "decoder.level_3_attention_2"),
    }
    assert not [name for name in tiny(attention=False).state_dict() if "attention" in name]


def test_muon_parameters_are_the_kernels_of_the_residual_branches():
    model = tiny()
    selected = {id(weight) for weight in model.muon_parameters()}
    names = [name for name, weight in model.named_parameters() if id(weight) in selected]
    assert {"encoder.level_1_block_1.path.conv_1.weight", "decoder.middle_block_2.path.conv_2.weight"} <= {
        *names
    }
    assert len(names) == 2 * (3 + 2) + 2 * (6 + 2)
    assert all(".path.conv_" in name and name.endswith("weight") for name in names)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 0}, "vqgan.blocks is 0; it needs to be 1 or more"),
        ({"vocab_size": 1}, "vqgan.vocab_size is 1; it needs to be 2 or more"),
        ({"codebook_weight": -1.0}, "vqgan.codebook_weight is -1.0; it needs to be 0 or more"),
        ({"kl_weight": -1.0}, "vqgan.kl_weight is -1.0; it needs to be 0 or more"),
        ({"temperature_end": 0.0}, "vqgan.temperature_end is 0.0; it needs to be above 0"),
        (
            {"first_steps_without_codes": -1},
            "vqgan.first_steps_without_codes is -1; it needs to be 0 or more",
        ),
        ({"restart_every": 0}, "vqgan.restart_every is 0; it needs to be 1 or more"),
        ({"codebook_decay": 1.0}, r"vqgan.codebook_decay is 1.0; it needs to be in \[0, 1\)"),
        (
            {"quantizer": "gumbel", "codebook": "ema"},
            "vqgan.codebook is ema, but the codes of vqgan.quantizer gumbel are learned. Set vqgan.codebook: gradient",
        ),
        ({"multipliers": ()}, r"vqgan.multipliers is \[\]; give each level 1 or more, as in \[1, 2, 4\]"),
        ({"multipliers": (1, 0)}, r"vqgan.multipliers is \[1, 0\]"),
        ({"norm_groups": 3}, "vqgan.width is 8, no multiple of vqgan.norm_groups, 3"),
        ({"multipliers": (1,) * 6}, r"image_size is 16, no multiple of the 32 pixels of a token's cell"),
    ],
)
def test_impossible_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)
