"""Two runs side by side as one page: images of the same prompts, figures, settings. Runs in, a single html
file out.

Like the report it is self-contained: it loads nothing and runs nothing, and the same runs give the same
bytes. Layout: `comparison.html.j2`. A figure that depends on a part of the pipeline (the scorer, a tokenizer)
is called better or worse only where both runs share that part.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thousandwords.core.errors import UserError
from thousandwords.evaluation.config import SPLIT_NAMES
from thousandwords.reporting.finished_run import CommonPrompt, FinishedRun, common_prompts
from thousandwords.reporting.html_report import page_environment
from thousandwords.reporting.report_tables import flatten, get
from thousandwords.reporting.thumbnails import thumbnail

MAX_PAGE_BYTES = 8_000_000  # so that the page can be mailed
IMAGE_SIZE = 128  # pixels of an image on the page
PARTS = ("text_tokenizer", "image_tokenizer", "scorer")  # figures depend on them


@dataclass(frozen=True)
class Headline:
    """A figure with a row of its own."""

    name: str
    label: str
    to_text: Callable[[float], str]
    unit: str = ""
    better: int = 0  # 1: higher, -1: lower, 0: neither
    depends_on: str | None = None  # the part that both runs must share


def percent(value: float) -> str:
    """0.413 -> "41.3%\""""
    return _typographic_minus(f"{100 * value:.1f}%")


def digits(count: int) -> Callable[[float], str]:
    """A function that writes a number with so many digits after the point."""
    return lambda value: _typographic_minus(f"{value:.{count}f}")


def plain(value: object) -> str:
    """Any value as text; a dash for None."""
    if isinstance(value, float):
        return _typographic_minus(f"{value:.4g}")
    return "–" if value is None else str(value)


def _typographic_minus(text: str) -> str:
    return text.replace("-", "−")


HEADLINES = (
    Headline("caption_match.seen.all.n1", "every attribute right, one sample, seen pairs", percent, better=1),
    Headline("caption_match.seen.all.best", "the same, best of all candidates", percent, better=1),
    Headline(
        "caption_match.unseen.all.n1", "every attribute right, one sample, unseen pairs", percent, better=1
    ),
    Headline(
        "caption_match.unseen.all.best", "the same, best of all candidates, unseen pairs", percent, better=1
    ),
    Headline("clip_score.n1", "CLIP score of one sample", digits(3), better=1, depends_on="scorer"),
    Headline("clip_score.best", "CLIP score of the best candidate", digits(3), better=1, depends_on="scorer"),
    Headline(
        "fidelity.clip_frechet.distance",
        "Fréchet distance by the scorer",
        digits(4),
        better=-1,
        depends_on="scorer",
    ),
    Headline(
        "fidelity.clip_kernel.mean",
        "kernel distance by the scorer",
        digits(5),
        better=-1,
        depends_on="scorer",
    ),
    Headline(
        "fidelity.clip_precision.precision", "precision by the scorer", percent, better=1, depends_on="scorer"
    ),
    Headline(
        "fidelity.clip_precision.recall", "recall by the scorer", percent, better=1, depends_on="scorer"
    ),
    Headline("fidelity.fid.distance", "FID", digits(2), better=-1),
    Headline("fidelity.kid.mean", "KID", digits(5), better=-1),
    Headline("fidelity.inception_score.mean", "Inception Score", digits(2), better=1),
    Headline("fidelity.precision.precision", "precision by Inception", percent, better=1),
    Headline("fidelity.precision.recall", "recall by Inception", percent, better=1),
    Headline("reconstruction.psnr_hard", "hard PSNR of held-out images", digits(2), " dB", 1),
    Headline("codebook.perplexity", "codebook perplexity", digits(1)),
    Headline(
        "generator.val_loss_image",
        "validation loss per image token",
        digits(4),
        " nats",
        -1,
        "image_tokenizer",
    ),
    Headline(
        "generator.val_loss_text", "validation loss per text token", digits(4), " nats", -1, "text_tokenizer"
    ),
)


def figures(a: FinishedRun, b: FinishedRun, same_parts: Sequence[str]) -> list[dict]:
    """Rows of the headline figures that at least one run has: {"label", "old", "new", "change", "better",
    "verdict", "tone", ...}."""
    return [row for headline in HEADLINES if (row := _figure(headline, a.metrics, b.metrics, same_parts))]


