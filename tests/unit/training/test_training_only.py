"""Parts that live only in training: in the checkpoint that resumes, and never in the weights that are kept."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.helpers.tiny_models import random_images, tiny
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.nn.adversary import AdversaryConfig
from thousandwords.nn.image_losses import ImageLossConfig, ImageLosses, kept_weights
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import SINGLE_PROCESS
from thousandwords.training.loop import Stopped, check_model, fit
from thousandwords.training.optimizers import Muon
from thousandwords.training.train_state import TrainState, split_parameters

START, STEPS = 3, 8
CONFIG = TrainingConfig(
    **{"steps": STEPS, "batch_size": 4, "learning_rate": 0.003, "weight_decay": 0.1, "muon_lr_scale": 5.0},
    **{"ema_decay": 0.9, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2, "keep": "best"},
)


def tokenizer(seed: int = 0) -> nn.Module:
    """A VQ-VAE with an adversary."""
    model = tiny("image_tokenizers", "vqvae", seed)
    torch.manual_seed(seed)
    adversary = AdversaryConfig(start=START, ramp_steps=2, width=16, layers=1)
    model.training_only = ImageLosses(ImageLossConfig(adversary))
    return model.requires_grad_(True)


def run(model: nn.Module, folder=None, after: int | None = None, discriminators: list | None = None):
    """(kept weights, rows); with `after` it is asked to stop there."""
    done = []

    def progress(step, _):
        done.append(step)
        if discriminators is not None:
            discriminators.append([each.detach().clone() for each in model.training_only.parameters()])

    return fit(
        model,
        CONFIG,
        batches_of=lambda step: [random_images(4, seed=step)],
        loss_of=lambda model, batch, step, rng: model.loss(batch, step, rng),
        evaluate=lambda model: {"loss": (model.decode(model.encode(random_images(2))) - 0.5).abs().mean()},
        seed=0,
        checkpoints=folder and Checkpoints(folder),
        progress=progress,
        is_stopped=lambda: done[-1] == after,
    )


@pytest.fixture(scope="module")
def never_stopped():
    """(model, kept weights, rows, the discriminator's weights after each update)."""
    model, discriminators = tokenizer(), []
    return model, *run(model, discriminators=discriminators), discriminators


@pytest.mark.parametrize("stop", [2, 5])
def test_a_training_that_was_stopped_resumes_with_its_discriminator_as_if_never_stopped(
    never_stopped, tmp_path, stop
):
    with pytest.raises(Stopped):
        run(tokenizer(), tmp_path, after=stop)
    model = tokenizer(seed=7)  # other first weights of both networks

    weights, rows = run(model, tmp_path)

    expected_model, expected, expected_rows, _ = never_stopped
    assert rows == expected_rows and weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected)
    for name, tensor in expected_model.state_dict().items():
        assert tensor.equal(model.state_dict()[name]), name


def test_the_discriminator_changes_from_its_start_only(never_stopped):
    *_, rows, discriminators = never_stopped
    first = list(tokenizer().training_only.parameters())
    for number, weights in enumerate(discriminators):
        is_same = all(weight.equal(old) for weight, old in zip(weights, first, strict=True))
        assert is_same == (number < START)
        assert ("discriminator_loss" in rows[number]) == (number >= START)


def test_a_checkpoint_has_the_discriminator_and_its_moments(tmp_path):
    run(tokenizer(), tmp_path)
    tensors = Checkpoints(tmp_path).newest().tensors
    names = {name.partition("/")[0] for name in tensors if "training_only." in name}
    assert names == {"model"}  # neither the average nor the best weights
    state = TrainState(tokenizer(), CONFIG, SINGLE_PROCESS)
    indices = [
        number
        for number, parameter in enumerate(
            p for group in state.optimizers[0].param_groups for p in group["params"]
        )
        if any(parameter is each for each in state.model.training_only.parameters())
    ]
    assert len(indices) == 8 and all(f"optimizer0/{index}.exp_avg" in tensors for index in indices)


def test_muon_does_not_take_the_discriminator():
    state = TrainState(tokenizer(), CONFIG, SINGLE_PROCESS)
    (muon,) = (each for each in state.optimizers if isinstance(each, Muon))
    matrices = [parameter for group in muon.param_groups for parameter in group["params"]]
    assert matrices and not {id(each) for each in state.model.training_only.parameters()} & {
        *map(id, matrices)
    }


def test_the_gradient_of_each_network_is_limited_by_itself():
    state = TrainState(tokenizer(), replace(CONFIG, clip_norm=0.01), SINGLE_PROCESS)
    state.update(
        [random_images(4)], START, lambda model, batch, step, rng: model.loss(batch, step, rng), seed=0
    )
    for parameters in split_parameters(state.model):
        norms = [parameter.grad.norm() for parameter in parameters if parameter.grad is not None]
        assert float(torch.stack(norms).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_kept_model_is_the_one_of_a_training_without(never_stopped, tmp_path):
    model, weights, *_ = never_stopped
    plain = tiny("image_tokenizers", "vqvae")

    components.save(model, tmp_path, weights)

    assert weights.keys() == plain.state_dict().keys() == kept_weights(model).keys()
    assert TrainState(tokenizer(), CONFIG, SINGLE_PROCESS).average.state.keys() == plain.state_dict().keys()
    assert components.load("image_tokenizers", tmp_path).built_as == plain.built_as
    # and without weights of its own to save
    assert components.save(model, tmp_path / "as it is")
    assert components.load("image_tokenizers", tmp_path / "as it is").encode(random_images(2)).shape == (
        2,
        16,
    )


def test_an_adversary_needs_whole_weights():
    model = tiny("decoders", "unet")
    model.training_only = tokenizer().training_only
    config = replace(CONFIG, strategy="fsdp", muon_lr_scale=None)
    with pytest.raises(
        UserError, match="training.strategy is fsdp, but the adversary of this model needs whole"
    ):
        check_model(model, config)
