"""The run in this folder: which stages run now, and what its trainings have written to results/training."""

import contextlib
import json
import math
import operator
import re
from pathlib import Path

import psutil

from studio.worker.process import Event
from thousandwords.core.locks import read_note

TRAININGS, LOCKS = Path("results/training"), Path(".ckpt/locks")
STAGE = re.compile("[a-z_]+")
MAX_POINTS = 300  # of a curve


def training_status(root: Path) -> Event:
    """{"running": names of stages, "trainings": newest first}."""
    # not by trying the locks: a stage that starts at that moment would find its lock taken
    locks = sorted(path for path in (root / LOCKS).glob("*") if STAGE.fullmatch(path.name))
    running = [path.name for path in locks if psutil.pid_exists(int(read_note(path).get("pid") or -1))]
    found = []
    for path in (root / TRAININGS).glob("*/progress.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged, or just removed
            progress = json.loads(path.read_bytes())
            found.append((progress["updated"], _training(path.parent, progress, running)))
    found.sort(key=operator.itemgetter(0), reverse=True)
    return {"running": running, "trainings": [training for _, training in found]}


def image_file(root: Path, stage: str, step: int) -> Path:
    """The file of a training's images at a step; it may be missing."""
    return root / TRAININGS / (stage if STAGE.fullmatch(stage) else "none") / f"step-{step:06d}.png"


def _training(folder: Path, progress: dict, running: list[str]) -> Event:
    stage = progress["stage"]
    state = "finished" if progress["is_finished"] else "running" if stage in running else "stopped"
    images = sorted((int(path.stem.removeprefix("step-")), path) for path in folder.glob("step-*.png"))
    return {
        **{name: progress[name] for name in ("stage", "step", "steps", "seconds_left")},
        "state": state,
        "curves": _curves(folder / "curves.jsonl"),
        # a browser must not show the image of an earlier run for the same step
        "images": [
            {"step": step, "url": f"/api/training/{stage}/{step}.png?{path.stat().st_mtime_ns}"}
            for step, path in images
        ],
    }


def _curves(path: Path) -> dict[str, list]:
    """{name: [(step, value), ...]}, thinned; values that are not finite are null."""
    curves: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # half written, or damaged
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for name in row.keys() - {"step"}:
                value = row[name] if math.isfinite(row[name]) else None
                curves.setdefault(name, []).append((row["step"], value))
    for name, points in curves.items():
        every = max(1, len(points) // MAX_POINTS)
        curves[name] = points[(len(points) - 1) % every :: every]  # evenly, with the last one
    return dict(sorted(curves.items()))
