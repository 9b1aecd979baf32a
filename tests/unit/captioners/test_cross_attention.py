"""The captioner learns what an image shows, and prefers a full caption where the data has short and full ones."""

import pytest
import torch

from tests.helpers.tiny_models import SIDE, fit_batch, rngs, tiny
from thousandwords.captioners.none.model import NoCaptioner, NoCaptionerConfig
from thousandwords.training.config import TrainingConfig

COLORS = torch.eye(3)[:, :, None, None].expand(3, 3, SIDE, SIDE)  # a red, a green and a blue image
FULL = torch.tensor([[20, 30 + color, 40, 50 + color, -1, -1, -1, -1] for color in range(3)])
SHORT = torch.tensor([[20, 40, -1, -1, -1, -1, -1, -1]]).expand(3, -1)


@pytest.fixture(scope="module")
def captioner():
    """Trained on each image with its full caption and as often with a short one."""
    model = tiny("captioners", "cross_attention", settings={"init_std": 0.02}).train()
    batch = COLORS.repeat(8, 1, 1, 1), torch.cat([FULL, SHORT]).repeat(4, 1)
    fit_batch(model, TrainingConfig(150, 24, learning_rate=1e-2, clip_norm=1.0), batch)
    return model.eval()


def test_captions_name_what_their_image_shows(captioner):
    text, _ = captioner.sample(captioner.read_images(COLORS), rngs(60))
    is_full = text[:, 1] != 40
    right = (text.view(3, 20, 8) == FULL[:, None]).all(dim=-1).flatten()
    assert 15 < is_full.sum() < 45  # as often as in the data
    assert right[is_full].float().mean() > 0.9


def test_of_several_candidates_the_full_caption_is_kept(captioner):
    assert captioner.caption(COLORS, rngs(3), candidates=12, top_p=0.95).equal(FULL)


def test_without_an_image_all_captions_of_the_data_are_equally_probable(captioner):
    of_full = captioner.log_probabilities(None, FULL)
    assert of_full.max() - of_full.min() < 1
    assert captioner.log_probabilities(None, SHORT).min() > of_full.max()


def test_the_kind_none_writes_nothing():
    captioner = NoCaptioner(NoCaptionerConfig(), SIDE, 270, 8)
    assert not captioner.is_trainable
    for call in (
        lambda: captioner.loss(COLORS, FULL, 0, torch.Generator()),
        lambda: captioner.caption(COLORS, rngs(3)),
        lambda: captioner.sample(COLORS, rngs(3)),
        lambda: captioner.log_probabilities(None, FULL),
    ):
        with pytest.raises(NotImplementedError, match="a captioner of the kind none"):
            call()
