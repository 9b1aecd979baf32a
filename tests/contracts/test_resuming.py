"""A training that was stopped and goes on gives the weights of one that never stopped, bit for bit: every kind."""

import pytest
import torch

from tests.contracts.test_families import TRAINED, batch_for
from tests.helpers.tiny_models import ARGUMENTS, TINY, random_images, rng
from thousandwords import components
from thousandwords.core.config import section
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import TrainingConfig
from thousandwords.training.loop import Stopped, fit

TRAINING = TrainingConfig(steps=12, batch_size=4, learning_rate=1e-2, clip_norm=1.0, ema_decay=0.9)
CODES = {"first_steps_without_codes": 4, "restart_every": 2}  # they start after step 4, and move after it
# random orders, which fall to raster order between two updates
ORDERS = {"random_order_steps": [4, 9], "rotary_extent": 4.0, "dropout": 0.1, "caption_dropout": 0.3}


@pytest.mark.parametrize(
    ("family", "kind", "settings", "stop"),
    [
        *((*each, {}, 7) for each in TRAINED),
        ("generators", "transformer", ORDERS, 6),
        ("image_tokenizers", "vqvae", CODES, 2),
        ("image_tokenizers", "vqvae", CODES, 7),
        ("image_tokenizers", "vqvae", CODES | {"codebook": "gradient"}, 7),
        ("image_tokenizers", "vqvae", CODES | {"scales": [2, 4]}, 7),
        ("image_tokenizers", "multi_scale", CODES | {"stop_share": 0.5}, 2),
        ("image_tokenizers", "multi_scale", CODES | {"stop_share": 0.5}, 7),
    ],
)
def test_a_resumed_training_gives_the_same_weights_bit_for_bit(tmp_path, family, kind, settings, stop):
    config = section(TINY[family][kind] | settings, kind, components.component(family, kind)[1])

    def trained(folder: str, stop: int | None = None) -> dict:
        torch.manual_seed(0)
        model, done = components.build(family, kind, config, **ARGUMENTS[family]), []
        if family == "image_tokenizers":
            model.prepare([random_images(8)], rng())
        return fit(
            model,
            TRAINING,
            batches_of=lambda step: [batch_for(family)],
            loss_of=lambda model, batch, step, rng: model.loss(*batch, step, rng),
            seed=0,
            checkpoints=Checkpoints(tmp_path / folder),
            progress=lambda step, note: done.append(step),
            is_stopped=lambda: done[-1] == stop,
        )[0]

    with pytest.raises(Stopped):
        trained("stopped", stop)
    resumed, whole = trained("stopped"), trained("whole")

    assert resumed.keys() == whole.keys()
    assert all(resumed[name].equal(value) for name, value in whole.items())
