"""The VQ-VAE: its quantizers, how codes start, move and settle, and its settings."""

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import tiny_models
from tests.helpers.tiny_models import rng
from thousandwords.image_tokenizers.vqvae.model import VQVAE, VQVAEConfig
from thousandwords.nn.quantizers import FiniteScalarQuantizer, VectorQuantizer, kmeans_plus_plus, nearest

TINY = VQVAEConfig(**tiny_models.TINY["image_tokenizers"]["vqvae"])
FSQ = {"quantizer": "fsq", "levels": (4, 3), "vocab_size": 12}
KINDS = [{}, {"codebook": "gradient"}, {"l2_normalize": True}, FSQ, {"quantizer": "simvq"}]
TWO_GRIDS = {"scales": (2, 4)}


def tiny(**settings) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(replace(TINY, **settings), image_size=16)


def random_images(count: int = 4) -> torch.Tensor:
    return tiny_models.random_images(count, seed=1)


def alone(tensor: torch.Tensor) -> list[torch.Tensor]:
    """`gather` in a single process."""
    return [tensor]


@torch.no_grad()
def codes_of(vectors: list[list[float]], **settings) -> VectorQuantizer:
    """A quantizer with these codes, all used equally."""
    count, width = len(vectors), len(vectors[0])
    config = {"vocab_size": count, "latent_width": width, "restart_every": None} | settings
    quantizer = VectorQuantizer(VQVAEConfig(**config))
    quantizer._place(torch.arange(count), torch.tensor(vectors), torch.full((count,), 1 / count))
    return quantizer


# --- tokens -------------------------------------------------------------------------------------------------


