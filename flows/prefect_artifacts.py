"""What a finished run shows in Prefect: a table of its figures, its best pictures, the way to its report."""
from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

RESULTS = Path("results")
LARGEST = 2_000_000  # bytes of pictures in one artifact: they lie in Prefect's database
GRIDS = 4


def show_results(results: Path = RESULTS) -> list[str]:
    """Publishes what `evaluate` wrote, as far as it is there; returns the keys."""
    shown = []
    if (results / "metrics.json").is_file():
        rows = table(json.loads((results / "metrics.json").read_bytes()))
        create_table_artifact(table=rows, key="metrics", description="The figures of this run (results/metrics.json)")
        shown.append("metrics")
    if pictures := grids(results / "ranked"):
        create_markdown_artifact(markdown=page(pictures), key="pictures", description="Best first, one row per prompt")
        shown.append("pictures")
    if (results / "report.html").is_file():
        link = (results / "report.html").resolve().as_uri()
        create_link_artifact(link=link, link_text="results/report.html", key="report", description=f"On this machine: {link}")
        shown.append("report")
    return shown


def table(figures: dict, prefix: str = "") -> list[dict[str, object]]:
    """{"generator": {"loss": 1.5}} -> [{"figure": "generator.loss", "value": 1.5}]; lists are left to the report."""
    rows: list[dict[str, object]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            rows += table(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            rows.append({"figure": f"{prefix}{name}", "value": round(value, 4)})
    return rows


def grids(folder: Path) -> list[Path]:
    """The overview and the first grids of a folder, as many as fit."""
    return fitting([path for path in (folder / "overview.png", *sorted(folder.glob("[0-9]*.png"))[:GRIDS]) if path.is_file()])


def fitting(found: list[Path]) -> list[Path]:
    """The first of these pictures, as many as fit into one artifact."""
    kept, size = [], 0
    for path in found:
        size += path.stat().st_size
        if size <= LARGEST:
            kept.append(path)
    return kept


def page(pictures: list[Path]) -> str:
    """Markdown with the pictures in it, so that it can be seen from any machine."""
    parts = []
    for path in pictures:
        words = re.sub(r"[^A-Za-z0-9 .-]", " ", path.stem)  # a file name is data, not markup
        parts.append(f"### {words}\n\n![{words}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})")
    return "\n\n".join(parts)