def _figure(headline: Headline, old: Mapping, new: Mapping, same_parts: Sequence[str]) -> dict | None:
    values = [_value(metrics, headline.name) for metrics in (old, new)]
    if values == [None, None]:
        return None
    intervals = [_interval(metrics, headline.name) for metrics in (old, new)]
    change = None if None in values else values[1] - values[0]
    tone = _tone(headline, change, same_parts)
    return {
        "name": headline.name,
        "label": headline.label,
        "old": _value_text(headline, values[0]),
        "new": _value_text(headline, values[1]),
        "old_interval": _interval_text(headline, intervals[0]),
        "new_interval": _interval_text(headline, intervals[1]),
        "change": _change_text(headline, change),
        "better": {1: "↑", -1: "↓", 0: ""}[headline.better],
        "verdict": ", ".join(_verdict(headline, tone, intervals, change, same_parts)),
        # a difference that may be chance has no color
        "tone": "" if None not in intervals and intervals_overlap(*intervals) else tone,
    }


def _value(metrics: Mapping, name: str) -> float | None:
    """A figure; for a curve its first point, which is the figure."""
    value = get(metrics, name)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int | float) else None


def _interval(metrics: Mapping, name: str) -> list[float] | None:
    """The interval of a figure; for a curve that of its first point."""
    if name.endswith(".distance"):
        return get(metrics, f"{name.removesuffix('.distance')}.interval")
    return get(metrics, f"{name}_interval")


def _tone(headline: Headline, change: float | None, same_parts: Sequence[str]) -> str:
    """ "good", "bad", "same", or "" where that is unknown."""
    if change is None or not _is_comparable(headline, same_parts) or not headline.better:
        return ""
    if _rounds_to_zero(headline, change):
        return "same"
    return "good" if change * headline.better > 0 else "bad"


def _rounds_to_zero(headline: Headline, change: float) -> bool:
    """Whether a difference is too small for the digits in which the figure is shown."""
    return headline.to_text(abs(change)) == headline.to_text(0)


def _is_comparable(headline: Headline, same_parts: Sequence[str]) -> bool:
    return headline.depends_on is None or headline.depends_on in same_parts


def _verdict(
    headline: Headline, tone: str, intervals: list, change: float | None, same_parts: Sequence[str]
) -> Iterator[str]:
    if change is None:
        yield "measured in one run only"
        return
    if change and not _is_comparable(headline, same_parts):
        yield f"not comparable without the same {headline.depends_on.replace('_', ' ')}"
        return
    if tone:
        yield {"good": "better", "bad": "worse", "same": "the same"}[tone]
    if tone != "same" and None not in intervals:
        yield "intervals overlap" if intervals_overlap(*intervals) else "intervals do not overlap"


