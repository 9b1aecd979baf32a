"""What every kind of every family promises; a new kind is found here by itself (its sizes go into tests/tiny.py)."""
from __future__ import annotations

import pytest
import torch

from tests.tiny import (
    CAPTIONS,
    IMAGE_WORDS,
    SIDE,
    TINY,
    captions_as_tokens,
    every_kind,
    flips,
    image_tokens,
    pictures,
    rng,
    rngs,
    tiny,
)
from thousandwords import components
from thousandwords.files import DamagedArtefact

ALL = [(family, kind) for family in components.CONTRACTS for kind in every_kind(family)]
every_tokenizer = pytest.mark.parametrize("kind", every_kind("tokenizers"))
every_generator = pytest.mark.parametrize("kind", every_kind("generators"))
every_scorer = pytest.mark.parametrize("kind", every_kind("scorers"))
every_model = pytest.mark.parametrize(("family", "kind"), ALL)


def batch_for(family: str) -> tuple:
    """What the family's loss is given, less step and rng."""
    return {
        "tokenizers": (pictures(4),),
        "generators": (captions_as_tokens(4), image_tokens(4)),
        "scorers": (pictures(4), CAPTIONS),
    }[family]


def outputs(family: str, model: torch.nn.Module) -> list[torch.Tensor]:
    """What the family is for, on fixed inputs."""
    if family == "tokenizers":
        tokens = model.encode(pictures(3))
        return [tokens, model.decode(tokens)]
    if family == "generators":
        return [model.sample(captions_as_tokens(3), rngs(3))]
    return [model.score(pictures(4), CAPTIONS)]


# --- all of them -----------------------------------------------------------------------------------------------------


def test_there_is_a_kind_of_every_family():
    assert {family for family, _ in ALL} == {"tokenizers", "generators", "scorers"}


def test_every_kind_that_has_sizes_here_is_there():
    assert {(family, kind) for family, kinds in TINY.items() for kind in kinds} == set(ALL)


@every_model
def test_the_loss_is_a_finite_scalar_that_reaches_the_weights(family, kind):
    model = tiny(family, kind).train()

    loss, logged = model.loss(*batch_for(family), 0, rng())
    loss.backward()

    assert loss.shape == () and loss.isfinite()
    assert all(torch.as_tensor(value).ndim == 0 for value in logged.values())
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@every_model
def test_the_same_seed_gives_the_same_loss(family, kind):
    first, again = (tiny(family, kind).loss(*batch_for(family), 3, rng(5))[0] for _ in range(2))
    assert first.equal(again)


@every_model
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
def test_nothing_touches_the_global_generator_or_its_arguments(family, kind):
    model, arguments = tiny(family, kind), batch_for(family)
    before = [argument.clone() for argument in arguments if isinstance(argument, torch.Tensor)]
    state = torch.get_rng_state()

    model.loss(*arguments, 0, rng())
    outputs(family, model)

    assert torch.get_rng_state().equal(state)
    after = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    assert all(old.equal(new) for old, new in zip(before, after, strict=True))


@every_model
def test_a_saved_model_comes_back_with_equal_outputs_and_the_same_fingerprint(family, kind, tmp_path):
    model = tiny(family, kind)
    fingerprint = components.save(model, tmp_path / "first", trained_on="scenes")

    loaded = components.load(family, tmp_path / "first")

    assert loaded.fingerprint == fingerprint and loaded.header["trained_on"] == "scenes"
    assert loaded.built_as == model.built_as
    assert all(old.equal(new) for old, new in zip(outputs(family, model), outputs(family, loaded), strict=True))
    assert components.save(loaded, tmp_path / "again", trained_on="scenes") == fingerprint
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())


@every_model
def test_other_weights_have_another_fingerprint(family, kind, tmp_path):
    first, other = (components.save(tiny(family, kind, seed), tmp_path / str(seed)) for seed in (0, 1))
    assert first != other


@every_model
def test_damaged_weights_are_refused(family, kind, tmp_path):
    components.save(tiny(family, kind), tmp_path)
    for _ in flips(tmp_path / "weights.safetensors", 5):
        with pytest.raises(DamagedArtefact, match="weights.safetensors is damaged: .* Run: dvc repro train_it"):
            components.load(family, tmp_path, mend="dvc repro train_it")


