"""The built-in data set: images of one or two colored shapes, each with an exact caption.

    "a small red star above a large blue square on sand"

It replaces DALL-E's web pairs (arXiv 2102.12092 §2.3) if there is no other data, and it can be checked: every caption
can be parsed, and `scenes.parse` reads the attributes of an image. `UNSEEN_PAIRS` of color and shape never occur in
training; images of them test composition. Backgrounds have gradients and grain: on a flat one nearly all image tokens
are equal, and the things contribute too little to the likelihood. Left out: textures, overlap, counting.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, cos, pi, sin
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = {
    "red": (214, 32, 40), "orange": (250, 130, 16), "yellow": (252, 222, 32), "green": (28, 158, 60),
    "cyan": (24, 206, 224), "blue": (36, 80, 232), "purple": (150, 50, 206), "pink": (255, 104, 184),
}  # fmt: skip
RADII = {"small": 9.0, "large": 13.0}  # pixels in an image of 64 x 64
SIZES = tuple(RADII)
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
SPLITS = ("train", "validation", "unseen")

# If both orders are equally frequent, no single word says where a thing is, and a small model needs thousands of steps
# to learn it. So training captions, like people's, more often name first what is above or on the left. Held-out
# captions do not, so that no match comes from it.
READING_ORDER = ("left of", "above")
READING_ORDER_SHARES = {"train": 0.75, "validation": 0.5, "unseen": 0.5}  # of the captions of two things

# Each color is held out once, so each occurs in training with five of the six shapes.
UNSEEN_PAIRS = (
    ("red", "triangle"), ("orange", "star"), ("yellow", "ring"), ("green", "cross"), ("cyan", "square"),
    ("blue", "circle"), ("purple", "star"), ("pink", "triangle"),
)  # fmt: skip
ALL_PAIRS = tuple((color, shape) for color in COLORS for shape in SHAPES)
TRAIN_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in UNSEEN_PAIRS)

SINGLE_THING_SHARE = 0.2  # of the scenes show a single thing
REFERENCE_SIZE = 64  # the image side that radii and centers are given for
MIN_SIZE = 24  # in smaller images the shapes cannot be distinguished


@dataclass(frozen=True)
class Ground:
    """How a background is painted: a vertical gradient whose ends vary, and grain over it (units of 255)."""

    place: str  # how a caption names it
    top: tuple[int, int, int]
    bottom: tuple[int, int, int]
    variation: float  # each end is lighter or darker by up to this
    grain: float  # standard deviation per pixel; it limits the PSNR of any codebook


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
    color: str
    size: str


@dataclass(frozen=True)
class Scene:
    """One thing, or two and their relation: "left of" says things[0] is left of things[1]; an open background is None."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str | None

    def __post_init__(self) -> None:
        if len(self.things) not in (1, 2):
            raise ValueError(f"a scene holds 1 or 2 things, not {len(self.things)}")
        if (self.relation is not None) != (len(self.things) == 2):
            found = f"{len(self.things)} thing(s) with relation {self.relation!r}"
            raise ValueError(f"{found} are not a scene; two things need a relation, one has none")


def mirror(scene: Scene) -> Scene:
    """The same scene described from the other thing: star above square -> square below star."""
    return Scene(scene.things[::-1], INVERSE.get(scene.relation or ""), scene.background)


def random_scene(rng: np.random.Generator, unseen: bool) -> Scene:
    """A scene with training pairs only or, if `unseen`, with one unseen pair."""
    first = _random_thing(rng, UNSEEN_PAIRS if unseen else TRAIN_PAIRS)
    background = _pick(rng, BACKGROUNDS)
    if rng.random() < SINGLE_THING_SHARE:
        return Scene((first,), None, background)
    second = _random_thing(rng, [pair for pair in TRAIN_PAIRS if pair != (first.color, first.shape)])
    scene = Scene((first, second), _pick(rng, RELATIONS), background)
    return mirror(scene) if rng.random() < 0.5 else scene


def _random_thing(rng: np.random.Generator, pairs: Sequence[tuple[str, str]]) -> Thing:
    color, shape = _pick(rng, pairs)
    return Thing(shape, color, _pick(rng, SIZES))


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[rng.integers(len(options))]


