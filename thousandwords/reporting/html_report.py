"""One run as an html page: data in, a single file (as a string) out.

The page is self-contained: images are data URIs, there are no scripts, and a content policy forbids it to load
anything. The same data give the same bytes. What to show is chosen by `report_data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thousandwords.reporting import report_tables
from thousandwords.reporting.page import image_element, page_environment
from thousandwords.reporting.plots import duration

# parts of the data that may be missing: their sections are left out
LISTS = (
    "best_samples", "reconstructions", "near_duplicates", "borderline", "memorized", "within_training",
    "duplicates", "prompts",
)  # fmt: skip
TABLES = ("plots", "stages", "runs", "counts", "params", "versions", "seeds", "fingerprints")
NUM_UNFOLDED = 8  # candidates of a prompt that are not folded away


def render_report(data: Mapping[str, Any]) -> str:
    """The page of the data that `report_data.gather` makes; title, summary and metrics are required."""
    environment, metrics = page_environment(), data["metrics"]
    data = {**dict.fromkeys(LISTS, ()), **dict.fromkeys(TABLES, {}), **data}
    environment.filters |= {
        "rate": report_tables.rate,
        "cosine": report_tables.cosine,
        "decibel": report_tables.decibel,
        "count": "{:,}".format,
        "duration": duration,
    }
    return environment.get_template("report.html.j2").render(
        **data,
        cards=report_tables.headline_cards(metrics),
        match_rows=report_tables.MATCH_ROWS,
        fidelity=metrics["fidelity"],
        overlap_rows=report_tables.overlap_rows(metrics),
        fidelity_rows=report_tables.fidelity_rows(metrics),
        frechet=report_tables.frechet_summary(metrics),
        protocol=report_tables.protocol_rows(metrics),
        count_rows=report_tables.count_rows(data["counts"]),
        flat_params=dict(report_tables.flatten(data["params"])),
        no_caption_match=report_tables.FREE_CAPTIONS,
        num_unfolded=NUM_UNFOLDED,
        image=image_element,
    )
