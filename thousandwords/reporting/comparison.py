"""Two runs side by side as one page: pictures of the same prompts, figures, settings. Runs in, a single html file out.

Like the report it stands alone: it loads nothing and runs nothing, and the same runs give the same bytes. Layout:
`comparison.html.j2`. Figures that a part of the pipeline itself measures (a scorer, the words of a tokenizer) are called better
or worse only where both runs share that part.
"""
from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from thousandwords.errors import UserError
from thousandwords.evaluation import NAMES
from thousandwords.report import flatten, get
from thousandwords.runs import Common, Run, common_prompts
from thousandwords.thumbnails import thumbnail

LARGEST = 8_000_000  # bytes of the page, so that it can be mailed
SIDE = 128  # pixels of a picture in it
PARTS = ("text_tokenizer", "image_tokenizer", "scorer")  # they measure something themselves


@dataclass(frozen=True)
class Headline:
    """A figure worth a line of its own."""

    name: str
    words: str
    form: Callable[[float], str]
    unit: str = ""
    better: int = 0  # 1: higher, -1: lower, 0: neither
    of_part: str | None = None  # the part that measures it


def share(value: float) -> str:
    return _real(f"{100 * value:.1f}%")


def digits(count: int) -> Callable[[float], str]:
    return lambda value: _real(f"{value:.{count}f}")


def plain(value: object) -> str:
    return "–" if value is None else _real(f"{value:.4g}") if isinstance(value, float) else str(value)


def _real(text: str) -> str:
    return text.replace("-", "−")


HEADLINES = (
    Headline("caption_match.seen.all.n1", "every attribute right, one draw, seen pairs", share, better=1),
    Headline("caption_match.seen.all.best", "the same, best of all candidates", share, better=1),
    Headline("caption_match.unseen.all.n1", "every attribute right, one draw, unseen pairs", share, better=1),
    Headline("caption_match.unseen.all.best", "the same, best of all candidates, unseen pairs", share, better=1),
    Headline("clip_score.n1", "CLIP score of one draw", digits(3), better=1, of_part="scorer"),
    Headline("clip_score.best", "CLIP score of the best candidate", digits(3), better=1, of_part="scorer"),
    Headline("fidelity.clip_frechet.distance", "Fréchet distance by the scorer", digits(4), better=-1, of_part="scorer"),
    Headline("fidelity.clip_kernel.mean", "kernel distance by the scorer", digits(5), better=-1, of_part="scorer"),
    Headline("fidelity.clip_precision.precision", "precision by the scorer", share, better=1, of_part="scorer"),
    Headline("fidelity.clip_precision.recall", "recall by the scorer", share, better=1, of_part="scorer"),
    Headline("fidelity.fid.distance", "FID", digits(2), better=-1),
    Headline("fidelity.kid.mean", "KID", digits(5), better=-1),
    Headline("fidelity.inception_score.mean", "Inception Score", digits(2), better=1),
    Headline("fidelity.precision.precision", "precision by Inception", share, better=1),
    Headline("fidelity.precision.recall", "recall by Inception", share, better=1),
    Headline("reconstruction.psnr_hard", "hard PSNR of held-out pictures", digits(2), " dB", 1),
    Headline("codebook.perplexity", "codebook perplexity", digits(1)),
    Headline("generator.val_loss_image", "validation loss per image word", digits(4), " nats", -1, "image_tokenizer"),
    Headline("generator.val_loss_text", "validation loss per text word", digits(4), " nats", -1, "text_tokenizer"),
)  # fmt: skip


def figures(a: Run, b: Run, same_parts: Sequence[str]) -> list[dict]:
    """Rows of the headline figures that one of both has: {"words", "old", "new", "change", "better", "verdict", "tone", ...}."""
    return [row for headline in HEADLINES if (row := _figure(headline, a.metrics, b.metrics, same_parts))]


