"""The published weights of VAR's tokenizer become a multi_scale of ours: the same tokens, the same images."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers import published_var
from tests.helpers.malicious_files import PICKLES
from tests.helpers.published_var import SMALL_SCALES, random_weights
from tests.helpers.tiny_models import random_images
from thousandwords import __main__ as command
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.pretrained import var_weights


def write(path: Path, weights: dict, container: str = "zip") -> Path:
    torch.save(weights, path, _use_new_zipfile_serialization=container == "zip")
    return path


def imported(path: Path, **settings: object) -> torch.nn.Module:
    var_weights.import_weights(path, path.parent / "imported", **{"scales": SMALL_SCALES} | settings)
    return components.load("image_tokenizers", path.parent / "imported")


@pytest.mark.paper("multi_scale: trunk", "multi_scale: one scale", "multi_scale: keys")
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_tokens_and_images_are_those_of_the_published_architecture(tmp_path, container):
    weights, images = random_weights(), random_images(8)

    model = imported(write(tmp_path / "weights.pth", weights, container))

    tokens, sums = published_var.encode(images, weights)
    assert model.encode(images).equal(tokens) and tokens.unique().numel() >= 8
    differences = [found - after for found, after in zip(model.latents_so_far(tokens), sums, strict=True)]
    differences.append(model.decode(tokens) - published_var.decode(sums[-1], weights))
    assert max(each.abs().max() for each in differences) <= 1e-5


@pytest.mark.paper("multi_scale: size", "multi_scale: keys")
def test_the_published_sizes_follow_from_the_shapes():
    shapes = published_var.shapes(published_var.PUBLISHED, num_scales=10)
    assert len(shapes) == 324
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 108_989_315
    shapes.pop("quantize.ema_vocab_hit_SV")

    var_weights._check(shapes, var_weights.SCALES)

    model = var_weights._model(shapes, var_weights.SCALES)
    assert (model.image_size, model.num_tokens, model.vocab_size) == (256, 680, 4096)


UNFIT = {
    "a missing tensor": (
        lambda weights: {
            name: value for name, value in weights.items() if name != "decoder.mid.attn_1.qkv.bias"
        },
        "does not fit the tokenizer of VAR: 1 tensors differ, the first is decoder.mid.attn_1.qkv.bias: expected (192,), "
        "found none. Download it again",
    ),
    "an unexpected tensor": (
        lambda weights: weights | {"encoder.extra.bias": torch.zeros(3)},
        "1 tensors differ, the first is encoder.extra.bias: expected none, found (3,)",
    ),
    "1 x 1 next to the codes": (
        lambda weights: weights | {"quant_conv.weight": torch.zeros(8, 8, 1, 1)},
        "the first is quant_conv.weight: expected (8, 8, 3, 3), found (8, 8, 1, 1)",
    ),
    "no phi": (
        lambda weights: {name: value for name, value in weights.items() if "quant_resi" not in name},
        "holds no tokenizer of VAR: multi_scale.num_phi is 0; it needs to be 1 or more",
    ),
    "another model": (
        lambda _: {"conv1.weight": torch.zeros(8, 3, 3, 3)},
        "holds no tokenizer of VAR: it has no encoder.conv_in.weight with 4 axes",
    ),
    "numbers that are not finite": (
        lambda weights: weights | {"quant_conv.bias": weights["quant_conv.bias"] / 0},
        "has numbers that are not finite, the first in quant_conv.bias",
    ),
}


@pytest.mark.parametrize(("change", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_rejected_by_name(tmp_path, change, message):
    path = write(tmp_path / "weights.pth", change(random_weights()))
    with pytest.raises(UserError) as caught:
        imported(path)
    assert str(caught.value).startswith(f"{path} ") and message in str(caught.value)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("payload", PICKLES.values(), ids=PICKLES)
def test_a_hostile_file_is_rejected_and_not_run(tmp_path, payload):
    path, marker = tmp_path / "weights.pth", tmp_path / "marker"
    path.write_bytes(payload(marker))
    with pytest.raises(UserError):
        imported(path)
    assert not marker.exists()


def test_the_command_writes_a_tokenizer_and_prints_how_to_use_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(Path("vae.pth"), random_weights())

    command.main(["import-weights", "--from", "var", "--weights", "vae.pth"])

    header = json.loads(Path("models/var_release/config.json").read_bytes())
    assert header["pickle_sha256"] == {"weights": sha256_of(path)} and header["kind"] == "multi_scale"
    assert capsys.readouterr().out.splitlines()[-1].endswith("{kind: multi_scale, init: models/var_release}")
