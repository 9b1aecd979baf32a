"""`init` and `tune` of params.yaml: what must fit is checked before any long work, one sentence with the fix."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages import check_params
from tests.helpers.paths import ROOT
from tests.helpers.smoke_project import set_value
from tests.helpers.tiny_models import SIDE, fitting_package, tiny
from thousandwords import components, preflight
from thousandwords.core import init_models
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import read_manifest
from thousandwords.planning.presets import read_preset


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return fitting_package(tmp_path_factory.mktemp("models"))


@pytest.fixture
def params(package) -> dict:
    """The smoke preset, going on from all models of the package."""
    values = read_preset("smoke", ROOT / "presets")
    values["data"]["image_size"] = SIDE
    values["sampling"]["inpaint"] = None
    values["text_tokenizer"] = {"init": str(package)}
    values["image_tokenizer"] = {"kind": "dvae", "init": str(package)}
    for name in ("decoder", "generator", "scorer"):
        block = values[name]
        training = block["training"] | {"muon_lr_scale": None}
        values[name] = {"kind": block["kind"], "init": str(package), "training": training}
    return values


def error_of(params: dict, **changes: object) -> str:
    params = copy.deepcopy(params)
    for path, value in changes.items():
        set_value(params, path, value)
    with pytest.raises(UserError) as caught:
        preflight.check_params(params, 0)
    return str(caught.value)


def test_all_sections_go_on_from_a_package_or_from_the_folders_of_its_parts(params, package):
    preflight.check_params(params, 0)
    for name in init_models.SECTIONS:
        params[name]["init"] = str(package / name)
    preflight.check_params(params, 0)
    params["generator"]["transformer"] = {"dropout": 0.1, "caption_dropout": 0.2}
    params["generator"]["tune"] = ["layers.2.*", "image_output.*"]
    preflight.check_params(params, 0)
    assert preflight.build_models(params)["generator"].config.dropout == 0.1


def test_a_generator_needs_the_tokenizers_that_it_was_trained_with(params, package, tmp_path):
    smoke = read_preset("smoke", ROOT / "presets")
    expected = read_manifest(package / "text_tokenizer")["sha256"][:12]
    assert error_of(params, text_tokenizer=smoke["text_tokenizer"]) == (
        f"params.yaml: generator.init, {package}, was trained on the tokens of the text_tokenizer with the "
        f"fingerprint {expected}, but this run trains another one (text_tokenizer.init is null). "
        f"Set text_tokenizer.init: {package}"
    )
    other = components.save(tiny("image_tokenizers", "dvae", seed=1), tmp_path / "other")
    message = error_of(params, **{"image_tokenizer.init": str(tmp_path / "other")})
    assert f"but image_tokenizer.init is {tmp_path}/other (fingerprint {other[:12]})" in message
    assert message.endswith(f"Set image_tokenizer.init: {package}")
    message = error_of(
        params,
        **{"generator.init": str(package / "generator"), "image_tokenizer.init": str(tmp_path / "other")},
    )
    assert message.endswith(
        "Set image_tokenizer.init: the folder of the image_tokenizer that it was trained with"
    )


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("text_tokenizer.text_length", 9, "text_tokenizer.text_length is 9, but text_tokenizer.init, {}, has 8. Remove"),
        ("text_tokenizer.vocab_size", 256, "vocab_size is 256, but text_tokenizer.init, {}, has 270"),
        ("generator.transformer", {"width": 32}, "generator.transformer.width is 32, but generator.init, {}, has 16. Re"),
        ("generator.transformer", {"widht": 32}, "generator.transformer has no key 'widht'. Did you mean 'width'?"),
        ("scorer.clip", {"text_width": 32}, "scorer.clip.text_width is 32, but scorer.init, {}, has 16. Remove"),
        ("generator.transformer", {"random_order_steps": [0, 9]}, "random_order_steps is (0, 9), but generator.init, {}, has N"),
        ("data.image_size", 32, "generator.init, {}, was trained for scales (4,), but this run has (8,). Use the data.im"),
        ("generator.tune", "image-head", "tune is 'image-head'; it can be: all, image_head, or a list of patterns"),
        ("generator.tune", ["layer.0.*"], "generator.tune has 'layer.0.*', which matches no parameter of this model. One"),
        ("generator.tune", [], "generator.tune is (), which names no parameter. Set generator.tune: all"),
        ("decoder.unet", {"blocks": 2}, "decoder.unet.blocks is 2, but decoder.init, {}, has 1. Remove"),
        ("decoder", {"kind": "none", "unet": {}}, "decoder has no key 'unet'"),
        ("decoder", {"kind": "unet", "unet": {"widths": [9]}, "training": {"steps": 1}}, "unet.widths is [9]; give one mul"),
        ("decoder", {"kind": "unet", "training": {}}, "decoder lacks the key 'unet'"),
        ("generator.init", None, "generator lacks the key 'transformer'"),
        ("generator.init", 3, "generator.init should be a folder, or null to train one here; found 3"),
        ("scorer.init", "models:/other@x", "scorer.init is 'models:/other@x'; a registered package is models:/thousandw"),
        ("scorer.init", "models:/thousandwords@x", "which was not fetched yet. Run: dvc repro -f check_params"),
        ("scorer.init", "nowhere", "scorer.init is nowhere, but there is no such folder. Run: cp -r FOLDER nowhere, wh"),
        ("scorer.kind", "blip", "no kind 'blip'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_the_fix(params, package, path, value, sentence):
    assert sentence.format(package) in error_of(params, **{path: value})


def test_tune_without_a_model_to_keep_is_rejected(params, package):
    smoke = read_preset("smoke", ROOT / "presets")
    assert error_of(params, generator=smoke["generator"] | {"tune": "image_head"}) == (
        "params.yaml: generator.tune is image_head, but generator.init is null, and a model that was never trained "
        "cannot keep its weights. Set generator.init, or generator.tune: all"
    )


def test_another_familys_model_and_the_pipelines_own_output_are_rejected(
    params, package, tmp_path, monkeypatch
):
    for name in ("scorer", "text_tokenizer"):
        assert error_of(params, **{"generator.init": str(package / name)}) == (
            f"params.yaml: generator.init is {package}/{name}, which holds {name}. Name the folder of a trained "
            "generator, or a package that has one"
        )
    monkeypatch.chdir(tmp_path)
    shutil.copytree(package, "models/package")
    assert error_of(params, **{"generator.init": "models/package"}) == (
        "params.yaml: generator.init is models/package, which this pipeline writes anew. Copy it first: "
        "cp -r models/package models/start; then set generator.init: models/start"
    )


def test_a_registered_package_is_fetched_by_the_check_and_recorded(params, package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_params, "fetch", lambda version, setting: package)
    for name in init_models.SECTIONS:
        params[name]["init"] = "models:/thousandwords@champion"
    check_params.check_params(Path("data/checked"), SimpleNamespace(params=params, seed=0))
    assert Path("data/checked").read_bytes() == b"ok\n"
    for name in init_models.SECTIONS:
        assert init_models.read_record(name)["fingerprint"] == read_manifest(package / name)["sha256"]
        assert init_models.init_folder(params[name], name) == package / name
