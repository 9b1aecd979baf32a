"""The perceptual distance: LPIPS' formula, torchvision's names, and a network that is never trained."""

import pytest
import torch
from torch import nn

from tests.helpers.tiny_models import random_images, tiny
from thousandwords.nn.image_losses import ImageLossConfig, ImageLosses, PerceptualConfig
from thousandwords.nn.perceptual import VGG16, PerceptualDistance


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
    assert [tuple(each.shape[1:]) for each in maps] == [
        *((64, 32, 32), (128, 16, 16), (256, 8, 8)),
        *((512, 4, 4), (512, 2, 2)),
    ]


def test_vgg_sees_pixels_as_lpips_scales_them():
    network, seen = VGG16(), []
    network.features[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    network.feature_maps(torch.full((1, 3, 32, 32), 0.75))
    expected = [(0.5 + 0.030) / 0.458, (0.5 + 0.088) / 0.448, (0.5 + 0.188) / 0.450]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected)
