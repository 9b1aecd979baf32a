"""A picture says how it was drawn; what says something else is refused with a sentence."""
from __future__ import annotations

import dataclasses
import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tests.tiny import flipped
from thousandwords.drawing import Settings
from thousandwords.errors import UserError
from thousandwords.images import decode_image
from thousandwords.provenance import CHUNK, PNG, Provenance, provenance_of, with_provenance

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
PICTURE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
DRAWN = Provenance("a small red star", 7, 2, "0f" * 32, Settings(candidates=4, batch_size=8, top_p=0.8))


def png_saying(text: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, text)
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def saying(**changes: object) -> bytes:
    return png_saying(json.dumps(dataclasses.asdict(DRAWN) | changes))


def packed(data: bytes) -> bytes:
    """The same picture and the same text, compressed."""
    chunks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        chunks.add_itxt(CHUNK, image.text[CHUNK], zip=True)
        image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


@given(caption=st.text(st.characters(exclude_categories=["Cs"])), seed=st.integers(0, 2**63 - 1),
       words=st.none() | st.lists(st.integers(-1, 8191), max_size=9).map(tuple))
def test_what_is_written_is_read_and_the_picture_stays(caption, seed, words):
    facts = dataclasses.replace(DRAWN, caption=caption, seed=seed, given=words)
    data = with_provenance(PICTURE, facts)
    assert provenance_of(data) == facts
    assert (decode_image(data) == PICTURE).all()
    assert with_provenance(PICTURE, facts) == data


def test_a_picture_that_says_nothing_has_no_provenance():
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG")
    assert provenance_of(buffer.getvalue()) is None
    assert provenance_of(b"GIF89a") is None
    assert provenance_of(b"") is None


def test_no_pixel_is_unpacked_to_read_it(monkeypatch):
    """Half a megabyte can hold a hundred million pixels, and who reads it first is the studio's server."""
    data = with_provenance(PICTURE, DRAWN)
    monkeypatch.setattr(Image, "open", None)
    assert provenance_of(data) == DRAWN


@pytest.mark.parametrize("place", range(8, len(with_provenance(PICTURE, DRAWN)), 7))
def test_a_file_that_has_changed_or_is_cut_is_told_so_wherever(place):
    data = with_provenance(PICTURE, DRAWN)
    for broken in (flipped(data, place), data[:place]):
        with pytest.raises(UserError, match="this picture is damaged: it is cut short, or its bytes have changed. Take another"):
            provenance_of(broken)


@given(st.binary(max_size=80))
def test_wild_bytes_are_told_so_or_say_nothing(data):
    assert provenance_of(b"no PNG" + data) is None
    with pytest.raises(UserError, match="this picture is damaged"):
        provenance_of(PNG + data)


@pytest.mark.parametrize("size", [(50_000, 50_000), (13_000, 13_000), (1, 2**31 - 1)])
def test_a_promise_of_many_pixels_costs_nothing(size, recwarn):
    """Some hundred bytes may promise thousands of megapixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
    data = PNG + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PNG_END
    assert provenance_of(data) is None and not recwarn.list


@pytest.mark.parametrize(("data", "said"), [
    (saying(seed=-1), "provenance.seed is -1; seeds run from 0"),
    (saying(caption="\ud800"), "provenance.caption and provenance.package are text, one holds what is no character"),
    (saying(package="\ud800"), "provenance.caption and provenance.package are text, one holds what is no character"),
    (saying(settings={"guidance": 10**400}), "provenance.settings.guidance should be a number"),
    (saying(seed="7"), "provenance.seed should be a whole number, found '7'"),
    (saying(candidate=4), "provenance.candidate is 4 of 4; they count from 0"),
    (saying(given=[1, 10**30]), "provenance.given has words that no vocabulary has"),
    (saying(given=[-2]), "provenance.given has words that no vocabulary has"),
    (saying(colour="red"), "provenance has no key 'colour'"),
    (saying(settings={"temperature": 0}), "sampling.temperature is 0.0; it needs to be above 0"),
    (png_saying("{"), "it is no JSON"),
    (png_saying("[" * 100_000), "it is no JSON"),
    (png_saying("[1]"), "provenance should be a block of keys, found [1]"),
    (png_saying("1" * (2**20 + 1)), "longer than any that was drawn here"),
    (with_provenance(PICTURE, DRAWN)[:60], "this picture is damaged: it is cut short"),
    (PNG, "this picture is damaged: it is cut short"),
    (with_provenance(PICTURE, DRAWN).replace(b"a small red", b"a small rat"), "this picture is damaged: it is cut short"),
    (packed(saying()), "was packed anew by another program. Give the file as it came"),
])  # fmt: skip
def test_what_is_not_to_be_understood_is_told(data, said):
    with pytest.raises(UserError) as caught:
        provenance_of(data)
    assert said in str(caught.value) and "params.yaml" not in str(caught.value)