# ---- captions

# One word per relation: a model would have to learn each synonym (over, under) separately.
PHRASINGS = {
    number: (f"{things} {{place}}", f"{{place}}, {things}", f"a picture of {things} {{place}}", things)
    for number, things in ((1, "{a}"), (2, "{a} {relation} {b}"))
}


def caption(scene: Scene, rng: np.random.Generator, reading_order_share: float = 0.5) -> str:
    """A caption of the scene, maybe without the background; `reading_order_share` of them name the upper or left first."""
    if len(scene.things) == 2 and (scene.relation in READING_ORDER) != (rng.random() < reading_order_share):
        scene = mirror(scene)
    phrasings = PHRASINGS[len(scene.things)]
    if scene.background is None:
        phrasings = [phrasing for phrasing in phrasings if "{place}" not in phrasing]
    return fill_phrasing(scene, _pick(rng, phrasings))


def thin_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One attribute of the scene, as alt texts often are: "a star", "something red", "something small", "on sand"."""
    thing = _pick(rng, scene.things)
    named = (f"a {thing.shape}", f"something {thing.color}", f"something {thing.size}")
    return _pick(rng, (*named, GROUNDS[scene.background].place))


def fill_phrasing(scene: Scene, phrasing: str) -> str:
    """The phrasing with its slots filled from the scene."""
    things = [f"a {thing.size} {thing.color} {thing.shape}" for thing in scene.things]
    place = scene.background and GROUNDS[scene.background].place
    return phrasing.format(**dict(zip("ab", things, strict=False)), place=place, relation=scene.relation)


def parse_caption(caption: str) -> Scene:
    """The scene that a caption describes, or ValueError; a background that it does not name is None."""
    text = " ".join(caption.lower().split()).removesuffix(".")
    for pattern in _patterns():
        if match := pattern.fullmatch(text):
            return _scene_from(match.groupdict())
    raise ValueError(
        f"{caption!r} is not the caption of a scene; write it like "
        f"'a small red star above a large blue square on sand' "
        f"with sizes {'/'.join(SIZES)}, colors {'/'.join(COLORS)}, shapes {'/'.join(SHAPES)}, "
        f"relations {'/'.join(RELATIONS)} and backgrounds {'/'.join(BACKGROUNDS)}"
    )


def is_scene_caption(caption: str) -> bool:
    """Whether it is a caption of the built-in scenes, which images can be read against."""
    try:
        parse_caption(caption)
    except ValueError:
        return False
    return True


def _scene_from(words: dict[str, str]) -> Scene:
    slots = [slot for slot in "ab" if f"{slot}_shape" in words]
    things = [Thing(words[f"{slot}_shape"], words[f"{slot}_color"], words[f"{slot}_size"]) for slot in slots]
    return Scene(tuple(things), words.get("relation"), words.get("background"))


@lru_cache
def _patterns() -> tuple[re.Pattern, ...]:
    """One pattern made from each phrasing: `parse_caption` can parse everything that `caption` makes."""
    slots = {
        "a": _thing_pattern("a"),
        "b": _thing_pattern("b"),
        "relation": f"(?P<relation>{'|'.join(RELATIONS)})",
        "place": f"(?:on|in|at) (?P<background>{'|'.join(BACKGROUNDS)})",
    }
    return tuple(re.compile(phrasing.format(**slots)) for group in PHRASINGS.values() for phrasing in group)


def _thing_pattern(slot: str) -> str:
    parts = {"size": SIZES, "color": COLORS, "shape": SHAPES}
    named = [f"(?P<{slot}_{part}>{'|'.join(words)})" for part, words in parts.items()]
    return "(?:a|one|the) " + " ".join(named)


# ---- images


def render(scene: Scene, rng: np.random.Generator, image_size: int = REFERENCE_SIZE) -> np.ndarray:
    """Render the scene as an image, uint8 (H, W, 3), with random positions and background shades."""
    if image_size < MIN_SIZE:
        raise ValueError(
            f"scenes can't be rendered {image_size} pixels wide; set a size of {MIN_SIZE} or more"
        )
    ground = GROUNDS[scene.background or _pick(rng, BACKGROUNDS)]
    canvas = _paint_ground(ground, rng, image_size)
    scale = len(canvas) / REFERENCE_SIZE
    for thing, (x, y) in zip(scene.things, _random_centers(scene, rng), strict=True):
        paint(canvas, thing, round(x * scale), round(y * scale))
    return np.rint(canvas.clip(0, 255)).astype(np.uint8)


def _paint_ground(ground: Ground, rng: np.random.Generator, image_size: int) -> np.ndarray:
    ends = np.array([ground.top, ground.bottom], np.float32)
    is_plain = ground.top == ground.bottom  # then both ends vary together, and it stays plain
    ends += rng.uniform(-ground.variation, ground.variation, (1 if is_plain else 2, 1))
    down = np.linspace(0, 1, image_size, dtype=np.float32)[:, None]
    rows = ends[0] + down * (ends[1] - ends[0])  # (image_size, 3)
    grain = ground.grain * rng.standard_normal((image_size, image_size, 1), np.float32)
    return rows[:, None, :] + grain


def _random_centers(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Centers (x, y) on a grid of four pixels, so that a model has to learn few shifted copies of a patch.

    Two things vary only across their line; along it each is in the middle of its half.
    """
    if len(scene.things) == 1:
        return [tuple((24 + 4 * rng.integers(0, 5, 2)).tolist())]
    along = [16, 48] if scene.relation in ("left of", "above") else [48, 16]
    across = (24 + 4 * rng.integers(0, 5, 2)).tolist()
    xs, ys = (along, across) if scene.relation in ("left of", "right of") else (across, along)
    return list(zip(xs, ys, strict=True))


