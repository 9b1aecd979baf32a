"""The flow decoder: straight lines from a noisy image of the tokenizer to the true one, noise that is a function of tokens."""

import pytest
import torch

from tests.helpers.tiny_models import fit_batch, image_tokens, random_images, rng, tiny
from thousandwords.nn.rectified_flow import noise_of
from thousandwords.training.config import TrainingConfig


def test_the_noise_of_an_image_is_a_function_of_its_tokens_alone():
    tokens, images = image_tokens(3), random_images(3)

    noise, other = noise_of(tokens, images, 2)

    assert noise_of(tokens[[2, 2]], images[:2])[0].equal(noise[[2, 2]])
    assert abs((noise * other).mean()) < 0.1  # independent
    changed = tokens[:1].clone()
    changed[0, 0] = (changed[0, 0] + 1) % 12
    assert (noise_of(changed, images[:1])[0] - noise[:1]).abs().mean() > 0.5
    assert noise.shape == images.shape and abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    # the bytes of the tokens, little-endian: the same on every machine
    assert noise[0, 0, 0, 0].item() == pytest.approx(-0.75324, abs=1e-5)


@pytest.mark.paper("decoders: flow")
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_decoding_goes_along_a_straight_line_to_the_image_that_is_predicted(monkeypatch, steps):
    """The network sees the tokenizer's image and the point reached, at equal steps of time from 1 towards 0."""
    model, truth, images = tiny("decoders", "flow", settings={"sigma": 0.2, "steps": steps}), *two_images()
    tokens, seen = image_tokens(2), []

    def correction(tokens, stacked, time):
        seen.append((stacked, time))
        return truth - images

    monkeypatch.setattr(model, "correction", correction)

    torch.testing.assert_close(model.decode(tokens, images), truth)
    start = images + 0.2 * noise_of(tokens, images)[0]
    for step, (stacked, time) in enumerate(seen):
        left = 1 - step / steps
        torch.testing.assert_close(time, torch.full((2,), left))
        assert stacked[:, :3].equal(images)
        torch.testing.assert_close(stacked[:, 3:], (1 - left) * truth + left * start)
    assert len(seen) == steps


def two_images() -> tuple[torch.Tensor, torch.Tensor]:
    """True images and the tokenizer's: (2, 3, 16, 16) each."""
    return random_images(2), random_images(2, seed=1)


def test_the_loss_is_the_squared_error_of_the_image_predicted_from_a_random_point_of_each_line(monkeypatch):
    model, (truth, decoded), seen = tiny("decoders", "flow", settings={"sigma": 0.0}), two_images(), []

    def correction(tokens, stacked, time):
        seen.append((stacked[:, 3:], time))
        return torch.zeros_like(truth)

    monkeypatch.setattr(model, "correction", correction)
    loss, logged = model.loss(truth, image_tokens(2), decoded, 0, rng())

    (points, time), weight = seen[0], seen[0][1][:, None, None, None]
    torch.testing.assert_close(points, (1 - weight) * truth + weight * decoded)
    assert time[0] != time[1] and 0 <= time.min() and time.max() < 1
    torch.testing.assert_close(loss, (decoded - truth).square().mean())
    assert logged["squared_error"].equal(loss.detach())


@pytest.mark.paper("decoders: times")
def test_three_of_four_training_times_are_nearer_to_the_noise_than_to_the_image(monkeypatch):
    model, times = tiny("decoders", "flow"), []
    monkeypatch.setattr(model, "correction", lambda tokens, stacked, time: times.append(time) or 0.0)

    model.loss(torch.zeros(4000, 3, 2, 2), image_tokens(4000), torch.zeros(4000, 3, 2, 2), 0, rng())

    assert (times[0] > 0.5).float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_more_steps_choose_one_of_the_images_that_fit_where_one_step_gives_their_mean():
    """All tokens are the same and say nothing: each pixel is black or white, and the mean of both is gray."""
    tokens, gray = torch.zeros(32, 16, dtype=torch.int64), torch.full((32, 3, 8, 8), 0.5)
    images = torch.rand(32, 1, 8, 8, generator=rng(1)).round().expand(-1, 3, -1, -1)
    model = tiny("decoders", "flow", settings={"sigma": 0.5}, image_size=8).train()
    fit_batch(model, TrainingConfig(150, 32, learning_rate=0.01), (images, tokens, gray))

    contrast = {}
    for steps in (1, 8):
        trained = tiny("decoders", "flow", settings={"sigma": 0.5, "steps": steps}, image_size=8)
        trained.load_state_dict(model.state_dict())
        with torch.no_grad():
            contrast[steps] = float((trained.decode(tokens, gray) - gray).abs().mean())

    assert contrast[1] < 0.12 and contrast[8] > 0.25  # of 0.5
