"""Two runs side by side as one page: images of the same prompts, figures, settings. Runs in, a single html
file out.

Like the report it loads nothing and runs nothing, and the same runs give the same bytes. A figure that depends
on a part of the pipeline (the scorer, a tokenizer) is called better or worse only where both runs share it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thousandwords.core.errors import UserError
from thousandwords.evaluation.config import SPLIT_NAMES
from thousandwords.reporting.finished_run import CommonPrompt, FinishedRun, common_prompts
from thousandwords.reporting.html_report import flatten, get
from thousandwords.reporting.page import image_element, page_environment, thumbnail

MAX_PAGE_BYTES = 8_000_000  # so that the page can be mailed
IMAGE_SIZE = 128  # pixels of an image on the page
PARTS = ("text_tokenizer", "image_tokenizer", "scorer")  # figures depend on them
MINUS = str.maketrans("-", "−")


@dataclass(frozen=True)
class Headline:
    """A figure with a row of its own."""

    name: str
    label: str
    format: str  # of a value
    better: int  # 1: higher, -1: lower, 0: neither
    depends_on: str | None = None  # the part that both runs must share
    unit: str = ""

    def text(self, value: float) -> str:
        """A value as text, without its unit."""
        return format(value, self.format).translate(MINUS)


# fmt: off
HEADLINES = (
    Headline("caption_match.seen.all.n1", "every attribute right, one sample, seen pairs", ".1%", 1),
    Headline("caption_match.seen.all.best", "the same, best of all candidates", ".1%", 1),
    Headline("caption_match.unseen.all.n1", "every attribute right, one sample, unseen pairs", ".1%", 1),
    Headline("caption_match.unseen.all.best", "the same, best of all candidates, unseen pairs", ".1%", 1),
    Headline("clip_score.n1", "CLIP score of one sample", ".3f", 1, "scorer"),
    Headline("clip_score.best", "CLIP score of the best candidate", ".3f", 1, "scorer"),
    Headline("fidelity.clip_frechet.distance", "Fréchet distance by the scorer", ".4f", -1, "scorer"),
    Headline("fidelity.clip_kernel.mean", "kernel distance by the scorer", ".5f", -1, "scorer"),
    Headline("fidelity.clip_precision.precision", "precision by the scorer", ".1%", 1, "scorer"),
    Headline("fidelity.clip_precision.recall", "recall by the scorer", ".1%", 1, "scorer"),
    Headline("fidelity.fid.distance", "FID", ".2f", -1),
    Headline("fidelity.kid.mean", "KID", ".5f", -1),
    Headline("fidelity.inception_score.mean", "Inception Score", ".2f", 1),
    Headline("fidelity.precision.precision", "precision by Inception", ".1%", 1),
    Headline("fidelity.precision.recall", "recall by Inception", ".1%", 1),
    Headline("reconstruction.psnr_hard", "hard PSNR of held-out images", ".2f", 1, None, " dB"),
    Headline("codebook.perplexity", "codebook perplexity", ".1f", 0),
    Headline("generator.val_loss_image", "validation loss per image token", ".4f", -1, "image_tokenizer", " nats"),
    Headline("generator.val_loss_text", "validation loss per text token", ".4f", -1, "text_tokenizer", " nats"),
)
# fmt: on


def plain(value: object) -> str:
    """Any value as text; a dash for None."""
    if isinstance(value, float):
        return f"{value:.4g}".translate(MINUS)
    return "–" if value is None else str(value)


def figures(a: FinishedRun, b: FinishedRun, same_parts: Sequence[str]) -> list[dict]:
    """Rows of the headline figures that at least one run has, as `comparison.html.j2` shows them."""
    rows = [_figure(headline, a.metrics, b.metrics, same_parts) for headline in HEADLINES]
    return [row for row in rows if (row["old"], row["new"]) != ("–", "–")]


def _figure(headline: Headline, old: Mapping, new: Mapping, same_parts: Sequence[str]) -> dict:
    values = [_value(metrics, headline.name) for metrics in (old, new)]
    intervals = [_interval(metrics, headline.name) for metrics in (old, new)]
    change, verdict, tone = "–", "measured in one run only", ""
    if None not in values:
        do_overlap = None if None in intervals else intervals_overlap(*intervals)
        is_comparable = headline.depends_on is None or headline.depends_on in same_parts
        change, verdict, tone = _judge(headline, values[1] - values[0], do_overlap, is_comparable)
    value_texts = ["–" if value is None else headline.text(value) + headline.unit for value in values]
    interval_texts = [
        "{} to {}".format(headline.text(each[0]).removesuffix("%"), headline.text(each[1])) if each else ""
        for each in intervals
    ]
    return {
        "name": headline.name,
        "label": headline.label,
        **dict(zip(("old", "new"), value_texts, strict=True)),
        **dict(zip(("old_interval", "new_interval"), interval_texts, strict=True)),
        "change": change,
        "better": {1: "↑", -1: "↓", 0: ""}[headline.better],
        "verdict": verdict,
        "tone": tone,
    }


def _judge(
    headline: Headline, change: float, do_overlap: bool | None, is_comparable: bool
) -> tuple[str, str, str]:
    """(a difference as text, the verdict, its tone: "good", "bad", "same" or, where it may be chance, "")."""
    is_zero = headline.text(abs(change)) == headline.text(0)  # in the digits that are shown
    text = "+" * (change >= 0) + headline.text(change).replace("%", " points") + headline.unit
    text = "0" if is_zero else text
    if change and not is_comparable:
        return text, f"not comparable without the same {headline.depends_on.replace('_', ' ')}", ""
    tone, words = "", []
    if is_comparable and headline.better:
        tone = "same" if is_zero else "good" if change * headline.better > 0 else "bad"
        words.append({"good": "better", "bad": "worse", "same": "the same"}[tone])
    if tone != "same" and do_overlap is not None:
        words.append("intervals overlap" if do_overlap else "intervals do not overlap")
    return text, ", ".join(words), "" if do_overlap else tone


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


def intervals_overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two intervals share a point: intervals_overlap([1, 2], [2, 3]) -> True"""
    return first[0] <= second[1] and second[0] <= first[1]


