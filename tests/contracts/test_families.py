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
    fit_batch,
    image_tokens,
    random_images,
    rng,
    rngs,
    tiny,
    two_grids,
)
from thousandwords import components
from thousandwords.captioners.base import PRIOR_WEIGHT
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import TrainingConfig
from thousandwords.training.loop import Stopped
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
CAPTIONERS = [kind for kind in every_kind("captioners") if kind != "none"]
every_captioner = pytest.mark.parametrize("kind", CAPTIONERS)


def batch_for(family: str) -> tuple:
    """The arguments of the family's loss, without step and rng."""
    return {
        "image_tokenizers": (random_images(4),),
        "decoders": (random_images(4), image_tokens(4), random_images(4, seed=1)),
        "generators": (captions_as_tokens(4), image_tokens(4)),
        "scorers": (random_images(4), CAPTIONS),
        "captioners": (random_images(4), captions_as_tokens(4)),
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
    if family == "captioners":
        return [model.caption(random_images(3), rngs(3), candidates=4)] if model.is_trainable else []
    return [model.score(random_images(4), CAPTIONS)]


# --- all families -------------------------------------------------------------------------------------------


def test_every_family_has_a_kind_and_every_kind_has_tiny_sizes():
    assert {family for family, _ in ALL} == set(TINY) == set(components.CONTRACTS)
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


def train(model: torch.nn.Module, batch: tuple, steps: int, **settings: object) -> list[float]:
    """Train a model on one batch; the losses."""
    config = TrainingConfig(steps, 4, **{"learning_rate": 3e-3, "log_every": 1} | settings)
    return [row["loss"] for row in fit_batch(model, config, batch)[1]]


@every_trained_model
def test_a_few_steps_lower_the_loss(family, kind):
    losses = train(tiny(family, kind).train(), batch_for(family), steps=20)
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


CODES = {"first_steps_without_codes": 4, "restart_every": 2}  # they start after step 4, and move after it
# random orders, which fall to raster order between two updates
ORDERS = {"random_order_steps": [4, 9], "rotary_extent": 4.0, "dropout": 0.1, "caption_dropout": 0.3}
STOPPED = [(*model, {}, 7) for model in TRAINED] + [("generators", "transformer", ORDERS, 6)]
for settings in ({}, {"codebook": "gradient"}, {"scales": [2, 4]}):
    STOPPED.append(("image_tokenizers", "vqvae", CODES | settings, 7))
STOPPED.append(("image_tokenizers", "vqvae", CODES, 2))
STOPPED += [("image_tokenizers", "multi_scale", CODES | {"stop_share": 0.5}, stop) for stop in (2, 7)]


@pytest.mark.parametrize(("family", "kind", "settings", "stop"), STOPPED)
def test_a_resumed_training_gives_the_same_weights_bit_for_bit(tmp_path, family, kind, settings, stop):
    training = TrainingConfig(12, 4, learning_rate=1e-2, clip_norm=1.0, ema_decay=0.9)

    def trained(folder: str, stop: int | None = None) -> dict:
        model, done = tiny(family, kind, settings=settings).train(), []
        if family == "image_tokenizers":
            model.prepare([random_images(8)], rng())
        return fit_batch(
            model,
            training,
            batch_for(family),
            checkpoints=Checkpoints(tmp_path / folder),
            progress=lambda step, note: done.append(step),
            is_stopped=lambda: done[-1] == stop,
        )[0]

    with pytest.raises(Stopped):
        trained("stopped", stop)
    resumed, whole = trained("stopped"), trained("whole")

    assert resumed.keys() == whole.keys()
    assert all(resumed[name].equal(value) for name, value in whole.items())


# --- image tokenizers ---------------------------------------------------------------------------------------


def alone(tensor: torch.Tensor) -> list[torch.Tensor]:
    """`gather` in a single process."""
    return [tensor]


@every_tokenizer
def test_encode_returns_one_token_per_cell_of_every_scale_the_same_in_any_batch(kind):
    tokenizer = tiny("image_tokenizers", kind)
    tokens = tokenizer.encode(random_images(5))

    assert tokens.shape == (5, sum(side * side for side in tokenizer.scales)) == (5, tokenizer.num_tokens)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < tokenizer.vocab_size
    assert torch.cat([tokenizer.encode(image[None]) for image in random_images(5)]).equal(tokens)


@pytest.mark.parametrize("kind", [*every_kind("image_tokenizers"), "two grids"])
def test_there_is_an_image_after_each_scale_and_the_last_is_the_decoded_one(kind):
    tokenizer = two_grids() if kind == "two grids" else tiny("image_tokenizers", kind)
    tokenizer.prepare([random_images(4), random_images(4, seed=1)], rng())
    tokens = torch.randint(tokenizer.vocab_size, (2, tokenizer.num_tokens), generator=rng())

    images = tokenizer.images_so_far(tokens)

    assert len(images) == len(tokenizer.scales) and images[-1].equal(tokenizer.decode(tokens))
    assert all(each.shape == (2, 3, SIDE, SIDE) and each.dtype == torch.float32 for each in images)
    assert all(0 <= each.min() and each.max() <= 1 for each in images)


UNFIT_IMAGES = [
    (lambda images: images[..., 1:], rf"takes \(B, 3, {SIDE}, {SIDE}\)"),
    (lambda images: images[0], rf"takes \(B, 3, {SIDE}, {SIDE}\)"),
    (lambda images: images * 255, r"give float32 in \[0, 1\]"),
    (lambda images: images.byte(), "images are torch.uint8; give float32"),
    (lambda images: images * float("nan"), r"images span \[nan, nan\]"),
]


@every_tokenizer
@pytest.mark.parametrize(("change", "message"), UNFIT_IMAGES)
def test_wrong_images_are_rejected(kind, change, message):
    tokenizer, images = tiny("image_tokenizers", kind), change(random_images(1))
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(images)
    with pytest.raises(ValueError, match=message):
        tokenizer.loss(images, 0, rng())


@every_tokenizer
def test_wrong_tokens_are_rejected(kind):
    tokenizer = tiny("image_tokenizers", kind)
    tokens = tokenizer.encode(random_images(1))
    with pytest.raises(ValueError, match=rf"takes \(B, {tokenizer.num_tokens}\)"):
        tokenizer.decode(tokens[:, 1:])
    with pytest.raises(ValueError, match="tokens are torch.float32; give torch.int64"):
        tokenizer.decode(tokens.float())
    with pytest.raises(ValueError, match=f"this vocabulary is 0 to {tokenizer.vocab_size - 1}"):
        tokenizer.decode(tokens + tokenizer.vocab_size)


DVAE = {"width": 16, "pixel_deviation": 0.1, "temperature_start": 0.5, "kl_weight": 1.0}
DVAE |= {"codebook_init_dims": 2, "usage_entropy_weight": 0.01}
TWO_GRIDS, LATE = (
    {"scales": [2, 4]},
    {"first_steps_without_codes": 20, "restart_every": 5, "restart_until": 60},
)
TRAINABLE = [("dvae", 3e-3, DVAE), ("vqgan", 3e-3, {}), ("vqgan", 3e-3, {"quantizer": "gumbel"})]
for settings in ({}, {"quantizer": "fsq", "levels": [4, 3]}, {"quantizer": "simvq"}, TWO_GRIDS):
    TRAINABLE.append(("vqvae", 1e-2, {"width": 16, "decoder_width": 32} | LATE | settings))


@pytest.mark.parametrize(("kind", "rate", "settings"), TRAINABLE)
def test_a_trained_tokenizer_reconstructs_its_images(kind, rate, settings):
    tokenizer = tiny("image_tokenizers", kind, settings=settings).train()
    colors = torch.rand(4, 3, 4, 4, generator=rng()).round()  # of each token's cell
    images = colors.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    tokenizer.prepare([images], rng())
    before = (tokenizer.decode(tokenizer.encode(images)) - images).abs().mean()

    train(tokenizer, [images], steps=80, learning_rate=rate, clip_norm=1.0)

    after = (tokenizer.decode(tokenizer.encode(images)) - images).abs().mean()
    assert after < 0.6 * before


WITH_CODES = [("vqvae", {"codebook": each}) for each in ("ema", "gradient")]
WITH_CODES += [("vqvae", TWO_GRIDS), ("multi_scale", {})]
for codebook in ("ema", "gradient"):
    for is_unit in (False, True):
        WITH_CODES.append(("vqgan", {"codebook": codebook, "l2_normalize": is_unit}))
every_codebook = pytest.mark.parametrize(("kind", "settings"), WITH_CODES)


@every_codebook
def test_codes_start_at_the_means_of_points_after_some_updates_without_codes(kind, settings):
    tokenizer = tiny("image_tokenizers", kind, settings=settings | {"first_steps_without_codes": 3})
    tokenizer.prepare([random_images(8)], rng())
    before, with_codes = tokenizer.codebook.clone(), []
    for step in range(4):
        logged = tokenizer.loss(random_images(4), step, rng())[1]
        with_codes.append(any(name.startswith("batch_perplexity") for name in logged))
        if step == 3:
            break
        tokenizer.after_update(step, rng(), alone)
        assert tokenizer.codebook.equal(before) == (step < 2)

    assert with_codes == [False, False, False, True]
    for number, quantizer in enumerate(tokenizer.quantizers.values()):  # a coarse grid's first
        points = tokenizer.starting_points(random_images(8), number)
        tokens = quantizer.tokens(points)
        means = torch.stack([points[tokens == token].mean(dim=0) for token in tokens.unique()])
        assert (quantizer.codebook[tokens.unique()] - means).norm(dim=1).mean() < 0.2 * points.std()


@every_codebook
def test_a_code_that_no_point_is_near_to_moves_where_it_is_set(kind, settings):
    moving = {"restart_every": 4, "restart_until": 8, "codebook_decay": 0.5}
    tokenizer = tiny("image_tokenizers", kind, settings=settings | moving)
    tokenizer.prepare([random_images(8)], rng())
    quantizer, restarts = tokenizer.quantizer, []
    for step in range(12):
        with torch.no_grad():
            quantizer._place(torch.tensor([5]), -9 * quantizer.codebook[5:6], torch.zeros(1))
        tokenizer.loss(random_images(8), step, rng())
        restarts.append(max(tokenizer.after_update(step, rng(), alone).values()))
    assert [step for step, count in enumerate(restarts) if count] == [3, 7]


@pytest.mark.parametrize(("decoder_only_from", "step"), [(None, 5), (5, 4), (5, 5)])
@pytest.mark.parametrize("kind", [*every_kind("image_tokenizers"), "two grids"])
def test_in_updates_of_the_decoder_alone_tokens_stay_and_no_other_weight_has_a_gradient(
    kind, decoder_only_from, step
):
    """DDP has to know before training that some may have none."""
    settings = {"decoder_only_from": decoder_only_from} | (TWO_GRIDS if kind == "two grids" else {})
    tokenizer = tiny("image_tokenizers", "vqvae" if kind == "two grids" else kind, settings=settings)
    before = tokenizer.train().encode(random_images(4))

    tokenizer.loss(random_images(4), step, rng())[0].backward()
    tokenizer.after_update(step, rng(), alone)

    without = {name for name, weight in tokenizer.named_parameters() if weight.grad is None}
    others = {name for name, _ in tokenizer.named_parameters() if not name.startswith("decoder.")}
    assert without == (others if step == decoder_only_from else set())
    assert tokenizer.has_frozen_steps == (decoder_only_from is not None)
    assert step != decoder_only_from or tokenizer.encode(random_images(4)).equal(before)


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
def test_a_sample_is_the_tokens_of_one_image_per_row_of_the_same_seed_the_same(kind, scales):
    generator, text = tiny("generators", kind, scales=scales), captions_as_tokens(3)
    tokens = generator.sample(text, rngs(3))

    assert tokens.shape == (3, sum(side * side for side in scales)) == (3, generator.image_length)
    assert tokens.dtype == torch.int64 and 0 <= tokens.min() and tokens.max() < IMAGE_VOCAB_SIZE
    assert len(tokens.unique(dim=0)) == 3
    assert generator.sample(text, rngs(3)).equal(tokens)
    assert not (generator.sample(text, rngs(3, first=3)) == tokens).all(dim=1).any()


@every_generator
@one_grid_and_several
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"guidance": 2.0}]
)
def test_a_sample_does_not_depend_on_the_other_rows(kind, scales, settings):
    """A public implementation gives every row the first row's caption."""
    generator, text = tiny("generators", kind, scales=scales), captions_as_tokens(6)
    together = generator.sample(text, rngs(6), **settings)

    for rows in ([0], [5, 2], [1, 3, 4]):
        separate = generator.sample(text[rows], [rng(row) for row in rows], **settings)
        assert separate.equal(together[rows])


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
@pytest.mark.parametrize("share", [0, 0.5])
def test_an_image_with_some_of_its_own_tokens_fixed_stays_the_same(kind, scales, share):
    generator, text = tiny("generators", kind, scales=scales), captions_as_tokens(3)
    whole = generator.sample(text, rngs(3))
    is_fixed = torch.rand(whole.shape, generator=rng(5)) < share
    if share and generator.keeps_parts:  # all tokens of the coarse grids are given
        is_fixed[:, : -(scales[-1] ** 2)] = True

    assert generator.sample(text, rngs(3), fixed_tokens=whole.where(is_fixed, -1)).equal(whole)


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
def test_tune_trains_the_image_head_that_it_names_and_nothing_else(kind):
    generator = tiny("generators", kind).train()
    names = [name for name, _ in generator.named_parameters()]
    before = {name: value.clone() for name, value in generator.state_dict().items()}

    freeze(generator, "image_head")
    train(generator, batch_for("generators"), 2, learning_rate=0.1, weight_decay=0.1, muon_lr_scale=2.0)

    changed = {name for name, value in generator.state_dict().items() if not value.equal(before[name])}
    of_head = {name for name in names if any(fnmatchcase(name, each) for each in generator.image_head)}
    assert changed == of_head and 0 < len(changed) < len(names)


