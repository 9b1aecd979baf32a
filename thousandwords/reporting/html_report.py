"""One run as an html page: data and images in, a single file (as a string) out.

The page is self-contained: images are data URIs, the style is inline, there are no scripts, and a content policy
forbids it to load anything. It contains no time of creation, so the same data give the same bytes. The layout is
`report.html.j2`. Missing data are left out, or the page says that they are missing.
Left out: rendering the plots (`plots`) and choosing what to show (`report_data`).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from thousandwords.reporting.plots import duration
from thousandwords.reporting.report_model import ReportData
from thousandwords.reporting.report_tables import (
    cosine,
    count_rows,
    decibel,
    fidelity_rows,
    flatten,
    frechet_summary,
    headline_cards,
    match_rows,
    overlap_rows,
    protocol_rows,
    rate,
    stage_rows,
)

DEFAULTS = {
    "summary": str,
    "no_caption_match": lambda: FREE_CAPTIONS,
    "best_samples": list,
    "reconstructions": list,
    "near_duplicates": list,
    "borderline": list,
    "memorized": list,
    "within_training": list,
    "duplicates": list,
    "prompts": list,
    "plots": dict,
    "stages": dict,
    "runs": dict,
    "counts": dict,
    "params": dict,
    "versions": dict,
    "seeds": dict,
    "fingerprints": dict,
}  # for data that are missing
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_ART_WIDTH = 128  # images up to this width are shown with sharp pixels
NUM_UNFOLDED = 8  # candidates of a prompt that are not folded away
FREE_CAPTIONS = (
    "These captions are free text. Only captions of the built-in scenes can be checked against an image "
    "automatically, so look at the CLIP score and at the images."
)


def page_environment() -> Environment:
    """The settings of jinja2 for every page."""
    # autoescape is set here because jinja2 would guess it from the last suffix, .j2, and get it wrong
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_report(data: ReportData, images: Mapping[str, bytes]) -> str:
    """Render the page from its data and images {key: PNG or lossy WebP}."""
    environment = page_environment()
    environment.filters |= {"rate": rate, "cosine": cosine, "decibel": decibel, "count": "{:,}".format}
    data = {**{name: default() for name, default in DEFAULTS.items()}, **data}
    metrics = data["metrics"]
    seconds = metrics.get("seconds", {})
    return environment.get_template("report.html.j2").render(
        **data,
        cards=headline_cards(data),
        match_rows=match_rows(metrics),
        fidelity=metrics.get("fidelity", {}),
        overlap_rows=overlap_rows(metrics),
        fidelity_rows=fidelity_rows(metrics),
        frechet=frechet_summary(metrics),
        protocol=protocol_rows(metrics),
        stage_rows=stage_rows(seconds, data["stages"]),
        total_time=duration(sum(seconds.values())),
        count_rows=count_rows(data["counts"]),
        flat_params=dict(flatten(data["params"])),
        num_unfolded=NUM_UNFOLDED,
        image=lambda key: image(key, images),
    )


def image(key: str, images: Mapping[str, bytes]) -> dict[str, Any]:
    """What an img element needs, from a PNG or a lossy WebP: {"src": data URI, "width", "height",
    "pixel_art"}."""
    if key not in images:
        raise ValueError(
            f"the report's data name image '{key}', which is not among its {len(images)} images; "
            "add its PNG bytes to `images` under that key"
        )
    data = images[key]
    if data.startswith(PNG_SIGNATURE) and len(data) >= 24:
        kind, (width, height) = "png", struct.unpack(">II", data[16:24])
    elif data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 " and len(data) >= 30:
        kind = "webp"
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))  # RFC 6386, §9.1
    else:
        raise ValueError(
            f"image '{key}' begins with {data[:8]!r}, which is not a PNG; encode it as PNG or as lossy WebP first"
        )
    return {
        "src": f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii"),
        "width": width,
        "height": height,
        "pixel_art": width <= PIXEL_ART_WIDTH,
    }
