"""What a training shows while it runs: a folder with its progress, its curves and images made at evaluations.

results/training/<stage>/ has progress.json, curves.jsonl and step-000500.png, ... The studio and the report read
it. It is no output of the stage: which evaluations give images depends on the machine's speed, and changes no weight.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stages.runtime.stage import Stage
from thousandwords import components
from thousandwords.core.config import section
from thousandwords.core.rng import step_rng
from thousandwords.data.contact_sheet import make_contact_sheet
from thousandwords.data.images import encode_png, to_uint8
from thousandwords.inference.config import PromptsConfig

TRAININGS = Path("results/training")
MAX_SHARE = 0.03  # of the training time that images may take
NUM_IMAGES = 8
MIN_WIDTH = 128  # pixels of an image on a sheet; smaller ones are enlarged
SECONDS_BETWEEN_WRITES = 2.0

MakeSheet = Callable[[nn.Module], np.ndarray]  # the model with its averaged weights -> a sheet of images


class TrainingView:
    """Writes the folder of one training; only the main process writes, and all of them do alike."""

    def __init__(self, context: Stage, steps: int, make_sheet: MakeSheet | None) -> None:
        self.context, self.steps, self.make_sheet = context, steps, make_sheet
        self.folder = TRAININGS / context.name
        self.writes = context.world.is_main_process
        self.step, self.first_step, self.written = 0, None, 0.0
        # seconds: spent on images, and of that on the last sheet
        self.started, self.spent, self.cost = time.monotonic(), 0.0, 0.0
        if self.writes:
            self._clear_other_run()

    def progress(self, step: int) -> None:
        """`step` steps are done."""
        self.step = step
        if self.first_step is None:
            self.first_step = step - 1
            self._drop_rows_from(step)
        if time.monotonic() - self.written >= SECONDS_BETWEEN_WRITES:
            self._write_progress(is_finished=False)

    def log(self, step: int, values: dict[str, float]) -> None:
        """A point of the curves."""
        if self.writes:
            row = {"step": step, **{name: float(value) for name, value in values.items()}}
            with self._warned(), open(self.folder / "curves.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def evaluated(self, model: nn.Module) -> None:
        """Make the images after an evaluation, if the time for images allows it."""
        if self.make_sheet is None or not self.context.world.any(self.writes and self._has_time()):
            return
        started = time.monotonic()
        with self._warned():
            sheet = self.make_sheet(model)
            if self.writes:
                path = self.folder / f"step-{self.step:06d}.png"
                _replace(path, encode_png(sheet))
                self.context.record_files(path, folder="samples")
        self.cost = time.monotonic() - started
        self.spent += self.cost

    def close(self, is_finished: bool) -> None:
        """The training has ended, or was stopped."""
        if self.writes and self.first_step is not None:
            self._write_progress(is_finished)
            if self.spent:
                share = self.spent / (time.monotonic() - self.started)
                self.context.record_metrics({"images_seconds": self.spent, "images_share": share})

    def _has_time(self) -> bool:
        """Whether another sheet keeps the share, with one more for the last step. The first one has no measured
        cost and is always made."""
        elapsed = time.monotonic() - self.started
        if not self.spent:
            return True
        is_last = self.step == self.steps
        expected = elapsed * (self.steps - self.first_step) / (self.step - self.first_step)
        has_one_left = is_last or self.spent + 2 * self.cost <= MAX_SHARE * expected
        return has_one_left and self.spent + self.cost <= MAX_SHARE * elapsed

    def _write_progress(self, is_finished: bool) -> None:
        if not self.writes:
            return
        self.written, elapsed = time.monotonic(), time.monotonic() - self.started
        rate = (self.step - self.first_step) / max(elapsed, 1e-9)
        content = {
            "stage": self.context.name,
            "run": self.context.state.name,  # by its settings, inputs and code
            "run_id": self.context.tracker.run_id,
            "step": self.step,
            "steps": self.steps,
            "is_finished": is_finished,
            "seconds_left": round((self.steps - self.step) / rate) if rate else None,
            "images_seconds": round(self.spent, 3),
            "updated": time.time(),
        }
        with self._warned():
            _replace(self.folder / "progress.json", json.dumps(content).encode())

    def _clear_other_run(self) -> None:
        """A resumed run keeps its curves and images; those of another run are removed."""
        with self._warned():
            run = None
            with contextlib.suppress(OSError, ValueError, KeyError):
                run = json.loads((self.folder / "progress.json").read_bytes())["run"]
            if run != self.context.state.name:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    def _drop_rows_from(self, step: int) -> None:
        """After a kill the run goes on from its newest checkpoint: later points are written again."""
        path = self.folder / "curves.jsonl"
        if self.writes and path.is_file():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError):  # a line that a kill has cut
                    if json.loads(line)["step"] < step:
                        kept.append(line + "\n")
            with self._warned():
                _replace(path, "".join(kept).encode())

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        """A view that cannot be written or made never stops a training."""
        try:
            yield
        except (OSError, torch.OutOfMemoryError) as error:
            print(f"{self.context.name}: no images while training ({error})", file=sys.stderr, flush=True)
            self.writes = False


def reconstructions(originals: Tensor) -> MakeSheet:
    """Shows the first images (B, 3, H, W) in [0, 1] above their reconstructions by an image tokenizer."""
    originals = originals[:NUM_IMAGES]

    def make_sheet(model: nn.Module) -> np.ndarray:
        decoded = model.decode(model.encode(originals))
        return pairs_sheet(originals, decoded)

    return make_sheet


def samples(
    captions: Sequence[str], text: Tensor, image_tokenizer: Path, params: dict, device: str
) -> MakeSheet | None:
    """Makes one sample for each of the first captions, with the sampling settings and always the same seeds."""
    settings = section(params.get("sampling") or {}, "sampling", PromptsConfig)
    captions, text = captions[:NUM_IMAGES], text[:NUM_IMAGES]
    options = {name: getattr(settings, name) for name in ("temperature", "top_k", "top_p", "guidance")}
    decoder: list[nn.Module] = []  # loaded when first needed

    def make_sheet(model: nn.Module) -> np.ndarray:
        if not decoder:
            fix = "dvc repro train_image_tokenizer"
            decoder.append(components.load("image_tokenizers", image_tokenizer, fix=fix).to(device))
        tokens = model.sample(text, [step_rng(0, row) for row in range(len(text))], **options)
        return sheet(decoder[0].decode(tokens), captions)

    return make_sheet if captions else None


def pairs_sheet(originals: Tensor, decoded: Tensor) -> np.ndarray:
    """Originals (B, 3, H, W) in [0, 1], each above its reconstruction, in whole rows of up to eight."""
    columns = min(NUM_IMAGES, len(originals))
    rows = range(0, len(originals) // columns * columns, columns)
    images = [part[start : start + columns].cpu() for start in rows for part in (originals, decoded)]
    return sheet(torch.cat(images), columns=columns)


def sheet(images: Tensor, labels: Sequence[str] | None = None, columns: int = NUM_IMAGES) -> np.ndarray:
    """Images (B, 3, H, W) in [0, 1], row by row: uint8 (H', W', 3)."""
    zoom = max(1, MIN_WIDTH // images.shape[-1])
    return make_contact_sheet(to_uint8(images.cpu()), columns=columns, labels=labels, zoom=zoom)


def _replace(path: Path, data: bytes) -> None:
    """Write a file that a reader never sees half of. Not durable: that would cost more than it is worth here."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_bytes(data)
    os.replace(partial, path)