def test_a_token_is_the_nearest_code_and_of_equally_near_ones_the_first():
    codes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    points = torch.tensor([[0.4, 0.1], [1.9, 0.2], [1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    assert nearest(points, codes).tolist() == [0, 1, 0, 0, 1]


def test_the_nearest_code_is_the_same_under_autocast():
    points, codes = torch.randn(500, 8, generator=rng()), torch.randn(64, 8, generator=rng(1))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = nearest(points, codes)
    assert tokens.equal(torch.cdist(points.double(), codes.double()).argmin(dim=1))


@pytest.mark.parametrize("scales, num_tokens", [(None, 16), ((4,), 16), ((2, 4), 20)])
@pytest.mark.parametrize("settings", KINDS)
def test_every_quantizer_decodes_its_tokens_and_gives_an_image_the_same_in_any_batch(
    settings, scales, num_tokens
):
    model = tiny(scales=scales, **settings)
    tokens = model.encode(random_images())
    assert tokens.shape == (4, num_tokens) and model.codebook.shape == (12, model.config.channels)
    assert model.decode(tokens).shape == (4, 3, 16, 16)
    assert torch.cat([model.encode(image[None]) for image in random_images()]).equal(tokens)


@pytest.mark.paper("vqvae: straight-through")
@pytest.mark.parametrize("settings", KINDS)
def test_the_gradient_of_the_code_passes_to_the_latents_unchanged(settings):
    model = tiny(commitment_weight=0.0, **settings)
    expected = model.codebook[model.encode(random_images())]
    points_of, decode, seen = model.quantizer.points, model._decode, {}

    def kept(name, tensor):
        tensor.retain_grad()
        seen[name] = tensor
        return tensor

    model.quantizer.points = lambda latents: kept("points", points_of(latents))
    model._decode = lambda vectors: decode(kept("codes", vectors))
    model.loss(random_images(), 0, rng())[0].backward()

    torch.testing.assert_close(seen["codes"], expected.flatten(0, 1))
    assert seen["points"].grad.abs().sum() > 0 and seen["points"].grad.equal(seen["codes"].grad)


# --- the trunk and the pixels -------------------------------------------------------------------------------


@pytest.mark.paper("vqvae: trunk")
def test_the_trunk_is_the_dvaes():
    """So that only the bottleneck differs: all layers but those at the tokens and at the pixels."""

    def trunk(model: torch.nn.Module) -> dict[str, torch.Size]:
        parts = model.state_dict().items()
        return {name: each.shape for name, each in parts if "group_" in name or "encoder.input" in name}

    assert trunk(tiny()) == trunk(tiny_models.tiny("image_tokenizers", "dvae")) and len(trunk(tiny())) > 30
    # one grid has the weights it always had
    assert {name.split(".")[0] for name in tiny().state_dict()} == {"encoder", "decoder", "quantizer"}


@pytest.mark.paper("vqvae: pixels, reconstruction")
def test_pixels_are_centered_and_their_squared_error_is_divided_by_their_variance():
    model, images, seen = tiny(squared_error_weight=12.5), random_images(), []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.decoder.output.weight.zero_()
        model.decoder.output.bias.fill_(0.25)

    logged = model.loss(images, 0, rng())[1]

    assert seen[0].equal(images - 0.5)
    assert model.decode(model.encode(images)).equal(torch.full_like(images, 0.75))
    torch.testing.assert_close(logged["reconstruction_loss"], 12.5 * (images - 0.75).square().mean())


# --- two grids ----------------------------------------------------------------------------------------------


@pytest.mark.paper("vqvae: VQ-VAE-2")
def test_the_fine_grid_sees_the_decoded_codes_of_the_coarse_one_and_has_its_own():
    model, images = tiny(**TWO_GRIDS), random_images()
    tokens, (top, bottom) = model.encode(images), model._grids(images)
    assert model.scales == (2, 4) and tokens[:, :4].equal(top.tokens.view(4, 4))

    gradient = torch.autograd.grad(bottom.points.sum(), top.points)[0]
    model.top.quantizer.sums.mul_(-1)  # other codes

    assert gradient.abs().sum() > 0  # straight through
    assert not model._grids(images)[1].points.equal(bottom.points)
    assert model.code_vectors(tokens)[:, :4].equal(model.top.quantizer.codebook[tokens[:, :4]])
    assert model.code_vectors(tokens)[:, 4:].equal(model.quantizer.codebook[tokens[:, 4:]])


@pytest.mark.paper("vqvae: VQ-VAE-2")
def test_the_loss_of_two_grids_is_the_squared_error_and_a_quarter_of_both_commitments():
    model, images = tiny(**TWO_GRIDS), random_images()
    loss, logged = model.loss(images, 0, rng())

    tokens = model.encode(images)
    codes = model.code_vectors(tokens)
    error = 20 * (model._decode(codes) - images).square().mean()
    pairs = zip(model._grids(images), codes.split([4, 16], dim=1), strict=True)
    misses = [(grid.points - each.flatten(0, 1)).square().sum(dim=1) for grid, each in pairs]

    torch.testing.assert_close(loss, error + 0.25 * misses[0].mean() + 0.25 * misses[1].mean())
    torch.testing.assert_close(logged["reconstruction_loss"], error.detach())
    for side, miss in zip((2, 4), misses, strict=True):
        torch.testing.assert_close(logged[f"commitment_loss_scale_{side}"], miss.mean())
        torch.testing.assert_close(logged[f"code_distance_scale_{side}"], miss.sqrt().mean())
        assert 1 <= logged[f"batch_perplexity_scale_{side}"] <= 12
    used = logged["batch_codes_used_scale_2"] * 12
    assert used.item() == pytest.approx(len(tokens[:, :4].unique()))
    assert set(model.after_update(0, rng(), alone)) == {"codes_restarted_scale_2", "codes_restarted_scale_4"}


def test_the_image_after_the_coarse_grid_does_not_depend_on_the_fine_one():
    model, images = tiny(**TWO_GRIDS), random_images()
    tokens = model.encode(images)
    coarse, fine = model.images_so_far(tokens)
    is_coarse = torch.arange(20) < 4
    other = (tokens + 1) % 12

    assert fine.equal(model.decode(tokens)) and not coarse.equal(fine)
    assert model.images_so_far(tokens.where(is_coarse, other))[0].equal(coarse)
    assert not model.images_so_far(other.where(is_coarse, tokens))[0].equal(coarse)


@pytest.mark.paper("vqvae: VQ-VAE-2 sizes")
def test_the_sizes_of_vq_vae_2_can_be_set():
    config = VQVAEConfig(width=64, groups=2, patch=2, latent_width=64, scales=(32, 64))
    with torch.device("meta"):
        model = VQVAE(config, image_size=256)
    assert model.config.coarsest_width == 128 and model.num_tokens == 32 * 32 + 64 * 64
    assert [quantizer.codebook.shape for quantizer in model.quantizers.values()] == [(512, 64), (512, 64)]


# --- a codebook ---------------------------------------------------------------------------------------------


@pytest.mark.paper("vqvae: EMA codebook")
def test_a_code_is_the_moving_average_of_the_latents_near_it():
    quantizer = codes_of([[0.0, 0.0], [4.0, 0.0]], codebook_decay=0.75)
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 2.0]])

    quantizer.after_update(points, 0, rng(), alone)

    # shares .5 -> .75 * .5 + .25 * [.75, .25], sums [0, 2] -> .75 * [0, 2] + .25 * [.75, .75]
    assert quantizer.usage.tolist() == [0.5625, 0.4375]
    assert quantizer.sums.tolist() == [[0.1875, 0.0], [1.6875, 0.125]]
    assert quantizer.codebook[0].tolist() == pytest.approx([1 / 3, 0])


