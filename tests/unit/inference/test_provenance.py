"""A PNG records how it was generated; a record that cannot be read is rejected with one sentence."""

import dataclasses
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tests.helpers.tiny_models import flipped
from thousandwords.core.errors import UserError
from thousandwords.data.image_decoding import decode_image
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.provenance import (
    CHUNK,
    PNG_SIGNATURE,
    Provenance,
    encode_png_with_provenance,
    read_provenance,
)

IMAGE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
PROVENANCE = Provenance(
    "a small red star", 7, 2, "0f" * 32, SamplingConfig(candidates=4, batch_size=8, top_p=0.8)
)


def png_with_text(text: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, text)
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def png_with(**changes: object) -> bytes:
    return png_with_text(json.dumps(PROVENANCE.to_dict() | changes))


def compressed(data: bytes) -> bytes:
    """The same image and the same text, compressed."""
    chunks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        chunks.add_itxt(CHUNK, image.text[CHUNK], zip=True)
        image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


@given(
    caption=st.text(st.characters(exclude_categories=["Cs"])),
    seed=st.integers(0, 2**63 - 1),
    tokens=st.none() | st.lists(st.integers(-1, 8191), max_size=9).map(tuple),
)
def test_provenance_is_read_as_it_was_written_and_the_image_is_unchanged(caption, seed, tokens):
    provenance = dataclasses.replace(PROVENANCE, caption=caption, seed=seed, fixed_tokens=tokens)
    data = encode_png_with_provenance(IMAGE, provenance)
    assert read_provenance(data) == provenance
    assert (decode_image(data) == IMAGE).all()
    assert encode_png_with_provenance(IMAGE, provenance) == data
    assert b'"given": ' in data  # the key of fixed tokens in files that were written before


def test_an_image_without_a_record_has_no_provenance():
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "PNG")
    assert read_provenance(buffer.getvalue()) is None
    assert read_provenance(b"GIF89a") is None
    assert read_provenance(b"") is None


def test_no_pixel_is_unpacked_to_read_it(monkeypatch):
    """Half a megabyte can hold a hundred million pixels, and the studio's server reads it first."""
    data = encode_png_with_provenance(IMAGE, PROVENANCE)
    monkeypatch.setattr(PngImagePlugin, "PngImageFile", None)
    monkeypatch.setattr(Image, "open", None)
    assert read_provenance(data) == PROVENANCE


@pytest.mark.parametrize("position", range(8, len(encode_png_with_provenance(IMAGE, PROVENANCE)), 49))
def test_a_file_that_is_changed_or_cut_anywhere_is_rejected(position):
    data = encode_png_with_provenance(IMAGE, PROVENANCE)
    message = "this image is damaged: it is cut short, or its bytes have changed. Use another"
    for broken in (flipped(data, position), data[:position]):
        with pytest.raises(UserError, match=message):
            read_provenance(broken)


@given(st.binary(max_size=80))
def test_random_bytes_are_rejected_or_have_no_provenance(data):
    assert read_provenance(b"no PNG" + data) is None
    with pytest.raises(UserError, match="this image is damaged"):
        read_provenance(PNG_SIGNATURE + data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_with(seed=-1), "provenance.seed is -1; seeds run from 0"),
        (png_with(caption="\ud800"), "provenance.caption and provenance.package are text; one has an inv"),
        (png_with(settings={"guidance": 10**400}), "provenance.settings.guidance should be a number"),
        (png_with(seed="7"), "provenance.seed should be a whole number, found '7'"),
        (png_with(candidate=4), "provenance.candidate is 4 of 4; they count from 0"),
        (png_with(given=[1, 10**30]), "provenance.fixed_tokens has tokens that no vocabulary has"),
        (png_with(given=[-2]), "provenance.fixed_tokens has tokens that no vocabulary has"),
        (png_with(color="red"), "provenance has no key 'color'"),
        (png_with(settings={"temperature": 0}), "sampling.temperature is 0.0; it needs to be above 0"),
        (png_with_text("{"), "it is not JSON"),
        (png_with_text("[" * 100_000), "it is not JSON"),
        (png_with_text("[1]"), "provenance should be a block of keys, found [1]"),
        (png_with_text("1" * (2**20 + 1)), "it has more than 1,048,576 characters"),
        (compressed(png_with()), "another program has rewritten it. Give the original file"),
    ],
)
def test_a_record_that_cannot_be_read_is_rejected_with_the_reason(data, message):
    with pytest.raises(UserError) as caught:
        read_provenance(data)
    assert message in str(caught.value) and "params.yaml" not in str(caught.value)
