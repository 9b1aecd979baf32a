"""The near duplicates and nearest training images that the report shows, chosen from artefacts on disk."""

import pytest
import torch

from tests.helpers.images import lighter, photo
from tests.pipeline.test_near_duplicates import add, config
from tests.unit.evaluation.test_image_fidelity import write_and_read_samples
from thousandwords.data.pair_shards import PairReader
from thousandwords.evaluation.evaluate_run import ChosenPairs
from thousandwords.evaluation.image_fidelity import NearestNeighbors
from thousandwords.evaluation.overlap import Overlap
from thousandwords.ingest.ingest import write_pairs
from thousandwords.reporting import report_data
from thousandwords.reporting.page import thumbnail


@pytest.fixture
def pairs(tmp_path):
    """30 images, the first six of them again, brighter."""
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(30):
        add(folder, f"{number:03d}", photo(number, 32), f"image {number}")
    for number in range(6):
        add(
            folder,
            f"z{number:03d}",
            lighter(photo(number, 32), 1.0 + 0.01 * number),
            f"again, image {number}",
        )
    write_pairs(config(folder), 0, tmp_path / "pairs")
    return tmp_path / "pairs"


def test_the_least_similar_of_the_dropped_images_are_shown_beside_the_earlier_ones(pairs):
    rows = [row for row in report_data.duplicates(pairs) if row["is_dropped"]]

    assert len(rows) == report_data.MAX_NEAREST
    for row in rows:
        again, first = row["captions"]
        assert again.removeprefix("again, ") == first
    distances = [(row["distance"], row["color"]) for row in rows]
    assert distances == sorted(distances)


def test_without_a_search_for_near_duplicates_none_are_shown(pairs, tmp_path):
    write_pairs(config(tmp_path / "own", near_duplicates="none"), 0, tmp_path / "plain")
    assert report_data.duplicates(tmp_path / "plain") == []


def test_images_are_shown_beside_their_nearest_training_image_and_each_pair_once(pairs, tmp_path):
    images = torch.rand(4, 3, 4, 4)
    samples = write_and_read_samples(tmp_path / "samples", images, ["validation"] * 2, candidates=2)
    nearest = Overlap(torch.tensor([0.9, 0.99, 0.5, 0.7, 0.3]), torch.tensor([3, 1, 4, 1, 5]), 0.8)
    within = Overlap(torch.tensor([0.95, 0.95, 0.2, 0.1]), torch.tensor([1, 0, 3, 2]), 0.8)
    of_samples = Overlap(torch.tensor([0.1, 0.85]), torch.tensor([0, 2]), 0.8)
    neighbors = NearestNeighbors(nearest, within, of_samples, [(0, 0), (1, 1)])
    training, validation = (ChosenPairs(PairReader(pairs, split), 20) for split in ("train", "validation"))
    data = report_data.nearest_pairs(neighbors, validation, training, samples)

    assert [pair["similarity"] for pair in data["near_duplicates"]] == pytest.approx([0.99, 0.9, 0.7, 0.5])
    assert [pair["is_near_duplicate"] for pair in data["near_duplicates"]] == [True, True, False, False]
    # the others are among the nearest already
    assert [pair["similarity"] for pair in data["borderline"]] == pytest.approx([0.3])
    assert [pair["similarity"] for pair in data["within_training"]] == pytest.approx([0.95, 0.2])
    assert data["memorized"][0]["captions"] == ["caption 1", training.caption(2)]
    assert data["memorized"][0]["training_image"] == thumbnail(training.images([2])[0], report_data.LARGE)
