"""One verdict per model in words, from its training and held-out curves: pure functions.

collapsed: few codes in use that reconstruct worse than k-means, a generator of such tokens that would be called learning
or fine, or a training loss that never fell. memorizing since step N: the held-out loss rose from its minimum at N while
the training loss fell, or is far above the training loss, or samples are near duplicates of training images. too short,
learning, fine: how much of the whole gain came in the last quarter of the steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Rows = Sequence[Mapping[str, float]]  # of the curves of a training

FEW_PAIRS = 16  # figures over fewer held-out pairs mean little
LAST_PART = 0.75  # of the steps: the gain since then says whether more steps would help
TOO_SHORT, FINE = 0.10, 0.02  # share of the whole gain since then: from there on, and below
RISE = 0.02  # of the held-out loss from its minimum, relative
PSNR_FALL = 0.2  # dB
GAP = 1.5  # held-out loss above so many times the training loss of image tokens
COPIES = 0.2  # more near duplicates of training images among samples than among held-out images
COLLAPSED = "collapsed"
COLLAPSED_SHARE = 0.05  # perplexity, as a share of the codebook
PLAIN_PSNR = 10.0  # dB, about that of a plain image: where a tokenizer starts


@dataclass(frozen=True)
class Verdict:
    """The word, and the figures behind it in a sentence."""

    word: str
    because: str

    def __str__(self) -> str:
        return f"{self.word}: {self.because}"


def kept_row(rows: Rows, name: str) -> Mapping[str, float]:
    """The evaluated row of the kept weights, of those that have the figure `name`."""
    evaluated = [row for row in rows if name in row]
    return next((row for row in evaluated if "is_kept" in row), evaluated[-1])


def verdicts(curves: Mapping[str, Rows], figures: Mapping, num_held_out: int) -> dict[str, Verdict]:
    """{model: verdict} from the curves {stage: rows} and metrics.json; a model that was not trained has none."""
    found = {
        "image_tokenizer": _tokenizer(curves.get("train_image_tokenizer", ()), figures),
        "decoder": _by_psnr(curves.get("train_decoder", ()), figures["reconstruction"]["psnr_hard"], ""),
        "generator": _generator(curves.get("train_generator", ()), figures.get("fidelity", {})),
        "scorer": _by_loss(curves.get("train_scorer", ()), "loss", "held-out loss"),
    }
    tokenizer, generator = found["image_tokenizer"], found["generator"]
    if tokenizer and tokenizer.word == COLLAPSED and generator and generator.word in ("learning", "fine"):
        because = f"the image tokenizer collapsed, so its few tokens are easy to predict; {generator.because}"
        found["generator"] = Verdict(COLLAPSED, because)
    few = f" (means little: {few_pairs(num_held_out)})" if few_pairs(num_held_out) else ""
    return {
        model: Verdict(verdict.word, verdict.because + _kept(curves[f"train_{model}"]) + few)
        for model, verdict in found.items()
        if verdict
    }


def _kept(rows: Rows) -> str:
    steps = [int(row["step"]) for row in rows if "is_kept" in row]
    return f"; the weights of step {steps[0]} are kept" if steps else ""


def few_pairs(num_held_out: int) -> str:
    """Why held-out figures mean little: 6 -> "over 6 held-out pairs only", and "" from 16 on."""
    unit = "pair" if num_held_out == 1 else "pairs"
    return f"over {num_held_out} held-out {unit} only" if num_held_out < FEW_PAIRS else ""


def _tokenizer(rows: Rows, figures: Mapping) -> Verdict | None:
    codebook, psnr = figures["codebook"], figures["reconstruction"]
    points = points_of(rows, "validation/psnr_hard")
    if not points or not points_of(rows, "loss"):
        return None
    use = (
        f"codebook perplexity {codebook['perplexity']:.0f}, {codebook['used']:.0%} of {codebook['vocab_size']} "
        "codes in use"
    )
    is_worse = psnr["psnr_hard"] < psnr["psnr_kmeans"]  # few codes that reconstruct better are no fault
    if is_worse and codebook["perplexity"] < COLLAPSED_SHARE * codebook["vocab_size"]:
        worse = f"{psnr['psnr_hard']:.2f} dB, k-means of raw patches {psnr['psnr_kmeans']:.2f} dB"
        return Verdict(COLLAPSED, f"held-out PSNR {worse}; {use}")
    return _by_psnr(rows, PLAIN_PSNR, f"; {use}")


def _by_psnr(rows: Rows, start: float, more: str) -> Verdict | None:
    """The verdict on held-out PSNR, which was `start` dB before the training; the sentence ends with `more`."""
    points = points_of(rows, "validation/psnr_hard")
    if not points:
        return None
    best_step, best = max(points, key=lambda point: point[1])
    last_step, last = points[-1]
    if best - last > PSNR_FALL:
        because = f"held-out PSNR {best:.2f} dB at step {best_step}, {last:.2f} dB at step {last_step}"
        return Verdict(f"memorizing since step {best_step}", because + more)
    word, note = _progress([(0, start), *points])
    return Verdict(word, f"held-out PSNR {last:.2f} dB at step {last_step}, {note}{more}")


def _generator(rows: Rows, fidelity: Mapping) -> Verdict | None:
    verdict = _by_loss(rows, "image_loss", "held-out image loss", gap=GAP)
    share = (fidelity.get("memorisation") or {}).get("share")
    if verdict is None or share is None:
        return verdict
    copies = f"{share['drawn']:.0%} of samples are near duplicates of training images (held-out images {share['held_out']:.0%})"
    word = verdict.word
    if share["drawn"] - share["held_out"] > COPIES and not word.startswith("memorizing"):
        step = int(kept_row(rows, "validation/image_loss")["step"])
        word = f"memorizing since step {step}"
    return Verdict(word, f"{verdict.because}; {copies}")


def _by_loss(rows: Rows, name: str, title: str, gap: float | None = None) -> Verdict | None:
    """The verdict on a loss that is logged in training as `name` and held out as "validation/name"."""
    points, training = points_of(rows, f"validation/{name}"), points_of(rows, name)
    if not points or not training:
        return None
    last_step, last = points[-1]
    best_step, best = min(points, key=lambda point: point[1])
    at = f"{title} {last:.3f} at step {last_step}, training {_training(training, last_step):.3f}"
    if len(training) > 2 and _training(training, last_step) >= training[0][1]:
        return Verdict(COLLAPSED, f"{at}, at step {training[0][0]} {training[0][1]:.3f}: it never fell")
    falls = _training(training, last_step) < _training(training, best_step)
    if last - best > RISE * abs(best) and falls:
        at = f"{title} {best:.3f} at step {best_step}, {last:.3f} at step {last_step}, "
        at += f"training {_training(training, last_step):.3f}"
        return Verdict(f"memorizing since step {best_step}", at)
    apart = [step for step, value in points if gap and value > gap * _training(training, step) > 0]
    if last_step in apart:
        first = next(step for step in apart if all(later in apart for later, _ in points if later >= step))
        return Verdict(f"memorizing since step {first}", f"{at}: more than {gap:g} times as much")
    word, note = _progress([training[0], *points])
    return Verdict(word, f"{at}, {note}")


def _progress(points: Sequence[tuple[int, float]]) -> tuple[str, str]:
    """(word, its figure) of a curve [(step, value), …], the start first."""
    if len(points) < 3:
        return "too short", "evaluated once, so whether it still gains is not known"
    (_, start), (last_step, last) = points[0], points[-1]
    late = last - float(np.interp(LAST_PART * last_step, *zip(*points, strict=True)))
    share = max(0.0, late / (last - start)) if last != start else 0.0
    word = "too short" if share >= TOO_SHORT else "learning" if share >= FINE else "fine"
    return word, f"{share:.1%} of its gain in the last quarter of the steps"


def _training(training: Sequence[tuple[int, float]], step: int) -> float:
    """The training loss at a step: a mean over a tenth of the steps up to it, for the loss of a batch is noisy."""
    near = [value for at, value in training if step - training[-1][0] / 10 <= at <= step]
    return sum(near) / len(near) if near else training[0][1]


def points_of(rows: Rows, name: str) -> list[tuple[int, float]]:
    """[(step, value), …] of the rows that have a figure."""
    return [(int(row["step"]), row[name]) for row in rows if name in row]
