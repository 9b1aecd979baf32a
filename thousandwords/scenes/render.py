"""The built-in data set: pictures of one or two coloured shapes, each with an exact caption.

    "a small red star above a large blue square on sand"

It stands in for DALL-E's web pairs (arXiv 2102.12092 §2.3) where no data is at hand, and it can be checked:
every caption can be parsed back, and `scene_reader` reads a picture attribute by attribute. `UNSEEN_PAIRS` of
colour and shape never occur in training; pictures of them are the test of composition.

Backgrounds carry gradients and grain: on a flat one nearly every image token is the same certain word, and
the things are starved of likelihood. Left out: textures, overlap, counting, more than two things.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, cos, pi, sin
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (214, 32, 40), "orange": (250, 130, 16), "yellow": (252, 222, 32), "green": (28, 158, 60),
    "cyan": (24, 206, 224), "blue": (36, 80, 232), "purple": (150, 50, 206), "pink": (255, 104, 184),
}
RADII = {"small": 9.0, "large": 13.0}  # pixels in a picture of 64 x 64
SIZES = tuple(RADII)
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
SPLITS = ("train", "validation", "unseen")

# Who is named first x which relation is an exclusive-or: told either way equally often, no single word says where a thing
# stands, and a small model waits thousands of steps for the first hint. So training captions have a habit, as people
# do, of naming first what stands above or on the left. Held-out captions have none, so that no match is owed to it.
HABITUAL = ("left of", "above")
HABIT = {"train": 0.75, "validation": 0.5, "unseen": 0.5}  # the share of captions of two things that follow it

# Each colour is held back once, so each is still seen with five of the six shapes.
UNSEEN_PAIRS = (
    ("red", "triangle"), ("orange", "star"), ("yellow", "ring"), ("green", "cross"),
    ("cyan", "square"), ("blue", "circle"), ("purple", "star"), ("pink", "triangle"),
)
ALL_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in UNSEEN_PAIRS)

SINGLE_SHARE = 0.2  # of the scenes show one thing alone
REFERENCE_SIZE = 64  # the side that radii and centres are given for
SMALLEST_SIZE = 24  # below it shapes are a handful of pixels and no longer tell apart


@dataclass(frozen=True)
class Ground:
    """How a background is painted: a vertical gradient whose ends vary, and grain over it (units of 255)."""

    place: str  # how a caption names it
    top: tuple[int, int, int]
    bottom: tuple[int, int, int]
    variation: float  # each end is lighter or darker by up to this
    grain: float  # standard deviation per pixel; it bounds the PSNR that any codebook can reach


GROUNDS = {
    "snow": Ground("on snow", (246, 247, 249), (246, 247, 249), variation=3, grain=1.0),
    "fog": Ground("in fog", (192, 197, 204), (124, 131, 140), variation=10, grain=0.0),
    "sand": Ground("on sand", (226, 207, 166), (226, 207, 166), variation=5, grain=4.0),
    "dusk": Ground("at dusk", (16, 20, 54), (80, 48, 104), variation=8, grain=3.0),
}
BACKGROUNDS = tuple(GROUNDS)


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """One thing, or two and the relation from first to second: "left of" says things[0] is left of things[1].

    `background` is None where a caption leaves it open.
    """

    things: tuple[Thing, ...]
    relation: str | None
    background: str | None

    def __post_init__(self) -> None:
        if len(self.things) not in (1, 2):
            raise ValueError(f"a scene holds 1 or 2 things, not {len(self.things)}")
        if (self.relation is not None) != (len(self.things) == 2):
            shown = f"{len(self.things)} thing(s) with relation {self.relation!r}"
            raise ValueError(f"{shown} are no scene; two things need a relation, one has none")


def mirrored(scene: Scene) -> Scene:
    """The same scene told from the other thing: star above square -> square below star."""
    return Scene(scene.things[::-1], INVERSE.get(scene.relation or ""), scene.background)


def random_scene(rng: np.random.Generator, unseen: bool) -> Scene:
    """A scene of seen pairs only, or, if `unseen`, one with an unseen pair in it."""
    first = _random_thing(rng, UNSEEN_PAIRS if unseen else SEEN_PAIRS)
    background = _pick(rng, BACKGROUNDS)
    if rng.random() < SINGLE_SHARE:
        return Scene((first,), None, background)
    second = _random_thing(rng, [pair for pair in SEEN_PAIRS if pair != (first.colour, first.shape)])
    scene = Scene((first, second), _pick(rng, RELATIONS), background)
    return mirrored(scene) if rng.random() < 0.5 else scene


def _random_thing(rng: np.random.Generator, pairs: Sequence[tuple[str, str]]) -> Thing:
    colour, shape = _pick(rng, pairs)
    return Thing(shape, colour, _pick(rng, SIZES))


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[rng.integers(len(options))]


# ---- captions

# One word per relation: a model has to find out every synonym (over, under) anew.
PHRASINGS = {
    1: ("{a} {place}", "{place}, {a}", "a picture of {a} {place}", "{a}"),
    2: ("{a} {relation} {b} {place}", "{place}, {a} {relation} {b}", "a picture of {a} {relation} {b} {place}",
        "{a} {relation} {b}"),
}


def caption(scene: Scene, rng: np.random.Generator, habit: float = 0.5) -> str:
    """One of several ways to say the scene; some leave the background out.

    Of two things, the one above or on the left is named first in a share `habit` of the captions.
    """
    told = scene
    if len(scene.things) == 2 and (scene.relation in HABITUAL) != (rng.random() < habit):
        told = mirrored(scene)
    phrasings = PHRASINGS[len(told.things)]
    if told.background is None:
        phrasings = [phrasing for phrasing in phrasings if "{place}" not in phrasing]
    return say(told, _pick(rng, phrasings))


def say(scene: Scene, phrasing: str) -> str:
    """The scene in the given phrasing: its slots filled in."""
    told = [f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.things]
    slots = dict(zip("ab", told, strict=False))
    if scene.background is not None:
        slots["place"] = GROUNDS[scene.background].place
    if scene.relation is not None:
        slots["relation"] = scene.relation
    return phrasing.format(**slots)


def parse(caption: str) -> Scene:
    """The scene that a caption tells, or ValueError: what it does not name (the background) is None."""
    text = " ".join(caption.lower().split()).removesuffix(".")
    for pattern in _patterns():
        if match := pattern.fullmatch(text):
            return _scene_of(match.groupdict())
    raise ValueError(
        f"{caption!r} is not the caption of a scene; write it like "
        f"'a small red star above a large blue square on sand' "
        f"with sizes {'/'.join(SIZES)}, colours {'/'.join(COLOURS)}, shapes {'/'.join(SHAPES)}, "
        f"relations {'/'.join(RELATIONS)} and backgrounds {'/'.join(BACKGROUNDS)}"
    )


def _scene_of(words: dict[str, str]) -> Scene:
    slots = [slot for slot in "ab" if f"{slot}_shape" in words]
    things = [Thing(words[f"{slot}_shape"], words[f"{slot}_colour"], words[f"{slot}_size"]) for slot in slots]
    return Scene(tuple(things), words.get("relation"), words.get("background"))


@lru_cache
def _patterns() -> tuple[re.Pattern, ...]:
    """One pattern per phrasing, made from it: what `caption` can say, `parse` can read."""
    slots = {
        "a": _thing_pattern("a"),
        "b": _thing_pattern("b"),
        "relation": f"(?P<relation>{'|'.join(RELATIONS)})",
        "place": f"(?:on|in|at) (?P<background>{'|'.join(BACKGROUNDS)})",
    }
    return tuple(re.compile(phrasing.format(**slots)) for group in PHRASINGS.values() for phrasing in group)


def _thing_pattern(slot: str) -> str:
    parts = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
    named = [f"(?P<{slot}_{part}>{'|'.join(words)})" for part, words in parts.items()]
    return "(?:a|one|the) " + " ".join(named)


# ---- pictures


def draw(scene: Scene, rng: np.random.Generator, size: int = REFERENCE_SIZE) -> np.ndarray:
    """A picture of the scene, uint8 (size, size, 3); where the things stand is jittered, and so are the shades."""
    if size < SMALLEST_SIZE:
        raise ValueError(f"scenes can't be drawn {size} pixels wide; set a size of {SMALLEST_SIZE} or more")
    ground = GROUNDS[scene.background or _pick(rng, BACKGROUNDS)]
    canvas = _paint_ground(ground, rng, size)
    scale = size / REFERENCE_SIZE
    for thing, (x, y) in zip(scene.things, _random_centres(scene, rng), strict=True):
        paint(canvas, thing, round(x * scale), round(y * scale))
    return np.rint(canvas.clip(0, 255)).astype(np.uint8)


def _paint_ground(ground: Ground, rng: np.random.Generator, size: int) -> np.ndarray:
    ends = np.array([ground.top, ground.bottom], np.float32)
    is_plain = ground.top == ground.bottom  # then both ends vary as one, and it stays plain
    ends += rng.uniform(-ground.variation, ground.variation, (1 if is_plain else 2, 1))
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    rows = ends[0] + down * (ends[1] - ends[0])  # (size, 3)
    grain = ground.grain * rng.standard_normal((size, size, 1), np.float32)
    return rows[:, None, :] + grain


def _random_centres(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int]]:
    """On a lattice of four pixels, so that few shifted copies of a patch are to be learned.

    A single thing moves both ways, each of two across their line; along it they keep to the middles of their halves.
    """
    if len(scene.things) == 1:
        return [tuple((24 + 4 * rng.integers(0, 5, 2)).tolist())]
    along = [16, 48] if scene.relation in ("left of", "above") else [48, 16]
    across = (24 + 4 * rng.integers(0, 5, 2)).tolist()
    xs, ys = (along, across) if scene.relation in ("left of", "right of") else (across, along)
    return list(zip(xs, ys, strict=True))


def paint(canvas: np.ndarray, thing: Thing, x: int, y: int) -> None:
    """Lay the thing over a float canvas (size, size, 3), in place, centred on pixel (x, y)."""
    alpha = mask(thing.shape, RADII[thing.size] * len(canvas) / REFERENCE_SIZE)[:, :, None]
    reach = len(alpha) // 2
    window = canvas[y - reach : y + reach + 1, x - reach : x + reach + 1]
    window += alpha * (np.array(COLOURS[thing.colour], np.float32) - window)


@lru_cache(maxsize=256)
def mask(shape: str, radius: float) -> np.ndarray:
    """How much of each pixel the shape covers, float32 (2 k + 1, 2 k + 1), centred on the middle pixel."""
    reach, fine = ceil(radius), 8  # fine x fine samples per pixel smooth the edge
    side = 2 * reach + 1
    samples = ((np.arange(side * fine) + 0.5) / fine - side / 2) / radius
    inside = _INSIDE[shape](samples[None, :], samples[:, None])
    covered = inside.reshape(side, fine, side, fine).mean(axis=(1, 3), dtype=np.float32)
    covered.flags.writeable = False  # one array serves every picture
    return covered


def _inside_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: fold the plane into one half of one point, then ask on which side of its edge we are."""
    x, y = x / 1.05, (y - 0.06) / 1.05
    notch_x, notch_y = 0.46 * cos(pi / 5), 0.46 * sin(pi / 5)
    turn = np.arctan2(x, -y)
    fold = np.abs((turn + pi / 5) % (2 * pi / 5) - pi / 5)
    distance = np.hypot(x, y)
    along, off = distance * np.cos(fold), distance * np.sin(fold)
    return notch_y * (along - 1) <= (notch_x - 1) * off


# Each asks which points are inside, in units of the radius, y downwards.
_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.88,
    "triangle": lambda x, y: (y <= 0.85) & (abs(x) <= 0.57 * (y + 0.97)),
    "star": _inside_star,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.35) & (np.maximum(abs(x), abs(y)) <= 1),
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.55**2),
}


# ---- the data set


def scene_pairs(
    count: int, seed: int, split: str, size: int = REFERENCE_SIZE
) -> Iterator[tuple[str, np.ndarray, str]]:
    """`count` times (key, picture, caption); pair number i is the same whatever the count."""
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of the scenes; choose one of {', '.join(SPLITS)}")
    for index in range(count):
        rng = np.random.default_rng((seed, SPLITS.index(split), index))
        scene = random_scene(rng, unseen=split == "unseen")
        yield f"scene-{split}-{index:06d}", draw(scene, rng, size), caption(scene, rng, HABIT[split])