@pytest.mark.paper("vqvae: EMA zero-debias")
def test_the_averages_need_no_correction_of_their_start_at_zero():
    decay, vectors = 0.75, torch.randn(3, 2, generator=rng())
    quantizer = codes_of(vectors.tolist(), codebook_decay=decay)
    batches = [torch.randn(40, 2, generator=rng(seed)) for seed in range(1, 6)]
    # the authors' code: averages from zero, divided by 1 - decay ** updates; here the first update is the start
    counts, sums = (1 - decay) * torch.full((3,), 1 / 3), (1 - decay) * vectors / 3
    quantizer._place(torch.arange(3), vectors, counts.clone())
    for number, points in enumerate(batches, start=2):
        tokens = torch.cdist(points, sums / counts[:, None]).argmin(dim=1)
        one_hot = torch.nn.functional.one_hot(tokens, 3).float()
        counts = decay * counts + (1 - decay) * one_hot.sum(dim=0) / 40
        sums = decay * sums + (1 - decay) * one_hot.T @ points / 40
        debiased = [average / (1 - decay**number) for average in (counts, sums)]

        quantizer.after_update(points, 0, rng(), alone)

        torch.testing.assert_close(quantizer.codebook, debiased[1] / debiased[0][:, None])


@pytest.mark.paper("vqvae: EMA zero-debias")
def test_a_code_that_is_never_used_keeps_its_place():
    quantizer = codes_of([[0.0, 0.0], [4.0, 1.0]], codebook_decay=0.5)
    for step in range(400):  # .5 ** 400 is 0 in float32
        quantizer.after_update(torch.zeros(8, 2), step, rng(), alone)
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[0.0, 0.0], [4.0, 1.0]]))


@pytest.mark.paper("vqvae: loss")
@pytest.mark.parametrize("codebook, expected", [("ema", 0.25), ("gradient", 1.25)])
def test_the_loss_is_the_commitment_and_that_of_a_codebook_trained_by_gradient(codebook, expected):
    quantizer = codes_of([[0.0, 0.0], [4.0, 0.0]], codebook=codebook)
    points = torch.tensor([[1.0, 0.0]], requires_grad=True)

    loss, commitment = quantizer.loss(points, quantizer.codebook[quantizer.tokens(points)])
    loss.backward()

    assert commitment.item() == 1 and loss.item() == expected
    assert points.grad.tolist() == [[0.5, 0.0]]
    if codebook == "gradient":
        assert quantizer.vectors.grad.tolist() == [[-2.0, 0.0], [0.0, 0.0]]


