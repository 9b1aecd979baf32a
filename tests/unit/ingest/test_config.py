"""Every setting of the section `data` is checked, and an error names the setting and the remedy."""

import re

import pytest
import yaml

from thousandwords.core.config import ConfigError, section
from thousandwords.ingest.config import DataConfig, SceneCounts, active_settings

CASES = """
source: folders -> data.source is 'folders'; it can be: scenes, folder, csv, webdataset
image_size: 4 -> data.image_size is 4; it needs to be 8 or more
min_side: 0 -> data.min_side is 0; it needs to be 1 or more
max_aspect: 0.5 -> data.max_aspect is 0.5; it needs to be 1 or more
keep: all -> data.keep is 'all'; it can be: square, whole
keep_side: 96 -> data.keep_side is 96, but data.keep is square, of image_size. Set data.keep: whole
keep: whole, keep_side: 63 -> data.keep_side is 63; it needs to be data.image_size (64) or more
rows_per_shard: 0 -> data.rows_per_shard is 0; it needs to be 1 or more
workers: -1 -> data.workers is -1; it needs to be 0 or more
path: '' -> data.path is empty
caption_column: '' -> data.caption_column is empty
validation_share: 0.0 -> data.validation_share is 0.0; it lies between 0 and 1
max_refused_share: 2.0 -> data.max_refused_share is 2.0; it lies between 0 and 1
background: [0, 0, 256] -> data.background is (0, 0, 256); it is red, green, blue from 0 to 255
delimiter: ', ' -> data.delimiter is ', '; it is one character
group_by: ( -> data.group_by is '(', not a regular expression
group_by: skin -> data.group_by is 'skin'; it needs a group in ()
min_caption_words: -1 -> data.min_caption_words is -1; it needs to be 0 (off) or more
boilerplate: photo -> data.boilerplate should be a list, found 'photo'
boilerplate: [photo, (] -> data.boilerplate[1] is '(', not a regular expression: missing )
boilerplate: ['a{99999999999}'] -> data.boilerplate[0] is 'a{99999999999}', not a regular expression
boilerplate: [photo|] -> data.boilerplate[0] is 'photo|'; it matches an empty text, so it would drop
language: English -> data.language is 'English'; it is a code of two or three letters, like en
language: false -> data.language should be text, found False
language_margin: 1.0 -> data.language_margin is 1.0; it lies between 0 and 1
scenes: {validation_count: 0} -> data.scenes.validation_count is 0; it needs 1 or more
scenes: {thin_share: 2.0} -> data.scenes.thin_share is 2.0; it lies between 0 and 1
scenes: {cuont: 3} -> data.scenes has no key 'cuont'. Did you mean 'count'?
source: mixture -> data.source is mixture, but data.sources is empty. List the sources there
source: folder, sources: [{source: csv, path: x}] -> data.sources is set, but data.source is folder. Set data.source: mixture, or remove data.sources
source: mixture, sources: [{source: csv, path: x}], licence: MIT -> data.origin are for a single source, but data.source is mixture. Set them for each source
source: mixture, sources: [{source: csv}] -> data.sources[0] lacks the key 'path' (text)
source: mixture, sources: [{source: scenes, path: x}] -> data.sources[0].source is 'scenes'; it can be: folder
source: mixture, sources: [{source: csv, path: x, lisence: MIT}] -> no key 'lisence'. Did you mean 'licence'?
source: mixture, sources: [{source: csv, path: x, weight: 0}] -> data.sources: weight is 0.0; it needs to be a number above 0
source: mixture, sources: [{source: csv, path: x, weight: 2}, {source: csv, path: y}] -> some of data.sources have a weight and some do not. Set it for all
source: mixture, sources: [{source: csv, path: ''}] -> data.sources: path is empty; it needs a path or a URL
source: mixture, sources: [{source: folder, path: x, recaption_column: y}] -> data.sources: recaption_column is set, but source folder does not support it. Remove it
source: folder, image_folder: x -> data.image_folder is set, but source folder does not support it. Remove it; it is for
source: coco, recaption_column: x -> data.recaption_column is set, but source coco does not support it
source: csv, recaption_share: 0.5 -> data.recaption_share is 0.5, but data.recaption_column is not set
source: csv, recaption_column: x, recaption_share: 1.5 -> data.recaption_share is 1.5; it lies between 0 and 1
source: folder, url: bucket/x -> data.url is 'bucket/x', not a URL like s3:
caption_lines: all -> data.caption_lines is 'all'; it can be: separate, joined
columns: image -> data.columns should be a list, found 'image'
link_roots: /data -> data.link_roots should be a list, found '/data'
near_duplicates: phash -> data.near_duplicates is 'phash'; it can be: none, hash
near_duplicates: false -> data.near_duplicates is False; it can be: none, hash
near_duplicate_distance: 16 -> data.near_duplicate_distance is 16; it lies between 0 and 15
near_duplicate_distance: -1 -> data.near_duplicate_distance is -1; it lies between 0 and 15
near_duplicate_color: 256 -> data.near_duplicate_color is 256; it lies between 0 and 255
"""


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_settings_are_checked(case):
    settings, message = case.split(" -> ")
    with pytest.raises(ConfigError, match=re.escape(message)):
        section(yaml.safe_load(f"{{{settings}}}"), "data", DataConfig)


def test_a_manifest_names_the_settings_of_a_feature_only_where_it_is_used():
    """Every setting in it changes what reads it, so new features leave old manifests as they are."""
    of_all = {
        "source", "path", "image_size", "validation_share", "group_by", "background", "min_side", "max_aspect",
        "max_refused_share", "rows_per_shard", "image_column", "caption_column", "delimiter", "scenes",
    }  # fmt: skip
    assert set(active_settings(DataConfig())) == of_all
    assert set(active_settings(DataConfig(keep="whole"))) - of_all == {"keep", "keep_side"}
    assert set(active_settings(DataConfig(caption_lines="joined"))) - of_all == {"caption_lines"}
    assert set(active_settings(DataConfig(licence="MIT"))) - of_all == {"licence"}


def test_a_manifest_names_the_share_of_thin_captions_only_where_there_are_some():
    assert "thin_share" not in active_settings(DataConfig())["scenes"]
    assert active_settings(DataConfig(scenes=SceneCounts(thin_share=0.5)))["scenes"]["thin_share"] == 0.5
