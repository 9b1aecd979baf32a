"""The images drawn while a model was trained, for the report: results/training/<stage>/step-000500.png, ..."""

import contextlib
import json
from pathlib import Path

import numpy as np

from thousandwords.data.image_decoding import InvalidImage, decode_image
from thousandwords.reporting.page import thumbnail

MAX_STEPS = 6  # of a training, evenly, with the first and the last one
MAX_WIDTH = 1060  # pixels of a sheet


def training_images(folder: Path, records: dict[str, dict]) -> dict[str, list[dict]]:
    """{stage: [{"step", "image"}, ...]}, without trainings whose images belong to another run than its record's:
    DVC restores a model, but not its images."""
    found = {}
    for path in sorted(folder.glob("*/progress.json")):
        stage, progress = path.parent.name, {}
        with contextlib.suppress(OSError, ValueError):
            progress = json.loads(path.read_bytes())
        if stage in records and progress.get("run_id", "") == records[stage].get("run_id"):
            with contextlib.suppress(InvalidImage):  # these files are not written durably
                found[stage] = [_sheet(file) for file in _choose(sorted(path.parent.glob("step-*.png")))]
    return {stage: sheets for stage, sheets in found.items() if sheets}


def _choose(files: list[Path]) -> list[Path]:
    places = np.linspace(0, len(files) - 1, min(MAX_STEPS, len(files))).round().astype(int)
    return [files[place] for place in places]


def _sheet(file: Path) -> dict:
    image = thumbnail(decode_image(file.read_bytes()), MAX_WIDTH)
    return {"step": int(file.stem.removeprefix("step-")), "image": image}