UNFIT_TOKENS = [
    ({"text": TEXT[:, :5]}, r"text has shape \(2, 5\), expected \(B, 8\); pad or cut captions"),
    ({"text": TEXT + 270}, "text has tokens .*, but this generator knows -1..269; use the tokenizer it was"),
    ({"image_tokens": TOKENS[:, :9]}, r"image_tokens has shape \(2, 9\), expected \(B, 16\) for scales \(4,\)"),
    ({"image_tokens": TOKENS + 12}, "image_tokens has tokens 12..2[0-9], .* knows 0..11; use the tokenizer"),
    ({"fixed_tokens": TOKENS[:1]}, r"torch.int64 of shape \(1, 16\), expected torch.int64 \(2, 16\)"),
    ({"fixed_tokens": TOKENS.float()}, r"torch.float32 of shape \(2, 16\), expected torch.int64"),
    ({"fixed_tokens": TOKENS - 2}, "fixed_tokens has tokens -2..[0-9]+, but this generator knows -1..11"),
    ({"rngs": rngs(3)}, "2 rows of text came with 3 random generators; give one per row"),
]  # fmt: skip


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
def test_a_score_is_one_cosine_per_image_and_does_not_depend_on_the_other_images(kind):
    scorer, images = tiny("scorers", kind), random_images(4)
    scores = scorer.score(images, CAPTIONS)

    assert scores.shape == (4,) and scores.dtype == torch.float32 and not scores.requires_grad
    assert -1 <= scores.min() and scores.max() <= 1 and len(scores.unique()) == 4
    separate = torch.cat([scorer.score(images[[row]], [CAPTIONS[row]]) for row in range(4)])
    torch.testing.assert_close(separate, scores, rtol=0, atol=1e-6)


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


