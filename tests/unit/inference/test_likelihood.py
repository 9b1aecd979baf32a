"""Exact likelihoods: bits of a caption and of an image, independent of the rest of the batch."""

import math

import pytest
import torch

from tests.helpers.tiny_models import random_images
from thousandwords.data.images import to_float, to_uint8
from thousandwords.inference.config import EmptyPrompt
from thousandwords.inference.likelihood import likelihood

CAPTION = "a small green star on sand"
IMAGES = to_uint8(random_images(11))


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


def test_an_empty_caption_is_rejected(package):
    with pytest.raises(EmptyPrompt):
        likelihood(package, " ", IMAGES[:1])
