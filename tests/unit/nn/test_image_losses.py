"""The adversary: its discriminator, its losses in one scalar, its weight, and when it takes part; LPIPS' distance."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.helpers.tiny_models import image_tokens, random_images, rng, tiny
from thousandwords.core.config import ConfigError, section
from thousandwords.nn.adversary import Adversary, AdversaryConfig, build_discriminator
from thousandwords.nn.image_losses import ImageLossConfig, ImageLosses, PerceptualConfig
from thousandwords.nn.perceptual import VGG16, PerceptualDistance

KINDS = [
    *(("image_tokenizers", kind) for kind in ("dvae", "vqvae", "vqgan", "multi_scale")),
    ("decoders", "unet"),
    ("decoders", "flow"),
    ("decoders", "consistency"),
]
SMALL = {"start": 5, "width": 16, "layers": 1}


def parts(**settings) -> ImageLosses:
    torch.manual_seed(1)
    losses = ImageLosses(ImageLossConfig(AdversaryConfig(**{**SMALL, **settings})))
    for weight in losses.parameters():  # N(0, .02) says nearly the same of all images
        weight.data *= 10
    return losses


def model_with(losses: nn.Module, family: str, kind: str) -> nn.Module:
    model = tiny(family, kind)
    model.training_only = losses
    return model.train().requires_grad_(True)


def loss_of(model: nn.Module, family: str, step: int):
    batch = (random_images(4),)
    if family == "decoders":
        batch = (*batch, image_tokens(4), random_images(4, seed=1))
    return model.loss(*batch, step, rng())


class Recorder(nn.Module):
    """Keeps what a model gives to its `training_only`, and adds nothing."""

    def forward(self, error, images, decoded, last_layer, step):
        self.seen = error, images, decoded, last_layer
        return error, {}


# --- the discriminator --------------------------------------------------------------------------------------


@pytest.mark.paper("vqgan: adversary")
def test_the_discriminator_is_the_papers_patchgan():
    network = build_discriminator(AdversaryConfig(start=0))
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]

    assert [each.out_channels for each in convolutions] == [64, 128, 256, 512, 1]
    assert [each.stride[0] for each in convolutions] == [2, 2, 2, 1, 1]
    assert {(each.kernel_size, each.padding) for each in convolutions} == {((4, 4), (1, 1))}
    names = [type(layer).__name__ for layer in network[:5]]
    assert names == ["Conv2d", "LeakyReLU", "Conv2d", "GroupNorm", "LeakyReLU"]
    assert {layer.negative_slope for layer in network if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert all(abs(each.weight.std() - 0.02) < 0.002 and not each.bias.any() for each in convolutions)
    assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    without = build_discriminator(AdversaryConfig(start=0, norm="none"))
    assert not [layer for layer in without if isinstance(layer, nn.GroupNorm)]


def test_what_it_says_of_an_image_does_not_depend_on_the_batch():
    network = parts().adversary.discriminator
    together = network(random_images(3))
    torch.testing.assert_close(torch.cat([network(image[None]) for image in random_images(3)]), together)


# --- one scalar loss ----------------------------------------------------------------------------------------


@pytest.mark.paper("vqgan: adversary", "vqgan: one scalar loss")
@pytest.mark.parametrize(
    ("family", "kind", "adaptive"), [*((*each, True) for each in KINDS), (*KINDS[0], False)]
)
def test_one_backward_pass_gives_the_gradients_of_the_two_steps_of_the_papers(family, kind, adaptive):
    losses = parts(weight=0.7, adaptive_weight=adaptive)
    model = model_with(losses, family, kind)
    loss, logged = loss_of(model, family, 5)
    loss.backward()

    # the decoder's step: the discriminator is a fixed judge
    reference, judge = model_with(Recorder(), family, kind), parts().adversary.discriminator
    pixels_loss, _ = loss_of(reference, family, 5)
    error, images, decoded, last_layer = reference.training_only.seen
    adversary_loss = -judge(2 * decoded - 1).mean()
    weight = 0.7
    if adaptive:
        both = (error, adversary_loss)
        norms = [torch.autograd.grad(each, last_layer, retain_graph=True)[0].norm() for each in both]
        weight = float(0.7 * norms[0] / (norms[1] + 1e-4))
    (pixels_loss + weight * adversary_loss).backward()
    # the discriminator's step: the decoded images are fixed
    judge.zero_grad()
    true, false = judge(2 * images - 1), judge(2 * decoded.detach() - 1)
    discriminator_loss = 0.5 * (functional.relu(1 - true).mean() + functional.relu(1 + false).mean())
    discriminator_loss.backward()

    torch.testing.assert_close(loss, pixels_loss + weight * adversary_loss + discriminator_loss)
    expected = dict(reference.named_parameters())
    place = "training_only.adversary.discriminator"
    expected |= {f"{place}.{name}": each for name, each in judge.named_parameters()}
    actual = dict(model.named_parameters())
    assert actual.keys() == expected.keys()
    for name, parameter in actual.items():
        if parameter.grad is not None or expected[name].grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-6, rtol=1e-4, msg=name)
    assert any(parameter.grad.any() for name, parameter in actual.items() if "discriminator" in name)
    assert float(logged["adversary_weight"]) == pytest.approx(weight, rel=1e-4)
    values = {"adversary_loss": adversary_loss, "discriminator_loss": discriminator_loss}
    values |= {"discriminator_true": true.mean(), "discriminator_decoded": false.mean()}
    for name, value in values.items():
        torch.testing.assert_close(logged[name], value.detach(), msg=name)


@pytest.mark.paper("vqgan: adaptive weight")
def test_the_adaptive_weight_is_the_ratio_of_two_gradients_at_the_last_layer_limited_and_constant():
    adversary = Adversary(AdversaryConfig(**SMALL, weight=0.8))
    layer = torch.ones(2, requires_grad=True)

    def weight(reconstruction: list[float], other: list[float]) -> torch.Tensor:
        losses = [(layer * torch.tensor(gradient)).sum() for gradient in (reconstruction, other)]
        return adversary.weight(*losses, layer, step=5)

    assert float(weight([3.0, 4.0], [0.0, 0.5])) == pytest.approx(0.8 * 5 / 0.5001)
    assert float(weight([3.0, 4.0], [0.0, 0.0])) == pytest.approx(0.8 * 1e4)  # 5 / 1e-4 is limited
    assert not weight([3.0, 4.0], [0.0, 0.5]).requires_grad


# --- when it takes part -------------------------------------------------------------------------------------


@pytest.mark.paper("vqgan: adversary start")
def test_its_weight_rises_from_the_start():
    adversary = Adversary(AdversaryConfig(start=10, ramp_steps=4, weight=0.5, adaptive_weight=False))
    loss = torch.zeros(())
    weights = [float(adversary.weight(loss, loss, loss, step)) for step in (10, 11, 13, 14, 99)]
    assert weights == [0.125, 0.25, 0.5, 0.5, 0.5]


@pytest.mark.paper("vqgan: adversary start")
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_before_the_start_and_in_evaluation_the_loss_is_that_of_no_adversary(family, kind):
    expected, names = loss_of(model_with(ImageLosses(), family, kind), family, 4)
    model = model_with(parts(), family, kind)

    loss, logged = loss_of(model, family, 4)
    loss.backward()

    assert loss.equal(expected) and logged.keys() == names.keys()
    assert all(weight.grad is None for weight in model.training_only.parameters())
    with torch.no_grad():
        assert loss_of(model.eval(), family, 5)[1].keys() == names.keys()


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "image_tokenizer.adversary lacks the key 'start'"),
        ({"start": -1}, "image_tokenizer.adversary.start is -1; it needs to be 0 or more"),
        ({"start": 0, "width": 24}, "image_tokenizer.adversary.width is 24; it needs to be a multiple of 16"),
        ({"start": 0, "norm": "batch"}, "image_tokenizer.adversary.norm is 'batch'; it can be: group, none"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        section({"adversary": settings}, "image_tokenizer", ImageLossConfig)


def test_the_smallest_image_of_a_discriminator_has_one_patch():
    config = AdversaryConfig(start=0, width=16, layers=2)
    assert build_discriminator(config)(torch.zeros(1, 3, 12, 12)).shape == (1, 1, 1, 1)
    config.check_image_size(12)
    with pytest.raises(ValueError, match="adversary.layers is 2, which needs images of 12 pixels or more"):
        config.check_image_size(11)


# --- the perceptual distance -----------------------------------------------------------------------------


class Pixels(nn.Module):
    """A network whose only feature map is the image."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def feature_maps(self, images):
        return [self.dropout(self.scale * images)]


