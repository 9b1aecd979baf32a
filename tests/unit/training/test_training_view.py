"""Images, progress and curves that a training shows while it runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.runtime import training_view
from stages.runtime.tracking import NoTracker
from stages.runtime.training_view import MAX_SHARE, TrainingView, samples
from tests.helpers.tiny_models import captions_as_tokens, image_tokens, tiny
from thousandwords import components
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import SINGLE_PROCESS
from thousandwords.training.loop import fit

SHEET = np.zeros((4, 4, 3), np.uint8)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_view, "time", clock := Clock())
    return clock


def view_of(clock, steps: int, seconds_per_sheet: float = 0.0, run: str = "a") -> TrainingView:
    def make_sheet(_: object) -> np.ndarray:
        clock.now += seconds_per_sheet
        return SHEET

    files = []
    context = SimpleNamespace(
        name="train_generator",
        state=SimpleNamespace(name=run),
        world=SINGLE_PROCESS,
        tracker=NoTracker(),
        files=files,
        record_files=lambda path, folder: files.append((folder, path.name)),
        record_metrics=lambda values: None,
    )
    return TrainingView(context, steps, make_sheet)


def train(view: TrainingView, clock, evaluate_every: int, first: int = 1, last: int | None = None) -> None:
    """One second per step."""
    for step in range(first, (last or view.steps) + 1):
        clock.now += 1
        view.progress(step)
        if step % evaluate_every == 0:
            view.evaluated(None)
            view.log(step, {"loss": float(step)})


@pytest.mark.parametrize(("seconds_per_sheet", "sheets"), [(0.1, 50), (1.0, 15), (4.0, 3), (7.0, 2)])
def test_images_take_at_most_three_percent_of_the_time_and_the_last_step_has_its_own(
    clock, seconds_per_sheet, sheets
):
    view = view_of(clock, 500, seconds_per_sheet)
    train(view, clock, evaluate_every=10)
    assert view.spent <= MAX_SHARE * clock.now and len(view.context.files) == sheets
    assert view.context.files[0] == ("samples", "step-000010.png")
    assert view.context.files[-1] == ("samples", "step-000500.png")


def test_a_resumed_run_repeats_no_point_of_its_curves_and_another_run_starts_anew(clock, tmp_path):
    view = view_of(clock, 100)
    train(view, clock, evaluate_every=10, last=40)
    view.close(is_finished=False)
    resumed = view_of(clock, 100)
    train(resumed, clock, evaluate_every=10, first=31)
    resumed.close(is_finished=True)
    folder = tmp_path / "results/training/train_generator"
    steps = [json.loads(line)["step"] for line in (folder / "curves.jsonl").read_text().splitlines()]
    assert steps == [*range(10, 101, 10)]
    assert len(list(folder.glob("step-*.png"))) == 10
    assert json.loads((folder / "progress.json").read_text())["is_finished"]

    view_of(clock, 20, run="b")
    assert list(folder.iterdir()) == []


def test_a_sheet_that_cannot_be_made_stops_no_training(clock, capsys):
    view = view_of(clock, 20)

    def make_sheet(_: object) -> np.ndarray:
        raise torch.OutOfMemoryError("8 images need too much")

    view.make_sheet = make_sheet
    train(view, clock, evaluate_every=10)
    assert capsys.readouterr().err == "train_generator: no images while training (8 images need too much)\n"


def test_samples_while_training_are_the_same_each_time_and_change_no_weight(tmp_path):
    text, tokens = captions_as_tokens(3), image_tokens(3)
    components.save(tiny("image_tokenizers", "dvae"), tmp_path / "tokenizer")
    make_sheet = samples(["a", "b", "c"], text, tmp_path / "tokenizer", {"sampling": {"top_p": 0.9}}, "cpu")
    config = TrainingConfig(steps=3, batch_size=3, learning_rate=0.01, evaluate_every=1, ema_decay=0.9)
    sheets = []

    def weights(evaluate) -> dict[str, torch.Tensor]:
        return fit(
            tiny("generators", "transformer"),
            config,
            batches_of=lambda step: [(text, tokens)],
            loss_of=lambda model, batch, step, rng: model.loss(*batch, step, rng),
            seed=0,
            evaluate=evaluate,
        )[0]

    def evaluate(model) -> dict[str, float]:
        sheets.extend([make_sheet(model), make_sheet(model)])
        return {}

    shown, plain = weights(evaluate), weights(lambda model: {})
    assert all(torch.equal(shown[name], plain[name]) for name in plain)
    assert np.array_equal(sheets[0], sheets[1]) and not np.array_equal(sheets[0], sheets[-1])


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 2), (6, 6, 2), (8, 8, 2), (11, 8, 2), (16, 8, 4)]
)
def test_each_image_stands_above_its_reconstruction_however_few_there_are(count, columns, rows):
    """Of six held-out images the first two reconstructions stood beside them."""
    originals = torch.linspace(0.1, 0.9, count).view(-1, 1, 1, 1).expand(-1, 3, 128, 128)
    image = training_view.pairs_sheet(originals, 1 - originals)

    assert image.shape == (4 + rows * 132, 4 + columns * 132, 3)
    middles = image[68::132, 68::132, 0].astype(int)
    assert np.abs(middles[0::2] + middles[1::2] - 255).max() <= 1
    assert np.allclose(middles[0::2].ravel() / 255, originals[: rows // 2 * columns, 0, 0, 0], atol=0.01)