@pytest.mark.paper("vqvae: l2 codes")
def test_latents_and_codes_have_unit_length_where_they_are_normalized():
    model = tiny(l2_normalize=True)
    model.loss(random_images(), 0, rng())[0].backward()
    model.after_update(0, rng(), alone)  # an average of unit vectors is shorter
    torch.testing.assert_close(model.codebook.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(model._grids(random_images())[0].points.norm(dim=1), torch.ones(64))


# --- the start ----------------------------------------------------------------------------------------------


def test_codes_start_far_from_each_other_and_the_same_from_the_same_seed():
    centers = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    points = centers.repeat(50, 1) + torch.rand(200, 2, generator=rng())

    seeds = kmeans_plus_plus(points, 4, rng(1))

    assert sorted(nearest(seeds, centers).tolist()) == [0, 1, 2, 3]
    assert seeds.equal(kmeans_plus_plus(points, 4, rng(1)))
    assert not seeds.equal(kmeans_plus_plus(points, 4, rng(2)))
    assert kmeans_plus_plus(points[:1].repeat(3, 1), 3, rng()).equal(points[:1].repeat(3, 1))


# --- restarts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_an_unused_code_moves_to_a_latent_with_a_large_error(codebook):
    quantizer = codes_of(
        [[0.0], [100.0]], codebook=codebook, codebook_decay=0.1, restart_every=2, restart_until=6
    )
    points, moved = torch.tensor([[0.0], [0.0], [0.0], [3.0]]), []

    for step in range(2):
        moved.append(quantizer.after_update(points, step, rng(), alone)["codes_restarted"])

    assert moved == [0, 1] and quantizer.codebook[1].item() == 3
    assert quantizer.usage[1] == 0.5  # as much as the average, so that it gets time


def test_codes_stop_moving_before_the_end():
    config = VQVAEConfig(restart_every=10, restart_until=30)
    assert [step for step in range(60) if config.restarts_codes(step)] == [9, 19, 29]
    assert not any(replace(config, restart_every=None).restarts_codes(step) for step in range(60))


def test_restarts_choose_latents_in_proportion_to_their_errors_and_none_without_an_error():
    quantizer, counts = codes_of([[0.0], [100.0]]), torch.zeros(2)
    points = torch.tensor([[0.0], [1.0], [2.0]])
    for seed in range(400):
        quantizer._place(torch.tensor([1]), torch.tensor([[100.0]]), torch.zeros(1))
        assert quantizer._restart(points, points[:, 0].square(), rng(seed)) == 1
        counts[int(quantizer.codebook[1].item()) - 1] += 1
    assert (counts / 400).tolist() == pytest.approx([0.2, 0.8], abs=0.05)
    quantizer._place(torch.tensor([1]), torch.tensor([[100.0]]), torch.zeros(1))
    assert quantizer._restart(points, torch.zeros(3), rng()) == 0


# --- FSQ ----------------------------------------------------------------------------------------------------


def fsq(*levels: int) -> FiniteScalarQuantizer:
    return FiniteScalarQuantizer(VQVAEConfig(quantizer="fsq", levels=levels, vocab_size=math.prod(levels)))


@pytest.mark.paper("vqvae: FSQ")
def test_fsq_rounds_to_its_levels_with_the_first_dimension_fastest():
    quantizer = fsq(8, 5)
    latents = torch.linspace(-9, 9, 2001)[:, None].expand(-1, 2)
    points = quantizer.points(latents)

    # all 8: the range is shifted by a half
    assert (points[:, 0] * 4).round().unique().tolist() == [-4, -3, -2, -1, 0, 1, 2, 3]
    assert (points[:, 1] * 2).round().unique().tolist() == [-2, -1, 0, 1, 2]
    assert quantizer.codebook[:3].tolist() == [[-1, -1], [-0.75, -1], [-0.5, -1]]
    assert quantizer.codebook[8].tolist() == [-1, -0.5]
    assert quantizer.points(torch.zeros(1, 2)).abs().max() < 0.01


VOCABULARIES = {
    (2, 9, 3): 54,
    (8, 8, 8): 512,
    (8, 5, 5, 5): 1000,
    (7, 5, 5, 5, 5): 4375,
    (8, 8, 8, 6, 5): 15_360,
}


@pytest.mark.paper("vqvae: FSQ levels")
@pytest.mark.parametrize(("levels", "vocab_size"), VOCABULARIES.items())
def test_the_papers_levels_make_their_vocabularies_also_under_autocast(levels, vocab_size):
    quantizer = fsq(*levels)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = quantizer.tokens(quantizer.codebook)
        points = quantizer.points(torch.randn(64, len(levels), generator=rng()))
    assert tokens.equal(torch.arange(vocab_size))
    assert len(quantizer.codebook.unique(dim=0)) == vocab_size and points.dtype == torch.float32


# --- SimVQ --------------------------------------------------------------------------------------------------


@pytest.mark.paper("vqvae: SimVQ")
def test_simvq_learns_the_map_of_its_table_and_not_the_table():
    model = tiny(quantizer="simvq", latent_width=4, vocab_size=4000)
    model.loss(random_images(), 0, rng())[0].backward()
    quantizer = model.quantizer
    assert quantizer.affine.weight.grad.abs().sum() > 0 and quantizer.affine.bias.grad.abs().sum() > 0
    assert [name for name, _ in quantizer.named_parameters()] == ["affine.weight", "affine.bias"]
    assert quantizer.table.std().item() == pytest.approx(4**-0.5, rel=0.02)
