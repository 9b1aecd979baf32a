"""Plots as PNG bytes, 900 pixels wide: losses, best of n, blur, codebook use, time per stage.

The colors are Okabe and Ito's, which color-blind readers can distinguish. Style and fonts do not depend on
local settings, and the files contain no date or version: the same numbers give the same bytes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

BLUE, ORANGE, GREEN, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#8a8a8a", "#333333"
COLORS = (BLUE, ORANGE, GREEN, "#cc79a7")
DOTS_PER_INCH = 100
DEFAULTS = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 17,
    "figure.titlesize": 19,
    "figure.titleweight": "bold",
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 1.2,
    "lines.linewidth": 3,
    "lines.markersize": 8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}

Curve = Sequence[tuple[int, float]]  # (step, value), in the order of the steps


def plot(title: str) -> Callable:
    """Turns a function that fills axes into one that returns a PNG, 900 pixels wide; `title` can be replaced."""

    def decorate(fill: Callable[..., None]) -> Callable[..., bytes]:
        @functools.wraps(fill)
        def render(*arguments: object, title: str = title) -> bytes:
            with matplotlib.rc_context({**DEFAULTS, **STYLE}):
                figure = Figure(figsize=(9, 5.6), dpi=DOTS_PER_INCH, layout="constrained")
                figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
                figure.suptitle(title, x=0.012, ha="left")
                fill(figure.add_subplot(), *arguments)
                buffer = BytesIO()
                # matplotlib would write its version into the file
                FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
            return buffer.getvalue()

        return render

    return decorate


@plot("Loss")
def loss_curve(axes: Axes, curves: Mapping[str, Curve], unit: str = "nats per token") -> None:
    """Losses over steps, one line per name: {"train": [(step, loss), ...], "validation": [...]}; "train" is noisy,
    so it is thin and pale behind the others."""
    colors = iter(COLORS[1:])  # blue is the color of "train"
    for name, points in curves.items():
        color = BLUE if name == "train" else next(colors)
        steps, losses = zip(*points, strict=True) if points else ((), ())
        style = {"alpha": 0.55, "linewidth": 2} if name == "train" else {"marker": "o", "zorder": 3}
        axes.plot(steps, losses, color=color, label=name, **style)
    axes.set(xlabel="step", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.legend()


@plot("Caption match, best of n")
def match_curve(axes: Axes, caption_match: Mapping[str, Mapping]) -> None:
    """Match rate over the number of candidates: {split: rates of `metrics.match_rates`}, with intervals as pale
    bars at both ends."""
    for color, (split, rates) in zip(COLORS, caption_match.items(), strict=False):
        for name, line, marker in (("all", "-", "o"), ("scene", "--", "s")):
            steps, label = rates["curve"]["n"], f"{split}, {name}"
            axes.plot(steps, rates["curve"][name], line, color=color, marker=marker, label=label)
            for n, end in ((steps[0], "n1"), (steps[-1], "best")):
                axes.vlines(n, *rates[name][f"{end}_interval"], color=color, linewidth=5, alpha=0.25)
    _best_of_axis(axes, [n for rates in caption_match.values() for n in rates["curve"]["n"]])
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set(ylabel="images that match", ylim=(0, min(1.02, axes.get_ylim()[1])))
    axes.legend(fontsize=15, handlelength=3)


@plot("CLIP score, best of n")
def score_curve(axes: Axes, curve: Mapping[str, Sequence], unit: str = "cosine, image to caption") -> None:
    """Mean score over the number of candidates: {"n": [...], "score": [...]}."""
    axes.plot(curve["n"], curve["score"], "-o", color=BLUE)
    _best_of_axis(axes, curve["n"])
    axes.set(ylabel=unit)


@plot("Distance to real images, best of n")
def best_of_curve(axes: Axes, curve: Mapping[str, Sequence], name: str, unit: str) -> None:
    """Distance over the number of candidates: {"n", name, name_interval: [[low, high], ...]}."""
    low, high = zip(*curve[f"{name}_interval"], strict=True)
    axes.fill_between(curve["n"], low, high, color=BLUE, alpha=0.15, linewidth=0, label="95% interval")
    axes.plot(curve["n"], curve[name], "-o", color=BLUE, label="best-scored of n")
    _best_of_axis(axes, curve["n"])
    axes.set(ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.legend()


@plot("Distance to real images, both blurred")
def blur_curve(axes: Axes, distances: Mapping[str, Sequence[float]], unit: str) -> None:
    """Fréchet distance over the radius of the blur: {"radius", "distance", "without_overlap", "training": at 0}."""
    axes.plot(distances["radius"], distances["distance"], "-o", color=BLUE, label="samples")
    without = zip(distances["radius"], distances.get("without_overlap", ()), strict=False)
    points = [(radius, distance) for radius, distance in without if distance is not None]
    if points:
        label = "without near duplicates of training"
        axes.plot(*zip(*points, strict=True), "--s", color=GREEN, markersize=6, label=label)
    if "training" in distances:
        axes.plot(0, distances["training"], "s", color=ORANGE, label="training images")
    if points or "training" in distances:
        axes.legend()
    axes.set(xlabel="radius of the blur, pixels", ylabel=unit)
    axes.set_ylim(bottom=0)


@plot("Inception Score, blurred")
def blurred_scores(axes: Axes, scores: Mapping[str, Sequence[float]]) -> None:
    """Inception Score over the radius of the blur: {"radius": [...], "score": [...]}."""
    axes.plot(scores["radius"], scores["score"], "-o", color=BLUE)
    axes.set(xlabel="radius of the blur, pixels", ylabel="Inception Score")


@plot("Nearest training image")
def similarity_histogram(axes: Axes, similarities: Mapping[str, Sequence[float]], threshold: float) -> None:
    """Cosines to the nearest training image, {"held out": cosines, "samples": cosines}: the lines should coincide."""
    lowest = min([threshold, *(float(np.quantile(values, 0.005)) for values in similarities.values())])
    edges = np.linspace(min(lowest, 0.999), 1, 41)
    for (name, values), color in zip(similarities.items(), COLORS, strict=False):
        counts, _ = np.histogram(np.clip(values, edges[0], 1), edges)
        axes.stairs(counts / max(1, len(values)), edges, color=color, linewidth=3, label=name)
    axes.axvline(threshold, color=GREY, linestyle=":", linewidth=2.5, label="threshold of near duplicates")
    axes.set(xlabel="cosine to the nearest training image", ylabel="share of images")
    axes.legend()


@plot("How often each token is used")
def codebook_curve(axes: Axes, counts: Mapping[str, Sequence[int]]) -> None:
    """Token frequencies, most used first, on a log axis: {"image tokenizer": counts (V,), "k-means": counts (V,)};
    a line that ends early has tokens that are never used."""
    for color, (name, count) in zip(COLORS, counts.items(), strict=False):
        count = np.sort(np.asarray(count, dtype=np.float64))[::-1]
        share = count[count > 0] / count.sum()
        label = f"{name}: {len(share)} of {len(count)} tokens"
        axes.plot(np.arange(1, len(share) + 1), share, color=color, label=label)
    axes.axhline(1 / len(count), color=GREY, linestyle=":", linewidth=2.5, label="even use")
    axes.set(xlabel="token, most used first", ylabel="share of all image tokens")
    axes.set(yscale="log", xlim=(0, len(count) * 1.01))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend()


@plot("Time per stage")
def stage_bars(axes: Axes, seconds: Mapping[str, float]) -> None:
    """How long each stage took, in the order given: {"prepare_pairs": 12.5, ...}."""
    axes.figure.set_figheight(1.4 + 0.46 * len(seconds))
    names, values = list(seconds), list(seconds.values())
    bars = axes.barh([name.replace("_", " ") for name in names], values, color=BLUE, height=0.62)
    axes.bar_label(bars, [duration(value) for value in values], padding=8, fontsize=15)
    axes.set(xlim=(0, max(values, default=1) * 1.3 or 1), xticks=[])
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def duration(seconds: float) -> str:
    """A time as text: 0.42 -> "0.4 s", 75 -> "1 min 15 s", 7260 -> "2 h 1 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{whole} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole} s"


def _best_of_axis(axes: Axes, steps: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(steps)), [str(n) for n in sorted(set(steps))])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("candidates per caption")


def _thousands(value: float, _position: int) -> str:
    """1500 -> "1.5k", 200 -> "200"."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
