"""Exact likelihoods: bits of a caption and of a picture, the same whoever stands beside them."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.tiny import IMAGE_WORDS, SIDE, pictures
from thousandwords import images
from thousandwords.drawing import EmptyPrompt
from thousandwords.likelihood import Likelihood, bits, likelihood, likelihood_of_words
from thousandwords.package import load_package

CAPTION = "a small green star on sand"
PICTURES = images.to_uint8(pictures(11))


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


def test_bits_are_nats_in_another_unit():
    assert bits(torch.tensor([math.log(0.5), math.log(0.25)])) == pytest.approx(3)
    one = Likelihood(text=torch.tensor([-1.0, 0.0]), image=torch.full((4,), math.log(1 / 8)))
    assert (one.picture_bits, one.bits_per_word) == (pytest.approx(12), pytest.approx(3))
    assert one.caption_bits == pytest.approx(1.4427, abs=1e-4)


def test_a_pictures_bits_are_those_of_its_words_in_the_generators_loss(package):
    tokens = package.image_tokenizer.encode(images.to_float(PICTURES[:1]))
    text = package.text_tokenizer.encode([CAPTION])
    _, loss = package.generator.loss(text, tokens, 0, torch.Generator())

    (found,) = likelihood(package, CAPTION, PICTURES[:1])

    assert found.bits_per_word == pytest.approx(loss["image_loss"].item() / math.log(2), rel=1e-5)
    assert found.caption_bits == pytest.approx(loss["text_loss"].item() * (text >= 0).sum().item() / math.log(2), rel=1e-5)
    assert found.image.shape == (16,) and found.picture_bits == pytest.approx(16 * found.bits_per_word)


def test_the_pictures_beside_it_change_no_likelihood(package):
    together = likelihood(package, CAPTION, list(PICTURES))  # more than are read at a time

    assert len(together) == 11 and len({one.picture_bits for one in together}) > 5
    for row in (0, 8, 10):
        assert likelihood(package, CAPTION, PICTURES[[row]])[0].picture_bits == pytest.approx(together[row].picture_bits)


def test_a_picture_of_another_size_is_cropped_and_resized_as_in_training(package):
    wide = np.random.default_rng(0).integers(0, 256, (2 * SIDE, 3 * SIDE, 3), np.uint8)
    (found,) = likelihood(package, CAPTION, [wide])
    (wanted,) = likelihood(package, CAPTION, [images.fit_square(wide, SIDE)])
    assert found.image.equal(wanted.image)


def test_a_caption_is_read_as_it_is_for_drawing(package):
    (first,), (shouted,) = (likelihood(package, caption, PICTURES[:1]) for caption in (CAPTION, f" {CAPTION.upper()}"))
    assert first.image.equal(shouted.image) and first.text.equal(shouted.text)
    with pytest.raises(EmptyPrompt):
        likelihood(package, " ", PICTURES[:1])


def test_the_surest_picture_is_likelier_than_one_at_random(package):
    (surest,) = package.draw(CAPTION, candidates=1, top_k=1)
    random = torch.randint(IMAGE_WORDS, surest.tokens.shape, generator=torch.Generator().manual_seed(0))

    first, other = likelihood_of_words(package, CAPTION, torch.stack([surest.tokens, random]))

    assert first.picture_bits < other.picture_bits
