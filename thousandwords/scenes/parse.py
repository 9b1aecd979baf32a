"""Reads a drawn scene back from its pixels and checks it against a caption, attribute by attribute.

The background is fitted to the border; things are the connected patches that differ from it. A thing's colour
is the nearest name, its shape and size those of the best matching template (Tanimoto overlap, over shifts and
radii). Made for pictures drawn by `scenes` and for blurred, noisy or generated versions of them: what it
cannot name it calls None, and None never matches a caption. It stands in for the paper's human raters (arXiv
2102.12092 §3.1).
Left out: things that touch or overlap, any other vocabulary, photographs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from math import ceil

import numpy as np

from thousandwords.scenes import COLOURS, GROUNDS, RADII, REFERENCE_SIZE, SHAPES, Scene, Thing, mask, parse

ATTRIBUTES = ("colour", "shape", "size", "relation", "background")

# All distances are Euclidean in RGB of 0..255; areas are in pixels of a picture of 64 x 64.
GROUND_TOLERANCE = 45.0  # from the named background; the two nearest names are over 90 apart
EDGE_DISTANCE = 42.0  # a pixel this far from the background is part of a thing; every colour is 100 away
COLOUR_TOLERANCE = 60.0  # from the mixtures of the named colour
STRENGTHS = (0.45, 1.15)  # how far a pixel may have paled towards the background, or beyond the colour
PURITY = 0.75  # of a thing's inner pixels must have its colour; a half red, half blue star has none
SPECK_AREA = 24.0  # smaller ones are stray pixels; the smallest thing covers four times that
SHAPE_OVERLAP = 0.72  # Tanimoto, with the best template; less is no shape of ours
RADIUS_STEPS = (0.9, 1.0, 1.1)  # a thing may come back a little smaller or larger and keep its size name
SHIFTS = (-1, 0, 1)  # pixels around the middle of the thing's box


@dataclass(frozen=True)
class SeenThing:
    """What one connected patch looks like; None for what has no name."""

    shape: str | None
    colour: str | None
    size: str | None
    centre: tuple[float, float]  # x, y as shares of the picture's side, (0, 0) at the top left


@dataclass(frozen=True)
class Reading:
    things: tuple[SeenThing, ...]  # largest first
    background: str | None


def read_match(image: np.ndarray, caption: str) -> dict[str, bool]:
    """Which attributes of the caption the picture (H, W, 3) shows: {"colour": True, "shape": False, ...}.

    A thing that is missing fails colour, shape, size and relation; one too many fails the relation. A caption
    without a background accepts any.
    """
    return match(read(image), parse(caption))


def match(seen: Reading, told: Scene) -> dict[str, bool]:
    things = _assign(seen.things, told)
    result = {
        name: all(thing is not None and getattr(thing, name) == getattr(wanted, name)
                  for thing, wanted in zip(things, told.things, strict=True))
        for name in ("colour", "shape", "size")
    }
    result["relation"] = len(seen.things) == len(told.things) and _relation_holds(things, told.relation)
    result["background"] = told.background in (None, seen.background)
    return result


def _assign(seen: tuple[SeenThing, ...], told: Scene) -> tuple[SeenThing | None, ...]:
    """For each thing told the one seen (None: missing) so that most attributes fit; relation breaks ties."""
    missing = (None,) * len(told.things)

    def fit(things: tuple[SeenThing | None, ...]) -> tuple[int, bool]:
        hits = sum(_hits(thing, wanted) for thing, wanted in zip(things, told.things, strict=True))
        return hits, _relation_holds(things, told.relation)

    return max(permutations(seen[:4] + missing, len(told.things)), key=fit)


def _hits(thing: SeenThing | None, wanted: Thing) -> int:
    return sum(getattr(thing, name, None) == getattr(wanted, name) for name in ("colour", "shape", "size"))


def _relation_holds(things: tuple[SeenThing | None, ...], relation: str | None) -> bool:
    """Whether all are there and the first stands so to the second, more along that axis than across it."""
    if None in things:
        return False
    if relation is None:
        return True
    (x0, y0), (x1, y1) = things[0].centre, things[1].centre
    right, down = x1 - x0, y1 - y0
    along = {"left of": right, "right of": -right, "above": down, "below": -down}[relation]
    return along > min(abs(right), abs(down))


# ---- reading


def read(image: np.ndarray) -> Reading:
    """The things and the background that a picture, uint8 (H, W, 3) and square, shows."""
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
        raise ValueError(f"a scene is a square RGB picture (H, H, 3), not {image.shape}; crop it to a square")
    pixels = _pooled(image)
    ground = _fit_ground(pixels)
    difference = pixels - ground
    patches = connected_patches(np.einsum("yxc,yxc->yx", difference, difference) > EDGE_DISTANCE**2)
    scale = len(pixels) / REFERENCE_SIZE
    patches = [patch for patch in patches if len(patch) > SPECK_AREA * scale**2]
    things = tuple(_read_thing(difference, ground, patch) for patch in sorted(patches, key=len, reverse=True))
    return Reading(things, _name_ground(ground))


def _pooled(image: np.ndarray) -> np.ndarray:
    """Float pixels; a picture twice the reference or larger is averaged down, which keeps a reading cheap."""
    factor = len(image) // REFERENCE_SIZE
    if factor < 2 or len(image) % factor:
        return image.astype(np.float32)
    side = len(image) // factor
    return image.reshape(side, factor, side, factor, 3).mean(axis=(1, 3), dtype=np.float32)


def _fit_ground(pixels: np.ndarray) -> np.ndarray:
    """The background everywhere, (size, size, 3): the vertical gradient between top and bottom border."""
    border = max(1, round(2 * len(pixels) / REFERENCE_SIZE))
    top, bottom = np.median(pixels[:border], (0, 1)), np.median(pixels[-border:], (0, 1))
    down = np.linspace(0, 1, len(pixels), dtype=np.float32)[:, None, None]
    return np.broadcast_to(top + down * (bottom - top), pixels.shape)


def _name_ground(ground: np.ndarray) -> str | None:
    distances = {
        name: max(np.linalg.norm(ground[0, 0] - named.top), np.linalg.norm(ground[-1, 0] - named.bottom))
        for name, named in GROUNDS.items()
    }
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < GROUND_TOLERANCE else None


def connected_patches(marked: np.ndarray) -> list[np.ndarray]:
    """The pixels of each 4-connected patch of a mask (H, W), as rows (y, x); joins runs, not pixels."""
    width = marked.shape[1] + 1  # one empty column, so that no run crosses a row's end
    flat = np.pad(marked, ((0, 0), (0, 1))).ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    starts, ends = edges[::2], edges[1::2]
    roots = list(range(len(starts)))
    # runs first .. last - 1 lie in the next row and touch this one
    first = np.searchsorted(ends, starts + width, side="right")
    last = np.searchsorted(starts, ends + width, side="left")
    for run in range(len(roots)):
        for below in range(first[run], last[run]):
            roots[_root(roots, below)] = _root(roots, run)
    labels = np.repeat([_root(roots, run) for run in range(len(roots))], ends - starts)
    order = np.argsort(labels, kind="stable")
    places = np.stack(np.divmod(np.flatnonzero(flat), width), axis=1)[order]
    return np.split(places, np.flatnonzero(np.diff(labels[order])) + 1) if len(places) else []


def _root(roots: list[int], run: int) -> int:
    while roots[run] != run:
        roots[run] = roots[roots[run]]
        run = roots[run]
    return run


def _read_thing(difference: np.ndarray, ground: np.ndarray, patch: np.ndarray) -> SeenThing:
    own, below = difference[patch[:, 0], patch[:, 1]], ground[patch[:, 0], patch[:, 1]]
    distance = np.linalg.norm(own, axis=1)
    inner = distance >= np.median(distance)  # the half farthest from the background: edges are mixed with it
    paint = np.median(own[inner] + below[inner], axis=0)
    shape, size = _name_shape(_coverage(difference, ground, patch, paint), len(ground))
    y, x = (patch.min(axis=0) + patch.max(axis=0) + 1) / 2 / len(ground)
    return SeenThing(shape, _name_colour(own[inner], below[inner]), size, (float(x), float(y)))


def _name_colour(difference: np.ndarray, ground: np.ndarray) -> str | None:
    """The colour whose mixtures with the background (N, 3) lie nearest to the pixels: blur pales things."""
    contrast = np.array(list(COLOURS.values()), np.float32)[:, None] - ground  # (colours, N, 3)
    strength = (difference * contrast).sum(axis=2) / (contrast**2).sum(axis=2)
    mixed = strength.clip(*STRENGTHS)[:, :, None] * contrast
    residual = np.linalg.norm(difference - mixed, axis=2)  # (colours, N)
    typical = np.median(residual, axis=1)
    best = typical.argmin()
    purity = (residual.argmin(axis=0) == best).mean()
    return list(COLOURS)[best] if typical[best] < COLOUR_TOLERANCE and purity >= PURITY else None


def _coverage(difference: np.ndarray, ground: np.ndarray, patch: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """How much of each pixel the thing covers, 0..1, in a square window around the middle of its box."""
    reach = _reach(len(ground))
    own = np.zeros(ground.shape[:2], bool)
    own[patch[:, 0], patch[:, 1]] = True
    own[1:] |= own[:-1].copy()  # one pixel more on each side: the soft edge that the threshold cut off
    own[:-1] |= own[1:].copy()
    own[:, 1:] |= own[:, :-1].copy()
    own[:, :-1] |= own[:, 1:].copy()
    contrast = paint - ground
    share = (difference * contrast).sum(axis=2) / (contrast**2).sum(axis=2).clip(1)
    share = np.pad(np.where(own, share.clip(0, 1), 0), reach)
    y, x = (patch.min(axis=0) + patch.max(axis=0) + 1) // 2
    return share[y : y + 2 * reach + 1, x : x + 2 * reach + 1]


def _name_shape(coverage: np.ndarray, side: int) -> tuple[str | None, str | None]:
    """Shape and size of the template that overlaps best, or None twice when none does well."""
    names, templates, areas = _templates(side)
    common = np.einsum("np,p->n", templates, coverage.ravel())  # not @: on busy cores a threaded BLAS stalls
    overlap = common / (areas + (coverage**2).sum() - common)
    best = overlap.argmax()
    return names[best // (2 * len(SHIFTS) ** 2)] if overlap[best] >= SHAPE_OVERLAP else (None, None)


def _reach(side: int) -> int:
    """Half the window's width: room for the largest template and its shift."""
    return ceil(max(RADII.values()) * max(RADIUS_STEPS) * side / REFERENCE_SIZE) + max(SHIFTS) + 1


@lru_cache(maxsize=4)
def _templates(side: int) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Names (shape, size); templates (N, window pixels), sharp and soft, shifted, per name; areas (N,)."""
    names, templates = [], []
    for shape in SHAPES:
        for size, radius in RADII.items():
            for step in RADIUS_STEPS:
                names.append((shape, size))
                sharp = mask(shape, radius * step * side / REFERENCE_SIZE)
                sharp = np.pad(sharp, _reach(side) - len(sharp) // 2)
                templates += _shifted(sharp) + _shifted(_blurred(sharp))
    stacked = np.stack(templates)
    return names, stacked, (stacked**2).sum(axis=1)


def _shifted(template: np.ndarray) -> list[np.ndarray]:
    """The template moved by each of the shifts, flattened."""
    return [np.roll(template, (down, right), (0, 1)).ravel() for down in SHIFTS for right in SHIFTS]


def _blurred(template: np.ndarray) -> np.ndarray:
    """Twice a 3 x 3 mean (standard deviation 1.2 pixels): what a lossy tokenizer makes of an edge."""
    for axis in (0, 0, 1, 1):
        template = (np.roll(template, 1, axis) + template + np.roll(template, -1, axis)) / 3
    return template
