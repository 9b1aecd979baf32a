"""`image_tokenizer.init`: a tokenizer trained elsewhere replaces one trained here, or one sentence says why not."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages import train_image_tokenizer as stage
from tests.helpers.dalle_release import import_small, write_release
from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import tiny
from thousandwords import components, preflight
from thousandwords.core.config import ConfigError
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_json
from thousandwords.core.manifest import write_manifest
from thousandwords.data.images import decode_png, to_float
from thousandwords.data.pair_shards import PairReader
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig, SceneCounts
from thousandwords.planning.presets import read_preset
from thousandwords.pretrained import tokenizer_init
from thousandwords.training.distributed import SINGLE_PROCESS

SIDE = 32  # pixels of the pairs; the folder was written for 16
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
    ingest.write_pairs(DataConfig(image_size=SIDE, scenes=SceneCounts(24, 9, 2)), 0, folder)
    return folder


def block(folder: Path, **more: object) -> dict:
    return {"kind": "dvae", "init": str(folder), **more}


def params(image_tokenizer: dict, image_size: int = SIDE) -> dict:
    values = read_preset("smoke", ROOT / "presets")
    values["image_tokenizer"] = image_tokenizer
    values["data"]["image_size"] = image_size
    return values


def error_of(image_tokenizer: dict, image_size: int = SIDE) -> str:
    with pytest.raises(UserError) as caught:
        preflight.check_params(params(image_tokenizer, image_size), 0)
    return str(caught.value)


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


# --- copied -----------------------------------------------------------------------------------------------------------


def test_the_tokenizer_of_the_folder_is_the_stages_own_at_the_size_of_the_images(copied, folder):
    original = components.load("image_tokenizers", folder)
    saved = components.load("image_tokenizers", copied.out)

    assert (original.image_size, original.scales) == (16, (4,))
    assert (saved.image_size, saved.scales, saved.vocab_size) == (SIDE, (8,), 12)
    weights = original.state_dict()
    assert weights.keys() == saved.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in saved.state_dict().items())


def test_it_records_where_it_came_from(copied, folder):
    original = components.load("image_tokenizers", folder)
    header = components.load("image_tokenizers", copied.out).header
    assert header["taken_from"] == original.fingerprint
    assert header["pickle_sha256"] == original.header["pickle_sha256"]
    assert len(header["pickle_sha256"]["encoder"]) == 64


def test_its_curve_has_one_evaluation_on_held_out_images(copied, pairs_folder):
    rows = json.loads(copied.curves.read_bytes())
    model = components.load("image_tokenizers", copied.out)
    reader = PairReader(pairs_folder, "validation")
    images = to_float(reader.images(range(len(reader))))

    figures = {f"validation/{name}": value for name, value in stage.evaluate(model, images).items()}

    assert rows == [{"step": 0, **figures}] and copied.logged == [(0, figures)]
    names = ("psnr_hard", "codebook_used", "codebook_perplexity")
    assert set(figures) == {f"validation/{name}" for name in names}


def test_its_contact_sheet_shows_originals_above_reconstructions(copied):
    assert copied.files == [copied.curves.with_suffix(".png")]
    sheet = decode_png(copied.files[0].read_bytes())
    assert sheet.shape[1] >= 8 * SIDE and sheet.shape[0] >= 2 * SIDE


def test_large_images_are_evaluated_in_batches(monkeypatch, pairs_folder, folder):
    batch_sizes = []
    model = components.load("image_tokenizers", folder, image_size=SIDE)
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda batch: batch_sizes.append(len(batch)) or encode(batch))
    monkeypatch.setattr("thousandwords.image_tokenizers.base.MAX_BATCH_PIXELS", 4 * SIDE * SIDE)
    stage._encode_and_decode(model, torch.rand(9, 3, SIDE, SIDE))
    assert batch_sizes == [4, 4, 1]


# --- checked early ---------------------------------------------------------------------------------------------------


def test_the_check_passes_and_the_generator_is_built_for_its_tokens(folder, monkeypatch):
    built, build = {}, components.build

    def recording_build(family: str, kind: str, config: object, **sizes: object) -> torch.nn.Module:
        built[family] = sizes
        return build(family, kind, config, **sizes)

    monkeypatch.setattr(components, "build", recording_build)
    preflight.check_params(params(block(folder)), 0)
    sizes = built["generators"]
    assert (sizes["image_vocab_size"], sizes["scales"]) == (12, (8,))


def test_init_null_trains_as_before_and_training_is_allowed_beside_init(folder):
    smoke = read_preset("smoke", ROOT / "presets")["image_tokenizer"]
    preflight.check_params(params(smoke | {"init": None}), 0)
    preflight.check_params(params(block(folder, training=smoke["training"])), 0)
    assert "training has no key 'step'. Did you mean 'steps'" in error_of(block(folder, training={"step": 1}))


def test_settings_beside_init_are_rejected_because_they_would_not_be_used(folder):
    assert error_of(block(folder, dvae={"width": 8})) == (
        f"params.yaml: image_tokenizer.dvae cannot be used with image_tokenizer.init: {folder} has its own settings. "
        "Remove one of the two"
    )
    assert "image_tokenizer has no key 'inti'. Did you mean 'init'?" in error_of(block(folder, inti="x"))


def test_tune_needs_a_model_to_go_on_from_a_training_and_a_known_part(folder):
    smoke = read_preset("smoke", ROOT / "presets")["image_tokenizer"]
    preflight.check_params(params(block(folder, tune="decoder", training=smoke["training"])), 0)
    assert error_of(smoke | {"tune": "decoder"}) == (
        "params.yaml: image_tokenizer.tune is decoder, but image_tokenizer.init names no model to go on from. "
        "Set image_tokenizer.init, or remove image_tokenizer.tune"
    )
    assert "image_tokenizer lacks the key 'training'" in error_of(block(folder, tune="decoder"))
    assert "image_tokenizer.tune is 'all'" in error_of(block(folder, tune="all"))


@pytest.mark.parametrize("wrong", ["", 3, ["models/released"], True])
def test_an_init_that_names_no_folder_is_rejected(wrong):
    assert error_of({"kind": "dvae", "init": wrong}) == (
        f"params.yaml: image_tokenizer.init should be a folder, or null to train one here; found {wrong!r}"
    )


def test_a_missing_folder_is_reported_with_the_command_that_writes_it(tmp_path):
    gone = tmp_path / "imported"
    assert error_of(block(gone)) == (
        f"params.yaml: image_tokenizer.init is {gone}, but there is no such folder. {FIX.format(gone)}"
    )
    gone.mkdir()
    missing = f"{gone}/manifest.json is missing, so nothing in {gone} can be trusted."
    assert error_of(block(gone)) == f"{missing} {FIX.format(gone)}"


def test_a_damaged_folder_is_reported(folder, tmp_path):
    damaged = tmp_path / "imported"
    shutil.copytree(folder, damaged)
    with open(damaged / "weights.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    sentence = error_of(block(damaged))
    assert sentence.startswith(f"{damaged}/weights.safetensors is damaged: sha256 should be")
    assert sentence.endswith(FIX.format(damaged))


def test_a_model_of_another_family_or_kind_is_rejected(folder, tmp_path):
    components.save(tiny("scorers", "clip"), tmp_path / "scorer")
    assert error_of(block(tmp_path / "scorer")) == (
        f"params.yaml: image_tokenizer.init is {tmp_path}/scorer, which holds scorer. Name the folder of a trained "
        "image_tokenizer, or a package that has one"
    )
    shutil.copytree(folder, tmp_path / "other")
    header = json.loads((folder / "config.json").read_bytes())
    write_json(tmp_path / "other" / "config.json", header | {"kind": "vqgan"})
    write_manifest(tmp_path / "other", {"config.json": None, "weights.safetensors": None}, {})
    assert error_of(block(tmp_path / "other")) == (
        f"params.yaml: image_tokenizer.kind is 'dvae', but image_tokenizer.init, {tmp_path}/other, holds a 'vqgan'. "
        "Set image_tokenizer.kind: vqgan"
    )


def test_images_that_its_cells_do_not_divide_are_rejected(folder):
    assert error_of(block(folder), image_size=30) == (
        "params.yaml: data.image_size is 30, no multiple of the 4 pixels of a token's cell "
        f"(dvae.patch 1 * 2 ** (dvae.groups 3 - 1)); that is the tokenizer of image_tokenizer.init, {folder}"
    )


def test_a_kind_whose_weights_belong_to_one_size_accepts_that_size_only(folder, monkeypatch):
    class OfOneSize(torch.nn.Linear):
        def __init__(self, image_size: int):
            super().__init__(image_size, 1)
            self.image_size = image_size

    monkeypatch.setattr(components, "rebuild", lambda *_, image_size=16: OfOneSize(image_size))
    with pytest.raises(ConfigError) as caught:
        tokenizer_init.architecture(block(folder), SIDE)
    assert str(caught.value) == (
        f"params.yaml: data.image_size is 32, but the tokenizer of image_tokenizer.init, {folder}, takes images of "
        "16 pixels only. Set data.image_size: 16"
    )