# --- captioners ---------------------------------------------------------------------------------------------


@every_captioner
def test_a_caption_depends_on_its_image_and_its_generator_only(kind):
    captioner, images = tiny("captioners", kind), random_images(5)

    together = captioner.caption(images, rngs(5), candidates=3)

    assert together.shape == (5, TEXT.shape[1]) and together.dtype == torch.int64
    assert -1 <= together.min() and together.max() < TEXT_VOCAB_SIZE
    for row in range(5):
        alone = captioner.caption(images[[row]], [rng(row)], candidates=3)
        assert alone.equal(together[[row]])
    assert not captioner.caption(images, rngs(5, first=9), candidates=3).equal(together)


@every_captioner
def test_a_sampled_caption_has_pads_only_after_its_end_and_the_probability_that_it_is_said_to_have(kind):
    captioner = tiny("captioners", kind)
    image_states = captioner.read_images(random_images(3))

    text, log_probs = captioner.sample(image_states, rngs(12))

    assert (text[:, 0] >= 0).all() and ((text[:, 1:] < 0) | (text[:, :-1] >= 0)).all()
    of_image = image_states.repeat_interleave(4, dim=0)
    torch.testing.assert_close(log_probs, captioner.log_probabilities(of_image, text), atol=1e-4, rtol=0)
    assert log_probs.dtype == torch.float32 and log_probs.max() < 0


