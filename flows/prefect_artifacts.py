"""The Prefect artifacts of a finished run: a table of its metrics, its best images, a link to its report."""

import base64
import json
import re
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from thousandwords.core.params import flatten

RESULTS = Path("results")
MAX_BYTES = 2_000_000  # of images in one artifact: they are stored in Prefect's database
MAX_GRIDS = 4


def publish_results() -> None:
    """Publish the outputs of `evaluate` that exist."""
    metrics, report = RESULTS / "metrics.json", RESULTS / "report.html"
    if metrics.is_file():
        values = flatten(json.loads(metrics.read_bytes())).items()  # lists are only in the report
        numbers = [(name, round(value, 4)) for name, value in values if isinstance(value, int | float)]
        rows = [{"figure": name, "value": value} for name, value in numbers]
        create_table_artifact(table=rows, key="metrics", description=f"The metrics of this run ({metrics})")
    if images := list_grids(RESULTS / "ranked"):
        page = image_page(images)
        create_markdown_artifact(markdown=page, key="images", description="Best first, one row per prompt")
    if report.is_file():
        link = report.resolve().as_uri()
        text = {"link_text": str(report), "description": f"On this machine: {link}"}
        create_link_artifact(link=link, key="report", **text)


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
