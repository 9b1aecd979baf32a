"""`image_tokenizer.init`: a tokenizer trained elsewhere takes the place of one trained here, or one sentence says why not."""
from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from stages import _pretrained, check_params
from stages import train_image_tokenizer as stage
from tests.published import SMALL, write_published
from tests.tiny import tiny
from thousandwords import components, images, pair_settings, pairs, released
from thousandwords.config import ConfigError
from thousandwords.distributed import ALONE
from thousandwords.errors import UserError
from thousandwords.files import write_json, write_manifest
from thousandwords.pair_shards import PairReader
from thousandwords.tokenizers import dvae

ROOT = Path(__file__).parent.parent
SIDE = 32  # pixels of the pairs; the folder was written for 16
MEND = "Run: python -m thousandwords convert --encoder encoder.pkl --decoder decoder.pkl --out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A converted stand-in of the released tokenizer, for pictures of 16 pixels; to be read only."""
    folder = tmp_path_factory.mktemp("released")
    write_published(folder, "zip")
    config = dvae.Config(**{"blocks_per_group" if name == "blocks" else name: size for name, size in SMALL.items()})
    pickles = {"encoder": folder / "encoder.pkl", "decoder": folder / "decoder.pkl"}
    released.convert(pickles, folder / "released", config=config, image_size=16)
    return folder / "released"


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    pairs.write_pairs(pairs.Config(image_size=SIDE, scenes=pair_settings.SceneCounts(24, 9, 2)), 0, folder)
    return folder


def block(folder: Path, **more: object) -> dict:
    return {"kind": "dvae", "init": str(folder), **more}


def params(image_tokenizer: dict, image_size: int = SIDE) -> dict:
    found = copy.deepcopy(yaml.safe_load((ROOT / "presets" / "smoke.yaml").read_text()))
    found["image_tokenizer"] = image_tokenizer
    found["data"]["image_size"] = image_size
    return found


def refusal(image_tokenizer: dict, image_size: int = SIDE) -> str:
    with pytest.raises(UserError) as caught:
        check_params.check_params(params(image_tokenizer, image_size), 0)
    return str(caught.value)


@pytest.fixture
def taken(folder, pairs_folder, tmp_path, monkeypatch):
    """The stage, run with `init`; training would fail."""

    def never(*_, **__):
        raise AssertionError("a tokenizer that was taken over was trained")

    monkeypatch.setattr(stage, "train", never)
    logged, files = [], []
    run = SimpleNamespace(
        name="train_image_tokenizer",
        params={"image_tokenizer": block(folder), "device": "cpu", "seed": 0},
        seed=0,
        world=ALONE,
        log=lambda step, values: logged.append((step, values)),
        record_files=lambda *paths: files.extend(paths),
    )
    stage.train_image_tokenizer(pairs_folder, tmp_path / "out", tmp_path / "curves.json", run)
    return SimpleNamespace(out=tmp_path / "out", curves=tmp_path / "curves.json", logged=logged, files=files)


# --- taken over ------------------------------------------------------------------------------------------------------


def test_the_tokenizer_of_the_folder_is_the_stages_own_at_the_size_of_the_pictures(taken, folder):
    theirs, ours = components.load("tokenizers", folder), components.load("tokenizers", taken.out)

    assert (theirs.image_size, theirs.scales) == (16, (4,))
    assert (ours.image_size, ours.scales, ours.vocab_size) == (SIDE, (8,), 12)
    weights = theirs.state_dict()
    assert weights.keys() == ours.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in ours.state_dict().items())


def test_it_keeps_where_it_came_from(taken, folder):
    theirs = components.load("tokenizers", folder)
    header = components.load("tokenizers", taken.out).header
    assert header["taken_from"] == theirs.fingerprint
    assert header["pickle_sha256"] == theirs.header["pickle_sha256"] and len(header["pickle_sha256"]["encoder"]) == 64


def test_its_curve_is_one_look_at_held_out_pictures(taken, pairs_folder):
    rows = json.loads(taken.curves.read_bytes())
    model = components.load("tokenizers", taken.out)
    reader = PairReader(pairs_folder, "validation")
    watched = images.to_float(reader.images(range(len(reader))))

    figures = {f"validation/{name}": value for name, value in stage.look(model, watched).items()}

    assert rows == [{"step": 0, **figures}] and taken.logged == [(0, figures)]
    assert set(figures) == {"validation/psnr_hard", "validation/codebook_used", "validation/codebook_perplexity"}


def test_its_contact_sheet_shows_originals_above_what_it_keeps_of_them(taken):
    assert taken.files == [taken.curves.with_suffix(".png")]
    sheet = images.decode_png(taken.files[0].read_bytes())
    assert sheet.shape[1] >= 8 * SIDE and sheet.shape[0] >= 2 * SIDE