def flat(*color: float) -> torch.Tensor:
    """One image of one color: (1, 3, 2, 2)."""
    return torch.tensor(color).view(1, 3, 1, 1).expand(1, 3, 2, 2)


@pytest.mark.paper("vqgan: perceptual term")
def test_the_distance_is_the_weighted_squared_difference_of_features_of_length_1():
    # (3, 4, 0) / 5 and (0, 2, 0) / 2: squares of (.6, -.2, 0)
    plain = PerceptualDistance(Pixels())
    assert plain(flat(0.3, 0.4, 0.0), flat(0.0, 0.2, 0.0)).item() == pytest.approx(0.36 + 0.04)
    weighted = PerceptualDistance(Pixels(), [torch.tensor([1.0, 10.0, 5.0])])
    assert weighted(flat(0.3, 0.4, 0.0), flat(0.0, 0.2, 0.0)).item() == pytest.approx(0.36 + 0.4)
    assert plain(flat(0.3, 0.4, 0.0), flat(0.0, 0.0, 0.0)).item() == pytest.approx(1)


def test_no_features_at_a_position_give_a_finite_gradient():
    decoded = torch.zeros(1, 3, 2, 2, requires_grad=True)
    PerceptualDistance(Pixels())(flat(0.3, 0.4, 0.0), decoded).backward()
    assert decoded.grad.isfinite().all()


