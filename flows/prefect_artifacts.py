"""The Prefect artifacts of a finished run: its main figures, its best images, links to MLflow and to its report."""

import base64
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from thousandwords.evaluation.headline import headline

RESULTS = Path("results")
LOCAL_MLFLOW = "http://127.0.0.1:5000"  # of `make ui`
MAX_BYTES = 2_000_000  # of images in one artifact: they are stored in Prefect's database
MAX_GRIDS = 4


def publish_results() -> None:
    """Publish the outputs of `evaluate` that exist."""
    from stages.runtime.tracking import find_records  # late: it loads MLflow

    metrics, report = RESULTS / "metrics.json", RESULTS / "report.html"
    if metrics.is_file():
        numbers = headline(json.loads(metrics.read_bytes())).items()
        rows = [{"figure": name, "value": round(value, 4)} for name, value in numbers]
        title = f"The main figures of this run, of {metrics}"
        create_table_artifact(table=rows, key="headline", description=title)
    if images := list_grids(RESULTS / "ranked"):
        page, title = image_page(images), "Best first, one row per prompt"
        create_markdown_artifact(markdown=page, key="images", description=title)
    records = find_records(stages=["evaluate"])
    links = mlflow_links(records["evaluate"]) if records else {}
    if report.is_file():
        links.setdefault("report", (report.resolve().as_uri(), "On the machine of this run only"))
    for key, (link, description) in links.items():
        create_link_artifact(link=link, key=key, link_text=key, description=description)


def mlflow_links(record: dict) -> dict[str, tuple[str, str]]:
    """{"mlflow": (address of the run, description), "report": likewise} by the record of `evaluate`. Empty
    without MLflow; the link back is a tag of the MLflow run (flows/pipeline.py)."""
    from stages.runtime import tracking  # late: it loads MLflow

    def experiment_id() -> str | None:
        client = tracking.client()
        experiment = tracking.experiment_of(client)
        is_here = client.search_runs([experiment], f"attributes.run_id = '{record['run_id']}'", max_results=1)
        return experiment if is_here else None

    if not record.get("run_id") or not (experiment := tracking.if_usable("pipeline", experiment_id)):
        return {}
    url, where = urlsplit(tracking.tracking_uri()), "On the MLflow server"
    if url.scheme not in ("http", "https"):
        url, where = urlsplit(LOCAL_MLFLOW), "After `make ui` on the machine of this run"
    runs = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}/#/experiments/{experiment}/runs"
    return {
        "mlflow": (f"{runs}/{record['parent_run_id']}", f"{where}: settings, curves and all figures"),
        "report": (f"{runs}/{record['run_id']}/artifacts/report.html", where),
    }


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