def test_large_pictures_are_looked_at_a_few_at_a_time(monkeypatch, pairs_folder, folder):
    seen = []
    model = components.load("tokenizers", folder, image_size=SIDE)
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda batch: seen.append(len(batch)) or encode(batch))
    monkeypatch.setattr("thousandwords.tokenizers.PIXELS_AT_ONCE", 4 * SIDE * SIDE)
    stage._through(model, torch.rand(9, 3, SIDE, SIDE))
    assert seen == [4, 4, 1]


# --- checked early ---------------------------------------------------------------------------------------------------


def test_the_check_passes_and_the_generator_is_built_for_its_words(folder, monkeypatch):
    built, build = {}, components.build

    def watched_build(family: str, kind: str, config: object, **sizes: object) -> torch.nn.Module:
        built[family] = sizes
        return build(family, kind, config, **sizes)

    monkeypatch.setattr(components, "build", watched_build)
    check_params.check_params(params(block(folder)), 0)
    sizes = built["generators"]
    assert (sizes["image_vocab_size"], sizes["scales"]) == (12, (8,))


def test_init_null_trains_as_ever_and_training_may_stay_beside_init(folder):
    smoke = params({})["image_tokenizer"] | yaml.safe_load((ROOT / "presets/smoke.yaml").read_text())["image_tokenizer"]
    check_params.check_params(params(smoke | {"init": None}), 0)
    check_params.check_params(params(block(folder, training=smoke["training"])), 0)
    assert "training has no key 'step'. Did you mean 'steps'" in refusal(block(folder, training={"step": 1}))


def test_settings_beside_init_are_refused_since_nobody_would_read_them(folder):
    assert refusal(block(folder, dvae={"width": 8})) == (
        f"params.yaml: image_tokenizer.dvae has no use beside image_tokenizer.init: {folder} brings its own settings. "
        "Leave one of the two out"
    )
    assert "image_tokenizer has no key 'inti'. Did you mean 'init'?" in refusal(block(folder, inti="x"))


@pytest.mark.parametrize("wrong", ["", 3, ["models/released"], True])
def test_an_init_that_names_no_folder_is_refused(wrong):
    assert refusal({"kind": "dvae", "init": wrong}) == (
        f"params.yaml: image_tokenizer.init should be a folder, or null to train one here; found {wrong!r}"
    )


def test_a_missing_folder_is_told_with_the_command_that_writes_it(tmp_path):
    gone = tmp_path / "released"
    assert refusal(block(gone)) == (
        f"params.yaml: image_tokenizer.init is {gone}, but there is no such folder. {MEND} {gone}"
    )
    gone.mkdir()
    assert refusal(block(gone)) == f"{gone}/manifest.json is missing, so nothing in {gone} can be trusted. {MEND} {gone}"


def test_a_damaged_folder_is_told(folder, tmp_path):
    damaged = tmp_path / "released"
    shutil.copytree(folder, damaged)
    with open(damaged / "weights.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    sentence = refusal(block(damaged))
    assert sentence.startswith(f"{damaged}/weights.safetensors is damaged: sha256 should be")
    assert sentence.endswith(f"{MEND} {damaged}")


def test_a_model_of_another_family_or_kind_is_refused(folder, tmp_path):
    components.save(tiny("scorers", "clip"), tmp_path / "scorer")
    assert refusal(block(tmp_path / "scorer")) == (
        f"{tmp_path}/scorer holds one of the scorers, but one of the tokenizers was wanted"
    )
    shutil.copytree(folder, tmp_path / "other")
    header = json.loads((folder / "config.json").read_bytes())
    write_json(tmp_path / "other" / "config.json", header | {"kind": "vqgan"})
    write_manifest(tmp_path / "other", {"config.json": None, "weights.safetensors": None}, {})
    assert refusal(block(tmp_path / "other")) == (
        f"params.yaml: image_tokenizer.kind is 'dvae', but image_tokenizer.init, {tmp_path}/other, holds a 'vqgan'. "
        "Set image_tokenizer.kind: vqgan"
    )


def test_pictures_that_its_cells_do_not_divide_are_refused(folder):
    assert refusal(block(folder), image_size=30) == (
        "params.yaml: data.image_size is 30, no multiple of the 4 pixels of a word's cell "
        f"(dvae.patch 1 * 2 ** (dvae.groups 3 - 1)); that is the tokenizer of image_tokenizer.init, {folder}"
    )


def test_a_kind_whose_weights_belong_to_one_size_takes_that_size_only(folder, monkeypatch):
    class OfOneSize(torch.nn.Linear):
        def __init__(self, image_size: int):
            super().__init__(image_size, 1)
            self.image_size = image_size

    monkeypatch.setattr(components, "rebuild", lambda *_, image_size=16: OfOneSize(image_size))
    with pytest.raises(ConfigError) as caught:
        _pretrained.architecture(block(folder), SIDE)
    assert str(caught.value) == (
        f"params.yaml: data.image_size is 32, but the tokenizer of image_tokenizer.init, {folder}, takes pictures of "
        "16 pixels only. Set data.image_size: 16"
    )