def _figure(headline: Headline, old: Mapping, new: Mapping, same_parts: Sequence[str]) -> dict | None:
    values = [_value(metrics, headline.name) for metrics in (old, new)]
    if values == [None, None]:
        return None
    bounds = [_interval(metrics, headline.name) for metrics in (old, new)]
    change = None if None in values else values[1] - values[0]
    tone = _tone(headline, change, same_parts)
    return {
        "name": headline.name,
        "words": headline.words,
        "old": _written(headline, values[0]), "new": _written(headline, values[1]),
        "old_interval": _bounds(headline, bounds[0]), "new_interval": _bounds(headline, bounds[1]),
        "change": _changed(headline, change),
        "better": {1: "↑", -1: "↓", 0: ""}[headline.better],
        "verdict": ", ".join(_verdict(headline, tone, bounds, change, same_parts)),
        "tone": "" if None not in bounds and overlap(*bounds) else tone,  # what may be chance has no colour
    }  # fmt: skip


def _value(metrics: Mapping, name: str) -> float | None:
    """A figure; of a curve the first point, which is the figure itself."""
    value = get(metrics, name)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int | float) else None


def _interval(metrics: Mapping, name: str) -> list[float] | None:
    """Where a figure would fall for other pictures; that of a curve stands beside it and is of its first point."""
    return get(metrics, f"{name.removesuffix('.distance')}.interval" if name.endswith(".distance") else f"{name}_interval")


def _tone(headline: Headline, change: float | None, same_parts: Sequence[str]) -> str:
    """"good", "bad", "same", or "" where nobody can tell."""
    if change is None or _is_of_another_part(headline, same_parts) or not headline.better:
        return ""
    return "same" if _reads_as_none(headline, change) else "good" if change * headline.better > 0 else "bad"


def _reads_as_none(headline: Headline, change: float) -> bool:
    """Whether a difference is too small for the digits in which the figure is told."""
    return headline.form(abs(change)) == headline.form(0)


def _is_of_another_part(headline: Headline, same_parts: Sequence[str]) -> bool:
    return headline.of_part is not None and headline.of_part not in same_parts


def _verdict(
    headline: Headline, tone: str, bounds: list, change: float | None, same_parts: Sequence[str]
) -> Iterator[str]:
    if change is None:
        yield "measured in one only"
        return
    if change and _is_of_another_part(headline, same_parts):
        yield f"not comparable without the same {headline.of_part.replace('_', ' ')}"
        return
    if tone:
        yield {"good": "better", "bad": "worse", "same": "the same"}[tone]
    if tone != "same" and None not in bounds:
        yield "intervals overlap" if overlap(*bounds) else "intervals apart"


def overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two intervals share a point: overlap([1, 2], [2, 3]) -> True"""
    return first[0] <= second[1] and second[0] <= first[1]


def _written(headline: Headline, value: float | None) -> str:
    return "–" if value is None else headline.form(value) + headline.unit


def _bounds(headline: Headline, bounds: Sequence[float] | None) -> str:
    return f"{headline.form(bounds[0]).removesuffix('%')} to {headline.form(bounds[1])}" if bounds else ""


def _changed(headline: Headline, change: float | None) -> str:
    if change is None or _reads_as_none(headline, change):
        return "–" if change is None else "0"
    text = headline.form(change).replace("%", " points") + headline.unit
    return text if change < 0 else f"+{text}"


def other_figures(a: Run, b: Run, differences: Mapping[str, Mapping] | None = None) -> list[dict]:
    """All further numbers that differ: {"name", "old", "new", "change"}; by `differences`, those of `dvc metrics diff`."""
    known = {headline.name for headline in HEADLINES}
    rows = differences if differences is not None else _differences(a.metrics, b.metrics)
    return [
        {"name": name, "old": plain(row.get("old")), "new": plain(row.get("new")), "change": plain(row.get("diff"))}
        for name, row in sorted(rows.items())
        if name not in known and any(_is_number(row.get(side)) for side in ("old", "new"))
    ]


def _differences(old: Mapping, new: Mapping) -> dict[str, dict]:
    """What `dvc metrics diff` would say, for runs that no revision holds."""
    old, new = dict(flatten(old)), dict(flatten(new))
    rows = {name: {"old": old.get(name), "new": new.get(name)} for name in {**old, **new} if old.get(name) != new.get(name)}
    for row in rows.values():
        if all(map(_is_number, row.values())):
            row["diff"] = row["new"] - row["old"]
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def compare(a: Run, b: Run, told: Mapping | None = None, prompts: int = 48, best: int = 4) -> tuple[str, list[str]]:
    """(the page, lines for a terminal). `told`, each part of which may be missing: {"a" and "b": {"commit", "subject", "date"},
    "same_parts": [...], "metrics": {...}, "params": {...}}, as `flows.compare` gathers them.

    Raises UserError where the runs have no prompt in common, are the same, or the page would be too large.
    """
    told = told or {}
    both = common_prompts(a, b)
    rows = figures(a, b, told.get("same_parts") or ())
    page = _layout().get_template("comparison.html.j2").render(
        a=_named(a, told, "a"), b=_named(b, told, "b"), figures=rows, others=other_figures(a, b, told.get("metrics")),
        params=_params(told), prompts=[_shown(a, b, one, best) for one in spread(both, prompts)], common=len(both),
        alone=(len(a.rows()) - len(both), len(b.rows()) - len(both)), best=best,
        other_parts=[part.replace("_", " ") for part in PARTS if part not in (told.get("same_parts") or ())],
    )  # fmt: skip
    if len(page.encode()) > LARGEST:
        raise UserError(
            f"the page would be {len(page.encode()) / 1e6:.1f} MB, and {LARGEST / 1e6:.0f} MB is the most. "
            f"Show fewer prompts than {prompts} (--prompts), or fewer pictures of each than {best} (--best)"
        )
    return page, lines(a.name, b.name, rows, len(both))


def lines(a: str, b: str, rows: Sequence[Mapping], common: int) -> list[str]:
    """The table of figures for a terminal."""
    table = [("figure", a[:18], b[:18], "difference")]
    table += [(row["words"], row["old"], row["new"], f"{row['change']}  {row['verdict']}".rstrip()) for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    shown = ["  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3]]) for row in table]
    return [*(shown if rows else ["no figures were measured in either"]), f"{common} prompts in common"]


def spread(both: Sequence[Common], count: int) -> list[Common]:
    """`count` of the prompts, evenly spread over all: no choice of the prettiest."""
    count = min(count, len(both))
    return [both[number * len(both) // count] for number in range(count)]


def _named(run: Run, told: Mapping, side: str) -> dict:
    blank = {"commit": None, "subject": None, "date": None}
    return {**blank, **(told.get(side) or {}), "name": run.name, "candidates": run.drawn.candidates}


def _params(told: Mapping) -> list[dict] | None:
    """Rows {"name", "old", "new"}; None where nobody compared the settings."""
    if told.get("params") is None:
        return None
    rows = sorted(told["params"].items())
    return [{"name": name, "old": plain(row.get("old")), "new": plain(row.get("new"))} for name, row in rows]


def _shown(a: Run, b: Run, one: Common, best: int) -> dict:
    """A prompt of the page: the best pictures of both, as data URIs with their scores."""
    sides = [[_picture(*picture) for picture in run.best(row, best)] for run, row in ((a, one.a), (b, one.b))]
    return {"caption": one.caption, "split": NAMES.get(one.split, one.split), "a": sides[0], "b": sides[1]}


def _picture(pixels, score: float) -> dict:
    data = base64.b64encode(thumbnail(pixels, SIDE)).decode("ascii")
    size = {"width": pixels.shape[1], "height": pixels.shape[0]}
    return {"src": f"data:image/webp;base64,{data}", "score": digits(3)(score), **size}


def _layout() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
