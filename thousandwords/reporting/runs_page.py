"""How a run went, as an html page beside the report: time, memory, machine and MLflow run of each stage, and images made
while it trained.

All of it may differ between two runs with the same results. So it is no part of the report, which DVC compares byte by
byte. Like the report the page loads nothing and runs nothing.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from thousandwords.data.image_decoding import InvalidImage, decode_image
from thousandwords.reporting import plots
from thousandwords.reporting.page import image_element, page_environment, thumbnail

MAX_STEPS = 6  # of a training whose images are shown, evenly, with the first and the last one
MAX_WIDTH = 1060  # pixels of a sheet of these


def render_runs(stages: Sequence[str], records: Mapping[str, dict], trainings: Path, address: str) -> str:
    """The page of these stages: `records` has those that are known, the folder `trainings` the images made while a stage
    trained, and `address` is that of MLflow."""
    times = {stage: records[stage]["seconds"] for stage in stages if stage in records}
    links = mlflow_links(records, address)
    environment = page_environment()
    environment.filters["duration"] = plots.duration
    return environment.get_template("runs.html.j2").render(
        rows=[{"stage": stage, **_row(records[stage])} for stage in times],
        unknown=[stage for stage in stages if stage not in records],
        total=sum(times.values()),
        links=links,
        has_runs_without_link=any(record.get("run_id") for record in records.values()) and not links,
        plot=image_element(plots.stage_bars(times)) if times else None,
        trainings={
            stage: [{"step": step, "image": image_element(image)} for step, image in sheets]
            for stage, sheets in training_images(trainings, records).items()
        },
    )


def _row(record: dict) -> dict:
    """The columns of a stage, as text but for its time and its run."""
    git, versions = record["git"], {"Python": record["python"], **record["versions"]}
    commit = git["commit"][:10] + " with changes" * git["is_dirty"] if git else "none"
    return {
        "seconds": record["seconds"],
        "memory": f"{record['peak_memory_mb'] / 1024:.1f} GB",
        "machine": f"{record['device'].upper()}, {record['threads']} threads",
        "commit": commit,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "run_id": record.get("run_id"),
    }


def mlflow_links(records: Mapping[str, dict], address: str) -> dict[str, str]:
    """{stage: address of its MLflow run}, of the runs on the server at `address`, without the server's password."""
    url = urlsplit(address)
    if url.scheme not in ("http", "https"):
        return {}
    server = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}/#/runs/"
    return {
        stage: server + record["run_id"]
        for stage, record in records.items()
        if record.get("run_id") and record["tracking_uri"] == "server"
    }


def training_images(folder: Path, records: Mapping[str, dict]) -> dict[str, list[tuple[int, bytes]]]:
    """{stage: [(step, image), ...]}, without trainings whose images belong to another run than its record's: DVC restores
    a model, but not its images."""
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


def _sheet(file: Path) -> tuple[int, bytes]:
    return int(file.stem.removeprefix("step-")), thumbnail(decode_image(file.read_bytes()), MAX_WIDTH)
