"""Groups and splits, checks of the source before the work, and scenes without filters."""

from __future__ import annotations

import pytest

from tests.helpers.sources import files_of, folder_config, scenes_config
from thousandwords.core.errors import UserError
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.ingest import check_source, group_of, split_of, write_pairs
from thousandwords.ingest.records import Pair
from thousandwords.ingest.sources.base import SourceError

SKIN_TONE = "^(.*?): .*skin tone"


FILTERED = {"min_caption_words": 2, "boilerplate": ("^photo(graphed)? ",), "language": "en"}


def test_a_missing_source_is_rejected_before_anything_is_written(tmp_path):
    with pytest.raises(SourceError, match="data.path: there is no folder .*own"):
        write_pairs(folder_config(tmp_path / "own"), 0, tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


def test_an_unknown_language_is_rejected_before_anything_is_read(tmp_path):
    config = folder_config(tmp_path / "nowhere", language="xx")
    with pytest.raises(UserError, match="data.language is 'xx'; it can be: ace, af"):
        check_source(config)


def test_captions_with_the_same_group_1_share_a_group():
    def group(caption: str) -> str:
        return group_of(Pair("key", b"", (caption,), ""), DataConfig(group_by=SKIN_TONE))

    assert group("man surfing: dark skin tone") == group("man surfing") == "man surfing"
    assert group("flag: Canada") == "flag: Canada"
    assert group_of(Pair("key", b"", ("man surfing",), ""), DataConfig()) == "key"


def test_a_split_depends_only_on_the_group_and_the_seed():
    assert [split_of(f"group {index}", 0, 0.5)[0] for index in range(12)] == list("tvtvvvtvvttt")
    shares = [
        sum(split_of(str(index), seed, 0.1) == "validation" for index in range(5_000)) / 5_000
        for seed in (0, 1)
    ]
    assert shares == pytest.approx([0.1, 0.1], abs=0.02)


def test_filters_of_captions_and_near_duplicates_do_not_apply_to_scenes(tmp_path):
    counts = write_pairs(scenes_config(), 0, tmp_path / "plain")
    near = {"near_duplicates": "hash", "near_duplicate_distance": 15}
    write_pairs(scenes_config(**FILTERED, language_margin=0.0, **near), 0, tmp_path / "filters")
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "filters")
    assert not {"formats", "flags", "by_shard", "near_duplicates"} & counts.keys()
