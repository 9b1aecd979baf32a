"""Parses an image of a scene and checks it against a caption, attribute by attribute.

The background is fitted to the border; things are the connected patches that differ from it. A thing's color is the
nearest named one, its shape and size those of the best matching template (Tanimoto overlap). An attribute without a
matching name is None, and None never matches a caption. It replaces the paper's human raters (arXiv 2102.12092 §3.1).
Left out: things that touch or overlap, photographs.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from math import ceil

import numpy as np
from scipy import ndimage

from thousandwords.scenes.render import (
    COLORS,
    GROUNDS,
    RADII,
    REFERENCE_SIZE,
    SHAPES,
    Scene,
    Thing,
    mask,
    parse_caption,
)

ATTRIBUTES = ("colour", "shape", "size", "relation", "background")  # keys of metrics.json
THING_FIELDS = {"colour": "color", "shape": "shape", "size": "size"}  # attribute -> field of a thing

# All distances are Euclidean in RGB of 0..255; areas are in pixels of an image of 64 x 64.
GROUND_TOLERANCE = 45.0  # from the named background; the two nearest names are over 90 apart
EDGE_DISTANCE = 42.0  # a pixel this far from the background is part of a thing; every color is 100 away
COLOR_TOLERANCE = 60.0  # from the mixtures of the named color
STRENGTHS = (0.45, 1.15)  # range of mixtures between background (0) and color (1), and slightly beyond
PURITY = 0.75  # share of a thing's inner pixels that must have its color; a half red, half blue star has none
MIN_THING_AREA = 24.0  # smaller patches are stray pixels; the smallest thing is four times as large
SHAPE_OVERLAP = 0.72  # Tanimoto overlap with the best template; below it the shape is None
RADIUS_STEPS = (0.9, 1.0, 1.1)  # a thing may be a little smaller or larger and keep its size name
SHIFTS = (-1, 0, 1)  # pixels around the middle of the thing's box


@dataclass(frozen=True)
class ParsedThing:
    """The attributes of one connected patch; None where no name matches."""

    shape: str | None
    color: str | None
    size: str | None
    center: tuple[float, float]  # x, y as fractions of the image's side, (0, 0) at the top left


@dataclass(frozen=True)
class ParsedScene:
    """The content of an image."""

    things: tuple[ParsedThing, ...]  # largest first
    background: str | None


def match_caption(image: np.ndarray, caption: str) -> dict[str, bool]:
    """Which attributes of the caption are right in the image (H, W, 3): {"colour": True, "shape": False, ...}.

    A missing thing makes color, shape, size and relation wrong; an extra thing makes the relation wrong.
    """
    parsed, scene = parse_image(image), parse_caption(caption)
    things = _assign(parsed.things, scene)
    result = {
        attribute: all(
            thing is not None and getattr(thing, field) == getattr(expected, field)
            for thing, expected in zip(things, scene.things, strict=True)
        )
        for attribute, field in THING_FIELDS.items()
    }
    result["relation"] = len(parsed.things) == len(scene.things) and _relation_holds(things, scene.relation)
    result["background"] = scene.background in (None, parsed.background)
    return result


def _assign(parsed: tuple[ParsedThing, ...], scene: Scene) -> tuple[ParsedThing | None, ...]:
    """The parsed thing (None: missing) for each thing of the scene: most attributes, then the relation."""
    missing = (None,) * len(scene.things)

    def score(things: tuple[ParsedThing | None, ...]) -> tuple[int, bool]:
        hits = sum(_hits(thing, expected) for thing, expected in zip(things, scene.things, strict=True))
        return hits, _relation_holds(things, scene.relation)

    return max(permutations(parsed[:4] + missing, len(scene.things)), key=score)


def _hits(thing: ParsedThing | None, expected: Thing) -> int:
    return sum(getattr(thing, field, None) == getattr(expected, field) for field in THING_FIELDS.values())


def _relation_holds(things: tuple[ParsedThing | None, ...], relation: str | None) -> bool:
    """Whether both things exist and the relation holds, with more distance along its axis than across it."""
    if None in things:
        return False
    if relation is None:
        return True
    (x0, y0), (x1, y1) = things[0].center, things[1].center
    right, down = x1 - x0, y1 - y0
    along = {"left of": right, "right of": -right, "above": down, "below": -down}[relation]
    return along > min(abs(right), abs(down))


# ---- parsing


def parse_image(image: np.ndarray) -> ParsedScene:
    """The things and the background of a square image, uint8 (H, H, 3)."""
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
        raise ValueError(f"a scene is a square RGB image (H, H, 3), not {image.shape}; crop it to a square")
    pixels = _pooled(image)
    ground = _fit_ground(pixels)
    difference = pixels - ground
    # patches of pixels that share an edge, numbered from 1
    labels, _ = ndimage.label(np.einsum("yxc,yxc->yx", difference, difference) > EDGE_DISTANCE**2)
    areas = np.bincount(labels.ravel(), minlength=2)[1:]
    scale = len(pixels) / REFERENCE_SIZE
    largest_first = np.argsort(-areas, kind="stable")
    large = largest_first[areas[largest_first] > MIN_THING_AREA * scale**2]
    things = tuple(_read_thing(difference, ground, np.argwhere(labels == patch + 1)) for patch in large)
    return ParsedScene(things, _name_ground(ground))


def _pooled(image: np.ndarray) -> np.ndarray:
    """Float pixels; an image of twice the reference size or more is averaged down, for speed."""
    factor = len(image) // REFERENCE_SIZE
    if factor < 2 or len(image) % factor:
        return image.astype(np.float32)
    side = len(image) // factor
    return image.reshape(side, factor, side, factor, 3).mean(axis=(1, 3), dtype=np.float32)


def _fit_ground(pixels: np.ndarray) -> np.ndarray:
    """The background at every pixel, (size, size, 3): the vertical gradient between top and bottom border."""
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


def _read_thing(difference: np.ndarray, ground: np.ndarray, patch: np.ndarray) -> ParsedThing:
    own, below = difference[patch[:, 0], patch[:, 1]], ground[patch[:, 0], patch[:, 1]]
    distance = np.linalg.norm(own, axis=1)
    # the half farthest from the background: the edges are mixed with it
    inner = distance >= np.median(distance)
    paint = np.median(own[inner] + below[inner], axis=0)
    shape, size = _name_shape(_coverage(difference, ground, patch, paint), len(ground))
    y, x = (patch.min(axis=0) + patch.max(axis=0) + 1) / 2 / len(ground)
    return ParsedThing(shape, _name_color(own[inner], below[inner]), size, (float(x), float(y)))


def _name_color(difference: np.ndarray, ground: np.ndarray) -> str | None:
    """The color whose mixtures with the background (N, 3) are nearest to the pixels: blur mixes the two."""
    contrast = np.array(list(COLORS.values()), np.float32)[:, None] - ground  # (colors, N, 3)
    strength = (difference * contrast).sum(axis=2) / (contrast**2).sum(axis=2)
    mixed = strength.clip(*STRENGTHS)[:, :, None] * contrast
    residual = np.linalg.norm(difference - mixed, axis=2)  # (colors, N)
    typical = np.median(residual, axis=1)
    best = typical.argmin()
    purity = (residual.argmin(axis=0) == best).mean()
    return list(COLORS)[best] if typical[best] < COLOR_TOLERANCE and purity >= PURITY else None


def _coverage(difference: np.ndarray, ground: np.ndarray, patch: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """How much of each pixel the thing covers, 0..1, in a square window around the middle of its box."""
    reach = _reach(len(ground))
    region = np.zeros(ground.shape[:2], bool)
    region[patch[:, 0], patch[:, 1]] = True
    # one more pixel on each side: the soft edge that the threshold cut off
    region = ndimage.binary_dilation(region, np.ones((3, 3), bool))
    contrast = paint - ground
    share = (difference * contrast).sum(axis=2) / (contrast**2).sum(axis=2).clip(1)
    share = np.pad(np.where(region, share.clip(0, 1), 0), reach)
    y, x = (patch.min(axis=0) + patch.max(axis=0) + 1) // 2
    return share[y : y + 2 * reach + 1, x : x + 2 * reach + 1]


def _name_shape(coverage: np.ndarray, side: int) -> tuple[str | None, str | None]:
    """Shape and size of the template that overlaps best; (None, None) if the overlap is too small."""
    names, templates, areas = _templates(side)
    # not @: a threaded BLAS is slow when the cores are busy
    common = np.einsum("np,p->n", templates, coverage.ravel())
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
    """Twice a 3 x 3 mean (standard deviation 1.2 pixels): what a lossy tokenizer does to an edge."""
    for axis in (0, 0, 1, 1):
        template = (np.roll(template, 1, axis) + template + np.roll(template, -1, axis)) / 3
    return template
