"""The data set in the studio: pages, search by text, nearest images, embeddings that are computed once and stored."""

import base64
import copy

import pytest
import torch

from studio.data import dataset_index
from studio.data.dataset_index import DatasetIndex
from tests.helpers.tiny_models import flipped
from thousandwords.data.images import decode_png, to_float
from thousandwords.data.pair_shards import PairReader
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig

SceneCounts = type(DataConfig().scenes)
SCENES = {"count": 40, "validation_count": 5, "unseen_count": 4}
NUM_IMAGES = sum(SCENES.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    ingest.write_pairs(DataConfig(image_size=24, scenes=SceneCounts(**SCENES)), 0, folder)
    return folder


@pytest.fixture
def dataset(folder, tmp_path):
    return DatasetIndex(folder, tmp_path / "store")


def indexed(dataset: DatasetIndex, scorer) -> DatasetIndex:
    """The data set after all its images were embedded."""
    dataset.search(scorer, "a star", None, 1)
    while dataset.index_some():
        pass
    return dataset


def test_every_pair_is_on_exactly_one_page_and_examples_are_held_out_captions(dataset, folder, tmp_path):
    images, offset = [], 0
    while offset is not None:
        page = dataset.page(None, offset, 10)
        images, offset = images + page["images"], page["next"]
    assert len({image["key"] for image in images}) == len(images) == NUM_IMAGES
    assert {image["split"] for image in images} == {"train", "validation", "unseen"}
    assert len(dataset.page("unseen", 0, 10)["images"]) == 4
    assert (dataset.page("unseen", 0, 4)["next"], dataset.page("unseen", 0, 3)["next"]) == (None, 3)
    assert all(image["score"] is None for image in images)
    reader, held_out = PairReader(folder, "validation"), set()
    for row, image in enumerate(dataset.page("validation", 0, 5)["images"]):
        assert (image["key"], image["caption"]) == (reader.key(row), reader.captions(row)[0])
        assert (decode_png(base64.b64decode(image["png"])) == reader.images([row])[0]).all()
        held_out.add(image["caption"])
    assert len(dataset.examples()) == 3 and set(dataset.examples()) <= held_out
    captions = [image["caption"] for image in images if image["split"] == "train"]
    assert dataset.max_words() >= max(len(caption.split()) for caption in captions)
    nowhere = DatasetIndex(tmp_path / "nowhere", tmp_path / "store")
    assert (nowhere.examples(), nowhere.max_words()) == ([], None)


def test_of_very_many_images_the_held_out_ones_are_indexed_first(dataset, scorer, monkeypatch):
    monkeypatch.setattr(dataset_index, "MAX_INDEXED", 11)
    images = indexed(dataset, scorer).search(scorer, "a star", None, NUM_IMAGES)["images"]
    assert sorted(image["split"] for image in images) == ["train"] * 2 + ["unseen"] * 4 + ["validation"] * 5


def test_a_search_covers_the_images_that_are_indexed_so_far(dataset, scorer):
    assert dataset.state(scorer) | {"splits": 0} == {"state": "ready", "done": 0, "total": 0, "splits": 0}
    assert dataset.search(scorer, "a star", None, 5)["images"] == []
    state = dataset.state(scorer)
    assert state["state"] == "indexing" and state["total"] == NUM_IMAGES
    assert dataset.index_some() and dataset.state(scorer)["done"] == 32
    assert len(dataset.search(scorer, "a star", None, NUM_IMAGES)["images"]) == 32
    assert dataset.index_some() and not dataset.index_some() and dataset.state(scorer)["state"] == "ready"


def test_a_search_gives_the_scorers_own_order(dataset, scorer, folder):
    images = indexed(dataset, scorer).search(scorer, "a small red star", "train", 40)["images"]
    reader = PairReader(folder, "train")
    pixels = to_float(reader.images(range(40)))
    with torch.no_grad():
        scores = scorer.score(pixels, ["a small red star"] * 40)
    ranking = scores.argsort(descending=True, stable=True).tolist()
    assert [image["key"] for image in images] == [reader.key(row) for row in ranking]
    expected = scores.sort(descending=True).values.tolist()
    assert [image["score"] for image in images] == pytest.approx(expected, abs=1e-3)
    # and a training image is the nearest to itself
    images = dataset.nearest(scorer, pixels[17:18], 3)["images"]
    assert (images[0]["key"], images[0]["score"]) == (reader.key(17), pytest.approx(1, abs=1e-4))
    assert {image["split"] for image in images} == {"train"}


def test_embeddings_are_computed_once_and_again_if_they_are_damaged(dataset, scorer, folder, tmp_path):
    expected = indexed(dataset, scorer).search(scorer, "a star", None, NUM_IMAGES)
    second = DatasetIndex(folder, tmp_path / "store")
    assert second.search(scorer, "a star", None, NUM_IMAGES) == expected and not second.index_some()
    (file,) = (tmp_path / "store").glob("*/vectors.npy")
    file.write_bytes(flipped(file.read_bytes(), 200))
    third = DatasetIndex(folder, tmp_path / "store")
    assert third.search(scorer, "a star", None, NUM_IMAGES)["images"] == [] and third.index_some()
    assert indexed(third, scorer).search(scorer, "a star", None, NUM_IMAGES) == expected


def test_only_the_last_scorers_use_memory(dataset, scorer):
    """A studio that runs for months uses many versions, each with a scorer of its own."""
    scorers = [copy.copy(scorer) for _ in range(3)]
    for number, one_scorer in enumerate(scorers):
        one_scorer.fingerprint = f"{number}"
    for number in (0, 1, 0, 2):
        dataset.search(scorers[number], "a star", None, 1)
    assert [dataset.state(one_scorer)["total"] for one_scorer in scorers] == [NUM_IMAGES, 0, NUM_IMAGES]


def test_a_store_that_cannot_be_written_prevents_no_search(folder, scorer, tmp_path, caplog):
    (tmp_path / "store").write_text("a file, where a folder should be")
    dataset = indexed(DatasetIndex(folder, tmp_path / "store"), scorer)
    assert dataset.state(scorer)["state"] == "ready"
    assert len(dataset.search(scorer, "a star", None, NUM_IMAGES)["images"]) == NUM_IMAGES
    assert "the embeddings of the images could not be stored, and will be computed again: " in caplog.text


def test_a_data_set_that_is_written_again_is_read_again(scorer, tmp_path):
    dataset = DatasetIndex(tmp_path / "pairs", tmp_path / "store")
    for count in (6, 9):
        scenes = SceneCounts(count=count, validation_count=2, unseen_count=2)
        ingest.write_pairs(DataConfig(image_size=24, scenes=scenes), 0, tmp_path / "pairs")
        assert len(dataset.page("train", 0, 100)["images"]) == count
        assert len(indexed(dataset, scorer).search(scorer, "a star", "train", 100)["images"]) == count
