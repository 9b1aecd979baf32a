"""`init` and `tune` of params.yaml: what must fit is checked before any long work, one sentence with the fix; and an
image tokenizer trained elsewhere replaces one trained here."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages import check_params
from stages import train_image_tokenizer as stage
from tests.helpers.dalle_release import import_small, write_release
from tests.helpers.paths import ROOT
from tests.helpers.smoke_project import set_value
from tests.helpers.tiny_models import SIDE, fitting_package, tiny
from thousandwords import components, preflight
from thousandwords.core import init_models
from thousandwords.core.config import ConfigError
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_json
from thousandwords.core.manifest import read_manifest, write_manifest
from thousandwords.data.images import decode_png, to_float
from thousandwords.data.pair_shards import PairReader
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig, SceneCounts
from thousandwords.planning.presets import read_preset
from thousandwords.pretrained import tokenizer_init
from thousandwords.training.distributed import SINGLE_PROCESS


def smoke() -> dict:
    return read_preset("smoke", ROOT / "presets")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return fitting_package(tmp_path_factory.mktemp("models"))


@pytest.fixture
def params(package) -> dict:
    """The smoke preset, going on from all models of the package."""
    values = smoke()
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
    expected = read_manifest(package / "text_tokenizer")["sha256"][:12]
    assert error_of(params, text_tokenizer=smoke()["text_tokenizer"]) == (
        f"params.yaml: generator.init, {package}, was trained on the tokens of the text_tokenizer with the "
        f"fingerprint {expected}, but this run trains another one (text_tokenizer.init is null). "
        f"Set text_tokenizer.init: {package}"
    )
    other = components.save(tiny("image_tokenizers", "dvae", seed=1), tmp_path / "other")
    message = error_of(params, **{"image_tokenizer.init": str(tmp_path / "other")})
    assert f"but image_tokenizer.init is {tmp_path}/other (fingerprint {other[:12]})" in message
    assert message.endswith(f"Set image_tokenizer.init: {package}")
    changes = {"generator.init": str(package / "generator"), "image_tokenizer.init": str(tmp_path / "other")}
    message = error_of(params, **changes)
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
        ("image_tokenizer.init", "", "image_tokenizer.init should be a folder, or null to train one here; found ''"),
        ("image_tokenizer.init", ["models/x"], "image_tokenizer.init should be a folder, or null to train one here; found ["),
        ("scorer.init", True, "scorer.init should be a folder, or null to train one here; found True"),
        ("scorer.init", "models:/other@x", "scorer.init is 'models:/other@x'; a registered package is models:/thousandw"),
        ("scorer.init", "models:/thousandwords@x", "which was not fetched yet. Run: dvc repro -f check_params"),
        ("scorer.init", "nowhere", "scorer.init is nowhere, but there is no such folder. Run: cp -r FOLDER nowhere, wh"),
        ("scorer.kind", "blip", "no kind 'blip'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_the_fix(params, package, path, value, sentence):
    assert sentence.format(package) in error_of(params, **{path: value})


def test_tune_without_a_model_to_keep_is_rejected(params, package):
    assert error_of(params, generator=smoke()["generator"] | {"tune": "image_head"}) == (
        "params.yaml: generator.tune is image_head, but generator.init is null, and a model that was never trained "
        "cannot keep its weights. Set generator.init, or generator.tune: all"
    )


def test_the_pipelines_own_output_is_rejected(params, package, tmp_path, monkeypatch):
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


# --- a tokenizer that was trained elsewhere --------------------------------------------------------------------------

FIX = "Run: python -m thousandwords import-weights FILES --out {}, where FILES are the published ones"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small imported tokenizer in place of the DALL-E release, for images of 16 pixels; read-only."""
    folder = tmp_path_factory.mktemp("release")
    write_release(folder, "zip")
    return import_small(folder)


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    ingest.write_pairs(DataConfig(image_size=32, scenes=SceneCounts(24, 9, 2)), 0, folder)
    return folder


def block(folder: Path, **more: object) -> dict:
    return {"kind": "dvae", "init": str(folder), **more}


def with_tokenizer(image_tokenizer: dict, image_size: int = 32) -> dict:
    """The smoke preset with that block."""
    return smoke() | {
        "image_tokenizer": image_tokenizer,
        "data": smoke()["data"] | {"image_size": image_size},
    }


@pytest.fixture
def copied(folder, pairs_folder, tmp_path, monkeypatch):
    """The stage, run with `init`; training would fail."""
    monkeypatch.setattr(stage, "train", lambda *_, **__: pytest.fail("an imported tokenizer was trained"))
    logged, files = [], []
    context = SimpleNamespace(
        name="train_image_tokenizer",
        params={"image_tokenizer": block(folder), "device": "cpu", "seed": 0},
        seed=0,
        world=SINGLE_PROCESS,
        log=lambda step, values: logged.append((step, values)),
        record_files=lambda *paths: files.extend(paths),
    )
    stage.train_image_tokenizer(pairs_folder, tmp_path / "out", tmp_path / "curves.json", context)
    return SimpleNamespace(out=tmp_path / "out", curves=tmp_path / "curves.json", logged=logged, files=files)


def test_the_tokenizer_of_the_folder_is_the_stages_own_at_the_size_of_the_images(copied, folder):
    original = components.load("image_tokenizers", folder)
    saved = components.load("image_tokenizers", copied.out)

    assert (original.image_size, original.scales) == (16, (4,))
    assert (saved.image_size, saved.scales, saved.vocab_size) == (32, (8,), 12)
    weights = original.state_dict()
    assert weights.keys() == saved.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in saved.state_dict().items())
    assert saved.header["taken_from"] == original.fingerprint
    assert saved.header["pickle_sha256"] == original.header["pickle_sha256"]


