"""What every kind of every family promises; the tiny.yaml in a kind's folder has the sizes to test."""

from fnmatch import fnmatchcase

import pytest
import torch

from tests.helpers.tiny_models import (
    CAPTIONS,
    IMAGE_VOCAB_SIZE,
    SCALES,
    SEVERAL_SCALES,
    SIDE,
    TEXT_VOCAB_SIZE,
    TINY,
    captions_as_tokens,
    every_kind,
    image_tokens,
    random_images,
    rng,
    rngs,
    tiny,
    two_grids,
)
from thousandwords import components
from thousandwords.training.config import TrainingConfig
from thousandwords.training.loop import fit
from thousandwords.training.tuning import freeze

TEXT, TOKENS = captions_as_tokens(2), image_tokens(2)
ALL = [(family, kind) for family in components.CONTRACTS for kind in every_kind(family)]
every_tokenizer = pytest.mark.parametrize("kind", every_kind("image_tokenizers"))
every_generator = pytest.mark.parametrize("kind", every_kind("generators"))
FIXING = [kind for kind in every_kind("generators") if not tiny("generators", kind).keeps_parts]
every_generator_that_fixes_tokens = pytest.mark.parametrize("kind", FIXING)
one_grid_and_several = pytest.mark.parametrize("scales", [SCALES, SEVERAL_SCALES])
every_scorer = pytest.mark.parametrize("kind", every_kind("scorers"))
every_model = pytest.mark.parametrize(("family", "kind"), ALL)
TRAINED = [(family, kind) for family, kind in ALL if kind != "none"]
every_trained_model = pytest.mark.parametrize(("family", "kind"), TRAINED)
every_decoder = pytest.mark.parametrize("kind", every_kind("decoders"))


def batch_for(family: str) -> tuple:
    """The arguments of the family's loss, without step and rng."""
    return {
        "image_tokenizers": (random_images(4),),
        "decoders": (random_images(4), image_tokens(4), random_images(4, seed=1)),
        "generators": (captions_as_tokens(4), image_tokens(4)),
        "scorers": (random_images(4), CAPTIONS),
    }[family]


def outputs(family: str, model: torch.nn.Module) -> list[torch.Tensor]:
    """The family's results on fixed inputs."""
    if family == "image_tokenizers":
        tokens = model.encode(random_images(3))
        return [tokens, model.decode(tokens)]
    if family == "decoders":
        return [model.decode(image_tokens(3), random_images(3))]
    if family == "generators":
        return [model.sample(captions_as_tokens(3), rngs(3))]
    return [model.score(random_images(4), CAPTIONS)]


# --- all families -------------------------------------------------------------------------------------------


def test_every_family_has_a_kind_and_every_kind_has_tiny_sizes():
    assert {family for family, _ in ALL} == {"image_tokenizers", "decoders", "generators", "scorers"}
    assert {(family, kind) for family, kinds in TINY.items() for kind in kinds} == set(ALL)


@every_trained_model
def test_the_loss_is_a_finite_scalar_that_reaches_the_weights(family, kind):
    model = tiny(family, kind).train()

    loss, logged = model.loss(*batch_for(family), 0, rng())
    loss.backward()

    assert loss.shape == () and loss.isfinite()
    assert tiny(family, kind).train().loss(*batch_for(family), 0, rng())[0].equal(loss)  # the same seed
    assert all(torch.as_tensor(value).ndim == 0 for value in logged.values())
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@every_trained_model
def test_a_few_steps_lower_the_loss(family, kind):
    model = tiny(family, kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss, _ = model.loss(*batch_for(family), 0, rng())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@every_model
def test_the_global_random_generator_and_the_arguments_are_not_changed(family, kind):
    model, arguments = tiny(family, kind), batch_for(family)
    before = [argument.clone() for argument in arguments if isinstance(argument, torch.Tensor)]
    state = torch.get_rng_state()

    if kind != "none":
        model.loss(*arguments, 0, rng())
    outputs(family, model)

    assert torch.get_rng_state().equal(state)
    after = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    assert all(old.equal(new) for old, new in zip(before, after, strict=True))


@every_model
def test_a_loaded_model_has_equal_outputs_and_the_same_fingerprint(family, kind, tmp_path):
    model = tiny(family, kind)
    fingerprint = components.save(model, tmp_path / "first", trained_on="scenes")

    loaded = components.load(family, tmp_path / "first")

    assert loaded.fingerprint == fingerprint and loaded.header["trained_on"] == "scenes"
    assert loaded.built_as == model.built_as
    for old, new in zip(outputs(family, model), outputs(family, loaded), strict=True):
        assert old.equal(new)
    assert components.save(loaded, tmp_path / "again", trained_on="scenes") == fingerprint
    other = components.save(tiny(family, kind, seed=1), tmp_path / "other", trained_on="scenes")
    assert kind == "none" or other != fingerprint
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())


