"""Near duplicates: which pairs stay, what is listed, counted and shown, and which settings have no effect."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers.images import encoded, jpeg, lighter, photo, resized
from tests.helpers.sources import folder_config
from tests.unit.evaluation.test_image_fidelity import write_and_read_samples
from thousandwords.data.images import encode_png
from thousandwords.data.pair_shards import PairReader, splits
from thousandwords.evaluation.evaluate_run import ChosenPairs
from thousandwords.evaluation.image_fidelity import NearestNeighbors
from thousandwords.evaluation.overlap import Overlap
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.ingest import write_pairs
from thousandwords.ingest.near_duplicates import DUPLICATES
from thousandwords.reporting import report_data
from thousandwords.reporting.page import thumbnail

COUNT = 30


def add(folder: Path, key: str, image: np.ndarray | bytes, caption: str) -> None:
    data = image if isinstance(image, bytes) else encode_png(image)
    (folder / f"{key}.{'png' if data[1:4] == b'PNG' else 'jpg'}").write_bytes(data)
    (folder / f"{key}.txt").write_text(caption)


@pytest.fixture
def own(tmp_path) -> Path:
    """30 images with names 000 to 029, which come first."""
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(COUNT):
        add(folder, f"{number:03d}", photo(number), f"image {number}")
    return folder


def config(folder: Path, **more) -> DataConfig:
    return folder_config(folder, **{"image_size": 64, "near_duplicates": "hash", **more})


def ingest_pairs(settings: DataConfig, out: Path) -> tuple[dict, dict[str, str], list[dict]]:
    """(counts, {key: split} of the pairs that stay, rows of the table)"""
    counts = write_pairs(settings, 0, out)
    readers = {split: PairReader(out, split) for split in splits(out)}
    stays = {reader.key(row): split for split, reader in readers.items() for row in range(len(reader))}
    return counts, stays, pq.read_table(out / DUPLICATES).to_pylist()


def test_copies_and_other_encodings_sizes_and_brightness_are_dropped_and_the_first_stays(own, tmp_path):
    changed = {
        "copy": photo(1),
        "smaller": resized(photo(2), 48),
        "lighter": lighter(photo(3), 1.08),
        "encoded": encoded(photo(4), "JPEG", quality=80),
        "again": jpeg(photo(5), 60),
    }
    for number, (name, image) in enumerate(changed.items(), start=1):
        add(own, f"z-{name}", image, f"another caption, {number}")

    counts, stays, rows = ingest_pairs(config(own), tmp_path / "pairs")

    assert sorted(stays) == [f"{number:03d}.png" for number in range(COUNT)]
    dropped = {row["key"].split(".")[0]: row for row in rows if row["is_dropped"]}
    kept_instead = {f"z-{name}": f"{number:03d}.png" for number, name in enumerate(changed, start=1)}
    assert {name: row["twin"] for name, row in dropped.items()} == kept_instead
    copy = dropped["z-copy"]
    assert (copy["distance"], copy["colour"], copy["captions"]) == (0, 0, ["another caption, 1"])
    assert (counts["n_in"], counts["n_ok"], counts["n_duplicate"]) == (35, 30, 5)
    assert sum(counts["near_duplicates"]["by_distance"].values()) == 5


def test_mirrored_recolored_and_cropped_images_stay(own, tmp_path):
    add(own, "z-mirrored", photo(1)[:, ::-1].copy(), "mirrored")
    add(own, "z-recolored", photo(2)[:, :, ::-1].copy(), "recolored")
    add(own, "z-cropped", resized(photo(3)[12:-12, 12:-12], 64), "cropped")
    counts, stays, _ = ingest_pairs(config(own), tmp_path / "pairs")
    assert {"z-mirrored.png", "z-recolored.png", "z-cropped.png"} <= set(stays) and counts["n_duplicate"] == 0


def test_no_near_duplicate_is_left_across_the_splits(own, tmp_path):
    for number in range(COUNT):
        add(own, f"z{number:03d}", lighter(photo(number), 1.05), f"a duplicate, {number}")

    counts, stays, rows = ingest_pairs(config(own), tmp_path / "pairs")

    assert sorted(stays) == [f"{number:03d}.png" for number in range(COUNT)] and set(stays.values()) == {
        "train",
        "validation",
    }
    across = [row for row in rows if row["is_dropped"] and row["split"] != row["twin_split"]]
    assert counts["near_duplicates"]["across_splits"] == len(across) > 3
    assert {row["twin_split"] for row in across} == {"train", "validation"}
    assert all(stays[row["twin"]] == row["twin_split"] for row in rows)


@pytest.mark.parametrize("change", [{"rows_per_shard": 3}, {"keep": "whole"}])
def test_shard_size_and_stored_form_do_not_change_which_pairs_stay(own, tmp_path, change):
    for number in range(8):
        add(own, f"z{number:03d}", lighter(photo(number), 1.05), f"a duplicate, {number}")
    _, first, rows = ingest_pairs(config(own), tmp_path / "first")
    _, again, same = ingest_pairs(config(own, **change), tmp_path / "again")
    assert first == again and rows == same
    assert (tmp_path / "first" / DUPLICATES).read_bytes() == (tmp_path / "again" / DUPLICATES).read_bytes()


def test_the_distance_can_be_chosen_from_the_data(own, tmp_path):
    for number in range(COUNT, 150):  # with few images, a few duplicates would be many of the pairs
        add(own, f"{number:03d}", photo(number), f"image {number}")
    for number in range(3):
        add(own, f"z{number:03d}", jpeg(photo(number), 70), f"a duplicate, {number}")
    counts, stays, _ = ingest_pairs(config(own, near_duplicate_distance=None), tmp_path / "pairs")
    assert counts["n_duplicate"] == 3 and sorted(stays) == [f"{number:03d}.png" for number in range(150)]
    assert 3 <= counts["near_duplicates"]["distance"] <= 15


# ---- what the report shows


@pytest.fixture
def pairs(own, tmp_path) -> Path:
    """The 30 images, and the first six of them again, brighter."""
    for number in range(6):
        add(own, f"z{number:03d}", lighter(photo(number), 1.0 + 0.01 * number), f"again, image {number}")
    write_pairs(config(own), 0, tmp_path / "pairs")
    return tmp_path / "pairs"


def test_the_least_similar_of_the_dropped_images_are_shown_beside_the_earlier_ones(own, pairs, tmp_path):
    rows = [row for row in report_data.duplicates(pairs) if row["is_dropped"]]
    assert len(rows) == report_data.MAX_NEAREST
    for again, first in (row["captions"] for row in rows):
        assert again.removeprefix("again, ") == first
    distances = [(row["distance"], row["color"]) for row in rows]
    assert distances == sorted(distances)
    write_pairs(config(own, near_duplicates="none"), 0, tmp_path / "no search")
    assert report_data.duplicates(tmp_path / "no search") == []


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
