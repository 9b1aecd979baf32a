"""Ingestion of a folder: pairs come out or are counted, filters and splits, quarantine."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.registry.cards import data_card
from tests.helpers.images import png, write
from tests.helpers.sources import folder_config, pixels, write_folder
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest
from thousandwords.data.images import area_resize, encode_png, fit_square
from thousandwords.data.pair_shards import PairReader, caption_counts, read_captions, splits
from thousandwords.ingest.counts import BadData
from thousandwords.ingest.ingest import write_pairs
from thousandwords.ingest.near_duplicates import DUPLICATES
from thousandwords.ingest.records import QUARANTINE

# ---- writing and reading


def test_a_pair_is_read_as_it_was_written(tmp_path):
    write_pairs(folder_config(write_folder(tmp_path / "own"), rows_per_shard=3), 0, tmp_path / "pairs")
    rows = {}
    for split in ("train", "validation"):
        reader = PairReader(tmp_path / "pairs", split)
        assert reader.image_size == 16 and len(reader.fingerprint) == 64
        images = reader.images(range(len(reader)))
        assert images.shape == (len(reader), 16, 16, 3) and images.dtype == np.uint8
        captions = [reader.captions(row) for row in range(len(reader))]
        assert list(read_captions(tmp_path / "pairs", split)) == captions
        rows |= {reader.key(i): (reader.captions(i), images[i]) for i in range(len(reader))}
    assert list(sorted(rows)) == [f"{index:03d}.png" for index in range(12)]
    captions, image = rows["007.png"]
    assert captions == ["image 7", "number 7"]
    assert (image == fit_square(pixels(7), 16)).all()
    with pytest.raises(DamagedArtefact, match="has no split 'unseen', only train, validation"):
        PairReader(tmp_path / "pairs", "unseen")


# ---- squares and whole images


def readers(folder: Path) -> dict[str, tuple[PairReader, int, str]]:
    """The reader, row and split of each pair in a folder, by key."""
    pairs = {}
    for split in splits(folder):
        reader = PairReader(folder, split)
        pairs |= {reader.key(row): (reader, row, split) for row in range(len(reader))}
    return pairs


def test_whole_images_keep_their_shape_and_still_give_squares(tmp_path):
    own = write_folder(tmp_path / "own")
    write_pairs(folder_config(own, keep="whole"), 0, tmp_path / "whole")
    write_pairs(folder_config(own), 0, tmp_path / "squares")
    squares = readers(tmp_path / "squares")
    for key, (reader, row, _) in readers(tmp_path / "whole").items():
        assert (reader.whole_images([row])[0] == pixels(int(key[:3]))).all()  # (40, 48, 3), the original
        square_reader, square_row, _ = squares[key]
        assert (reader.images([row]) == square_reader.images([square_row])).all()


def test_whole_images_are_shrunk_to_keep_side_and_never_enlarged(tmp_path):
    own = write_folder(tmp_path / "own", 8)
    write(own, {"small.png": encode_png(pixels(1, 33, 32)), "small.txt": "small"})
    write_pairs(folder_config(own, keep="whole", keep_side=35), 0, tmp_path / "pairs")
    pairs = readers(tmp_path / "pairs")
    stored = {key: reader.whole_images([row])[0] for key, (reader, row, _) in pairs.items()}
    assert (stored["small.png"] == pixels(1, 33, 32)).all()
    assert stored["007.png"].shape == (35, 42, 3)
    assert (stored["007.png"] == area_resize(pixels(7), 35, 42)).all()


# ---- counts and quarantine


def test_too_many_bad_inputs_stop_with_the_histogram(tmp_path):
    own = write_folder(tmp_path / "own", 6)
    for index in range(4):
        write(own, {f"bad{index}.png": b"<html>" if index else b"", f"bad{index}.txt": "x"})
    message = (
        r"4 of the 10 inputs of .*own were rejected \(40%\): 3 not_an_image \(bad1.png: the bytes begin with "
        r"b'<html>'\), 1 empty_file .*raise data.max_refused_share \(now 0.2\)"
    )
    with pytest.raises(BadData, match=message):
        write_pairs(folder_config(own), 0, tmp_path / "pairs")
    assert not (tmp_path / "pairs/manifest.json").exists()


def test_only_bad_inputs_is_always_an_error(tmp_path):
    own = write_folder(tmp_path / "own", 2)
    for path in own.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(BadData, match=r"2 of the 2 inputs .* were rejected \(100%\)") as caught:
        write_pairs(folder_config(own, max_refused_share=1.0), 0, tmp_path / "pairs")
    assert str(caught.value).endswith(". Fix them")


def test_images_that_are_all_left_out_by_a_setting_name_it(tmp_path):
    own = write_folder(tmp_path / "own", 2)
    with pytest.raises(BadData, match=r"2 too_small .*. Fix them, or lower data.min_side$"):
        write_pairs(folder_config(own, min_side=500), 0, tmp_path / "pairs")


def test_one_pair_is_too_few_whatever_the_share(tmp_path):
    own = write(
        tmp_path / "own",
        {f"{n}.{suffix}": data for n in range(3) for suffix, data in (("png", png()), ("txt", "a"))},
    )
    message = r"own has 1 pair \(2 more have the same image and caption, 0 were rejected\). Training needs 2 or more"
    with pytest.raises(BadData, match=message):
        write_pairs(folder_config(own), 0, tmp_path / "pairs")


def test_an_empty_split_is_rejected_with_the_fix(tmp_path):
    own = write_folder(tmp_path / "own", 3)
    message = r"own is in the validation split. Add pairs, or change data.validation_share \(now 0.01; 0.21 holds out one"
    with pytest.raises(BadData, match=f"None of the 3 pairs of .*{message}"):
        write_pairs(folder_config(own, validation_share=0.01), 0, tmp_path / "pairs")


def test_what_was_decided_about_a_source_is_a_message_and_is_stored(tmp_path):
    own, messages = write_folder(tmp_path / "own"), []
    config = folder_config(own)
    write_pairs(dataclasses.replace(config, source="auto"), 0, tmp_path / "pairs", tell=messages.append)
    assert messages == [
        f"{own} is a folder of images with texts beside them (source folder)",
        "12 of 12 images have several lines of text, and each line is a caption of its own. If the whole text is one "
        "caption, set data.caption_lines: joined",
    ]
    metadata = read_manifest(tmp_path / "pairs")["facts"]
    assert metadata["detected"] == messages[0]
    assert metadata["source"] == metadata["settings"]["source"] == "folder"


# ---- caption filters

FILTERED = {"min_caption_words": 2, "boilerplate": ("^photo(graphed)? ",), "language": "en"}


def add_pair(folder: Path, name: str, lines: list[str], image: int = 0) -> None:
    write(folder, {f"{name}.png": encode_png(pixels(image)), f"{name}.txt": "\n".join(lines)})


def test_captions_are_filtered_one_by_one_and_a_pair_only_without_any(tmp_path):
    own = write_folder(tmp_path / "own")
    some = ["kite", "a kite on a hill", "Photographed on 3 may 1921", "fog", "the blue house by the sea"]
    add_pair(own, "some", some)
    add_pair(own, "none", ["ein roter drachen fliegt über den hügel", "kite"], 1)
    counts = write_pairs(folder_config(own, **FILTERED), 0, tmp_path / "pairs")

    reader, row, _ = readers(tmp_path / "pairs")["some.png"]
    assert reader.captions(row) == ["a kite on a hill", "the blue house by the sea"]
    rejected = pq.read_table(tmp_path / "pairs" / QUARANTINE).to_pylist()
    assert [(line["id"], line["reason"]) for line in rejected] == [("none.png", "wrong_language")]
    assert rejected[0]["detail"].endswith("en 0.00: 'ein roter drachen fliegt über den hügel'")
    assert read_manifest(tmp_path / "pairs")["facts"]["counts"] == counts
    assert counts.pop("splits").keys() == {"train", "validation"}
    assert counts == {
        **{"n_in": 14, "n_ok": 13, "n_quarantined": 0, "n_duplicate": 0, "n_filtered": 1},
        **{"formats": {"PNG": 13}, "reasons": {"wrong_language": 1}},
        "captions_dropped": {"caption_too_short": 2, "boilerplate": 1},
    }


@pytest.mark.parametrize("group_by", [None, "^(.*?):"])
def test_a_filter_does_not_change_the_split_of_other_pairs(tmp_path, group_by):
    own = write_folder(tmp_path / "own", 6)
    for index in range(30):
        first = f"family {index % 10}: {'fog' if index % 3 else 'a long line of cars'}"
        add_pair(own, f"z{index:02d}", [first, f"a second caption, {index}"], 50 + index)
    results = {}
    for name, rules in (("all", {}), ("filtered", {"min_caption_words": 4})):
        write_pairs(folder_config(own, group_by=group_by, **rules, max_refused_share=0.5), 0, tmp_path / name)
        results[name] = {
            key: (split, reader.whole_images([row])[0].tobytes())
            for key, (reader, row, split) in readers(tmp_path / name).items()
        }
    assert len(results["filtered"]) == 30
    assert results["filtered"].items() <= results["all"].items()


def test_captions_are_checked_before_the_image_is_decoded(tmp_path):
    own = write_folder(tmp_path / "own")
    add_pair(own, "cut", ["kite"])
    (own / "cut.png").write_bytes(encode_png(pixels(0))[:500])
    counts = write_pairs(folder_config(own, min_caption_words=2), 0, tmp_path / "pairs")
    assert (counts["n_filtered"], counts["n_quarantined"]) == (1, 0)


def test_filtered_captions_do_not_count_as_bad_data(tmp_path):
    own = write_folder(tmp_path / "own", 10)
    for index in range(30):
        add_pair(own, f"short{index}", ["kite"], index)
    counts = write_pairs(folder_config(own, min_caption_words=2), 0, tmp_path / "pairs")
    assert (counts["n_ok"], counts["n_filtered"]) == (10, 30)

    for index in range(4):
        write(own, {f"{index:03d}.png": b"<html>"})
    with pytest.raises(BadData, match=r"4 of the 10 inputs of .*own were rejected"):  # not 4 of 40
        write_pairs(folder_config(own, min_caption_words=2), 0, tmp_path / "again")


def test_filters_that_leave_nothing_are_an_error_with_the_settings_to_change(tmp_path):
    message = (
        r"The caption filters leave none of the 12 inputs of .*own: 12 caption_too_short \(000.png: 2 of 9 words: "
        r"'image 0'\). Change data.min_caption_words, data.boilerplate or data.language"
    )
    with pytest.raises(BadData, match=message):
        write_pairs(folder_config(write_folder(tmp_path / "own"), min_caption_words=9), 0, tmp_path / "pairs")
    assert not (tmp_path / "pairs/manifest.json").exists()


CAPTION_SETTINGS = {"boilerplate": [], "language": None, "language_margin": 0.2}
NEAR_SETTINGS = {"near_duplicate_distance": 4, "near_duplicate_color": 24}


@pytest.mark.parametrize(
    ("used", "settings", "counts"),
    [
        ({"min_caption_words": 2}, CAPTION_SETTINGS, {"captions_dropped"}),
        ({"near_duplicates": "hash"}, NEAR_SETTINGS, {"near_duplicates"}),
        ({"keep": "whole", "keep_side": 96}, {}, set()),
        ({"licence": "CC0-1.0"}, {}, set()),
        ({"version": "2"}, {}, set()),
    ],
)
def test_the_manifest_mentions_a_feature_only_if_used(tmp_path, used, settings, counts):
    own = write_folder(tmp_path / "own")
    for name, more in (("plain", {}), ("used", used)):
        write_pairs(folder_config(own, **more), 0, tmp_path / name)
    plain, found = (read_manifest(tmp_path / name)["facts"] for name in ("plain", "used"))
    assert found["settings"] == {**plain["settings"], **used, **settings}
    assert not plain["settings"].keys() & (used | settings).keys()
    assert found["counts"].keys() - plain["counts"].keys() == counts
    assert (tmp_path / "used" / DUPLICATES).exists() == ("near_duplicates" in used)


# ---- counts of captions for the data card


def test_captions_of_the_first_training_shard_are_counted(tmp_path):
    for number in range(20):
        add_pair(tmp_path / "own", f"{number:03d}", ["a cat", "a very large cat"][: 1 + number % 2], number)
    write_pairs(folder_config(tmp_path / "own"), 0, tmp_path / "pairs")
    captions, manifest = caption_counts(tmp_path / "pairs"), read_manifest(tmp_path / "pairs")
    train = manifest["facts"]["counts"]["splits"]["train"]
    assert captions["pairs"] == train and captions["distinct"] == 2
    assert train < captions["captions"] < 2 * train
    assert captions["words"] == {"least": 2, "median": 2, "most": 4}
    assert f"The first {train} training pairs" in data_card("cats", manifest, captions)
    (tmp_path / "pairs/train-00000.parquet").write_bytes(b"")
    with pytest.raises(DamagedArtefact, match="train-00000.parquet should be"):
        caption_counts(tmp_path / "pairs")


def test_without_a_training_shard_there_is_nothing_to_count(tmp_path):
    write_manifest(tmp_path, {}, {"counts": {"splits": {}}})
    assert caption_counts(tmp_path) is None