# --- image tokenizers ---------------------------------------------------------------------------------------


@every_tokenizer
def test_encode_returns_one_token_per_cell_of_every_scale(kind):
    tokenizer = tiny("image_tokenizers", kind)
    tokens = tokenizer.encode(random_images(2))

    assert tokens.shape == (2, sum(side * side for side in tokenizer.scales)) == (2, tokenizer.num_tokens)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < tokenizer.vocab_size


@every_tokenizer
def test_decode_returns_images(kind):
    tokenizer = tiny("image_tokenizers", kind)
    tokenizer.prepare([random_images(4), random_images(4, seed=1)], rng())
    tokens = torch.randint(tokenizer.vocab_size, (2, tokenizer.num_tokens), generator=rng())

    images = tokenizer.decode(tokens)

    assert images.shape == (2, 3, SIDE, SIDE) and images.dtype == torch.float32
    assert 0 <= images.min() and images.max() <= 1


@pytest.mark.parametrize("kind", [*every_kind("image_tokenizers"), "two grids"])
def test_there_is_an_image_after_each_scale_and_the_last_is_the_decoded_one(kind):
    tokenizer = two_grids() if kind == "two grids" else tiny("image_tokenizers", kind)
    tokens = tokenizer.encode(random_images(2))

    images = tokenizer.images_so_far(tokens)

    assert len(images) == len(tokenizer.scales) and images[-1].equal(tokenizer.decode(tokens))
    assert all(each.shape == (2, 3, SIDE, SIDE) and 0 <= each.min() and each.max() <= 1 for each in images)


@every_tokenizer
def test_an_image_has_the_same_tokens_in_any_batch(kind):
    tokenizer = tiny("image_tokenizers", kind)
    together = tokenizer.encode(random_images(5))
    separate = torch.cat([tokenizer.encode(image[None]) for image in random_images(5)])
    assert together.equal(separate)


@every_tokenizer
def test_the_loss_of_the_decoder_alone_reaches_its_weights_and_no_other(kind):
    tokenizer = tiny("image_tokenizers", kind).train().requires_grad_(True)
    tokenizer.decoder_loss(random_images(2), 0)[0].backward()
    for name, weight in tokenizer.named_parameters():
        assert (weight.grad is not None) == name.startswith("decoder."), name


