"""The data card of a version: sources of its images, what was left out and why, lengths of captions."""

import copy

import pytest

from flows.registry.cards import data_card

COUNTS = {
    **{"n_in": 120, "n_ok": 100, "n_quarantined": 8, "n_duplicate": 5, "n_filtered": 7},
    "reasons": {"truncated": 8, "too_small": 4, "wrong_language": 3},
    "splits": {"train": 90, "validation": 10},
    "captions_dropped": {"boilerplate": 6},
    "formats": {"JPEG": 70, "PNG": 30},
    "flags": {"animated": 2},
    "texts": {"original": 75, "recaptioned": 25},
    "by_shard": {"/mnt/disk/000.tar": {"n_in": 120}},
    "near_duplicates": {"distance": 4, "colour": 24, "across_splits": 2},
}
CATS = dict(source="webdataset", path="/mnt/disk", licence="CC-BY-4.0", origin="https://example.org/cats")
SETTINGS = {
    **{"language": "en", "min_caption_words": 3, "boilerplate": ["photographed (on|at)"], "group_by": None},
    **{"path": "data/own", "near_duplicates": "hash", "recaption_share": 0.25, "validation_share": 0.1},
    "sources": [CATS, {"source": "folder", "path": "/home/anna/photos", "licence": None, "origin": None}],
}
METADATA = {
    **{"source": "mixture", "image_size": 64, "seed": 7, "counts": COUNTS, "settings": SETTINGS},
    "mixtures": {"train": {"rows": [60, 30], "weights": [1.0, 2.0]}},
}
MANIFEST = {"sha256": "3f9cabcd" * 8, "facts": METADATA}
CAPTIONS = {"pairs": 90, "captions": 180, "distinct": 175, "words": {"least": 3, "median": 9, "most": 31}}


@pytest.mark.parametrize(
    "line",
    [
        "100 captioned images, resized to 64 × 64 pixels. Pair manifest `3f9cabcd3f9c`, seed 7.",
        "| webdataset | CC-BY-4.0 | https://example.org/cats |",
        "| folder | not stated | not stated |",
        "| read | 120 |",
        "| damaged or incomplete | 8 |",
        "| outside the settings | 7 |",
        "| duplicates | 5 |",
        "| rejected because: wrong\\_language | 3 |",
        "| captions dropped from pairs that are kept: boilerplate | 6 |",
        "| images in JPEG | 70 |",
        "| images flagged: animated | 2 |",
        "| validation | 10 |",
        "Training mixes the sources, in the order above, by weight: 1.0, 2.0, from 60, 30 pairs.",
        "The first 90 training pairs have 180 captions, 175 of them distinct, of 3 to 31 words; half have 9 or fewer.",
        "| language of captions | en |",
        "| captions that contain one of these are dropped | \\['photographed (on\\|at)'\\] |",
        "| share of pairs trained on the second text | 0.25 |",
    ],
)
def test_every_count_and_setting_has_its_line(line):
    assert line in data_card("cats", MANIFEST, CAPTIONS).splitlines()


@pytest.fixture
def changed():
    """The manifest, to be changed by a test."""
    return copy.deepcopy(MANIFEST)


def test_the_card_says_whether_near_duplicates_were_removed(changed):
    card = data_card("cats", MANIFEST, CAPTIONS)
    line = "within 4 of 64 bits and 24 of 255 in color, the first is kept; 2 of those dropped would have been in the other"
    assert line in card

    del changed["facts"]["counts"]["near_duplicates"]
    assert "Only exact copies were removed" in data_card("cats", changed)


def test_of_sources_without_weights_the_card_says_that_each_pair_counts_once(changed):
    changed["facts"]["mixtures"]["train"]["weights"] = [60, 30]
    lines = data_card("cats", changed).splitlines()
    assert "An epoch has each pair of the sources once, in the order above: 60, 30." in lines


def test_the_card_holds_no_local_path_and_no_setting_that_was_off():
    card = data_card("cats", MANIFEST, CAPTIONS)
    assert not [text for text in ("/mnt", "/home", "None", "captions equal in this") if text in card]
    assert data_card("cats", MANIFEST, CAPTIONS) == card


def test_untrusted_text_cannot_add_markup(changed):
    changed["facts"]["settings"]["sources"][0]["licence"] = "free |\n# a heading\n<script>"
    assert "| free \\| \\# a heading \\<script\\> |" in data_card("cats", changed)


def test_the_card_says_so_if_the_pairs_are_not_here():
    card = data_card("cats", None)
    assert "nothing is recorded about them" in card and "| read" not in card
    assert "Their lengths were not counted." in data_card("cats", MANIFEST)
