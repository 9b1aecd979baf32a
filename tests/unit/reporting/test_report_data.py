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


RECORDS = {"prepare_pairs": {"run_id": "aa", "tracking_uri": "local"}, "train_scorer": {"run_id": "bb", "tracking_uri": "server"},
           "evaluate": {"run_id": "from before", "tracking_uri": "server"}}    # fmt: skip


@pytest.mark.parametrize("address", ["http://host:5000", "http://host:5000/", "http://name:secret@host:5000"])
def test_a_run_is_linked_where_a_server_keeps_it_and_what_opens_the_server_is_left_out(address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)

    assert _report.runs(RECORDS, "cc") == {
        "prepare_pairs": {"run_id": "aa"},
        "train_scorer": {"run_id": "bb", "link": "http://host:5000/#/runs/bb"},
        "evaluate": {"run_id": "cc", "link": "http://host:5000/#/runs/cc"},
    }


def test_without_a_server_there_are_numbers_alone(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert _report.runs(RECORDS, "cc") == {"prepare_pairs": {"run_id": "aa"}, "train_scorer": {"run_id": "bb"},
                                           "evaluate": {"run_id": "cc"}}    # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////somewhere/mlflow.db")
    assert _report.runs({}, None) == {} and "link" not in _report.runs(RECORDS, "cc")["evaluate"]


@pytest.mark.parametrize(("fidelity", "plots"), [
    ({}, []),
    ({"clip_frechet": {"radius": [0], "distance": [1.0]}}, ["blur"]),
    ({"fid": {"radius": [0], "distance": [1.0]}, "inception_score": {"radius": [0], "score": [2.0]},
      "best_of": {"n": [1, 2], "fid": [1.0, 2.0], "fid_interval": [[0, 2], [1, 3]], "inception_score": [2.0, 3.0]}},
     ["best_of", "best_of_score", "blur", "blur_score"]),
])    # fmt: skip
def test_what_was_compared_is_drawn_under_its_own_name(fidelity, plots):
    assert sorted(_report._likeness_plots(fidelity)) == plots