def other_figures(a: FinishedRun, b: FinishedRun, differences: Mapping | None = None) -> list[dict]:
    """All other numbers that differ; `differences` are those of `dvc metrics diff`."""
    headlines = {headline.name for headline in HEADLINES}
    rows = differences if differences is not None else _differences(a.metrics, b.metrics)
    return _rows(
        {
            name: row
            for name, row in rows.items()
            if name not in headlines and (_is_number(row.get("old")) or _is_number(row.get("new")))
        }
    )


def _rows(differences: Mapping[str, Mapping]) -> list[dict]:
    """Differences as rows of the page, sorted by name."""
    return [
        {
            "name": name,
            "old": plain(row.get("old")),
            "new": plain(row.get("new")),
            "change": plain(row.get("diff")),
        }
        for name, row in sorted(differences.items())
    ]


def _differences(old: Mapping, new: Mapping) -> dict[str, dict]:
    """The same as `dvc metrics diff`, for runs that are in no revision."""
    old, new = dict(flatten(old)), dict(flatten(new))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    rows = {name: {"old": old.get(name), "new": new.get(name)} for name in names}
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

    `metadata` is what git and DVC know of the runs, as `flows.compare` gathers it; each part may be missing.
    Raises UserError where the runs have no prompt in common, are equal, or the page would be too large.
    """
    metadata = metadata or {}
    same_parts = metadata.get("same_parts") or ()
    common, rows, params = common_prompts(a, b), figures(a, b, same_parts), metadata.get("params")
    page = (
        page_environment()
        .get_template("comparison.html.j2")
        .render(
            a=_run_card(a, metadata.get("a")),
            b=_run_card(b, metadata.get("b")),
            figures=rows,
            others=other_figures(a, b, metadata.get("metrics")),
            params=None if params is None else _rows(params),  # None: not compared
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
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    texts = [
        f"{label:{widths[0]}}  {old:>{widths[1]}}  {new:>{widths[2]}}  {rest}"
        for label, old, new, rest in table
    ]
    return [*(texts if rows else ["neither run has figures"]), f"{num_common} prompts in common"]


def evenly_spaced(prompts: Sequence[CommonPrompt], count: int) -> list[CommonPrompt]:
    """`count` of the prompts, evenly spaced over all, so that none is chosen for its images."""
    count = min(count, len(prompts))
    return [prompts[number * len(prompts) // count] for number in range(count)]


def _run_card(run: FinishedRun, metadata: Mapping | None) -> dict:
    defaults = {"commit": None, "subject": None, "date": None}
    return {**defaults, **(metadata or {}), "name": run.name, "candidates": run.samples.candidates}


def _prompt_row(a: FinishedRun, b: FinishedRun, prompt: CommonPrompt, best: int) -> dict:
    """A prompt of the page: the best images of both runs, as data URIs with their scores."""

    def images(run: FinishedRun, number: int) -> list[dict]:
        return [
            {
                "src": image_element(thumbnail(pixels, IMAGE_SIZE))["src"],
                "score": f"{score:.3f}".translate(MINUS),
                "width": pixels.shape[1],
                "height": pixels.shape[0],
            }
            for pixels, score in run.best(number, best)
        ]

    split = SPLIT_NAMES.get(prompt.split, prompt.split)
    return {"caption": prompt.caption, "split": split, "a": images(a, prompt.a), "b": images(b, prompt.b)}
