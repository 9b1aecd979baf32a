"""The data set, looked at: every pair on some page, searches by text, neighbours, vectors made once and kept."""
from __future__ import annotations

import base64
import copy

import pytest
import torch

from studio import dataset
from studio.dataset import DataSet
from tests.tiny import flipped
from thousandwords import components, images, pairs
from thousandwords.pair_shards import PairReader
from thousandwords.pairs import Config

SceneCounts = type(Config().scenes)
SCENES = {"count": 40, "validation_count": 5, "unseen_count": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    pairs.write_pairs(Config(image_size=24, scenes=SceneCounts(**SCENES)), 0, folder)
    return folder


@pytest.fixture(scope="module")
def scorer(parts):
    return components.load("scorers", parts["scorer"])


@pytest.fixture
def data(folder, tmp_path):
    return DataSet(folder, tmp_path / "store")


def ready(data: DataSet, scorer) -> DataSet:
    data.search(scorer, "a star", None, 1)
    while data.idle():
        pass
    return data


def test_every_pair_is_on_some_page_once(data):
    seen, offset = [], 0
    while offset is not None:
        page = data.page(None, offset, 10)
        seen, offset = seen + page["pictures"], page["next"]
    assert len({one["key"] for one in seen}) == len(seen) == sum(SCENES.values())
    assert {one["split"] for one in seen} == {"train", "validation", "unseen"}
    assert len(data.page("unseen", 0, 10)["pictures"]) == 4
    assert all(one["score"] is None for one in seen)


def test_a_page_that_ends_with_the_data_is_the_last(data):
    assert (data.page("unseen", 0, 4)["next"], data.page("unseen", 0, 3)["next"]) == (None, 3)


def test_of_very_many_pictures_the_held_out_ones_are_searched_first(data, scorer, monkeypatch):
    monkeypatch.setattr(dataset, "MOST", 11)
    found = ready(data, scorer).search(scorer, "a star", None, 49)["pictures"]
    assert sorted(one["split"] for one in found) == ["train"] * 2 + ["unseen"] * 4 + ["validation"] * 5


def test_what_is_shown_is_the_pair(data, folder):
    reader = PairReader(folder, "validation")
    for row, one in enumerate(data.page("validation", 0, 5)["pictures"]):
        assert (one["key"], one["caption"]) == (reader.key(row), reader.captions(row)[0])
        assert (images.decode_png(base64.b64decode(one["png"])) == reader.images([row])[0]).all()


def test_captions_to_try_are_held_out_ones(data, tmp_path):
    held_out = [one["caption"] for one in data.page("validation", 0, 5)["pictures"]]
    assert len(data.examples()) == 3 and set(data.examples()) <= set(held_out)
    assert DataSet(tmp_path / "nowhere", tmp_path / "store").examples() == []


def test_a_search_goes_over_what_there_is_so_far(data, scorer):
    assert data.state(scorer) | {"splits": 0} == {"state": "ready", "done": 0, "total": 0, "splits": 0}
    assert data.search(scorer, "a star", None, 5)["pictures"] == []
    assert data.state(scorer)["state"] == "reading" and data.state(scorer)["total"] == 49
    assert data.idle() and data.state(scorer)["done"] == 32
    assert len(data.search(scorer, "a star", None, 49)["pictures"]) == 32
    assert data.idle() and not data.idle() and data.state(scorer)["state"] == "ready"


def test_a_search_gives_the_scorers_own_order(data, scorer, folder):
    found = ready(data, scorer).search(scorer, "a small red star", "train", 40)["pictures"]
    reader = PairReader(folder, "train")
    pixels = images.to_float(reader.images(range(40)))
    with torch.no_grad():
        scores = scorer.score(pixels, ["a small red star"] * 40)
    assert [one["key"] for one in found] == [reader.key(row) for row in scores.argsort(descending=True, stable=True).tolist()]
    assert [one["score"] for one in found] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-3)


def test_a_training_picture_is_the_nearest_to_itself(data, scorer, folder):
    reader = PairReader(folder, "train")
    found = ready(data, scorer).nearest(scorer, images.to_float(reader.images([17])), 3)["pictures"]
    assert (found[0]["key"], found[0]["score"]) == (reader.key(17), pytest.approx(1, abs=1e-4))
    assert {one["split"] for one in found} == {"train"}


def test_vectors_are_made_once_and_made_again_where_they_are_damaged(data, scorer, folder, tmp_path):
    wanted = ready(data, scorer).search(scorer, "a star", None, 49)
    again = DataSet(folder, tmp_path / "store")
    assert again.search(scorer, "a star", None, 49) == wanted and not again.idle()
    (file,) = (tmp_path / "store").glob("*/vectors.npy")
    file.write_bytes(flipped(file.read_bytes(), 200))
    once_more = DataSet(folder, tmp_path / "store")
    assert once_more.search(scorer, "a star", None, 49)["pictures"] == [] and once_more.idle()
    assert ready(once_more, scorer).search(scorer, "a star", None, 49) == wanted


def test_only_the_last_scorers_hold_memory(data, scorer):
    """A studio that is open for months sees many versions, each with a scorer of its own."""
    scorers = [copy.copy(scorer) for _ in range(3)]
    for number, one in enumerate(scorers):
        one.fingerprint = f"{number}"
    for one in (scorers[0], scorers[1], scorers[0], scorers[2]):
        data.search(one, "a star", None, 1)
    assert [data.state(one)["total"] for one in scorers] == [49, 0, 49]


def test_a_store_that_takes_nothing_hinders_no_search(folder, scorer, tmp_path, caplog):
    (tmp_path / "store").write_text("a file, where a folder should be")
    data = ready(DataSet(folder, tmp_path / "store"), scorer)
    assert data.state(scorer)["state"] == "ready" and len(data.search(scorer, "a star", None, 49)["pictures"]) == 49
    assert "the vectors of the pictures were not kept, and will be made again: " in caplog.text


def test_data_that_are_written_anew_are_read_anew(scorer, tmp_path):
    data = DataSet(tmp_path / "pairs", tmp_path / "store")
    for count in (6, 9):
        scenes = SceneCounts(count=count, validation_count=2, unseen_count=2)
        pairs.write_pairs(Config(image_size=24, scenes=scenes), 0, tmp_path / "pairs")
        assert len(data.page("train", 0, 100)["pictures"]) == count
        assert len(ready(data, scorer).search(scorer, "a star", "train", 100)["pictures"]) == count
