"""A preset is presets/default.yaml with the lines of its own file."""

import re

import pytest
import torch
import yaml

from tests.helpers.paths import ROOT
from thousandwords import components
from thousandwords.planning.presets import preset_text, read_preset

DEFAULT = """\
# the default
seed: 0  # any

data:
  source: scenes
  path: data/own
  scenes: {count: 2}

model:
  kind: a
  a:
    width: 64
    # a note
  training:
    steps: 10  # few

sampling:
  top_p: 0.8
  prompts:
    - a star
"""
OWN = """\
# mine
data:
  source: folder
  keep: whole  # all of it

model:
  a:
    depth: 2
  training:
    steps: 500  # many

sampling:
  top_p: null
  prompts: []
gate: {minimum: 8}
"""


def test_a_section_with_a_source_or_kind_is_replaced_and_another_one_key_by_key(tmp_path):
    (tmp_path / "default.yaml").write_text(DEFAULT)
    (tmp_path / "mine.yaml").write_text(OWN)

    assert preset_text("default", tmp_path) == DEFAULT
    text = preset_text("mine", tmp_path)
    assert text.startswith(
        "# mine\nseed: 0  # any\ndata:\n  source: folder\n  keep: whole  # all of it\n\nmodel:\n"
    )
    assert "    width: 64\n    # a note\n    depth: 2\n  training:\n    steps: 500  # many\n" in text
    assert yaml.safe_load(text) == {
        "seed": 0,
        "data": {"source": "folder", "keep": "whole"},
        "model": {"kind": "a", "a": {"width": 64, "depth": 2}, "training": {"steps": 500}},
        "sampling": {"top_p": None, "prompts": []},
        "gate": {"minimum": 8},
    }


def test_the_emoji_preset_has_the_models_of_the_default_and_no_scenes():
    default, emoji = (read_preset(name, ROOT / "presets") for name in ("default", "emoji"))
    assert emoji["data"]["source"] == "webdataset" and "scenes" not in emoji["data"]
    added = emoji["generator"]["transformer"].keys() - default["generator"]["transformer"].keys()
    assert added == {"caption_dropout", "dropout"}


IN_DOCS = re.findall(
    r"```yaml\n(.*?)```", (ROOT / "docs/tokenizers.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.parametrize("preset", ["emoji", "photos"])
@pytest.mark.parametrize(
    "block", [yaml.safe_load(block) for block in IN_DOCS], ids=lambda block: block["kind"]
)
def test_the_other_tokenizers_that_the_docs_name_fit_the_presets_of_small_images(preset, block):
    size = read_preset(preset)["data"]["image_size"]
    config = components.model_config("image_tokenizers", block, "image_tokenizer")
    with torch.device("meta"):
        model = components.build("image_tokenizers", block["kind"], config, image_size=size)
    assert model.scales[-1] == 16 and model.vocab_size == 1024
    assert {kind["kind"] for kind in map(yaml.safe_load, IN_DOCS)} == {"vqvae", "multi_scale", "vqgan"}
