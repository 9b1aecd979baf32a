"""Exact likelihoods: bits of a caption and of an image, independent of the rest of the batch."""

import math

import pytest
import torch

from tests.helpers.tiny_models import fitting_package, random_images, tiny
from thousandwords.data.images import to_float, to_uint8
from thousandwords.inference.config import EmptyPrompt
from thousandwords.inference.likelihood import likelihood
from thousandwords.inference.package import load_package

CAPTION = "a small green star on sand"
IMAGES = to_uint8(random_images(11))


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


def test_the_bits_of_an_image_are_those_of_its_tokens_in_the_generators_loss(package):
    tokens = package.image_tokenizer.encode(to_float(IMAGES[:1]))
    text = package.text_tokenizer.encode([CAPTION])
    _, loss = package.generator.loss(text, tokens, 0, torch.Generator())

    (result,) = likelihood(package, CAPTION, IMAGES[:1])

    assert result.bits_per_token == pytest.approx(loss["image_loss"].item() / math.log(2), rel=1e-5)
    caption_bits = loss["text_loss"].item() * (text >= 0).sum().item() / math.log(2)
    assert result.caption_bits == pytest.approx(caption_bits, rel=1e-5)
    assert result.image.shape == (16,) and result.image_bits == pytest.approx(16 * result.bits_per_token)


def test_other_images_in_the_batch_change_no_likelihood(package):
    together = likelihood(package, CAPTION, list(IMAGES))  # more than one batch

    assert len(together) == 11 and len({result.image_bits for result in together}) > 5
    for row in (0, 8, 10):
        (alone,) = likelihood(package, CAPTION, IMAGES[[row]])
        assert alone.image_bits == pytest.approx(together[row].image_bits)


def test_a_caption_is_read_as_it_is_for_sampling(package):
    (lower,), (upper,) = (likelihood(package, text, IMAGES[:1]) for text in (CAPTION, f" {CAPTION.upper()}"))
    assert lower.image.equal(upper.image) and lower.text.equal(upper.text)
    with pytest.raises(EmptyPrompt):
        likelihood(package, " ", IMAGES[:1])


def test_a_generator_that_does_not_model_text_gives_exact_bits_of_images_and_none_of_captions(tmp_path):
    tokenizer = tiny("image_tokenizers", "multi_scale")
    package = load_package(fitting_package(tmp_path, tokenizer, "next_scale"))
    tokens = package.image_tokenizer.encode(to_float(IMAGES[:2]))
    text = package.text_tokenizer.encode([CAPTION] * 2)
    _, loss = package.generator.loss(text, tokens, 0, torch.Generator())

    results = likelihood(package, CAPTION, IMAGES[:2])

    assert [result.caption_bits for result in results] == [None, None]
    mean = sum(result.bits_per_token for result in results) / 2
    assert mean == pytest.approx(loss["image_loss"].item() / math.log(2), rel=1e-5)