# --- image tokenizers ------------------------------------------------------------------------------------------------


@every_tokenizer
def test_encoding_gives_one_word_per_cell_of_every_scale(kind):
    tokenizer = tiny("tokenizers", kind)
    tokens = tokenizer.encode(pictures(2))

    assert tokens.shape == (2, sum(side * side for side in tokenizer.scales)) == (2, tokenizer.num_tokens)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < tokenizer.vocab_size


@every_tokenizer
def test_decoding_gives_pictures(kind):
    tokenizer = tiny("tokenizers", kind)
    tokens = torch.randint(tokenizer.vocab_size, (2, tokenizer.num_tokens), generator=rng())

    images = tokenizer.decode(tokens)

    assert images.shape == (2, 3, SIDE, SIDE) and images.dtype == torch.float32
    assert 0 <= images.min() and images.max() <= 1


@every_tokenizer
def test_a_picture_is_encoded_alike_in_any_batch(kind):
    tokenizer = tiny("tokenizers", kind)
    together = tokenizer.encode(pictures(5))
    apart = torch.cat([tokenizer.encode(picture[None]) for picture in pictures(5)])
    assert together.equal(apart)


@every_tokenizer
def test_what_is_no_picture_or_no_word_of_the_tokenizer_is_refused(kind):
    tokenizer = tiny("tokenizers", kind)
    tokens = tokenizer.encode(pictures(1))

    with pytest.raises(ValueError, match=rf"takes \(B, 3, {SIDE}, {SIDE}\)"):
        tokenizer.encode(pictures(1)[..., 1:])
    with pytest.raises(ValueError, match=r"give float32 in \[0, 1\]"):
        tokenizer.encode(pictures(1) * 255)
    with pytest.raises(ValueError, match=f"this vocabulary is 0 to {tokenizer.vocab_size - 1}"):
        tokenizer.decode(tokens + tokenizer.vocab_size)


@every_tokenizer
def test_looking_at_pictures_before_training_leaves_a_tokenizer_that_works(kind):
    tokenizer = tiny("tokenizers", kind)
    tokenizer.prepare([pictures(4), pictures(4, seed=1)], rng())
    assert tokenizer.decode(tokenizer.encode(pictures(2))).isfinite().all()


# --- generators ------------------------------------------------------------------------------------------------------


@every_generator
def test_a_sample_is_the_words_of_one_picture_per_row(kind):
    generator = tiny("generators", kind)
    tokens = generator.sample(captions_as_tokens(3), rngs(3))

    assert tokens.shape == (3, generator.image_length) and tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < IMAGE_WORDS
    assert len(tokens.unique(dim=0)) == 3


@every_generator
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}])
def test_a_sample_does_not_depend_on_the_rows_beside_it(kind, settings):
    generator, text = tiny("generators", kind), captions_as_tokens(6)
    together = generator.sample(text, rngs(6), **settings)

    for rows in ([0], [5, 2], [1, 3, 4]):
        alone = generator.sample(text[rows], [rng(row) for row in rows], **settings)
        assert alone.equal(together[rows])


@every_generator
def test_the_same_seed_samples_the_same_picture_and_another_seed_another(kind):
    generator, text = tiny("generators", kind), captions_as_tokens(1)
    first, again, other = (generator.sample(text, rngs(1, seed)) for seed in (3, 3, 4))
    assert first.equal(again) and not first.equal(other)


@every_generator
@pytest.mark.parametrize("cells", [range(5), [0, 3, 4, 11], [15], range(16)])
def test_a_sample_keeps_the_words_it_is_given(kind, cells):
    given = torch.full_like(image_tokens(2), -1)
    given[:, list(cells)] = image_tokens(2)[:, list(cells)]

    drawn = tiny("generators", kind).sample(captions_as_tokens(2), rngs(2), given=given)

    assert drawn.where(given >= 0, -1).equal(given)
    assert 0 <= drawn.min() and drawn.max() < IMAGE_WORDS


@every_generator
def test_a_picture_given_some_of_its_own_words_comes_out_as_it_was(kind):
    generator, text = tiny("generators", kind), captions_as_tokens(3)
    whole = generator.sample(text, rngs(3))
    is_given = torch.rand(whole.shape, generator=rng(5)) < 0.5

    assert generator.sample(text, rngs(3), given=whole.where(is_given, -1)).equal(whole)
    assert generator.sample(text, rngs(3), given=torch.full_like(whole, -1)).equal(whole)


