"""A kind is a file: found by looking, built from its own settings, and loaded again without being told what it is."""
from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import CAPTIONS, TINY, pictures, tiny
from thousandwords import components
from thousandwords.checkpoints import write_model
from thousandwords.config import ConfigError
from thousandwords.files import DamagedArtefact, write_json, write_manifest
from thousandwords.scorers import clip
from thousandwords.tokenizers import dvae


def test_the_kinds_of_a_family_are_its_files():
    for family, kind in (("tokenizers", "dvae"), ("generators", "transformer"), ("scorers", "clip")):
        assert kind in components.kinds(family)
        assert not any(name.startswith("_") for name in components.kinds(family))


def test_a_component_is_a_model_and_its_config():
    assert components.component("tokenizers", "dvae") == (dvae.DiscreteVAE, dvae.Config)


@pytest.mark.parametrize(
    ("family", "kind", "sentence"),
    [
        ("tokenizers", "dva", "tokenizers has no kind 'dva'. Did you mean 'dvae'?"),
        ("generators", "zzz", "generators has no kind 'zzz'."),
        ("scorers", "_open_cli", "scorers has no kind '_open_cli'."),
        ("scorers", None, "scorers has no kind None."),
    ],
)
def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(family, kind, sentence):
    with pytest.raises(ConfigError) as caught:
        components.component(family, kind)
    assert str(caught.value) == f"params.yaml: {sentence} There is: {', '.join(components.kinds(family))}"


def test_the_settings_of_the_chosen_kind_are_read_and_no_others():
    block = {"kind": "dvae", "dvae": {"vocab_size": 5}, "training": {}}
    assert components.model_config("tokenizers", block, "image_tokenizer") == dvae.Config(vocab_size=5)
    assert components.model_config("tokenizers", {"kind": "dvae"}, "image_tokenizer") == dvae.Config()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"vocabsize": 5}, "image_tokenizer.dvae has no key 'vocabsize'. Did you mean 'vocab_size'?"),
        ({"vocab_size": 1}, "image_tokenizer.dvae.vocab_size is 1; it has to be 2 or more"),
    ],
)
def test_a_wrong_setting_of_a_kind_is_refused_by_its_whole_name(settings, sentence):
    with pytest.raises(ConfigError) as caught:
        components.model_config("tokenizers", {"kind": "dvae", "dvae": settings}, "image_tokenizer")
    assert str(caught.value) == f"params.yaml: {sentence}"


# --- saved models ----------------------------------------------------------------------------------------------------


def test_a_saved_model_says_how_it_was_built_in_plain_json(tmp_path):
    components.save(tiny("generators", "transformer"), tmp_path, image_tokenizer="3f9c")

    header = json.loads((tmp_path / "config.json").read_bytes())

    assert (header["family"], header["kind"], header["image_tokenizer"]) == ("generators", "transformer", "3f9c")
    assert header["arguments"]["scales"] == [4] and header["config"]["width"] == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "manifest.json", "weights.safetensors"]


def test_other_weights_may_be_saved_than_those_the_model_has_now(tmp_path):
    model = tiny("tokenizers", "dvae")
    average = {name: tensor * 0 for name, tensor in model.state_dict().items()}

    components.save(model, tmp_path, average)

    assert all(weight.eq(0).all() for weight in components.load("tokenizers", tmp_path).parameters())
    assert not all(weight.eq(0).all() for weight in model.parameters())


def test_a_model_of_another_family_is_refused(tmp_path):
    components.save(tiny("scorers", "clip"), tmp_path)
    with pytest.raises(ConfigError) as caught:
        components.load("generators", tmp_path)
    assert str(caught.value) == f"{tmp_path} holds one of the scorers, but one of the generators was wanted"


def test_a_model_written_by_another_version_of_the_code_is_refused_with_the_mend(tmp_path):
    model = tiny("tokenizers", "dvae")
    model.built_as["config"]["colours"] = 3
    components.save(model, tmp_path / "key")
    model.built_as["kind"] = "vqgan"
    components.save(model, tmp_path / "kind")

    for name, sentence in (("key", "dvae has no key 'colours'"), ("kind", "tokenizers has no kind 'vqgan'")):
        with pytest.raises(ConfigError) as caught:
            components.load("tokenizers", tmp_path / name, mend="dvc repro train_image_tokenizer")
        assert str(caught.value).startswith(
            f"{tmp_path / name} was written by another version of this code: {sentence}."
        )
        assert str(caught.value).endswith(" Run: dvc repro train_image_tokenizer")


def test_weights_that_are_not_those_of_the_config_are_refused(tmp_path):
    model = tiny("tokenizers", "dvae")
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "encoder.input.weight"}
    write_model(tmp_path, model.built_as, state)

    with pytest.raises(DamagedArtefact, match="1 tensors differ, the first is 'encoder.input.weight'"):
        components.load("tokenizers", tmp_path)


def test_a_tampered_config_is_refused(tmp_path):
    components.save(tiny("tokenizers", "dvae"), tmp_path)
    header = json.loads((tmp_path / "config.json").read_bytes())
    write_json(tmp_path / "config.json", header | {"kind": "dvaf"})

    with pytest.raises(DamagedArtefact, match="config.json is damaged"):
        components.load("tokenizers", tmp_path)
    write_manifest(tmp_path, {"config.json": None, "weights.safetensors": None}, {})
    with pytest.raises(ConfigError, match="tokenizers has no kind 'dvaf'. Did you mean 'dvae'?"):
        components.load("tokenizers", tmp_path)


def test_a_pretrained_scorer_loads_where_the_file_it_came_from_is_gone(tmp_path):
    pretrained = tmp_path / "pretrained"
    settings = clip.small_architecture(clip.Config(**TINY["scorers"]["clip"]), image_size=16)
    source = components.build("scorers", "clip", clip.Config(**TINY["scorers"]["clip"]), image_size=16)
    write_json(pretrained / "open_clip_config.json", settings)
    weights = {name: tensor.contiguous() for name, tensor in source.clip.state_dict().items()}
    save_file(weights, pretrained / "open_clip_model.safetensors")
    named = clip.Config(pretrained=f"local-dir:{pretrained}")
    scorer = components.build("scorers", "clip", named, image_size=16).eval()
    components.save(scorer, tmp_path / "scorer")

    shutil.rmtree(pretrained)
    loaded = components.load("scorers", tmp_path / "scorer")

    assert torch.equal(loaded.score(pictures(4), CAPTIONS), scorer.score(pictures(4), CAPTIONS))
