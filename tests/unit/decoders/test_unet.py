"""The U-Net decoder: it learns from the tokens what the tokenizer's image does not show."""

import pytest
import torch

from tests.helpers.tiny_models import rng
from thousandwords.core.config import ConfigError, section
from thousandwords.decoders.unet.model import UNetConfig, UNetDecoder


def decoder(scales: tuple[int, ...] = (4,), **settings) -> UNetDecoder:
    torch.manual_seed(0)
    config = UNetConfig(**{"widths": (8, 16), "token_width": 4} | settings)
    return UNetDecoder(config, 16, 6, scales)


@pytest.mark.parametrize("scales", [(4,), (1, 2, 4)])
def test_it_learns_what_only_the_tokens_of_each_scale_say(scales):
    """Each scale's first token brightens the whole image; the tokenizer's images are all the same gray."""
    model, gray = decoder(scales), torch.full((16, 3, 16, 16), 0.5)
    tokens = torch.randint(6, (16, sum(side * side for side in scales)), generator=rng())
    starts = [sum(side * side for side in scales[:index]) for index in range(len(scales))]
    images = gray + 0.05 * tokens[:, starts].float().sum(1)[:, None, None, None] / len(scales)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(100):
        loss, logged = model.loss(images, tokens, gray, step, rng())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    before, after = (gray - images).square().mean(), (model.decode(tokens, gray) - images).square().mean()

    assert after < before / 10
    assert set(logged) == {"squared_error", "absolute_error"}


def test_tokens_start_small_beside_the_image_and_muon_trains_all_kernels_but_the_first_and_the_last():
    """Vectors of deviation 1 drown the image: the default then gained 0.2 dB in 400 updates, and with these 2.8."""
    model = decoder((1, 4), token_width=64)
    assert all(0.015 < codes.weight.std() < 0.025 for codes in model.codes)
    by_muon = {id(weight) for weight in model.muon_parameters()}
    others = [
        name for name, weight in model.named_parameters() if weight.ndim == 4 and id(weight) not in by_muon
    ]
    assert [name for name in others if model.get_parameter(name).shape[-1] == 3] == [
        "input.weight",
        "output.2.weight",
    ]
    assert len(by_muon) == 2 * 5 + 2  # two in each residual block, one down and one up


def test_the_loss_is_the_squared_error_and_a_share_of_the_absolute_one():
    black, white = torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    loss, logged = decoder(absolute_error_weight=0.1).loss(white, tokens, black, 0, rng())
    assert loss.item() == pytest.approx(1.1) and logged["absolute_error"].item() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": []}, r"unet.widths is \[\]; give one multiple of 8 for each level"),
        ({"widths": [8, 12]}, r"unet.widths is \[8, 12\]; give one multiple of 8 for each level"),
        ({"blocks": 0}, "unet.blocks is 0; it needs to be 1 or more"),
        ({"absolute_error_weight": -1.0}, "unet.absolute_error_weight is -1.0; it needs to be 0 or more"),
    ],
)
def test_settings_that_make_no_network_are_rejected(settings, message):
    with pytest.raises(ConfigError, match=f"params.yaml: decoder.{message}"):
        section(settings, "decoder.unet", UNetConfig)


def test_an_image_size_that_does_not_halve_for_each_level_is_rejected():
    with pytest.raises(
        ValueError, match="image_size is 16, no multiple of the 32 pixels of a position of the coarsest"
    ):
        decoder(widths=(8, 8, 8, 8, 8))