@every_captioner
def test_the_loss_is_the_mean_of_minus_the_log_probabilities_with_the_end_of_a_caption(kind):
    captioner, images, text = tiny("captioners", kind), random_images(4), captions_as_tokens(4)
    log_probs = captioner.log_probabilities(captioner.read_images(images), text)

    loss, _ = captioner.loss(images, text, 0, rng())

    tokens = ((text >= 0).sum(dim=1) + (text[:, -1] < 0)).sum()  # one that fills all places has no end
    torch.testing.assert_close(loss, -log_probs.sum() / tokens, atol=1e-5, rtol=0)


@every_captioner
def test_of_the_candidates_the_one_is_kept_that_the_image_makes_most_probable_against_no_image(kind):
    captioner, images = tiny("captioners", kind), random_images(2)
    repeated = [each for each in rngs(2) for _ in range(6)]
    text, log_probs = captioner.sample(captioner.read_images(images), repeated)
    gain = (log_probs - PRIOR_WEIGHT * captioner.log_probabilities(None, text)).view(2, 6)

    kept = captioner.caption(images, rngs(2), candidates=6)

    assert kept.equal(torch.stack([text[gain[0].argmax()], text[6 + gain[1].argmax()]]))


@every_captioner
def test_what_does_not_fit_a_captioner_is_rejected(kind):
    captioner = tiny("captioners", kind)
    with pytest.raises(
        ValueError, match=rf"takes \(B, 3, {SIDE}, {SIDE}\) in \[0, 1\], not \(2, 3, 16, 15\)"
    ):
        captioner.caption(random_images(2)[..., 1:], rngs(2))
    with pytest.raises(ValueError, match=r"text has shape \(2, 5\), expected \(B, 8\); pad or cut captions"):
        captioner.loss(random_images(2), TEXT[:, :5], 0, rng())
    with pytest.raises(ValueError, match="2 images came with 3 random generators; give each the same number"):
        captioner.sample(captioner.read_images(random_images(2)), rngs(3))