def test_its_curve_has_one_evaluation_on_held_out_images_which_its_contact_sheet_shows(copied, pairs_folder):
    model = components.load("image_tokenizers", copied.out)
    reader = PairReader(pairs_folder, "validation")
    images = to_float(reader.images(range(len(reader))))
    figures = {f"validation/{name}": value for name, value in stage.evaluate(model, images).items()}

    assert json.loads(copied.curves.read_bytes()) == [{"step": 0, **figures}]
    assert copied.logged == [(0, figures)]
    assert {*figures} == {
        f"validation/{name}" for name in ("psnr_hard", "codebook_used", "codebook_perplexity")
    }
    assert copied.files == [copied.curves.with_suffix(".png")]
    sheet = decode_png(copied.files[0].read_bytes())
    assert sheet.shape[1] >= 8 * 32 and sheet.shape[0] >= 2 * 32  # originals above reconstructions


def test_large_images_are_evaluated_in_batches(monkeypatch, pairs_folder, folder):
    batch_sizes = []
    model = components.load("image_tokenizers", folder, image_size=32)
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda batch: batch_sizes.append(len(batch)) or encode(batch))
    monkeypatch.setattr("thousandwords.image_tokenizers.base.MAX_BATCH_PIXELS", 4 * 32 * 32)
    stage._encode_and_decode(model, torch.rand(9, 3, 32, 32))
    assert batch_sizes == [4, 4, 1]


def test_the_generator_is_built_for_its_tokens(folder):
    preflight.check_params(with_tokenizer(block(folder)), 0)
    generator = preflight.build_models(with_tokenizer(block(folder)))["generator"]
    assert (generator.image_vocab_size, generator.scales) == (12, (8,))


DVAE = smoke()["image_tokenizer"]


def test_init_null_trains_as_before_and_training_is_allowed_beside_init(folder):
    preflight.check_params(with_tokenizer(DVAE | {"init": None}), 0)
    preflight.check_params(with_tokenizer(block(folder, training=DVAE["training"])), 0)
    preflight.check_params(with_tokenizer(block(folder, tune="decoder", training=DVAE["training"])), 0)


@pytest.mark.parametrize(
    ("settings", "image_size", "message"),
    [
        ({"training": {"step": 1}}, 32, "image_tokenizer.training has no key 'step'. Did you mean 'steps'"),
        ({"inti": "x"}, 32, "image_tokenizer has no key 'inti'. Did you mean 'init'?"),
        ({"dvae": {"width": 8}}, 32, "image_tokenizer.dvae cannot be used with image_tokenizer.init: {} has its own "
         "settings. Remove one of the two"),
        ({"tune": "decoder"}, 32, "image_tokenizer lacks the key 'training'"),
        ({"tune": "all"}, 32, "image_tokenizer.tune is 'all'"),
        (DVAE | {"tune": "decoder", "init": None}, 32, "image_tokenizer.tune is decoder, but image_tokenizer.init names no "
         "model to go on from. Set image_tokenizer.init, or remove image_tokenizer.tune"),
        ({}, 30, "data.image_size is 30, no multiple of the 4 pixels of a token's cell (dvae.patch 1 * 2 ** (dvae.groups 3 - "
         "1)); that is the tokenizer of image_tokenizer.init, {}"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_beside_init_are_named(folder, settings, image_size, message):
    assert f"params.yaml: {message.format(folder)}" in error_of(
        with_tokenizer(block(folder) | settings, image_size)
    )


def test_a_missing_folder_is_reported_with_the_command_that_writes_it(tmp_path):
    gone = tmp_path / "imported"
    assert error_of(with_tokenizer(block(gone))) == (
        f"params.yaml: image_tokenizer.init is {gone}, but there is no such folder. {FIX.format(gone)}"
    )
    gone.mkdir()
    missing = f"{gone}/manifest.json is missing, so nothing in {gone} can be trusted."
    assert error_of(with_tokenizer(block(gone))) == f"{missing} {FIX.format(gone)}"


def test_a_damaged_folder_is_reported(folder, tmp_path):
    damaged = shutil.copytree(folder, tmp_path / "imported")
    with open(damaged / "weights.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    message = error_of(with_tokenizer(block(damaged)))
    assert message.startswith(f"{damaged}/weights.safetensors is damaged: sha256 should be")
    assert message.endswith(FIX.format(damaged))


def test_a_tokenizer_of_another_kind_is_rejected(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    header = json.loads((folder / "config.json").read_bytes())
    write_json(other / "config.json", header | {"kind": "vqgan"})
    write_manifest(other, {"config.json": None, "weights.safetensors": None}, {})
    assert error_of(with_tokenizer(block(other))) == (
        f"params.yaml: image_tokenizer.kind is 'dvae', but image_tokenizer.init, {other}, holds a 'vqgan'. "
        "Set image_tokenizer.kind: vqgan"
    )


def test_a_kind_whose_weights_belong_to_one_size_accepts_that_size_only(folder, monkeypatch):
    class OfOneSize(torch.nn.Linear):
        def __init__(self, image_size: int):
            super().__init__(image_size, 1)
            self.image_size = image_size

    monkeypatch.setattr(components, "rebuild", lambda *_, image_size=16: OfOneSize(image_size))
    with pytest.raises(ConfigError) as caught:
        tokenizer_init.architecture(block(folder), 32)
    assert str(caught.value) == (
        f"params.yaml: data.image_size is 32, but the tokenizer of image_tokenizer.init, {folder}, takes images of "
        "16 pixels only. Set data.image_size: 16"
    )
