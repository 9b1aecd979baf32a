"""The next-scale transformer: all tokens of a grid in one pass, given the image so far and the caption."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.tiny_models import (
    ARGUMENTS,
    IMAGE_VOCAB_SIZE,
    SEVERAL_SCALES,
    TEXT_VOCAB_SIZE,
    captions_as_tokens,
    image_tokens,
    random_images,
    rng,
    rngs,
    tiny,
    two_grids,
)
from thousandwords import components
from thousandwords.generators.next_scale.model import NextScale, NextScaleConfig, guidance_at
from thousandwords.nn.grid_positions import rotary_angles, rotate
from thousandwords.nn.logits import sample_token, truncate, uniforms

SCALES = SEVERAL_SCALES  # (1, 2, 4): 21 tokens
SPANS = [(0, 1), (1, 5), (5, 21)]
SETTINGS = [
    {},
    {"attention": "block_causal"},
    {"attention": "block_causal", "adaptive_norms": True},
    {"rotary_extent": None, "adaptive_norms": True},
    {"text_layers": 0, "adaptive_norms": True, "positions": "absolute", "activation": "tanh_gelu"},
]
every_setting = pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda settings: " ".join(settings) or "default"
)


def next_scale(scales=SCALES, vocab_size=IMAGE_VOCAB_SIZE, **settings):
    """A generator with large first weights, so that every part of it changes the logits."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_heads": 2, "width": 16, "text_layers": 1, "init_std": 0.4} | settings
    sizes = {"rotary_extent": 4.0} | sizes
    arguments = ARGUMENTS["generators"] | {"scales": scales, "image_vocab_size": vocab_size}
    model = NextScale(NextScaleConfig(**sizes), **arguments, latent_width=4, num_phi=2).eval()
    for convolution in model.latents.residual.phi:  # which start as the identity
        convolution.weight.normal_(std=0.3)
    return model


def reference_sample(model, text, generators, guidance=1.0, **truncation):
    """Each grid from a whole pass over all tokens, the later ones 0; guidance as the papers write it."""
    uniform = uniforms(generators, model.image_length)
    tokens = torch.zeros(len(text), model.image_length, dtype=torch.int64)
    for scale, (first, end) in enumerate(SPANS):
        logits = model.logits(text, tokens)[:, first:end]
        strength = (1, 1 + (guidance - 1) / 2, 1)[scale]
        without = model.logits(torch.full_like(text, -1), tokens)[:, first:end]
        logits = (strength * logits + (1 - strength) * without).flatten(0, 1)
        tokens[:, first:end] = sample_token(
            truncate(logits, **truncation), uniform[:, first:end].flatten()
        ).view(len(text), -1)
    return tokens


# --- the model ----------------------------------------------------------------------------------------------


@pytest.mark.paper("next_scale: mask")
@every_setting
def test_a_grid_is_not_changed_by_its_own_or_a_later_one(settings):
    model, text, tokens = next_scale(**settings), captions_as_tokens(2), image_tokens(2, SCALES)
    logits = model.logits(text, tokens)

    for position in range(21):
        changed = tokens.clone()
        changed[:, position] = (tokens[:, position] + 1) % IMAGE_VOCAB_SIZE
        moved = model.logits(text, changed)
        first, end = next(span for span in SPANS if span[0] <= position < span[1])
        assert moved[:, :end].equal(logits[:, :end])
        assert end == 21 or not moved[:, end:].equal(logits[:, end:])


@pytest.mark.paper("next_scale: start, 1×1", "next_scale: text")
@every_setting
def test_another_word_changes_every_grid(settings):
    model, text, tokens = next_scale(**settings), captions_as_tokens(3), image_tokens(3, SCALES)
    logits = model.logits(text, tokens)

    for position in range(text.shape[1]):
        is_word = text[:, position] != -1
        changed = text.clone()
        changed[is_word, position] = (text[is_word, position] + 1) % TEXT_VOCAB_SIZE
        is_moved = (model.logits(changed, tokens) != logits).any(dim=2)
        assert all(is_moved[:, first:end].any(dim=1).equal(is_word) for first, end in SPANS)


