"""Thousands of damaged pictures: each is counted once, none stops the run, stalls it, or kills a worker.

`pytest -m slow tests/test_fuzz.py` takes 2,000; FUZZ_COUNT=10000 and FUZZ_SEED=1 take more, or others.
"""
from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.fuzzing import WOUNDS, damaged_pictures, sound_pictures
from thousandwords.files import read_manifest
from thousandwords.images import RefusedImage, decode_image
from thousandwords.pair_shards import PairReader
from thousandwords.pairs import Config, write_pairs

REASONS = {"truncated", "corrupt_data", "not_an_image", "bad_format", "bad_mode", "too_many_pixels", "empty_file",
           "out_of_memory"}    # and never worker_died or decode_timeout


def fuzz(folder: Path, count: int, seed: int) -> dict:
    """Prepares `count` damaged pictures among the sound ones; what became of them, after all checks."""
    own = folder / "own"
    own.mkdir()
    sound = [(f"sound-{number:02d}.{suffix}", data) for number, (suffix, data) in enumerate(sound_pictures())]
    for name, data in [*damaged_pictures(count, seed), *sound]:
        (own / name).write_bytes(data)
        (own / name).with_suffix(".txt").write_text(name)
    config = Config(source="folder", path=str(own), image_size=16, min_side=1, max_aspect=1e9, max_refused_share=1.0,
                    validation_share=0.5, rows_per_shard=500)

    started = time.monotonic()
    counts = write_pairs(config, 0, folder / "pairs")

    found = {**counts, "seconds": round(time.monotonic() - started, 1)}
    assert counts["n_in"] == count + len(sound) == counts["n_ok"] + counts["n_quarantined"], found
    assert set(counts["reasons"]) <= REASONS, found
    readers = [PairReader(folder / "pairs", split) for split in ("train", "validation")]
    keys = [reader.key(row) for reader in readers for row in range(len(reader))]
    assert {name for name, _ in sound} <= set(keys) and len(set(keys)) == counts["n_ok"] == sum(map(len, readers))
    files = read_manifest(folder / "pairs")["files"]
    assert sum(entry["rows"] for entry in files.values()) == counts["n_in"]
    return found


def test_damaged_pictures_are_refused_or_decoded_and_counted(tmp_path):
    fuzz(tmp_path, 120, seed=0)


@pytest.mark.slow
def test_thousands_of_damaged_pictures_are_refused_or_decoded_and_counted(tmp_path):
    print(json.dumps(fuzz(tmp_path, int(os.environ.get("FUZZ_COUNT", 2000)), int(os.environ.get("FUZZ_SEED", 0)))))


def test_the_pictures_are_sound_before_they_are_damaged():
    for suffix, data in sound_pictures():
        assert decode_image(data).shape in ((36, 40, 3), (40, 36, 3)), suffix
    assert {suffix for suffix, _ in sound_pictures()} == {"jpg", "png", "gif", "bmp", "webp", "tif"}


def test_the_same_seed_gives_the_same_damage_and_another_seed_another():
    first, again, other = (list(damaged_pictures(300, seed)) for seed in (0, 0, 1))
    assert first == again and [name for name, _ in first] == [name for name, _ in other]
    assert sum(one != two for one, two in zip(first, other, strict=True)) > 290


def test_most_wounds_hurt_and_some_do_not_show():
    refused = {wound.__name__: 0 for wound in WOUNDS}
    for name, data in damaged_pictures(len(sound_pictures()) * len(WOUNDS), 0):
        try:
            decode_image(data)
        except (RefusedImage, MemoryError):
            refused[name.partition(".")[0].partition("-")[2]] += 1
    assert all(5 <= count <= len(sound_pictures()) for count in refused.values()), refused
