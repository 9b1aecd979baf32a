"""Published weights of taming-transformers and LlamaGen become a vqgan of ours: the same tokens, the same images."""

import argparse
import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers import published_vqgan
from tests.helpers.malicious_files import PICKLES, touching, with_new
from tests.helpers.paths import ROOT
from tests.helpers.published_vqgan import LAYOUTS, PUBLISHED, Sizes, checkpoint, random_weights, write
from tests.helpers.tiny_models import SIDE, random_images
from tests.unit.pretrained import test_safe_pickle
from thousandwords import __main__ as command
from thousandwords import components, preflight
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.image_tokenizers.vqgan.model import VQGAN, VQGANConfig
from thousandwords.planning.presets import read_preset
from thousandwords.pretrained import vqgan_weights

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
TOKENIZERS = {
    **{layout: (layout, Sizes()) for layout in LAYOUTS},
    "taming Gumbel": ("taming", Sizes(is_gumbel=True)),
}
every_tokenizer = pytest.mark.parametrize(("layout", "sizes"), TOKENIZERS.values(), ids=TOKENIZERS)
OTHER = {"taming": "llamagen", "llamagen": "taming"}
IGNORED = "quantize.codebook_used"


def imported(path: Path, layout: str, **settings: object) -> VQGAN:
    out = path.parent / "imported"
    vqgan_weights.import_weights(path, layout, out, **{"image_size": SIDE} | settings)
    return components.load("image_tokenizers", out)