def test_the_network_stays_in_evaluation_and_is_not_trained_while_its_model_is():
    model = tiny("decoders", "unet").requires_grad_(True)
    config = ImageLossConfig(perceptual=PerceptualConfig("a scorer", weight=2.0))
    model.training_only = ImageLosses(config, PerceptualDistance(Pixels()))
    model.train()
    assert model.training_only.training and not model.training_only.perceptual.network.dropout.training

    images, decoded = random_images(2), random_images(2, seed=1).requires_grad_()
    loss, logged = model.training_only(torch.ones(()), images, decoded, model.output[-1].weight, 0)
    loss.backward()

    assert loss.item() == pytest.approx(1 + 2 * logged["perceptual_loss"].item())
    assert decoded.grad.any() and model.training_only.perceptual.network.scale.grad is None


@pytest.mark.paper("vqgan: perceptual term")
def test_the_layers_of_vgg_have_torchvisions_names_and_each_part_gives_its_last_maps():
    network = VGG16()
    with torch.no_grad():
        maps = network.feature_maps(torch.zeros(1, 3, 32, 32))
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert [*network.state_dict()] == [f"features.{n}.{part}" for n in numbers for part in ("weight", "bias")]
    assert sum(weight.numel() for weight in network.parameters()) == 14_714_688
    sizes = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    assert [tuple(each.shape[1:]) for each in maps] == sizes


def test_vgg_sees_pixels_as_lpips_scales_them():
    network, seen = VGG16(), []
    network.features[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    network.feature_maps(torch.full((1, 3, 32, 32), 0.75))
    expected = [(0.5 + 0.030) / 0.458, (0.5 + 0.088) / 0.448, (0.5 + 0.188) / 0.450]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected)