@pytest.mark.paper("next_scale: text")
def test_pads_are_not_seen():
    """What stands for a pad may be anything: the embedding of token 0 and the positions behind the caption."""
    model, tokens = next_scale(), image_tokens(1, SCALES)
    text = torch.tensor([[5, 9, 7, -1, -1, -1, -1, -1]])
    logits = model.logits(text, tokens)

    model.text_embedding.weight.data[0] += 1.0
    model.text_position_embedding.weight.data[3:] += 1.0

    assert model.logits(text, tokens).equal(logits)


@pytest.mark.paper("next_scale: loss")
def test_the_loss_is_the_mean_over_all_tokens_of_all_grids():
    model, text, tokens = next_scale(), captions_as_tokens(3), image_tokens(3, SCALES)
    expected = F.cross_entropy(model.logits(text, tokens).flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(model.loss(text, tokens, 0, rng())[0], expected)


@pytest.mark.paper("next_scale: input at scale i > 0")
def test_a_grid_gets_the_means_of_the_latents_so_far():
    """Means of areas, written out: 4 × 4 latents as 2 × 2 means of 2 × 2 cells."""
    model, tokens = next_scale(), image_tokens(2, SCALES)
    latents = model.latents.after_each_scale(tokens)
    means = latents[0].unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean(dim=(3, 5)).flatten(2).mT
    row, column, scale = model.cells[1:5].unbind(dim=1)
    positions = model.row_embedding(row) + model.column_embedding(column) + model.scale_embedding(scale)

    inputs = model.scale_input(1, model.read_captions(captions_as_tokens(2)), latents)

    torch.testing.assert_close(inputs, model.latent_input(means) + positions)


@pytest.mark.paper("next_scale: shape", "next_scale: norms", "next_scale: condition", "next_scale: attention")
@pytest.mark.paper("next_scale: drop")
def test_the_default_sizes_are_those_of_vars_smallest_model():
    config = NextScaleConfig()
    with torch.device("meta"):
        first_layer = NextScaleConfig(num_layers=1, text_layers=1, adaptive_norms=True)
        model = NextScale(first_layer, **ARGUMENTS["generators"] | {"scales": SCALES})
    layer = model.layers[0]
    assert config.width == 64 * config.num_layers == 64 * config.num_heads == 1024
    assert layer.mlp.hidden.weight.shape == (4096, 1024) and layer.cross_attention.key_value.bias is None
    norms = (layer.attention_norm, layer.cross_norm, layer.mlp_norm, model.output_norm)
    assert {norm.eps for norm in norms} == {1e-6}
    assert layer.modulation.linear.weight.shape == (6 * 1024, 1024)
    assert model.output_modulation.linear.weight.shape == (2 * 1024, 1024)
    assert config.caption_dropout == 0.1


@pytest.mark.paper("next_scale: attention")
def test_queries_and_keys_have_unit_length_and_their_products_a_scale_of_4_at_first_and_100_at_most():
    model, text, tokens = next_scale(), captions_as_tokens(2), image_tokens(2, SCALES)
    logits = model.logits(text, tokens)
    for layer in model.layers:
        layer.attention.query_key_value.weight.data[:32] *= 100  # queries and keys
        layer.attention.query_key_value.bias.data[:32] *= 100
        layer.cross_attention.query.weight.data *= 100
    torch.testing.assert_close(model.logits(text, tokens), logits, atol=1e-4, rtol=1e-4)

    unit, vectors = model.layers[0].unit, torch.randn(1, 2, 3, 8, generator=rng())
    torch.testing.assert_close(unit.queries(vectors).norm(dim=-1), torch.full((1, 2, 3), 4.0))
    unit.log_scale.data.fill_(9.0)
    torch.testing.assert_close(unit.queries(vectors).norm(dim=-1), torch.full((1, 2, 3), 100.0))


def test_attention_reads_the_words_of_the_caption_and_not_their_mean_alone():
    """Without the pooled vector (the first grid's input) the caption still reaches the logits, and the order of words too."""
    model, tokens = next_scale(), image_tokens(1, SCALES)
    torch.nn.init.zeros_(model.start_input.weight)
    model.latent_input.weight.data.zero_()
    text = torch.tensor([[5, 9, 7, -1, -1, -1, -1, -1]])

    logits = model.logits(text, tokens)

    assert not model.logits(text[:, [1, 0, 2, 3, 4, 5, 6, 7]], tokens).allclose(logits, atol=1e-3)


@pytest.mark.paper("next_scale: mask")
@pytest.mark.parametrize(("attention", "is_seen"), [("within_scale", False), ("block_causal", True)])
def test_a_grid_sees_only_itself_or_also_those_before(attention, is_seen):
    """The second grid's values reach the third's logits past the latents in block-causal attention only."""
    model, text, tokens = next_scale(attention=attention), captions_as_tokens(1), image_tokens(1, SCALES)
    logits = model.logits(text, tokens)
    model.scale_embedding.weight.data[1] += 1.0  # an input of the second grid alone
    assert model.logits(text, tokens)[:, 5:].equal(logits[:, 5:]) != is_seen


@every_setting
def test_the_probabilities_of_all_images_sum_to_1(settings):
    """Two tokens, scales (1, 2): 32 images."""
    model, text = next_scale((1, 2), vocab_size=2, **settings), captions_as_tokens(1)
    images = torch.tensor(list(itertools.product((0, 1), repeat=5)))

    _, image_part = model.log_probabilities(text.expand(32, -1), images)

    assert image_part.double().sum(dim=1).exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.paper("next_scale: positions")
def test_rotary_products_depend_on_the_difference_of_places_and_grids_are_stretched():
    angles = rotary_angles((1, 2, 4), 8, extent=4.0)
    query, key = torch.randn(2, 8, generator=rng())
    products = rotate(query.expand(21, -1), angles) @ rotate(key.expand(21, -1), angles).T
    fine = products[5:, 5:].view(4, 4, 4, 4)  # row, column of the query; of the key

    assert angles.shape == (21, 4)
    torch.testing.assert_close(fine[0, 1, 2, 3], fine[1, 0, 3, 2])
    assert not fine[0, 1, 2, 3].isclose(fine[0, 1, 2, 2])
    # the middle of the image in grid 1; in grid 2 cells are one unit from it, in grid 4 half a unit and one and a half
    torch.testing.assert_close(angles[0], (angles[1] + angles[4]) / 2)
    torch.testing.assert_close(angles[1], (angles[5] + angles[10]) / 2)


# --- tokens that are wrong in training ------------------------------------------------------------------------


@pytest.mark.paper("next_scale: flips")
def test_flips_move_the_targets_of_later_grids_towards_what_is_missing():
    """Independent of the code: the codes of the new targets bring the latents closer to the true ones."""
    latents, tokens = next_scale(vocab_size=64).latents, torch.randint(64, (64, 21), generator=rng(1))
    flips = torch.full_like(tokens, -1)
    flips[1:, 1:5] = (tokens[1:, 1:5] + 7) % 64
    true = latents.after_each_scale(tokens)

    seen, targets = latents.after_flips(tokens, flips)

    wrong = torch.where(flips >= 0, flips, tokens)
    assert targets[:, :5].equal(tokens[:, :5]) and not targets[:, 5:].equal(tokens[:, 5:])
    torch.testing.assert_close(seen[1], latents.after_each_scale(wrong)[1])
    repaired = torch.where(flips >= 0, flips, targets)
    torch.testing.assert_close(seen[2], latents.after_each_scale(repaired)[2])
    # the rule, written out: the nearest code to the true code plus what is missing, in every cell
    missing = F.adaptive_avg_pool2d(true[1] - seen[1], 4).flatten(2).mT
    points = latents.codebook[tokens[:, 5:]] + missing
    assert targets[:, 5:].equal(torch.cdist(points, latents.codebook.expand(64, -1, -1)).argmin(dim=2))
    # a row without flips has its own tokens, whatever happens to others
    assert targets[0].equal(tokens[0])
    assert all(each[0].equal(exact[0]) for each, exact in zip(seen, true, strict=True))


def test_about_a_share_of_the_tokens_is_flipped_in_training_and_none_of_the_last_grid():
    model, tokens = next_scale(flip_share=0.25), image_tokens(1, SCALES).expand(2000, -1)
    flips = model._flips(tokens, rng())
    assert (flips[:, :5] >= 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (flips[:, 5:] == -1).all()

    text, tokens = captions_as_tokens(4), image_tokens(4, SCALES)
    exact = model.loss(text, tokens, 0, rng())[0]
    assert model.loss(text, tokens, 0, rng(1))[0].equal(exact)
    assert not model.train().loss(text, tokens, 0, rng(1))[0].equal(exact)


# --- sampling -----------------------------------------------------------------------------------------------


@pytest.mark.paper("next_scale: guidance")
@every_setting
@pytest.mark.parametrize(
    "options", [{}, {"guidance": 3.0}, {"guidance": 2.0, "top_k": 5, "temperature": 0.7}, {"top_p": 0.7}]
)
def test_sampling_grid_by_grid_equals_whole_passes(settings, options):
    model, text = next_scale(**settings), captions_as_tokens(5)
    assert model.sample(text, rngs(5), **options).equal(reference_sample(model, text, rngs(5), **options))


@pytest.mark.paper("next_scale: guidance")
def test_guidance_grows_from_the_first_grid_on_and_is_off_at_the_last():
    assert [guidance_at(scale, 6, 3.5) for scale in range(6)] == [1, 1.5, 2, 2.5, 3, 1]
    assert guidance_at(0, 1, 3.5) == 1


def test_bfloat16_weights_sample_with_latents_in_float32():
    model = next_scale()
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    tokens = model.sample(captions_as_tokens(3), rngs(3), guidance=2.0)
    assert tokens.shape == (3, 21) and model.latents.codebook.dtype == torch.float32


# --- the image tokenizer -------------------------------------------------------------------------------------


@pytest.mark.paper("next_scale: input at scale i > 0")
def test_the_latents_are_those_of_the_tokenizer_and_are_saved_with_the_generator(tmp_path):
    tokenizer = tiny("image_tokenizers", "multi_scale")
    sizes = {"scales": tokenizer.scales, "image_vocab_size": tokenizer.vocab_size}
    model = tiny("generators", "next_scale", **sizes, **NextScale.sizes_for(tokenizer))
    model.use_tokenizer(tokenizer)
    components.save(model, tmp_path, image_tokenizer="3f9c")

    loaded = components.load("generators", tmp_path)

    tokens = tokenizer.encode(random_images(2))
    actual = loaded.latents.after_each_scale(tokens)
    for mine, true in zip(actual, tokenizer.latents_so_far(tokens), strict=True):
        torch.testing.assert_close(mine, true, atol=1e-6, rtol=0)
    assert not [name for name, _ in model.named_parameters() if name.startswith("latents.")]


@pytest.mark.parametrize(
    "tokenizer", [tiny("image_tokenizers", "dvae"), two_grids()], ids=["dvae", "two grids"]
)
def test_a_tokenizer_without_latents_after_each_grid_is_rejected_with_the_fix(tokenizer):
    with pytest.raises(ValueError) as caught:
        NextScale.sizes_for(tokenizer)
    assert f"has the grids {list(tokenizer.scales)} and no latents after each" in str(caught.value)
    assert "Set image_tokenizer.kind: multi_scale" in str(caught.value)
    assert str(caught.value).endswith("or generator.kind: transformer")