def intervals_overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two intervals share a point: intervals_overlap([1, 2], [2, 3]) -> True"""
    return first[0] <= second[1] and second[0] <= first[1]


def _value_text(headline: Headline, value: float | None) -> str:
    return "–" if value is None else headline.to_text(value) + headline.unit


def _interval_text(headline: Headline, interval: Sequence[float] | None) -> str:
    if not interval:
        return ""
    low, high = (headline.to_text(bound) for bound in interval)
    return f"{low.removesuffix('%')} to {high}"


def _change_text(headline: Headline, change: float | None) -> str:
    if change is None:
        return "–"
    if _rounds_to_zero(headline, change):
        return "0"
    text = headline.to_text(change).replace("%", " points") + headline.unit
    return text if change < 0 else f"+{text}"


def other_figures(
    a: FinishedRun, b: FinishedRun, differences: Mapping[str, Mapping] | None = None
) -> list[dict]:
    """All other numbers that differ: {"name", "old", "new", "change"}; `differences` are those of `dvc
    metrics diff`."""
    headlines = {headline.name for headline in HEADLINES}
    rows = differences if differences is not None else _differences(a.metrics, b.metrics)
    return [
        {
            "name": name,
            "old": plain(row.get("old")),
            "new": plain(row.get("new")),
            "change": plain(row.get("diff")),
        }
        for name, row in sorted(rows.items())
        if name not in headlines and any(_is_number(row.get(key)) for key in ("old", "new"))
    ]


def _differences(old: Mapping, new: Mapping) -> dict[str, dict]:
    """The same as `dvc metrics diff`, for runs that are in no revision."""
    old, new = dict(flatten(old)), dict(flatten(new))
    rows = {
        name: {"old": old.get(name), "new": new.get(name)}
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }
    for row in rows.values():
        if all(map(_is_number, row.values())):
            row["diff"] = row["new"] - row["old"]
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def compare(
    a: FinishedRun, b: FinishedRun, metadata: Mapping | None = None, prompts: int = 48, best: int = 4
) -> tuple[str, list[str]]:
    """(the page, lines for a terminal), with at most so many `prompts` and the `best` images of each run.

    `metadata` is what git and DVC know of the runs, as `flows.compare` gathers it; each part may be missing:
    {"a" and "b": {"commit", "subject", "date"}, "same_parts": [...], "metrics": {...}, "params": {...}}.
    Raises UserError where the runs have no prompt in common, are equal, or the page would be too large.
    """
    metadata = metadata or {}
    same_parts = metadata.get("same_parts") or ()
    common = common_prompts(a, b)
    rows = figures(a, b, same_parts)
    page = (
        page_environment()
        .get_template("comparison.html.j2")
        .render(
            a=_run_card(a, metadata.get("a")),
            b=_run_card(b, metadata.get("b")),
            figures=rows,
            others=other_figures(a, b, metadata.get("metrics")),
            params=_params(metadata.get("params")),
            prompts=[_prompt_row(a, b, prompt, best) for prompt in evenly_spaced(common, prompts)],
            common=len(common),
            only=(len(a.prompt_numbers()) - len(common), len(b.prompt_numbers()) - len(common)),
            best=best,
            different_parts=[part.replace("_", " ") for part in PARTS if part not in same_parts],
        )
    )
    size = len(page.encode())
    if size > MAX_PAGE_BYTES:
        raise UserError(
            f"the page would be {size / 1e6:.1f} MB, but at most {MAX_PAGE_BYTES / 1e6:.0f} MB are allowed. "
            f"Show fewer prompts than {prompts} (--prompts), or fewer images of each than {best} (--best)"
        )
    return page, lines(a.name, b.name, rows, len(common))


def lines(a: str, b: str, rows: Sequence[Mapping], num_common: int) -> list[str]:
    """The table of figures for a terminal."""
    table = [("figure", a[:18], b[:18], "difference")]
    table += [
        (row["label"], row["old"], row["new"], f"{row['change']}  {row['verdict']}".rstrip()) for row in rows
    ]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    texts = [
        "  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3]])
        for row in table
    ]
    return [*(texts if rows else ["neither run has figures"]), f"{num_common} prompts in common"]


def evenly_spaced(prompts: Sequence[CommonPrompt], count: int) -> list[CommonPrompt]:
    """`count` of the prompts, evenly spaced over all, so that none is chosen for its images."""
    count = min(count, len(prompts))
    return [prompts[number * len(prompts) // count] for number in range(count)]


def _run_card(run: FinishedRun, metadata: Mapping | None) -> dict:
    defaults = {"commit": None, "subject": None, "date": None}
    return {**defaults, **(metadata or {}), "name": run.name, "candidates": run.samples.candidates}


def _params(differences: Mapping | None) -> list[dict] | None:
    """Rows {"name", "old", "new"}; None where the settings were not compared."""
    if differences is None:
        return None
    rows = sorted(differences.items())
    return [{"name": name, "old": plain(row.get("old")), "new": plain(row.get("new"))} for name, row in rows]


def _prompt_row(a: FinishedRun, b: FinishedRun, prompt: CommonPrompt, best: int) -> dict:
    """A prompt of the page: the best images of both runs, as data URIs with their scores."""
    return {
        "caption": prompt.caption,
        "split": SPLIT_NAMES.get(prompt.split, prompt.split),
        "a": [_image(*candidate) for candidate in a.best(prompt.a, best)],
        "b": [_image(*candidate) for candidate in b.best(prompt.b, best)],
    }


def _image(pixels: np.ndarray, score: float) -> dict:
    data = base64.b64encode(thumbnail(pixels, IMAGE_SIZE)).decode("ascii")
    size = {"width": pixels.shape[1], "height": pixels.shape[0]}
    return {"src": f"data:image/webp;base64,{data}", "score": digits(3)(score), **size}