@every_generator
def test_a_completed_picture_does_not_depend_on_the_rows_beside_it(kind):
    generator, text, tokens = tiny("generators", kind), captions_as_tokens(4), image_tokens(4)
    given = tokens.where(torch.arange(tokens.shape[1]) < torch.tensor([[8], [0], [3], [16]]), -1)
    together = generator.sample(text, rngs(4), given=given)

    for row in range(4):
        alone = generator.sample(text[[row]], [rng(row)], given=given[[row]])
        assert alone.equal(together[[row]])


@every_generator
def test_log_probabilities_are_those_of_the_loss(kind):
    generator, text = tiny("generators", kind), captions_as_tokens(4)
    _, logged = generator.loss(text, image_tokens(4), 0, rng())

    of_text, of_image = generator.log_probabilities(text, image_tokens(4))

    assert of_text.shape == text.shape and of_image.shape == image_tokens(4).shape
    assert of_text.dtype == of_image.dtype == torch.float32 and not of_image.requires_grad
    assert of_text[text == -1].eq(0).all() and of_image.max() < 0
    assert -of_text.sum().item() / (text != -1).sum().item() == pytest.approx(float(logged["text_loss"]), abs=1e-5)
    assert -of_image.mean().item() == pytest.approx(float(logged["image_loss"]), abs=1e-5)


@every_generator
def test_the_loss_tells_its_text_and_its_image_part(kind):
    _, logged = tiny("generators", kind).loss(captions_as_tokens(4), image_tokens(4), 0, rng())
    assert {"text_loss", "image_loss"} <= set(logged)
    assert all(torch.as_tensor(logged[name]).isfinite() for name in ("text_loss", "image_loss"))


@every_generator
def test_words_that_a_generator_was_not_built_for_are_refused(kind):
    generator = tiny("generators", kind)
    with pytest.raises(ValueError, match="use the tokenizer it was trained with"):
        generator.loss(captions_as_tokens(2), image_tokens(2) + IMAGE_WORDS, 0, rng())
    with pytest.raises(ValueError, match="pad or cut captions"):
        generator.sample(captions_as_tokens(2)[:, 1:], rngs(2))
    with pytest.raises(ValueError, match="use the tokenizer it was trained with"):
        generator.sample(captions_as_tokens(2), rngs(2), given=image_tokens(2) + IMAGE_WORDS)
    with pytest.raises(ValueError, match="use the tokenizer it was trained with"):
        generator.log_probabilities(captions_as_tokens(2), image_tokens(2) + IMAGE_WORDS)


# --- scorers ---------------------------------------------------------------------------------------------------------


@every_scorer
def test_a_score_is_one_cosine_per_picture(kind):
    scores = tiny("scorers", kind).score(pictures(4), CAPTIONS)
    assert scores.shape == (4,) and scores.dtype == torch.float32
    assert -1 <= scores.min() and scores.max() <= 1
    assert len(scores.unique()) == 4


@every_scorer
def test_a_score_does_not_depend_on_the_pictures_beside_it(kind):
    scorer = tiny("scorers", kind)
    together = scorer.score(pictures(4), CAPTIONS)
    alone = torch.cat([scorer.score(pictures(4)[[row]], [CAPTIONS[row]]) for row in range(4)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


@every_scorer
def test_scoring_keeps_no_gradient(kind):
    assert not tiny("scorers", kind).score(pictures(4), CAPTIONS).requires_grad


@every_scorer
def test_pictures_of_any_size_become_unit_vectors_by_which_they_are_compared(kind):
    scorer = tiny("scorers", kind)

    with torch.no_grad():
        vectors = scorer.embed_images(pictures(4))
        alone = torch.cat([scorer.embed_images(pictures(4)[[row]]) for row in range(4)])
        larger = scorer.embed_images(torch.rand(2, 3, 2 * SIDE, 2 * SIDE, generator=rng()))

    assert vectors.ndim == 2 and vectors.dtype == torch.float32 and larger.shape == (2, vectors.shape[1])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(alone, vectors, rtol=0, atol=1e-6)
    assert (vectors @ vectors.T).fill_diagonal_(-1).max() < 1    # no two pictures are the same to it
