"""The data card of a version: where its pictures are from, what was left out and why, how long its captions are."""
from __future__ import annotations

import copy

import pytest

from flows._data_card import data_card
from tests.test_duplicates import add, config
from tests.test_twins import photo
from thousandwords.caption_counts import caption_counts
from thousandwords.files import DamagedArtefact, read_manifest, write_manifest
from thousandwords.pairs import write_pairs

MANIFEST = {
    "sha256": "3f9cabcd" * 8,
    "facts": {
        "source": "mixture", "image_size": 64, "seed": 7,
        "counts": {
            "n_in": 120, "n_ok": 100, "n_quarantined": 8, "n_duplicate": 5, "n_filtered": 7,
            "reasons": {"truncated": 8, "too_small": 4, "wrong_language": 3}, "splits": {"train": 90, "validation": 10},
            "captions_dropped": {"boilerplate": 6}, "formats": {"JPEG": 70, "PNG": 30}, "flags": {"animated": 2},
            "texts": {"original": 75, "recaptioned": 25}, "by_shard": {"/mnt/disk/000.tar": {"n_in": 120}},
            "near_duplicates": {"distance": 4, "colour": 24, "by_chance": 9, "across_splits": 2, "by_distance": {"3": 5}},
        },
        "settings": {
            "language": "en", "min_caption_words": 3, "boilerplate": ["photographed (on|at)"], "group_by": None,
            "path": "data/own", "near_duplicates": "hash", "recaption_share": 0.25, "validation_share": 0.1,
            "sources": [
                {"source": "webdataset", "path": "/mnt/disk", "licence": "CC-BY-4.0", "origin": "https://example.org/cats"},
                {"source": "folder", "path": "/home/anna/pictures", "licence": None, "origin": None},
            ],
        },
        "mixtures": {"train": {"rows": [60, 30], "weights": [1.0, 2.0]}},
    },
}  # fmt: skip
COUNTED = {"pairs": 90, "captions": 180, "distinct": 175, "words": {"least": 3, "median": 9, "most": 31}}


@pytest.mark.parametrize(
    "line",
    [
        "100 captioned pictures, seen as 64 × 64 pixels. Pair manifest `3f9cabcd3f9c`, seed 7.",
        "| webdataset | CC-BY-4.0 | https://example.org/cats |",
        "| folder | not stated | not stated |",
        "| looked at | 120 |",
        "| damaged or incomplete | 8 |",
        "| outside the settings | 7 |",
        "| duplicates | 5 |",
        "| refused because: wrong\\_language | 3 |",
        "| captions dropped from pairs that stay: boilerplate | 6 |",
        "| pictures in JPEG | 70 |",
        "| pictures marked: animated | 2 |",
        "| validation | 10 |",
        "Training sees the sources, in the order above, by weight: 1.0, 2.0, from 60, 30 pairs.",
        "The first 90 training pairs have 180 captions, 175 of them distinct, of 3 to 31 words; half have 9 or fewer.",
        "| language of captions | en |",
        "| captions in which one of these is found are dropped | \\['photographed (on\\|at)'\\] |",
        "| share of pairs trained on the second text | 0.25 |",
    ],
)
def test_every_fact_has_its_line(line):
    assert line in data_card("cats", MANIFEST, COUNTED).splitlines()


def test_what_looks_the_same_is_told_either_way():
    card = data_card("cats", MANIFEST, COUNTED)
    assert "by 4 of 64 bits and 24 of 255 in colour, the first stays; 2 of those dropped would have lain on the other" in card

    without = copy.deepcopy(MANIFEST)
    del without["facts"]["counts"]["near_duplicates"]
    assert "Only exact copies were looked for" in data_card("cats", without)


def test_the_card_holds_no_path_of_a_machine_and_nothing_that_was_off():
    card = data_card("cats", MANIFEST, COUNTED)
    assert not [words for words in ("/mnt", "/home", "None", "captions that agree in this") if words in card]
    assert data_card("cats", MANIFEST, COUNTED) == card


def test_a_stranger_cannot_write_markup_into_it():
    evil = copy.deepcopy(MANIFEST)
    evil["facts"]["settings"]["sources"][0]["licence"] = "free |\n# a heading\n<script>"
    assert "| free \\| \\# a heading \\<script\\> |" in data_card("cats", evil)


def test_of_pairs_that_are_not_here_it_says_so():
    assert "nothing is known of them" in data_card("cats", None) and "| looked at" not in data_card("cats", None)
    assert "Their lengths were not counted." in data_card("cats", MANIFEST)


@pytest.fixture
def pairs(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for number in range(20):
        add(own, f"{number:03d}", photo(number, 32), "a cat\na very large cat" if number % 2 else "a cat")
    write_pairs(config(own, near_duplicates="none"), 0, tmp_path / "pairs")
    return tmp_path / "pairs"


def test_captions_of_the_first_training_shard_are_counted(pairs):
    counted = caption_counts(pairs)

    train = read_manifest(pairs)["facts"]["counts"]["splits"]["train"]
    assert counted["pairs"] == train and counted["distinct"] == 2 and train < counted["captions"] < 2 * train
    assert counted["words"] == {"least": 2, "median": 2, "most": 4}
    assert f"The first {train} training pairs" in data_card("cats", read_manifest(pairs), counted)


def test_of_a_damaged_shard_nothing_is_counted(pairs):
    (pairs / "train-00000.parquet").write_bytes(b"")
    with pytest.raises(DamagedArtefact, match="train-00000.parquet should be"):
        caption_counts(pairs)


def test_without_a_training_shard_there_is_nothing_to_count(tmp_path):
    write_manifest(tmp_path, {}, {"counts": {"splits": {}}})
    assert caption_counts(tmp_path) is None