@every_tokenizer
def test_wrong_images_and_tokens_are_rejected(kind):
    tokenizer = tiny("image_tokenizers", kind)
    tokens = tokenizer.encode(random_images(1))

    for images, message in (
        (random_images(1)[..., 1:], rf"takes \(B, 3, {SIDE}, {SIDE}\)"),
        (random_images(1)[0], rf"takes \(B, 3, {SIDE}, {SIDE}\)"),
        (random_images(1) * 255, r"give float32 in \[0, 1\]"),
        (random_images(1).byte(), "images are torch.uint8; give float32"),
        (random_images(1) * float("nan"), r"images span \[nan, nan\]"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.encode(images)
        with pytest.raises(ValueError, match=message):
            tokenizer.loss(images, 0, rng())
    for wrong, message in (
        (tokens[:, 1:], rf"takes \(B, {tokenizer.num_tokens}\)"),
        (tokens.float(), "tokens are torch.float32; give torch.int64"),
        (tokens + tokenizer.vocab_size, f"this vocabulary is 0 to {tokenizer.vocab_size - 1}"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(wrong)


# --- decoders -----------------------------------------------------------------------------------------------


@every_decoder
def test_a_decoder_returns_images_that_do_not_depend_on_their_batch(kind):
    decoder, tokens, images = tiny("decoders", kind), image_tokens(5), random_images(5)

    together = decoder.decode(tokens, images)

    assert together.shape == images.shape and together.dtype == torch.float32
    assert 0 <= together.min() and together.max() <= 1
    for row in range(5):
        torch.testing.assert_close(
            decoder.decode(tokens[[row]], images[[row]]), together[[row]], atol=1e-6, rtol=0
        )


@every_decoder
def test_an_untrained_decoder_returns_the_tokenizers_images(kind):
    """So training starts from what is there, and can only make it better."""
    assert tiny("decoders", kind).decode(image_tokens(2), random_images(2)).equal(random_images(2))


# --- generators ---------------------------------------------------------------------------------------------


@every_generator
@one_grid_and_several
def test_a_sample_is_the_tokens_of_one_image_per_row(kind, scales):
    generator = tiny("generators", kind, scales=scales)
    tokens = generator.sample(captions_as_tokens(3), rngs(3))

    assert tokens.shape == (3, sum(side * side for side in scales)) == (3, generator.image_length)
    assert tokens.dtype == torch.int64 and 0 <= tokens.min() and tokens.max() < IMAGE_VOCAB_SIZE
    assert len(tokens.unique(dim=0)) == 3


@every_generator
@one_grid_and_several
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}])
def test_a_sample_does_not_depend_on_the_other_rows(kind, scales, settings):
    generator, text = tiny("generators", kind, scales=scales), captions_as_tokens(6)
    together = generator.sample(text, rngs(6), **settings)

    for rows in ([0], [5, 2], [1, 3, 4]):
        separate = generator.sample(text[rows], [rng(row) for row in rows], **settings)
        assert separate.equal(together[rows])


@every_generator
def test_the_same_seed_samples_the_same_image_and_another_seed_another(kind):
    generator, text = tiny("generators", kind), captions_as_tokens(1)
    first, again, other = (generator.sample(text, rngs(1, seed)) for seed in (3, 3, 4))
    assert first.equal(again) and not first.equal(other)


@pytest.mark.paper("evaluation: completion")
@every_generator_that_fixes_tokens
@pytest.mark.parametrize("cells", [range(5), [0, 3, 4, 11], [15], range(16)])
def test_a_sample_keeps_its_fixed_tokens(kind, cells):
    fixed_tokens = torch.full_like(image_tokens(2), -1)
    fixed_tokens[:, list(cells)] = image_tokens(2)[:, list(cells)]

    sampled = tiny("generators", kind).sample(captions_as_tokens(2), rngs(2), fixed_tokens=fixed_tokens)

    assert sampled.where(fixed_tokens >= 0, -1).equal(fixed_tokens)
    assert 0 <= sampled.min() and sampled.max() < IMAGE_VOCAB_SIZE


@every_generator
@one_grid_and_several
def test_an_image_with_some_of_its_own_tokens_fixed_stays_the_same(kind, scales):
    generator, text = tiny("generators", kind, scales=scales), captions_as_tokens(3)
    whole = generator.sample(text, rngs(3))
    is_fixed = torch.rand(whole.shape, generator=rng(5)) < 0.5
    if generator.keeps_parts:  # all tokens of the coarse grids are given
        is_fixed[:, : -(scales[-1] ** 2)] = True

    assert generator.sample(text, rngs(3), fixed_tokens=whole.where(is_fixed, -1)).equal(whole)


@every_generator
def test_fixed_tokens_without_any_change_nothing(kind):
    generator, text = tiny("generators", kind), captions_as_tokens(3)
    whole = generator.sample(text, rngs(3))

    assert generator.sample(text, rngs(3), fixed_tokens=torch.full_like(whole, -1)).equal(whole)


@every_generator_that_fixes_tokens
def test_an_inpainted_image_does_not_depend_on_the_other_rows(kind):
    generator, text, tokens = tiny("generators", kind), captions_as_tokens(4), image_tokens(4)
    fixed_tokens = tokens.where(torch.arange(tokens.shape[1]) < torch.tensor([[8], [0], [3], [16]]), -1)
    together = generator.sample(text, rngs(4), fixed_tokens=fixed_tokens)

    for row in range(4):
        separate = generator.sample(text[[row]], [rng(row)], fixed_tokens=fixed_tokens[[row]])
        assert separate.equal(together[[row]])


@every_generator
@one_grid_and_several
def test_log_probabilities_agree_with_the_loss(kind, scales):
    generator, text = tiny("generators", kind, scales=scales), captions_as_tokens(4)
    tokens = image_tokens(4, scales)
    _, logged = generator.loss(text, tokens, 0, rng())

    text_log_probs, image_log_probs = generator.log_probabilities(text, tokens)

    assert image_log_probs.shape == tokens.shape and image_log_probs.dtype == torch.float32
    assert not image_log_probs.requires_grad and image_log_probs.max() < 0
    torch.testing.assert_close(-image_log_probs.mean(), logged["image_loss"], atol=1e-5, rtol=0)
    if not generator.models_text:  # absent, not zero
        assert text_log_probs is None and "text_loss" not in logged
        return
    assert text_log_probs.shape == text.shape and text_log_probs.dtype == torch.float32
    assert text_log_probs[text == -1].eq(0).all()
    text_loss = -text_log_probs.sum() / (text != -1).sum()
    torch.testing.assert_close(text_loss, logged["text_loss"], atol=1e-5, rtol=0)


@every_generator
@one_grid_and_several
def test_captions_belong_to_their_rows(kind, scales):
    """The same image and the same random numbers in every row: only the caption makes a difference. A public
    implementation gives every row the first row's caption."""
    generator, text, order = tiny("generators", kind, scales=scales), captions_as_tokens(4), [2, 0, 3, 1]
    tokens = image_tokens(1, scales).expand(4, -1)

    _, log_probs = generator.log_probabilities(text, tokens)
    _, permuted = generator.log_probabilities(text[order], tokens)
    samples = generator.sample(text, [rng() for _ in order], guidance=2.0)

    torch.testing.assert_close(permuted, log_probs[order], atol=1e-5, rtol=0)
    assert len(log_probs.sum(dim=1).round(decimals=4).unique()) == 4
    assert generator.sample(text[order], [rng() for _ in order], guidance=2.0).equal(samples[order])
    assert len(samples.unique(dim=0)) == 4


@every_generator
@one_grid_and_several
def test_another_word_changes_its_own_row_only(kind, scales):
    generator, text = tiny("generators", kind, scales=scales), captions_as_tokens(3)
    tokens = image_tokens(3, scales)
    _, log_probs = generator.log_probabilities(text, tokens)

    for word in range(int((text[0] >= 0).sum())):
        changed = text.clone()
        changed[0, word] = (text[0, word] + 1) % TEXT_VOCAB_SIZE
        difference = (generator.log_probabilities(changed, tokens)[1] - log_probs).abs().amax(dim=1)
        assert difference[0] > 1e-3 and difference[1:].max() < 1e-5


@every_generator
@pytest.mark.parametrize("tune", ["image_head", "patterns"])
def test_tune_trains_what_it_names_and_nothing_else(kind, tune):
    generator = tiny("generators", kind).train()
    names = [name for name, _ in generator.named_parameters()]
    patterns = generator.image_head if tune == "image_head" else (names[0], "layers.1.*.weight")
    before = {name: value.clone() for name, value in generator.state_dict().items()}

    freeze(generator, tune if tune == "image_head" else patterns)
    fit(
        generator,
        TrainingConfig(steps=2, batch_size=4, learning_rate=0.1, weight_decay=0.1, muon_lr_scale=2.0),
        batches_of=lambda step: [batch_for("generators")],
        loss_of=lambda model, batch, step, generator: model.loss(*batch, step, generator),
        seed=0,
    )

    changed = {name for name, value in generator.state_dict().items() if not value.equal(before[name])}
    assert changed == {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    assert patterns and 0 < len(changed) < len(names)


UNFIT_TOKENS = [
    ({"text": TEXT[:, :5]}, r"text has shape \(2, 5\), expected \(B, 8\); pad or cut captions"),
    ({"text": TEXT + 270}, "text has tokens .*, but this generator knows -1..269; use the tokenizer it was"),
    (
        {"image_tokens": TOKENS[:, :9]},
        r"image_tokens has shape \(2, 9\), expected \(B, 16\) for scales \(4,\)",
    ),
    ({"image_tokens": TOKENS + 12}, "image_tokens has tokens 12..2[0-9], .* knows 0..11; use the tokenizer"),
    ({"fixed_tokens": TOKENS[:1]}, r"torch.int64 of shape \(1, 16\), expected torch.int64 \(2, 16\)"),
    ({"fixed_tokens": TOKENS.float()}, r"torch.float32 of shape \(2, 16\), expected torch.int64"),
    ({"fixed_tokens": TOKENS - 2}, "fixed_tokens has tokens -2..[0-9]+, but this generator knows -1..11"),
    ({"rngs": rngs(3)}, "2 rows of text came with 3 random generators; give one per row"),
]


@every_generator
@pytest.mark.parametrize(("arguments", "message"), UNFIT_TOKENS)
def test_tokens_that_do_not_fit_are_rejected(kind, arguments, message):
    generator, text, tokens = tiny("generators", kind), arguments.get("text", TEXT), TOKENS
    tokens = arguments.get("image_tokens", tokens)
    if "image_tokens" not in arguments:
        with pytest.raises(ValueError, match=message):
            generator.sample(text, arguments.get("rngs", rngs(2)), fixed_tokens=arguments.get("fixed_tokens"))
    if {"text", "image_tokens"} & arguments.keys():
        with pytest.raises(ValueError, match=message):
            generator.loss(text, tokens, 0, rng())
        with pytest.raises(ValueError, match=message):
            generator.log_probabilities(text, tokens)


# --- scorers ------------------------------------------------------------------------------------------------


@pytest.mark.paper("evaluation: sampling")
@every_scorer
def test_a_score_is_one_cosine_per_image(kind):
    scores = tiny("scorers", kind).score(random_images(4), CAPTIONS)
    assert scores.shape == (4,) and scores.dtype == torch.float32 and not scores.requires_grad
    assert -1 <= scores.min() and scores.max() <= 1
    assert len(scores.unique()) == 4


@every_scorer
def test_a_score_does_not_depend_on_the_other_images(kind):
    scorer = tiny("scorers", kind)
    together = scorer.score(random_images(4), CAPTIONS)
    separate = torch.cat([scorer.score(random_images(4)[[row]], [CAPTIONS[row]]) for row in range(4)])
    torch.testing.assert_close(separate, together, rtol=0, atol=1e-6)


@every_scorer
def test_feature_maps_have_a_gradient_for_the_pixels_and_do_not_depend_on_the_batch(kind):
    """So that a perceptual distance can be a loss."""
    scorer, images = tiny("scorers", kind), random_images(3).requires_grad_()
    maps = scorer.feature_maps(images)
    sum(each.square().mean() for each in maps).backward()

    assert maps and all(each.ndim == 4 and len(each) == 3 for each in maps)
    assert all(image.any() for image in images.grad)
    with torch.no_grad():
        for together, alone in zip(maps, scorer.feature_maps(images[[1]]), strict=True):
            torch.testing.assert_close(together[[1]], alone, rtol=0, atol=1e-5)


@every_scorer
def test_images_of_any_size_are_embedded_as_unit_vectors(kind):
    scorer = tiny("scorers", kind)

    with torch.no_grad():
        vectors = scorer.embed_images(random_images(4))
        separate = torch.cat([scorer.embed_images(random_images(4)[[row]]) for row in range(4)])
        larger = scorer.embed_images(torch.rand(2, 3, 2 * SIDE, 2 * SIDE, generator=rng()))

    assert vectors.ndim == 2 and vectors.dtype == torch.float32 and larger.shape == (2, vectors.shape[1])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(separate, vectors, rtol=0, atol=1e-6)
    assert (vectors @ vectors.T).fill_diagonal_(-1).max() < 1  # no two images have the same vector
