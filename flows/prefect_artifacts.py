"""The Prefect artifacts of a finished run: a table of its metrics, its best images, a link to its report."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

RESULTS = Path("results")
MAX_BYTES = 2_000_000  # of images in one artifact: they are stored in Prefect's database
MAX_GRIDS = 4


def publish_results(results: Path = RESULTS) -> list[str]:
    """Publish the outputs of `evaluate` that exist; returns the artifacts' keys."""
    keys = []
    if (results / "metrics.json").is_file():
        rows = metrics_table(json.loads((results / "metrics.json").read_bytes()))
        create_table_artifact(
            table=rows, key="metrics", description="The metrics of this run (results/metrics.json)"
        )
        keys.append("metrics")
    if images := list_grids(results / "ranked"):
        create_markdown_artifact(
            markdown=image_page(images), key="images", description="Best first, one row per prompt"
        )
        keys.append("images")
    if (results / "report.html").is_file():
        link = (results / "report.html").resolve().as_uri()
        create_link_artifact(
            link=link, link_text="results/report.html", key="report", description=f"On this machine: {link}"
        )
        keys.append("report")
    return keys


def metrics_table(metrics: dict, prefix: str = "") -> list[dict[str, object]]:
    """{"generator": {"loss": 1.5}} -> [{"figure": "generator.loss", "value": 1.5}].

    Lists are only in the report.
    """
    rows: list[dict[str, object]] = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            rows += metrics_table(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            rows.append({"figure": f"{prefix}{name}", "value": round(value, 4)})
    return rows


def list_grids(folder: Path) -> list[Path]:
    """The overview and the first grids of a folder, within the size limit."""
    paths = (folder / "overview.png", *sorted(folder.glob("[0-9]*.png"))[:MAX_GRIDS])
    return fit_size_limit([path for path in paths if path.is_file()])


def fit_size_limit(paths: list[Path]) -> list[Path]:
    """The first of these images, as many as fit into one artifact."""
    fitting, size = [], 0
    for path in paths:
        size += path.stat().st_size
        if size <= MAX_BYTES:
            fitting.append(path)
    return fitting


def image_page(paths: list[Path]) -> str:
    """Markdown with the images embedded, so that it can be viewed from any machine."""
    parts = []
    for path in paths:
        title = re.sub(r"[^A-Za-z0-9 .-]", " ", path.stem)  # a file name is data, not markup
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f"### {title}\n\n![{title}](data:image/png;base64,{data})")
    return "\n\n".join(parts)
