"""How like the held-out pictures the drawn ones are, and which of both training has all but seen: models in, figures out.

Everything is measured in the scorer's embedding, which is at hand but is not Inception's: `clip_frechet` compares runs of one
scorer with each other, and no run with a published FID. It depends on the number of pictures too, which is told beside it.
A drawn picture that is as near to a training picture as a twin may be learned by heart; the share of held-out pictures that
are so near, which nobody learned, stands beside it. Mind that drawn pictures come from the image tokenizer, which smooths them:
that takes a picture learned by heart a little away from its original.

Left out: FID, KID and Inception Score (they want a pretrained Inception), and the raters (`metrics.majority`).

Axes: R radii of blur, N held-out and M drawn pictures, D the embedding's width.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandwords import fidelity, images, neighbours
from thousandwords.evaluation import Config
from thousandwords.fidelity import Overlap
from thousandwords.retrieval import retrieval
from thousandwords.samples import Samples
from thousandwords.shards import in_order
from thousandwords.twins import by_chance

Pictures = Callable[[list[int]], Tensor]    # rows -> (B, 3, H, W) in [0, 1]
Progress = Callable[[Iterable, int], Iterable]    # passes batches on, told how many there are
SPLIT = "validation"    # whose captions are drawn, and whose pictures the drawn ones are compared with
BATCH_SIZE = 64
PAIRED = 1024    # held-out and training pictures, each with each, whose cosines tell what chance is
ALL_BUT_EQUAL = 1 - 1e-7    # Fisher's z of equal pictures is infinite


@dataclass(frozen=True)
class HeldOut:
    """N held-out pictures, and what is known of each."""

    images: Tensor    # (N, 3, H, W)
    captions: list[str]    # as the generator was given them
    psnr: Tensor    # (N,) dB, of its reconstruction


@dataclass(frozen=True)
class Sides:
    """What a Fréchet distance compares, embedded at every radius of blur."""

    real: Tensor    # (R, N, D)
    drawn: Tensor    # (R, M, D)
    captions: list[str]    # of the M drawn pictures

    def distance(self, radius: int, real: Tensor | slice = slice(None), drawn: Tensor | slice = slice(None)) -> float | None:
        """The distance of the chosen pictures at one of the radii; None where too few are left for one."""
        sides = self.real[radius, real], self.drawn[radius, drawn]
        return fidelity.frechet_distance(*sides) if min(map(len, sides)) > 1 else None

    def sweep(self) -> dict:
        """The block `clip_frechet` of metrics.json."""
        counts = {"real": self.real.shape[1], "drawn": self.drawn.shape[1], "captions": len(set(self.captions))}
        return counts | {"radius": list(fidelity.RADII), "distance": [self.distance(radius) for radius in fidelity.RADII]}

    def spread(self, seed: int) -> dict:
        """The blocks `clip_kernel` and `clip_precision`, without blur; each absent where there are too few pictures for it."""
        enough = min(len(self.real[0]), len(self.drawn[0])) > fidelity.NEIGHBOURS
        sides = self.drawn[0], self.real[0]
        return {
            "clip_kernel": fidelity.kernel_distance(*sides, seed), "clip_precision": fidelity.precision_recall(*sides),
        } if enough else {}    # fmt: skip

    def yardstick(self, training: Tensor | None) -> dict:
        """{"training": the distance, without blur, of as many training pictures (M, D)}: real ones too are at some distance."""
        enough = training is not None and len(training) >= self.real.shape[1]
        return {"training": fidelity.frechet_distance(self.real[0], training[: self.real.shape[1]])} if enough else {}


@dataclass(frozen=True)
class Found:
    """The nearest training picture of each held-out, drawn and training one."""

    held_out: Overlap
    within: Overlap | None    # of the training pictures themselves, each without itself; None of a single one
    drawn: Overlap | None
    draws: list[tuple[int, int]]    # (prompt, candidate) of the drawn ones


def measure(
    scorer: nn.Module, held_out: HeldOut, training: Pictures, seen: int, drawn: Samples, config: Config, progress: Progress,
    seed: int = 0,
) -> tuple[dict, Found | None]:
    """The block `fidelity` of metrics.json, and the neighbours that it speaks of.

    `training` gives pictures by row, and `seen` of them are looked at; `seed` picks subsets. What has too few pictures, or is
    off, is absent.
    """
    sides = embed_sides(scorer, held_out.images[: config.frechet_pictures], drawn, progress)
    trained = embed(scorer, training, seen, [0], progress)[0] if seen else None    # (seen, D)
    figures = {"clip_frechet": sides.sweep() | sides.yardstick(trained), **sides.spread(seed)} if sides else {}
    ours = embed(scorer, held_out.images.__getitem__, len(held_out.images), [0], progress)[0]    # (N, D)
    figures["retrieval"] = retrieval(ours, embed_captions(scorer, held_out.captions))
    if trained is None:
        return figures, None
    found = find(ours, trained, sides, first_draws(drawn, len(sides.real[0])) if sides else [], config.overlap_threshold)
    figures |= {"overlap": overlap_figures(found, held_out, seen, sides) | {"by_chance": threshold_by_chance(ours, trained)}}
    return figures | ({"memorisation": memorisation_figures(found, seen, sides)} if sides else {}), found


def find(ours: Tensor, trained: Tensor, sides: Sides | None, draws: list[tuple[int, int]], threshold: float | None) -> Found:
    """Neighbours of held-out (N, D), training (seen, D) and drawn pictures among the training ones, by one threshold."""
    threshold = threshold_by_chance(ours, trained) if threshold is None else threshold
    within = fidelity.Overlap(*neighbours.nearest_other(trained), threshold) if len(trained) > 1 else None
    drawn = fidelity.overlap(sides.drawn[0], trained, threshold) if sides else None
    return Found(fidelity.overlap(ours, trained, threshold), within, drawn, draws)


def threshold_by_chance(ours: Tensor, trained: Tensor) -> float:
    """The cosine above which 1 held-out picture in 100 has a training neighbour that is none but by chance (`twins.by_chance`).

    On the scale of Fisher's z a tail that is carried on ends short of 1.
    """
    others = len(trained)
    ours, trained = (rows[:: max(1, len(rows) // PAIRED)] for rows in (ours, trained))
    cosines = functional.normalize(ours.float(), dim=1) @ functional.normalize(trained.float(), dim=1).T
    apart = -torch.atanh(cosines.double().clamp(-ALL_BUT_EQUAL, ALL_BUT_EQUAL)).flatten().numpy()
    return round(float(np.tanh(-by_chance(apart, others))), 7)


def embed_sides(scorer: nn.Module, real: Tensor, drawn: Samples, progress: Progress) -> Sides | None:
    """real (N, 3, H, W) and about as many drawn pictures; None where a side has fewer than 2, too few for a distance."""
    draws = first_draws(drawn, len(real))
    if min(len(real), len(draws)) < 2:
        return None
    return Sides(
        real=embed(scorer, real.__getitem__, len(real), fidelity.RADII, progress),
        drawn=embed(scorer, lambda rows: _drawn(drawn, [draws[row] for row in rows]), len(draws), fidelity.RADII, progress),
        captions=[drawn.prompts[prompt] for prompt, _ in draws],
    )


def first_draws(drawn: Samples, wanted: int) -> list[tuple[int, int]]:
    """(prompt, candidate) of the pictures drawn for held-out captions: as few candidates of each as make `wanted` in all.

    In the order in which they were drawn, not in the scorer's: its favourites would flatter a distance in its own space.
    """
    prompts = [prompt for prompt, split in enumerate(drawn.splits) if split == SPLIT]
    each = min(drawn.candidates, -(-wanted // len(prompts))) if prompts else 0
    return [(prompt, candidate) for candidate in range(each) for prompt in prompts]


def overlap_figures(found: Found, held_out: HeldOut, seen: int, sides: Sides | None) -> dict:
    """The block `overlap` of metrics.json: the headline figures with and without what overlaps.

    Without a held-out picture means without what was drawn for its caption as well.
    """
    is_new = ~found.held_out.is_overlapping
    figures = {
        "threshold": found.held_out.threshold,
        "held_out": len(is_new),
        "training": seen,
        "share": found.held_out.share,
        "share_within_training": found.within.share if found.within else None,
        "psnr_hard": {"with": float(held_out.psnr.mean()), "without": _mean(held_out.psnr[is_new])},
    }
    if sides is None:
        return figures
    known = {caption for caption, new in zip(held_out.captions, is_new.tolist(), strict=True) if not new}
    drawn = torch.tensor([caption not in known for caption in sides.captions])
    without = sides.distance(0, is_new[: sides.real.shape[1]], drawn)
    return figures | {"clip_frechet": {"with": sides.distance(0), "without": without}}


def memorisation_figures(found: Found, seen: int, sides: Sides) -> dict:
    """The block `memorisation` of metrics.json: how near drawn pictures come to training ones, and held-out ones do."""
    both = {"drawn": found.drawn, "held_out": found.held_out}
    return {
        "threshold": found.drawn.threshold,
        "drawn": len(found.drawn.similarity),
        "captions": len(set(sides.captions)),
        "training": seen,
        "share": {name: side.share for name, side in both.items()},
        "median_similarity": {name: float(side.similarity.quantile(0.5)) for name, side in both.items()},
    }


def match_figures(found: Found, captions: Sequence[str], drawn: Samples, read: Mapping[int, list[dict[str, bool]]]) -> dict:
    """{"with", "without"}: the caption match of one draw for held-out captions, with those of overlapping pictures and without.

    `captions` are those of the held-out pictures, `read` what `evaluation.caption_match` read; empty where nothing was.
    """
    known = {caption for caption, one in zip(captions, found.held_out.is_overlapping.tolist(), strict=True) if one}
    rates = {prompt: float(np.mean([all(one.values()) for one in rows])) for prompt, rows in read.items()
             if drawn.splits[prompt] == SPLIT}    # fmt: skip
    new = [rate for prompt, rate in rates.items() if drawn.prompts[prompt] not in known]
    return {"with": float(np.mean([*rates.values()])), "without": float(np.mean(new)) if new else None} if rates else {}


@torch.no_grad()
def embed(scorer: nn.Module, pictures: Pictures, count: int, radii: Sequence[int], progress: Progress) -> Tensor:
    """The scorer's vectors of rows 0 to `count`, blurred by each radius: (R, count, D), on the CPU."""
    device = next(scorer.parameters()).device
    parts = []
    for rows in progress(in_order(count, BATCH_SIZE), -(-count // BATCH_SIZE)):
        batch = pictures(rows).to(device)
        parts.append(torch.stack([scorer.embed_images(fidelity.blur(batch, radius)).cpu() for radius in radii]))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def embed_captions(scorer: nn.Module, captions: Sequence[str]) -> Tensor:
    """The scorer's vectors of captions: (N, D), on the CPU."""
    parts = [scorer.embed_captions(captions[start : start + BATCH_SIZE]).cpu() for start in range(0, len(captions), BATCH_SIZE)]
    return torch.cat(parts)


def _drawn(drawn: Samples, draws: list[tuple[int, int]]) -> Tensor:
    """The drawn pictures (B, 3, H, W) of some (prompt, candidate)."""
    column = drawn.table["image"]
    rows = [prompt * drawn.candidates + candidate for prompt, candidate in draws]
    return images.to_float(np.stack([images.decode_png(column[row].as_py()) for row in rows]))


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
