"""The built-in data set: rendered images, captions, and the parser that checks one against the other."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thousandwords.scenes.parse import ATTRIBUTES, match_caption, parse_image
from thousandwords.scenes.render import (
    BACKGROUNDS,
    COLORS,
    READING_ORDER,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    TRAIN_PAIRS,
    UNSEEN_PAIRS,
    Scene,
    Thing,
    caption,
    mirror,
    paint,
    parse_caption,
    random_scene,
    render,
    scene_pairs,
)

RED_STAR, BLUE_SQUARE = Thing("star", "red", "small"), Thing("square", "blue", "large")
PLANTED = Scene((RED_STAR, BLUE_SQUARE), "above", "sand")
PLANTED_CAPTION = "a small red star above a large blue square on sand"

things = st.builds(Thing, st.sampled_from(SHAPES), st.sampled_from(list(COLORS)), st.sampled_from(SIZES))
singles = st.builds(Scene, st.tuples(things), st.none(), st.sampled_from((*BACKGROUNDS, None)))
couples = st.builds(
    Scene, st.tuples(things, things), st.sampled_from(RELATIONS), st.sampled_from((*BACKGROUNDS, None))
)
seeds = st.integers(0, 2**31)
law = settings(deadline=None, max_examples=60, database=None)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pairs_of(scene: Scene) -> set[tuple[str, str]]:
    return {(thing.color, thing.shape) for thing in scene.things}


def wrong(image: np.ndarray, text: str = PLANTED_CAPTION) -> set[str]:
    """The attributes that are wrong according to the parser."""
    return {name for name, is_right in match_caption(image, text).items() if not is_right}


# ---- the data set


def test_each_color_and_each_shape_occurs_in_training_with_most_of_the_others():
    assert [len(words) for words in (SHAPES, COLORS, SIZES, RELATIONS, BACKGROUNDS)] == [6, 8, 2, 4, 4]
    assert len(TRAIN_PAIRS) == 40 and len(UNSEEN_PAIRS) == 8
    assert all(sum(color == other for other, _ in TRAIN_PAIRS) == 5 for color in COLORS)
    assert all(sum(shape == other for _, other in TRAIN_PAIRS) >= 6 for shape in SHAPES)


def test_the_same_seed_gives_the_same_pairs_however_many_and_another_seed_others():
    first, again, other = ([*scene_pairs(count, seed, "train")] for count, seed in ((9, 7), (20, 7), (9, 8)))
    assert first[2][0] == "scene-train-000002"
    for one, same, another in zip(first, again, other, strict=False):
        assert one[0] == same[0] and (one[1] == same[1]).all() and one[2] == same[2]
        assert not (one[1] == another[1]).all()


def test_no_image_is_in_two_splits_or_twice_in_one_and_captions_keep_the_unseen_pairs_apart():
    images = set()
    for split in SPLITS:
        for _, image, text in scene_pairs(300, 2, split):
            images.add(image.tobytes())
            assert bool(pairs_of(parse_caption(text)) & set(UNSEEN_PAIRS)) == (split == "unseen"), text
    assert len(images) == 900


def test_a_thin_caption_names_one_attribute_of_its_scene_and_the_others_stay_as_they_were():
    thin, full = (list(scene_pairs(400, 3, "train", thin_share=share)) for share in (0.5, 0.0))
    changed = [(new[2], old[2]) for new, old in zip(thin, full, strict=True) if new[2] != old[2]]
    assert 160 < len(changed) < 240
    named = {word for text, _ in changed for word in text.split()} - {"a", "something", "on", "in", "at"}
    assert named == {*SHAPES, *COLORS, *SIZES, *BACKGROUNDS}
    for text, full_text in changed:
        assert len(text.split()) == 2
        assert text.split()[1] in full_text or text.split()[1] in BACKGROUNDS  # it may leave that out
    assert all((new[1] == old[1]).all() and new[0] == old[0] for new, old in zip(thin, full, strict=True))


def test_an_unknown_split_is_rejected():
    with pytest.raises(ValueError, match="no split 'test' of the scenes; choose one of train, validation,"):
        next(scene_pairs(1, 0, "test"))


def test_the_two_things_of_a_random_scene_differ_in_color_or_shape():
    scenes = [random_scene(generator(seed), unseen=False) for seed in range(500)]
    couples = [scene for scene in scenes if len(scene.things) == 2]
    assert 350 < len(couples) < 450  # four in five
    assert all(len(pairs_of(scene)) == 2 for scene in couples)


@pytest.mark.parametrize("size", [24, 32, 64, 128])
def test_an_image_is_square_rgb_of_the_requested_size(size):
    image = render(PLANTED, generator(), size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8


def test_an_image_too_small_to_show_shapes_is_rejected():
    with pytest.raises(ValueError, match="can't be rendered 8 pixels wide; set a size of 24 or more"):
        render(PLANTED, generator(), 8)


def test_some_backgrounds_are_gradients_and_some_carry_grain():
    scenes = {name: replace(PLANTED, background=name) for name in BACKGROUNDS}
    images = {name: render(scene, generator()).astype(float) for name, scene in scenes.items()}
    gradient = {name for name, image in images.items() if abs(image[0].mean() - image[-1].mean()) > 20}
    grain = {name for name, image in images.items() if image[0].std(axis=0).mean() > 2}
    assert (gradient, grain) == ({"fog", "dusk"}, {"sand", "dusk"})


# ---- captions


@pytest.mark.parametrize(
    ("text", "relation", "background"),
    [
        ("a small red star above a large blue square", "above", None),
        ("a small red star left of a large blue square on sand", "left of", "sand"),
        ("At dusk, a small red star right of a large blue square.", "right of", "dusk"),
        ("a picture of a small red star below a large blue square in fog", "below", "fog"),
    ],
)
def test_a_caption_is_parsed_to_its_scene(text, relation, background):
    assert parse_caption(text) == Scene((RED_STAR, BLUE_SQUARE), relation, background)


@law
@given(scene=singles | couples, seed=seeds)
def test_a_caption_describes_the_scene_from_either_thing(scene, seed):
    parsed = parse_caption(caption(scene, generator(seed)))
    assert replace(parsed, background=scene.background) in (scene, mirror(scene))
    assert parsed.background in (scene.background, None)


def test_three_quarters_of_training_captions_and_half_of_held_out_ones_are_in_reading_order():
    shares = {}
    for split in SPLITS:
        relations = [parse_caption(text).relation for _, _, text in scene_pairs(750, 4, split)]
        couples = [relation for relation in relations if relation]
        shares[split] = sum(relation in READING_ORDER for relation in couples) / len(couples)
    assert shares == pytest.approx({"train": 0.75, "validation": 0.5, "unseen": 0.5}, abs=0.04)


NO_SCENES = [
    "",
    "a dog on grass",
    "a red star",
    "a small red star above",
    "a small red star on a large blue square",
]
NO_SCENES += [
    "a small red star above a large blue square on mars",
    "a small small red star",
    "a red star above it",
]


@pytest.mark.parametrize("text", NO_SCENES)
def test_a_caption_that_describes_no_scene_is_rejected(text):
    with pytest.raises(ValueError, match="is not the caption of a scene; write it like 'a small red star"):
        parse_caption(text)


@pytest.mark.parametrize(
    ("things", "relation", "message"),
    [
        ((RED_STAR,), "above", "two things need a relation, one has none"),
        ((RED_STAR, BLUE_SQUARE), None, "two things need a relation, one has none"),
        ((RED_STAR, BLUE_SQUARE, RED_STAR), "above", "a scene holds 1 or 2 things, not 3"),
    ],
)
def test_a_scene_has_one_thing_or_two_and_their_relation(things, relation, message):
    with pytest.raises(ValueError, match=message):
        Scene(things, relation, "sand")


# ---- the parser


@law
@given(scene=singles | couples, seed=seeds, size=st.sampled_from([32, 64, 96, 128]))
def test_any_scene_can_be_parsed_at_any_size(scene, seed, size):
    rng = generator(seed)
    assert wrong(render(scene, rng, size), caption(scene, rng)) == set()


def test_the_parser_tolerates_blur_and_noise():
    rng, right = generator(), 0
    for _, image, text in scene_pairs(100, 4, "train"):
        soft = sum(np.roll(image.astype(float), shift, (0, 1)) for shift in np.ndindex(2, 2)) / 4
        noisy = (soft + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
        right += all(match_caption(noisy, text).values())
    assert right >= 98


def planted(first: dict | None = None, second: dict | None = None, **changes) -> Scene:
    """PLANTED with other attributes of its things, or another relation or background."""
    things = replace(RED_STAR, **(first or {})), replace(BLUE_SQUARE, **(second or {}))
    return replace(PLANTED, things=things, **changes)


@pytest.mark.parametrize(
    ("error", "scenes"),
    [
        ("colour", [planted({"color": "pink"}), planted(None, {"color": "purple"})]),
        ("colour", [planted({"color": "blue"}, {"color": "red"})]),
        ("shape", [planted({"shape": "cross"}), planted(None, {"shape": "circle"})]),
        ("size", [planted({"size": "large"}), planted(None, {"size": "small"})]),
        ("relation", [planted(relation="below"), planted(relation="left of")]),
        ("background", [planted(background="snow"), planted(background="fog")]),
    ],
)
def test_a_planted_error_fails_its_attribute_and_no_other(error, scenes):
    for scene, seed in itertools.product(scenes, range(5)):
        assert wrong(render(scene, generator(seed))) == {error}


EMPTY = np.full((64, 64, 3), (226, 207, 166), np.uint8)


@pytest.mark.parametrize("image", [EMPTY, render(Scene((BLUE_SQUARE,), None, "sand"), generator())])
def test_a_missing_thing_makes_all_its_attributes_wrong(image):
    assert wrong(image) == {"colour", "shape", "size", "relation"}


def test_an_extra_thing_makes_the_relation_wrong():
    image = render(PLANTED, generator()).astype(np.float32)
    paint(image, Thing("ring", "green", "small"), x=53, y=16)
    assert wrong(image.astype(np.uint8)) == {"relation"}
    couple = render(PLANTED, generator())
    assert wrong(couple, "a small red star on sand") == {"relation"}


def test_an_unknown_background_matches_no_caption_that_names_one():
    image = render(PLANTED, generator())
    meadow = np.where(np.abs(image - (226.0, 207, 166)).sum(-1, keepdims=True) < 60, (90, 140, 90), image)
    assert wrong(meadow.astype(np.uint8)) == {"background"}
    assert wrong(meadow.astype(np.uint8), "a small red star above a large blue square") == set()


def test_a_thing_of_two_colors_has_none():
    image = render(Scene((BLUE_SQUARE,), None, "snow"), generator(1))
    image[:, :32][(image[:, :32] < 200).any(axis=2)] = COLORS["red"]
    assert wrong(image, "a large blue square on snow") == {"colour"}


def test_a_blob_has_no_shape():
    image = np.full((64, 64, 3), (246, 247, 249), np.uint8)
    image[28:34, 10:54] = COLORS["blue"]
    assert wrong(image, "a large blue square on snow") == {"shape", "size"}


def test_a_few_stray_pixels_do_not_change_the_result():
    image = render(PLANTED, generator())
    image[::9, ::11] = 0
    image[2:5, 2:6] = COLORS["green"]
    assert wrong(image) == set()


def test_the_parser_returns_attributes_and_positions():
    image = render(replace(PLANTED, relation="left of"), generator())
    parsed = parse_image(image)
    things = [Thing(thing.shape, thing.color, thing.size) for thing in parsed.things]
    assert things == [BLUE_SQUARE, RED_STAR] and parsed.background == "sand"
    assert parsed.things[0].center == pytest.approx((0.75, 0.5), abs=0.14)
    assert parsed.things[1].center == pytest.approx((0.25, 0.5), abs=0.14)


@law
@given(pixels=st.integers(0, 2**32), size=st.sampled_from([16, 31, 64]))
def test_any_square_image_can_be_parsed(pixels, size):
    noise = generator(pixels).integers(0, 256, (size, size, 3)).astype(np.uint8)
    assert set(match_caption(noise, PLANTED_CAPTION)) == set(ATTRIBUTES)


def test_an_image_that_is_not_square_rgb_is_rejected():
    with pytest.raises(ValueError, match=r"a square RGB image .* not \(64, 32, 3\); crop it to a square"):
        parse_image(np.zeros((64, 32, 3), np.uint8))