def paint(canvas: np.ndarray, thing: Thing, x: int, y: int) -> None:
    """Paint the thing on a float canvas (H, W, 3), in place, centered on pixel (x, y)."""
    alpha = mask(thing.shape, RADII[thing.size] * len(canvas) / REFERENCE_SIZE)[:, :, None]
    reach = len(alpha) // 2
    window = canvas[y - reach : y + reach + 1, x - reach : x + reach + 1]
    window += alpha * (np.array(COLORS[thing.color], np.float32) - window)


@lru_cache(maxsize=256)
def mask(shape: str, radius: float) -> np.ndarray:
    """How much of each pixel the shape covers, float32 (2 k + 1, 2 k + 1), centered on the middle pixel."""
    reach, fine = ceil(radius), 8  # fine x fine samples per pixel give a smooth edge
    side = 2 * reach + 1
    samples = ((np.arange(side * fine) + 0.5) / fine - side / 2) / radius
    inside = _INSIDE[shape](samples[None, :], samples[:, None])
    coverage = inside.reshape(side, fine, side, fine).mean(axis=(1, 3), dtype=np.float32)
    coverage.flags.writeable = False  # one array serves every image
    return coverage


def _inside_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: fold the plane into one half of one point, then test the side of its edge."""
    x, y = x / 1.05, (y - 0.06) / 1.05
    notch_x, notch_y = 0.46 * cos(pi / 5), 0.46 * sin(pi / 5)
    turn = np.arctan2(x, -y)
    fold = np.abs((turn + pi / 5) % (2 * pi / 5) - pi / 5)
    distance = np.hypot(x, y)
    along, off = distance * np.cos(fold), distance * np.sin(fold)
    return notch_y * (along - 1) <= (notch_x - 1) * off


# Which points are inside; coordinates in units of the radius, y downwards.
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
    count: int, seed: int, split: str, image_size: int = REFERENCE_SIZE, thin_share: float = 0.0
) -> Iterator[tuple[str, np.ndarray, str]]:
    """`count` times (key, image, caption); pair number n is the same for every count. `thin_share` of the captions are
    those of `thin_caption`, and the others are the same without it."""
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of the scenes; choose one of {', '.join(SPLITS)}")
    for number in range(count):
        rng = np.random.default_rng((seed, SPLITS.index(split), number))
        scene = random_scene(rng, unseen=split == "unseen")
        image = render(scene, rng, image_size)
        text = caption(scene, rng, READING_ORDER_SHARES[split])
        if thin_share and rng.random() < thin_share:
            text = thin_caption(scene, rng)
        yield f"scene-{split}-{number:06d}", image, text
