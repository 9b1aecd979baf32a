"""What the report shows of near duplicates and of neighbours, chosen from artefacts on a disk."""
from __future__ import annotations

import pytest
import torch

from stages import _report
from tests.test_duplicates import add, config
from tests.test_likeness import samples
from tests.test_twins import lighter, photo
from thousandwords.fidelity import Overlap
from thousandwords.images import to_float
from thousandwords.likeness import Found
from thousandwords.pair_shards import PairReader
from thousandwords.pairs import write_pairs


@pytest.fixture
def pairs(tmp_path):
    """30 pictures, six of which come again, lighter."""
    own = tmp_path / "own"
    own.mkdir()
    for number in range(30):
        add(own, f"{number:03d}", photo(number, 32), f"picture {number}")
    for number in range(6):
        add(own, f"z{number:03d}", lighter(photo(number, 32), 1.0 + 0.01 * number), f"again {number}")
    write_pairs(config(own), 0, tmp_path / "pairs")
    return tmp_path / "pairs"


def test_of_what_was_dropped_the_least_alike_are_shown_beside_what_stayed(pairs):
    pictures: dict[str, bytes] = {}

    shown = [one for one in _report.duplicates(pairs, pictures) if one["is_dropped"]]

    assert len(shown) == _report.TWINS and {one[side] for one in shown for side in ("picture", "twin")} <= set(pictures)
    assert all(again.removeprefix("again ") == first.removeprefix("picture ") for again, first in
               (one["captions"] for one in shown))    # fmt: skip
    assert [(one["distance"], one["colour"]) for one in shown] == sorted((one["distance"], one["colour"]) for one in shown)


def test_without_a_search_there_are_no_duplicates_to_show(pairs, tmp_path):
    write_pairs(config(tmp_path / "own", near_duplicates="none"), 0, tmp_path / "plain")
    assert _report.duplicates(tmp_path / "plain", {}) == []


def test_neighbours_stand_beside_their_training_picture_and_each_pair_once(pairs, tmp_path):
    held_out = to_float(PairReader(pairs, "validation").images(range(5)))
    drawn = samples(tmp_path / "samples", torch.rand(4, 3, 4, 4), ["validation"] * 2, candidates=2)
    towards = Overlap(torch.tensor([0.9, 0.99, 0.5, 0.7, 0.3]), torch.tensor([3, 1, 4, 1, 5]), 0.8)
    within = Overlap(torch.tensor([0.95, 0.95, 0.2, 0.1]), torch.tensor([1, 0, 3, 2]), 0.8)
    found = Found(towards, within, Overlap(torch.tensor([0.1, 0.85]), torch.tensor([0, 2]), 0.8), [(0, 0), (1, 1)])
    pictures: dict[str, bytes] = {}

    training = PairReader(pairs, "train")
    facts = _report.neighbours(found, held_out, PairReader(pairs, "validation"), training, drawn, pictures)

    assert [one["similarity"] for one in facts["twins"]] == pytest.approx([0.99, 0.9, 0.7, 0.5])
    assert [one["is_twin"] for one in facts["twins"]] == [True, True, False, False]
    assert [one["similarity"] for one in facts["borderline"]] == pytest.approx([0.3])    # the rest stands above already
    assert [one["similarity"] for one in facts["within"]] == pytest.approx([0.95, 0.2])
    assert facts["memorised"][0]["captions"] == ["caption 1", training.captions(2)[0]]
    named = {one[side] for part in facts.values() for one in part for side in ("picture", "training")}
    assert named == set(pictures)
