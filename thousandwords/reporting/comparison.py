"""Two runs side by side as one page: images of the same prompts, figures, settings. Runs in, a single html
file out.

Like the report it loads nothing and runs nothing, and the same runs give the same bytes. Figures of samples are compared
on the prompts that both runs have. Better or worse is said only where the difference is clear, the part that measures it
(the scorer, a tokenizer) is the same in both runs, and the models that made it are not: with the same weights a
difference is one of chance or of sampling settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thousandwords.core.errors import UserError
from thousandwords.core.params import flatten
from thousandwords.evaluation.config import split_name
from thousandwords.evaluation.headline import figure
from thousandwords.evaluation.metrics import bootstrap_interval
from thousandwords.evaluation.prompt_figures import paired
from thousandwords.evaluation.verdict import FEW_PAIRS
from thousandwords.reporting.finished_run import CommonPrompt, FinishedRun, NoCommonPrompts, common_prompts
from thousandwords.reporting.page import image_element, page_environment, thumbnail

MAX_PAGE_BYTES = 8_000_000  # so that the page can be mailed
IMAGE_SIZE = 128  # pixels of an image on the page
PARTS = ("text_tokenizer", "image_tokenizer", "scorer")  # figures depend on them
NO_PROMPTS = "no common prompts"
PAIRED = ("caption_match", "clip_score")  # blocks of figures that are compared prompt by prompt
TOKENIZERS = ("text_tokenizer", "image_tokenizer")
MADE_BY = {  # block of metrics.json -> the models behind it; of all others those of samples
    "reconstruction": ("image_tokenizer",),
    "codebook": ("image_tokenizer",),
    "decoder": ("image_tokenizer", "decoder"),
    "generator": (*TOKENIZERS, "generator"),
}
SAMPLES = (*TOKENIZERS, "decoder", "generator")
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

    def change(self, value: float) -> str:
        """A difference as text: "+2.0 points", "0"."""
        if self.is_zero(value):
            return "0"
        return "+" * (value >= 0) + self.text(value).replace("%", " points") + self.unit

    def is_zero(self, change: float) -> bool:
        """Whether it is zero in the digits that are shown."""
        return self.text(abs(change)) == self.text(0)

    def interval(self, ends: Sequence[float]) -> str:
        return "{} to {}".format(self.text(ends[0]).removesuffix("%"), self.text(ends[1]))


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
    Headline("fidelity.caption_found.found", "caption found by CLIP, best of all candidates", ".1%", 1, "scorer"),
    Headline("reconstruction.psnr_hard", "hard PSNR of held-out images", ".2f", 1, None, " dB"),
    Headline("decoder.psnr_hard", "the same by the decoder", ".2f", 1, None, " dB"),
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
    rows = [_figure(headline, a, b, same_parts) for headline in HEADLINES]
    return [row for row in rows if (row["old"], row["new"]) != ("–", "–")]


def _figure(headline: Headline, a: FinishedRun, b: FinishedRun, same_parts: Sequence[str]) -> dict:
    values = [figure(run.metrics, headline.name) for run in (a, b)]
    intervals = [_interval(run.metrics, headline.name) for run in (a, b)]
    change, change_interval, verdict, tone = "–", None, "measured in one run only", ""
    if None not in values:
        is_clear, because = True, ""
        if None not in intervals:
            is_clear = intervals[0][0] > intervals[1][1] or intervals[1][0] > intervals[0][1]
            because = "intervals do not overlap" if is_clear else "intervals overlap"
        if headline.name.split(".")[0] in PAIRED and a.prompts and b.prompts:
            pairs = paired(a.prompts, b.prompts, headline.name)
            num_pairs, is_clear = pairs.shape[1], False
            because = f"{num_pairs} common prompt{'s' * (num_pairs != 1)}" if num_pairs else NO_PROMPTS
            if num_pairs:
                values, intervals = pairs.mean(axis=1).tolist(), [None, None]
                change_interval = bootstrap_interval(pairs[1] - pairs[0], np.random.default_rng(0))
                is_clear = num_pairs >= FEW_PAIRS and change_interval[0] * change_interval[1] > 0
        difference = values[1] - values[0]
        change = headline.change(difference)
        verdict, tone = _judge(headline, difference, is_clear, because, same_parts)
    old, new = ("–" if value is None else headline.text(value) + headline.unit for value in values)
    texts = (headline.interval(ends) if ends else "" for ends in (*intervals, change_interval))
    return {
        "name": headline.name,
        "label": headline.label,
        "old": old,
        "new": new,
        **dict(zip(("old_interval", "new_interval", "change_interval"), texts, strict=True)),
        "change": change,
        "better": {1: "↑", -1: "↓", 0: ""}[headline.better],
        "verdict": verdict,
        "tone": tone,
    }


def _judge(
    headline: Headline, change: float, is_clear: bool, because: str, same_parts: Sequence[str]
) -> tuple[str, str]:
    """(the verdict, its tone: "good", "bad", "same" or ""); `because` says what it was compared on."""
    if change and headline.depends_on not in (None, *same_parts):
        return f"not comparable without the same {headline.depends_on.replace('_', ' ')}", ""
    chooser = ("scorer",) if headline.name.endswith(".best") else ()
    makers = (*MADE_BY.get(headline.name.split(".")[0], SAMPLES), *chooser)
    if not headline.better:
        word, tone = "", ""
    elif headline.is_zero(change):
        return "the same", "same"
    elif set(makers) <= set(same_parts):
        word, tone = "made by the same weights: chance, or other settings", ""
    elif not is_clear:
        word, tone = "no clear difference" if because != NO_PROMPTS else "not comparable", ""
    else:
        word, tone = ("better", "good") if change * headline.better > 0 else ("worse", "bad")
    return ", ".join(filter(None, (word, because))), tone


def _interval(metrics: Mapping, name: str) -> list[float] | None:
    """The interval of a figure; for a curve that of its first point."""
    block = name.removesuffix(".distance")
    return flatten(metrics).get(f"{name}_interval" if block == name else f"{block}.interval")


def other_figures(a: FinishedRun, b: FinishedRun) -> list[dict]:
    """All other numbers of both runs that differ."""
    old, new = flatten(a.metrics), flatten(b.metrics)
    names = old.keys() & new.keys() - {headline.name for headline in HEADLINES}
    numbers = [name for name in names if _is_number(old[name]) and _is_number(new[name])]
    return _rows(
        {
            name: {"old": old[name], "new": new[name], "diff": new[name] - old[name]}
            for name in numbers
            if old[name] != new[name]
        }
    )


def _rows(differences: Mapping[str, Mapping]) -> list[dict]:
    """Differences as rows of the page, sorted by name."""
    columns = {"old": "old", "new": "new", "change": "diff"}
    return [
        {"name": name} | {column: plain(row.get(key)) for column, key in columns.items()}
        for name, row in sorted(differences.items())
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def compare(
    a: FinishedRun, b: FinishedRun, metadata: Mapping | None = None, prompts: int = 48, best: int = 4
) -> tuple[str, list[str]]:
    """(the page, lines for a terminal), with at most so many `prompts` and the `best` images of each run.

    `metadata` is what git and DVC know of the runs, as `flows.compare` gathers it; each part may be missing.
    Raises UserError where the runs are equal, have neither figures nor a prompt in common, or the page would be too large.
    """
    metadata = metadata or {}
    same_parts = metadata.get("same_parts") or ()
    rows, params = figures(a, b, same_parts), metadata.get("params")
    common, only, no_images = [], (0, 0), ""
    try:
        common = common_prompts(a, b)
        only = (len(a.prompt_numbers()) - len(common), len(b.prompt_numbers()) - len(common))
    except NoCommonPrompts as error:
        if not rows:
            raise
        no_images = str(error)
    page = (page_environment().get_template("comparison.html.j2")).render(
        a=_run_card(a, metadata.get("a")),
        b=_run_card(b, metadata.get("b")),
        figures=rows,
        others=other_figures(a, b),
        params=None if params is None else _rows(params),  # None: not compared
        prompts=[_prompt_row(a, b, prompt, best) for prompt in evenly_spaced(common, prompts)],
        common=len(common),
        only=only,
        no_images=no_images,
        best=best,
        different_parts=[part.replace("_", " ") for part in PARTS if part not in same_parts],
    )
    size = len(page.encode())
    if size > MAX_PAGE_BYTES:
        raise UserError(
            f"the page would be {size / 1e6:.1f} MB, but at most {MAX_PAGE_BYTES / 1e6:.0f} MB are allowed. "
            f"Show fewer prompts than {prompts} (--prompts), or fewer images of each than {best} (--best)"
        )
    return page, lines(a.name, b.name, rows, no_images or f"{len(common)} prompts in common")


def lines(a: str, b: str, rows: Sequence[Mapping], images: str) -> list[str]:
    """The table of figures for a terminal."""
    table = [("figure", a[:18], b[:18], "difference")]
    for row in rows:
        difference = f"{row['change']}  {row['verdict']}".rstrip()
        table.append((row["label"], row["old"], row["new"], difference))
    first, second, third, _ = (max(map(len, column)) for column in zip(*table, strict=True))
    texts = [f"{name:{first}}  {old:>{second}}  {new:>{third}}  {rest}" for name, old, new, rest in table]
    return [*(texts if rows else ["neither run has figures"]), images]


def evenly_spaced(prompts: Sequence[CommonPrompt], count: int) -> list[CommonPrompt]:
    """`count` of the prompts, evenly spaced over all, so that none is chosen for its images."""
    count = min(count, len(prompts))
    return [prompts[number * len(prompts) // count] for number in range(count)]


def _run_card(run: FinishedRun, metadata: Mapping | None) -> dict:
    defaults = {"commit": None, "subject": None, "date": None}
    candidates = run.samples.candidates if run.samples else None
    return {**defaults, **(metadata or {}), "name": run.name, "candidates": candidates}


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

    split = split_name(prompt.split, is_scene="caption_match" in a.metrics)
    return {"caption": prompt.caption, "split": split, "a": images(a, prompt.a), "b": images(b, prompt.b)}