def error_of(path: Path, layout: str, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        imported(path, layout, **settings)
    assert "\n" not in str(caught.value) and not (path.parent / "imported").exists()
    return str(caught.value)


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.paper("vqgan: trunk", "vqgan: attention", "vqgan: down, up", "vqgan: tokens", "vqgan: f8")
@every_tokenizer
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_tokens_and_images_are_those_of_the_published_architecture(tmp_path, layout, sizes, container):
    weights = random_weights(layout, sizes)
    images = random_images(8)

    model = imported(write(tmp_path / "weights.pt", layout, weights, container), layout)

    tokens = published_vqgan.encode(images, weights, layout, sizes)
    assert model.encode(images).equal(tokens) and tokens.unique().numel() >= 8
    difference = model.decode(tokens) - published_vqgan.decode(tokens, weights, layout, sizes)
    assert difference.abs().max() <= 1e-5


@pytest.mark.paper("vqgan: key layout")
@every_tokenizer
def test_every_number_arrives_under_our_names(tmp_path, layout, sizes):
    weights = random_weights(layout, sizes)

    model = imported(write(tmp_path / "weights.pt", layout, weights), layout)

    names, state = vqgan_weights.published_names(model, layout), model.state_dict()
    assert sorted(names.values()) == sorted(weights.keys() - {IGNORED})
    assert all(state[name].equal(weights[published]) for name, published in names.items())


@pytest.mark.paper("vqgan: size", "vqgan: f8")
@pytest.mark.parametrize(("layout", "sizes", "tensors", "numbers"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_published_sizes_follow_from_the_shapes(layout, sizes, tensors, numbers):
    shapes = published_vqgan.shapes(layout, sizes)
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == numbers
    shapes.pop(IGNORED, None)

    vqgan_weights._check(shapes, layout, image_size=256)

    model = vqgan_weights._model(shapes, layout, image_size=256)
    assert model.scales == (256 // 2 ** (len(sizes.multipliers) - 1),)
    if sizes == PUBLISHED["LlamaGen VQ-16"][1]:
        assert model.config == VQGANConfig()


@pytest.mark.paper("vqgan: key layout")
def test_the_averaged_weights_of_llamagen_come_first_and_the_header_says_so(tmp_path):
    averaged, last = random_weights("llamagen", seed=1), random_weights("llamagen")
    torch.save({**checkpoint("llamagen", last), "ema": averaged}, tmp_path / "weights.pt")
    model = imported(tmp_path / "weights.pt", "llamagen")
    assert model.quantizer.vectors.equal(averaged["quantize.embedding.weight"])
    assert model.header["pickle_part"] == "ema"


@every_layout
def test_a_bare_state_dict_is_read_too(tmp_path, layout):
    torch.save(random_weights(layout), tmp_path / "weights.pt")
    model = imported(tmp_path / "weights.pt", layout)
    assert model.vocab_size == 24 and model.header["pickle_part"] == ""


def test_a_checkpoint_as_long_as_taming_published_it_is_within_the_bounds(tmp_path):
    """Five levels, as in f16, and the states of two optimizers; all narrow, because only names count."""
    weights = random_weights("taming", Sizes(multipliers=(1, 1, 1, 1, 1), blocks=2))
    loss = {f"loss.perceptual_loss.net.slice{n}.{n}.weight": torch.zeros(1) for n in range(60)}
    names = range(len(weights) + len(loss))
    moments = ("step", "exp_avg", "exp_avg_sq")
    states = [
        {"state": {number: {moment: torch.zeros(1) for moment in moments} for number in part}}
        for part in (names[:-20], names[-20:])
    ]
    saved = {**checkpoint("taming", weights | loss), "optimizer_states": states}
    for container in ("zip", "legacy"):
        torch.save(saved, tmp_path / "weights.pt", _use_new_zipfile_serialization=container == "zip")
        assert imported(tmp_path / "weights.pt", "taming").config.blocks == 2


@every_layout
def test_importing_again_writes_the_same_bytes(tmp_path, layout):
    path = write(tmp_path / "weights.pt", layout, random_weights(layout))
    for name in ("one", "two"):
        vqgan_weights.import_weights(path, layout, tmp_path / name)
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert first == second and set(first) == {"config.json", "weights.safetensors", "manifest.json"}


# --- what does not fit ------------------------------------------------------------------------------------------------


def without(name: str, weights: dict) -> dict:
    return {key: value for key, value in weights.items() if key != name}


def with_nan(weights: dict) -> dict:
    return weights | {"quant_conv.bias": weights["quant_conv.bias"] / 0}


UNFIT = {
    "a missing tensor": (
        partial(without, "decoder.conv_out.bias"),
        "does not fit the tokenizer of {layout}: 1 tensors differ, the first is decoder.conv_out.bias: "
        "expected (3,), found none. Download it again",
    ),
    "an unexpected tensor": (
        lambda weights: weights | {"encoder.extra.bias": torch.zeros(3)},
        "1 tensors differ, the first is encoder.extra.bias: expected none, found (3,)",
    ),
    "a wrong shape": (
        lambda weights: weights | {"post_quant_conv.weight": torch.zeros(12, 7, 1, 1)},
        "the first is post_quant_conv.weight: expected (12, 6, 1, 1), found (12, 7, 1, 1)",
    ),
    "no first convolution": (
        partial(without, "encoder.conv_in.weight"),
        "holds no tokenizer of {layout}: it has no encoder.conv_in.weight with 4 axes",
    ),
    "a codebook of one number": (
        lambda weights: weights | {"quantize.embedding.weight": torch.zeros(())},
        "it has no quantize.embedding.weight with 2 axes",
    ),
    "a width that 32 groups do not divide": (
        lambda weights: weights | {"encoder.conv_in.weight": torch.zeros(16, 3, 3, 3)},
        "holds no tokenizer of {layout}: vqgan.width is 16, no multiple of vqgan.norm_groups, 32",
    ),
    "numbers that are not finite": (
        with_nan,
        "has numbers that are not finite, the first in quant_conv.bias",
    ),
    "float64": (
        lambda weights: {name: value.double() for name, value in weights.items()},
        "asks for torch.DoubleStorage, which a state dict does not use",
    ),
    "codes of two kinds": (
        lambda weights: weights | {"quantize.embed.weight": torch.zeros(24, 6)},
        "3 tensors differ, the first is quantize.embedding.weight: expected none, found (24, 6)",
    ),
    "VAR's tokenizer": (
        lambda weights: weights | {"quantize.quant_resi.qresi_ls.0.weight": torch.zeros(6, 6, 3, 3)},
        "holds VAR's tokenizer of several scales. Give --from var",
    ),
    "another model": (
        lambda _: {"conv1.weight": torch.zeros(8, 3, 3, 3)},
        "holds no tokenizer of {layout}: it has no encoder.conv_in.weight with 4 axes",
    ),
}


@every_layout
@pytest.mark.parametrize(("change", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_rejected_by_name(tmp_path, layout, change, message):
    path = write(tmp_path / "weights.pt", layout, change(random_weights(layout)))
    sentence = error_of(path, layout)
    assert sentence.startswith(f"{path} ") and message.format(layout=layout) in sentence


@every_layout
def test_a_file_of_the_other_codebase_is_rejected_with_its_name(tmp_path, layout):
    path = write(tmp_path / "weights.pt", layout, random_weights(layout))
    torch.save({"state_dict": random_weights(layout)}, path)
    assert error_of(path, OTHER[layout]) == f"{path} has the names of another codebase. Give --from {layout}"


def test_images_that_its_cells_do_not_divide_are_rejected(tmp_path):
    path = write(tmp_path / "weights.pt", "taming", random_weights("taming"))
    assert "image_size is 18, no multiple of the 4 pixels" in error_of(path, "taming", image_size=18)


@every_layout
def test_the_expected_sha256_is_compared_before_the_file_is_read(tmp_path, layout, monkeypatch):
    path = write(tmp_path / "weights.pt", layout, random_weights(layout))
    model = imported(path, layout, expected_sha256=sha256_of(path).upper())
    assert model.header["pickle_sha256"] == {"weights": sha256_of(path)} and model.header["layout"] == layout

    monkeypatch.setattr(
        vqgan_weights, "read_state_dict", lambda *_: pytest.fail("read before it was compared")
    )
    with pytest.raises(UserError, match=r"is not the expected file: its sha256 should be 000"):
        imported(path, layout, expected_sha256="0" * 64)


# --- hostile files ----------------------------------------------------------------------------------------------------


@every_layout
@pytest.mark.parametrize("payload", PICKLES.values(), ids=PICKLES)
def test_a_hostile_file_is_rejected_and_not_run(tmp_path, layout, payload):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    path.write_bytes(payload(marker))
    error_of(path, layout)
    assert not marker.exists()


# in one container each: test_safe_pickle.py tries both
@pytest.mark.parametrize(
    ("name", "container"),
    zip(test_safe_pickle.HOSTILE | test_safe_pickle.BOMBS, itertools.cycle(test_safe_pickle.CONTAINERS)),
)
def test_the_hostile_pickles_of_the_other_import_are_rejected_here_too(
    tmp_path, name, container, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    program, _ = (test_safe_pickle.HOSTILE | test_safe_pickle.BOMBS)[name]
    error_of(test_safe_pickle.write_container(tmp_path / "weights.pt", program, container), "taming")
    assert not Path("marker").exists()


HOSTILE_PARTS = {
    "a call": touching,
    "an object with its own __new__": with_new,
    "a namespace that holds a call": lambda marker: argparse.Namespace(lr=touching(marker)),
    "a callback's state that holds a call": lambda marker: {
        published_vqgan.ModelCheckpoint: touching(marker)
    },
}


@pytest.mark.paper("vqgan: to ignore")
@every_layout
@pytest.mark.parametrize("part", HOSTILE_PARTS.values(), ids=HOSTILE_PARTS)
def test_what_stands_beside_the_weights_is_never_run(tmp_path, layout, part):
    path, marker, weights = tmp_path / "weights.pt", tmp_path / "marker", random_weights(layout)
    torch.save({"args": part(marker), **checkpoint(layout, weights)}, path)
    assert imported(path, layout).encode(random_images(1)).shape == (1, 16)
    assert not marker.exists()


@every_layout
@pytest.mark.parametrize("part", HOSTILE_PARTS.values(), ids=HOSTILE_PARTS)
def test_a_weight_that_is_a_call_is_missing_and_not_run(tmp_path, layout, part):
    marker = tmp_path / "marker"
    weights = random_weights(layout) | {"quant_conv.bias": part(marker)}
    path = write(tmp_path / "weights.pt", layout, weights)
    assert "the first is quant_conv.bias: expected (6,), found none" in error_of(path, layout)
    assert not marker.exists()


# --- where it is used -------------------------------------------------------------------------------------------------


def test_the_check_accepts_it_as_the_tokenizer_to_start_from(tmp_path):
    imported(write(tmp_path / "weights.pt", "taming", random_weights("taming")), "taming")
    params = read_preset("smoke", ROOT / "presets")
    training = params["image_tokenizer"]["training"]
    for more in ({}, {"tune": "decoder", "training": training}):
        params["image_tokenizer"] = {"kind": "vqgan", "init": str(tmp_path / "imported"), **more}
        preflight.check_params(params, 0)


@every_layout
def test_the_command_writes_a_tokenizer_and_prints_how_to_use_it(tmp_path, layout, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(Path("weights.pt"), layout, random_weights(layout), "legacy")

    command.main(["import-weights", "--from", layout, "--weights", "weights.pt"])

    out = Path(f"models/{layout}_release")
    model = components.load("image_tokenizers", out)
    assert json.loads((out / "config.json").read_bytes())["arguments"] == {"image_size": 256}
    assert capsys.readouterr().out.splitlines() == [
        f"weights: weights.pt, sha256 {sha256_of(path)}",
        "weights: torch's legacy container has no checksum; only --weights-sha256 sees a damaged number in it",
        f"weights: those under {model.header['pickle_part']!r} in the checkpoint",
        f"{out}: fingerprint {model.fingerprint}. Use it by image_tokenizer: {{kind: vqgan, init: {out}}}",
    ]


@pytest.mark.parametrize("options", [["--from", "taming"], ["--weights", "weights.pt"]])
def test_a_checkpoint_without_its_codebase_or_the_other_way_round_is_an_error(options, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["import-weights", *options])
    assert caught.value.code == 2
    expected = "--weights names the checkpoint of --from taming, llamagen, var or var_transformer"
    assert expected in capsys.readouterr().err
