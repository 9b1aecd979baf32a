"""The weights that `adversary` and `perceptual` of params.yaml name: read without running code, checked, recorded."""

import pytest
import torch

from flows.dvc.init_models import is_outdated
from tests.helpers.malicious_files import touching
from tests.helpers.tiny_models import random_images, rng, tiny
from thousandwords import components
from thousandwords.core import init_models
from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.nn import perceptual
from thousandwords.nn.image_losses import ImageLossConfig
from thousandwords.pretrained import image_losses
from thousandwords.pretrained.image_losses import build_image_losses

WIDTHS = ((4, 4), (4, 6), (8,), (8,), (8,))


def build(network, image_size: int = 32, **settings):
    block = {"perceptual": {"network": str(network), **settings}}
    return build_image_losses(section(block, "decoder", ImageLossConfig), image_size, "decoder")


@pytest.fixture()
def files(tmp_path, monkeypatch):
    """A folder with a small VGG and its LPIPS weights, as torch.save wrote them."""
    for module in (perceptual, image_losses):
        monkeypatch.setattr(module, "VGG_WIDTHS", WIDTHS)
    torch.manual_seed(0)
    vgg = perceptual.VGG16().state_dict()
    lpips = {f"lin{part}.model.1.weight": torch.rand(1, each[-1], 1, 1) for part, each in enumerate(WIDTHS)}
    torch.save({**vgg, "classifier.0.weight": torch.zeros(3, 3)}, tmp_path / "vgg16.pth")
    torch.save(lpips, tmp_path / "lpips.pth")
    return tmp_path


@pytest.mark.paper("vqgan: perceptual term")
def test_a_file_of_vgg_and_one_of_lpips_give_that_distance(files):
    images, decoded = torch.rand(2, 2, 3, 32, 32, generator=rng())
    network, lpips = perceptual.VGG16(), torch.load(files / "lpips.pth", weights_only=True)
    weights = torch.load(files / "vgg16.pth", weights_only=True)
    weights.pop("classifier.0.weight")
    network.load_state_dict(weights)
    expected = perceptual.PerceptualDistance(network, [each.flatten() for each in lpips.values()])(
        images, decoded
    )

    distance = build(files / "vgg16.pth", lpips=str(files / "lpips.pth")).perceptual

    torch.testing.assert_close(distance(images, decoded), expected)
    assert not any(weight.requires_grad for weight in distance.parameters())
    assert build(files / "vgg16.pth").perceptual(images, decoded) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.0.weight": torch.zeros(4, 3, 5, 5)}, r"expected \(4, 3, 3, 3\), found \(4, 3, 5, 5\)"),
        ({"features.99.weight": torch.zeros(1)}, "expected none, found"),
        ({"features.0.bias": torch.full((4,), float("nan"))}, "numbers that are not finite"),
    ],
)
def test_a_file_with_other_tensors_is_rejected(files, change, message):
    torch.save(torch.load(files / "vgg16.pth") | change, files / "vgg16.pth")
    with pytest.raises(UserError, match=message):
        build(files / "vgg16.pth")


def test_a_file_that_would_run_code_is_rejected_and_runs_none(files):
    weights = torch.load(files / "vgg16.pth")
    torch.save(weights | {"features.0.weight": touching(files / "marker")}, files / "vgg16.pth")
    with pytest.raises(UserError):
        build(files / "vgg16.pth")
    assert not (files / "marker").exists()


def test_the_features_can_be_those_of_a_trained_scorer(tmp_path):
    components.save(tiny("scorers", "clip"), tmp_path / "scorer")
    images = random_images(2)

    losses = build(tmp_path, image_size=16)  # a package, or a folder of models

    assert losses.perceptual(images, images).item() == 0
    assert losses.perceptual(images, random_images(2, seed=1)).item() > 0
    message = "decoder.perceptual.lpips is for VGG-16, but perceptual.network is a scorer"
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, lpips="lpips.pth")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("models/scorer", "which this pipeline writes anew. Copy it first"),
        ("models/decoder", "decoder.perceptual.network is models/decoder, which holds no scorer"),
        ("missing.pth", "^params.yaml: decoder.perceptual.network, missing.pth, does not exist"),
    ],
)
def test_a_network_that_cannot_be_used_is_named_with_the_fix(tmp_path, monkeypatch, network, message):
    monkeypatch.chdir(tmp_path)
    components.save(tiny("scorers", "clip"), tmp_path / "models/scorer")
    components.save(tiny("decoders", "unet"), tmp_path / "models/decoder")
    with pytest.raises(UserError, match=message):
        build(network)


def test_settings_that_do_not_fit_the_images_are_rejected(files):
    config = section({"adversary": {"start": 0}}, "image_tokenizer", ImageLossConfig)
    message = "params.yaml: image_tokenizer.adversary.layers is 3, which needs images of 24"
    with pytest.raises(ConfigError, match=message):
        build_image_losses(config, 16, "image_tokenizer")
    with pytest.raises(ConfigError, match="needs images of 32 pixels or more, but image_size is 16"):
        build(files / "vgg16.pth", image_size=16)


def test_another_file_under_the_recorded_name_runs_the_stage_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg16.pth").write_bytes(b"first")
    block = {"kind": "unet", "perceptual": {"network": "vgg16.pth"}}
    fingerprints = init_models.perceptual_fingerprints(block, "decoder")
    init_models.write_record("decoder", None, None, perceptual=fingerprints)

    assert not is_outdated(block, "decoder") and not is_outdated({"kind": "unet"}, "decoder")
    (tmp_path / "vgg16.pth").write_bytes(b"second")
    assert is_outdated(block, "decoder")
    (tmp_path / "vgg16.pth").unlink()
    assert is_outdated(block, "decoder")  # check_params says what is missing
