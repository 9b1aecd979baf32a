"""Parts that live only in training: in the checkpoint that resumes, and never in the weights that are kept."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.helpers.tiny_models import random_images, tiny
from tests.unit.training.test_loop import assert_equal_runs, run, stopped
from thousandwords import components
from thousandwords.nn.adversary import AdversaryConfig
from thousandwords.nn.image_losses import ImageLossConfig, ImageLosses, kept_weights
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import SINGLE_PROCESS
from thousandwords.training.optimizers import Muon
from thousandwords.training.train_state import TrainState, split_parameters

START, STEPS = 3, 8
CONFIG = TrainingConfig(
    **{"steps": STEPS, "batch_size": 4, "learning_rate": 0.003, "weight_decay": 0.1, "muon_lr_scale": 5.0},
    **{"ema_decay": 0.9, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2, "keep": "best"},
)
TRAINING = {
    "batches_of": lambda step: [random_images(4, seed=step)],
    "loss_of": lambda model, batch, step, rng: model.loss(batch, step, rng),
    "evaluate": lambda model: {"loss": (model.decode(model.encode(random_images(2))) - 0.5).abs().mean()},
}


def tokenizer(seed: int = 0) -> nn.Module:
    """A VQ-VAE with an adversary."""
    model = tiny("image_tokenizers", "vqvae", seed)
    torch.manual_seed(seed)
    adversary = AdversaryConfig(start=START, ramp_steps=2, width=16, layers=1)
    model.training_only = ImageLosses(ImageLossConfig(adversary))
    return model.requires_grad_(True)


@pytest.fixture(scope="module")
def never_stopped():
    return run(tokenizer(), CONFIG, **TRAINING)


@pytest.mark.parametrize("stop", [2, 5])
def test_a_stopped_training_resumes_with_its_discriminator_as_if_never_stopped(never_stopped, tmp_path, stop):
    stopped(tokenizer(), CONFIG, folder=tmp_path, after=stop, **TRAINING)
    other_first_weights = tokenizer(seed=7)
    assert_equal_runs(run(other_first_weights, CONFIG, folder=tmp_path, **TRAINING), never_stopped)


def test_adamw_trains_the_discriminator_from_its_start_and_muon_does_not(never_stopped):
    model, _, rows = never_stopped
    assert ["discriminator_loss" in row for row in rows] == [False] * START + [True] * (STEPS - START)
    adamw, muon = TrainState(model, CONFIG, SINGLE_PROCESS).optimizers
    trained = {id(parameter) for group in adamw.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in model.training_only.parameters()} <= trained
    assert isinstance(muon, Muon) and muon.param_groups[0]["params"]


def test_the_gradient_of_each_network_is_limited_by_itself():
    state = TrainState(tokenizer(), replace(CONFIG, clip_norm=0.01), SINGLE_PROCESS)
    state.update([random_images(4)], START, TRAINING["loss_of"], seed=0)
    for parameters in split_parameters(state.model):
        norms = [parameter.grad.norm() for parameter in parameters if parameter.grad is not None]
        assert float(torch.stack(norms).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_kept_model_is_the_one_of_a_training_without(never_stopped, tmp_path):
    model, weights, _ = never_stopped
    plain = tiny("image_tokenizers", "vqvae")

    components.save(model, tmp_path, weights)
    components.save(model, tmp_path / "as it is")  # without weights of its own to save

    assert weights.keys() == plain.state_dict().keys() == kept_weights(model).keys()
    assert components.load("image_tokenizers", tmp_path).built_as == plain.built_as
    tokens = components.load("image_tokenizers", tmp_path / "as it is").encode(random_images(2))
    assert tokens.shape == (2, 16)
