"""A kind is a folder with a model.py, built from its own settings, and loaded by its saved header."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.tiny_models import CAPTIONS, TINY, random_images, tiny
from thousandwords import components
from thousandwords.core.config import ConfigError
from thousandwords.core.files import write_json
from thousandwords.core.manifest import DamagedArtefact, write_manifest
from thousandwords.image_tokenizers.dvae.model import DVAEConfig
from thousandwords.scorers.clip.model import CLIPConfig, architecture_from_config


def test_the_kinds_of_a_family_are_its_folders_with_a_model():
    for family, kind in (("image_tokenizers", "dvae"), ("generators", "transformer"), ("scorers", "clip")):
        assert kind in components.kinds(family)
        assert not any(name.startswith("_") for name in components.kinds(family))


@pytest.mark.parametrize(
    ("family", "kind", "sentence"),
    [
        ("image_tokenizers", "dva", "image_tokenizers has no kind 'dva'. Did you mean 'dvae'?"),
        ("generators", "zzz", "generators has no kind 'zzz'."),
        ("scorers", "base", "scorers has no kind 'base'."),
        ("scorers", None, "scorers has no kind None."),
    ],
)
def test_an_unknown_kind_is_rejected_with_a_list_of_kinds(family, kind, sentence):
    with pytest.raises(ConfigError) as caught:
        components.component(family, kind)
    assert str(caught.value) == f"params.yaml: {sentence} There is: {', '.join(components.kinds(family))}"


def test_only_the_settings_of_the_chosen_kind_are_read():
    block = {"kind": "dvae", "dvae": {"vocab_size": 5}, "training": {}}
    assert components.model_config("image_tokenizers", block, "image_tokenizer") == DVAEConfig(vocab_size=5)
    assert components.model_config("image_tokenizers", {"kind": "dvae"}, "image_tokenizer") == DVAEConfig()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"vocabsize": 5}, "image_tokenizer.dvae has no key 'vocabsize'. Did you mean 'vocab_size'?"),
        ({"vocab_size": 1}, "image_tokenizer.dvae.vocab_size is 1; it needs to be 2 or more"),
    ],
)
def test_a_wrong_setting_of_a_kind_is_rejected_by_its_full_name(settings, sentence):
    with pytest.raises(ConfigError) as caught:
        components.model_config("image_tokenizers", {"kind": "dvae", "dvae": settings}, "image_tokenizer")
    assert str(caught.value) == f"params.yaml: {sentence}"


# --- saved models -------------------------------------------------------------------------------------------


def test_the_header_of_a_saved_model_is_json_that_says_how_it_was_built(tmp_path):
    components.save(tiny("generators", "transformer"), tmp_path, image_tokenizer="3f9c")

    header = json.loads((tmp_path / "config.json").read_bytes())

    expected = {"family": "generators", "kind": "transformer", "image_tokenizer": "3f9c"}
    assert header | expected == header
    assert header["arguments"]["scales"] == [4] and header["config"]["width"] == 16


def test_a_model_can_be_saved_with_other_weights(tmp_path):
    model = tiny("image_tokenizers", "dvae")
    average = {name: tensor * 0 for name, tensor in model.state_dict().items()}

    components.save(model, tmp_path, average)

    assert all(weight.eq(0).all() for weight in components.load("image_tokenizers", tmp_path).parameters())
    assert not all(weight.eq(0).all() for weight in model.parameters())


def test_a_model_of_another_family_is_rejected(tmp_path):
    components.save(tiny("scorers", "clip"), tmp_path)
    with pytest.raises(ConfigError) as caught:
        components.load("generators", tmp_path)
    assert str(caught.value) == f"{tmp_path} holds one of the scorers, not one of the generators"


def test_a_model_written_by_another_version_of_the_code_is_rejected_with_the_fix(tmp_path):
    model = tiny("image_tokenizers", "dvae")
    model.built_as["config"]["colors"] = 3
    components.save(model, tmp_path / "key")
    model.built_as["kind"] = "maskgit"
    components.save(model, tmp_path / "kind")

    for name, reason in (
        ("key", "dvae has no key 'colors'"),
        ("kind", "image_tokenizers has no kind 'maskgit'"),
    ):
        with pytest.raises(ConfigError) as caught:
            components.load("image_tokenizers", tmp_path / name, fix="dvc repro train_image_tokenizer")
        sentence = f"{tmp_path / name} was written by another version of this code: {reason}."
        assert str(caught.value).startswith(sentence)
        assert str(caught.value).endswith(" Run: dvc repro train_image_tokenizer")


def test_a_tampered_config_is_rejected(tmp_path):
    components.save(tiny("image_tokenizers", "dvae"), tmp_path)
    header = json.loads((tmp_path / "config.json").read_bytes())
    write_json(tmp_path / "config.json", header | {"kind": "dvaf"})

    with pytest.raises(DamagedArtefact, match="config.json is damaged"):
        components.load("image_tokenizers", tmp_path)
    write_manifest(tmp_path, {"config.json": None, "weights.safetensors": None}, {})
    with pytest.raises(ConfigError, match="image_tokenizers has no kind 'dvaf'. Did you mean 'dvae'?"):
        components.load("image_tokenizers", tmp_path)


def test_a_pretrained_scorer_loads_where_its_pretrained_file_is_missing(tmp_path):
    pretrained = tmp_path / "pretrained"
    settings = architecture_from_config(CLIPConfig(**TINY["scorers"]["clip"]), image_size=16)
    source = components.build("scorers", "clip", CLIPConfig(**TINY["scorers"]["clip"]), image_size=16)
    write_json(pretrained / "open_clip_config.json", settings)
    weights = {name: tensor.contiguous() for name, tensor in source.clip.state_dict().items()}
    save_file(weights, pretrained / "open_clip_model.safetensors")
    config = CLIPConfig(pretrained=f"local-dir:{pretrained}")
    scorer = components.build("scorers", "clip", config, image_size=16).eval()
    components.save(scorer, tmp_path / "scorer")

    shutil.rmtree(pretrained)
    loaded = components.load("scorers", tmp_path / "scorer")

    assert torch.equal(loaded.score(random_images(4), CAPTIONS), scorer.score(random_images(4), CAPTIONS))
