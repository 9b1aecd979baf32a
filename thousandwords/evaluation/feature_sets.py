"""Drawn and real pictures in the features that they are compared by, at every blur, and the figures of how like they are.

Axes: R radii of blur, N real and M drawn pictures, D features, K classes.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thousandwords import fidelity, images
from thousandwords.evaluation import with_interval
from thousandwords.features import OF_INCEPTION, Extractor, Names
from thousandwords.samples import Samples
from thousandwords.shards import in_order

Draw = tuple[int, int]    # (prompt, candidate)
Pictures = Callable[[list[int]], Tensor]    # rows -> (B, 3, H, W) in [0, 1]
Progress = Callable[[Iterable, int], Iterable]    # passes batches on, told how many there are
SPLIT = "validation"    # whose captions are drawn, and whose pictures the drawn ones are compared with
BATCH_SIZE = 64
REFERENCE_SEED = 2020    # torch-fidelity's


@dataclass(frozen=True)
class Sides:
    """What a Fréchet distance compares, embedded at every radius of blur."""

    names: Names
    real: Tensor    # (R, N, D)
    drawn: Tensor    # (R, M, D)
    logits: Tensor    # (R, M, K), of the drawn; K is 0 where there are no classes
    draws: list[Draw]    # of the M drawn pictures
    captions: list[str]    # of them

    @property
    def prompts(self) -> list[int]:
        """Of the M drawn pictures: those of one prompt say the same thing, and count in an interval as one."""
        return [prompt for prompt, _ in self.draws]

    def distance(self, radius: int, real: Tensor | slice = slice(None), drawn: Tensor | slice = slice(None)) -> float | None:
        """The distance of the chosen pictures at one of the radii; None where too few are left for one."""
        sides = self.real[radius, real], self.drawn[radius, drawn]
        return fidelity.frechet_distance(*sides) if min(map(len, sides)) > 1 else None

    def sweep(self, seed: int) -> dict:
        """The block of the Fréchet distance in metrics.json; its interval is of radius 0."""
        counts = {"real": self.real.shape[1], "drawn": self.drawn.shape[1], "captions": len(set(self.captions))}
        interval = fidelity.frechet_interval(self.drawn[0], self.real[0], self.prompts, np.random.default_rng(seed))
        distances = [self.distance(radius) for radius in fidelity.RADII]
        return counts | {"radius": list(fidelity.RADII), "distance": distances, "interval": interval}

    def sweep_without(self, is_known: Tensor, captions: set[str]) -> list[float | None]:
        """The distances at every radius without the real pictures of a mask (N,), and without what was drawn for `captions`."""
        drawn = torch.tensor([caption not in captions for caption in self.captions])
        return [self.distance(radius, ~is_known, drawn) for radius in fidelity.RADII]

    def spread(self, seed: int) -> dict:
        """The blocks of the kernel distance and of precision and recall, without blur; absent where pictures are too few."""
        if min(len(self.real[0]), len(self.drawn[0])) <= fidelity.NEIGHBOURS:
            return {}
        sides = self.drawn[0], self.real[0]
        drawn, real = (among.double().numpy() for among in fidelity.precision_recall(*sides))
        by_prompt = [np.mean(drawn[np.asarray(self.prompts) == prompt]) for prompt in dict.fromkeys(self.prompts)]
        return {
            self.names.kernel: self.kernel(seed),
            self.names.spread: {
                **with_interval("precision", by_prompt, seed), **with_interval("recall", real, seed),
                "neighbours": fidelity.NEIGHBOURS,
            },
        }    # fmt: skip

    def kernel(self, seed: int) -> dict:
        """As torch-fidelity takes a KID, its precision and its seed included; of a CLIP, whose vectors lie closer, in float64."""
        if self.names is OF_INCEPTION:
            return fidelity.kernel_distance(self.drawn[0], self.real[0], REFERENCE_SEED)
        return fidelity.kernel_distance(self.drawn[0].double(), self.real[0].double(), seed)

    def scores(self) -> dict:
        """The block of the Inception Score, of the drawn pictures at every radius; absent where there are no classes."""
        if not self.logits.shape[2] or self.logits.shape[1] < fidelity.SPLITS:
            return {}
        by_radius = [fidelity.inception_score(logits) for logits in self.logits]
        sweep = {"radius": list(fidelity.RADII), "score": [one["mean"] for one in by_radius]}
        return {self.names.score: {**by_radius[0], "drawn": self.logits.shape[1], **sweep}}

    def yardstick(self, training: Tensor) -> dict:
        """{"training": the distance, without blur, of as many training pictures (N, D)}: real ones too are at some distance."""
        return {"training": fidelity.frechet_distance(self.real[0], training[: self.real.shape[1]])}


def first_draws(drawn: Samples, wanted: int) -> list[Draw]:
    """(prompt, candidate) of the pictures drawn for held-out captions: as few candidates of each as make `wanted` in all.

    In the order in which they were drawn, not in the scorer's: its favourites would flatter a distance in its own space.
    """
    prompts = [prompt for prompt, split in enumerate(drawn.splits) if split == SPLIT]
    each = min(drawn.candidates, -(-wanted // len(prompts))) if prompts else 0
    return [(prompt, candidate) for candidate in range(each) for prompt in prompts]


def embed_sides(
    by: Extractor, real: Tensor, drawn: Samples, progress: Progress, known: Tensor | None = None
) -> Sides | None:
    """real (N, 3, H, W) and about as many drawn pictures; None where a side has fewer than 2, too few for a distance.

    `known` (1, N, D) are the real ones' features without blur, where they are at hand.
    """
    draws = first_draws(drawn, len(real))
    if min(len(real), len(draws)) < 2:
        return None
    radii = fidelity.RADII if known is None else fidelity.RADII[1:]
    blurred, _ = embed(by, real.__getitem__, len(real), radii, progress)
    features, logits = embed_drawn(by, drawn, draws, fidelity.RADII, progress)
    return Sides(
        names=by.names,
        real=blurred if known is None else torch.cat([known, blurred]),
        drawn=features,
        logits=logits,
        draws=draws,
        captions=[drawn.prompts[prompt] for prompt, _ in draws],
    )


def embed(
    by: Extractor, pictures: Pictures, count: int, radii: Sequence[int], progress: Progress
) -> tuple[Tensor, Tensor]:
    """Features and logits of rows 0 to `count`, blurred by each radius: (R, count, D), (R, count, K), on the CPU."""
    parts = []
    for rows in progress(in_order(count, BATCH_SIZE), -(-count // BATCH_SIZE)):
        batch = by.place(pictures(rows))
        both = [by(fidelity.blur(batch, radius)) for radius in radii]
        parts.append([torch.stack(side) for side in zip(*both, strict=True)])
    features, logits = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
    return features, logits


def embed_drawn(
    by: Extractor, drawn: Samples, draws: list[Draw], radii: Sequence[int], progress: Progress
) -> tuple[Tensor, Tensor]:
    """The same of drawn pictures."""
    return embed(by, lambda rows: _drawn(drawn, [draws[row] for row in rows]), len(draws), radii, progress)


def _drawn(drawn: Samples, draws: list[Draw]) -> Tensor:
    """The drawn pictures (B, 3, H, W) of some (prompt, candidate)."""
    column = drawn.table["image"]
    rows = [prompt * drawn.candidates + candidate for prompt, candidate in draws]
    return images.to_float(np.stack([images.decode_png(column[row].as_py()) for row in rows]))
