"""The provenance of a row, and the choice between first and second captions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.prepare import select_captions
from thousandwords.ingest.sources.base import RawPair
from thousandwords.ingest.sources.mixture import Provenance, read_provenance


@given(
    st.text(max_size=20),
    st.none() | st.integers(0, 9),
    st.none() | st.text(max_size=5),
    st.none() | st.text(max_size=5),
)
def test_provenance_is_read_as_it_was_written(at, source, licence, origin):
    written = Provenance(at, source, licence, origin)
    assert read_provenance(written.text()) == written or (
        written.text() == at and at.lstrip().startswith("{")
    )


@pytest.mark.parametrize("text", ["own/cat.png", "scenes, seed 0", "{}", "7", "[1]", "", '{"x": 1}'])
def test_a_provenance_that_is_only_a_path_stays_a_path(text):
    assert read_provenance(text) == Provenance(text)


def test_a_larger_share_contains_the_pairs_of_a_smaller_one():
    pairs = [RawPair(str(number), b"", ("plain",), "", recaptions=("long",)) for number in range(200)]
    recaptioned = [
        {pair.key for pair in pairs if select_captions(pair, 0, share).captions == ("long",)}
        for share in (0.0, 0.25, 0.5, 1.0)
    ]
    assert (
        recaptioned[0] == set()
        and recaptioned[1] < recaptioned[2] < recaptioned[3]
        and len(recaptioned[3]) == 200
    )
    assert 35 < len(recaptioned[1]) < 65 and 80 < len(recaptioned[2]) < 120


def test_an_unusable_second_caption_rejects_the_pair_only_if_it_is_selected():
    pair = RawPair("key", b"", ("plain",), "", recaptions=("x" * 5_000,))
    assert select_captions(pair, 0, 1.0).problem.reason == "caption_too_long"
    assert select_captions(pair, 0, 0.0) == RawPair("key", b"", ("plain",), "")
    rejected = RawPair("key", b"", (), "", InvalidInput("caption_empty", "x"), ("long",))
    assert select_captions(rejected, 0, 1.0).problem is rejected.problem
