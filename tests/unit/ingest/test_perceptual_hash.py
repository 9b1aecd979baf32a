"""Looks: what leaves them as they are and what does not; the search against each with each; the limit that the data pick."""
from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from thousandwords.scenes import scene_pairs
from thousandwords.twins import Index, Look, Neighbour, by_chance, distances, hash_by_chance, hashes, look_of, nearest

NO_COLOURS = bytes(192)


def photo(seed: int, side: int = 64) -> np.ndarray:
    """Smooth, like a photograph: 12 × 12 random colours, drawn large."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def lighter(pixels: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(pixels * factor, 0, 255).astype(np.uint8)


def apart(first: np.ndarray, second: np.ndarray) -> Neighbour:
    """How far two pictures are from each other."""
    index = Index(15)
    index.add(look_of(first))
    found = index.near(look_of(second))
    return found[0] if found else Neighbour(64, 255, 0)


# ---- looks


@pytest.mark.parametrize("change", [
    lambda pixels: pixels, lambda pixels: jpeg(pixels, 75), lambda pixels: jpeg(pixels, 40), lambda pixels: resized(pixels, 48),
    lambda pixels: resized(pixels, 200), lambda pixels: lighter(pixels, 1.08), lambda pixels: lighter(pixels, 0.92),
])    # fmt: skip
@pytest.mark.parametrize("kind", ["photo", "scene"])
def test_a_new_encoding_size_or_light_leaves_the_look_as_it_is(change, kind):
    pictures = [photo(seed) for seed in range(20)] if kind == "photo" else [
        pixels for _, pixels, _ in scene_pairs(20, 0, "train", 64)]    # fmt: skip
    far = [apart(pixels, change(pixels)) for pixels in pictures]
    assert np.median([one.distance for one in far]) <= 3 and max(one.distance for one in far) <= 6
    assert max(one.colour for one in far) <= 24


def test_a_crop_by_a_pixel_is_near_and_one_by_a_quarter_is_not():
    slightly = [apart(photo(seed), resized(photo(seed)[1:-1, 1:-1], 64)).distance for seed in range(20)]
    much = [apart(photo(seed), resized(photo(seed)[8:-8, 8:-8], 64)).distance for seed in range(20)]
    assert np.median(slightly) <= 4 and max(slightly) <= 10 and min(much) > 10


def test_a_mirrored_picture_is_another_one():
    assert min(apart(photo(seed), photo(seed)[:, ::-1]).distance for seed in range(20)) > 15


def test_other_pictures_look_other():
    values = hashes_of([photo(seed) for seed in range(60)])
    first, second = np.triu_indices(60, k=1)
    assert distances(values[first], values[second]).min() > 8
    assert distances(values[first], values[second]).mean() == pytest.approx(32, abs=1.5)


def test_one_shape_in_two_colours_has_one_hash_and_two_looks():
    red, green = np.full((2, 64, 64, 3), 255, np.uint8)
    red[16:40, 10:50], green[16:40, 10:50] = (200, 30, 30), (20, 110, 20)
    assert apart(red, green).distance == 0 and apart(red, green).colour > 100


def test_the_hash_of_plain_pictures_is_no_noise():
    assert {look_of(np.full((64, 64, 3), grey, np.uint8)).hash for grey in (0, 7, 128, 255)} == {0}


def hashes_of(pictures: list[np.ndarray]) -> np.ndarray:
    return np.array([look_of(pixels).hash for pixels in pictures], np.uint64)


def test_many_pictures_have_the_hashes_of_each():
    greys = np.random.default_rng(0).integers(0, 256, (50, 32, 32)).astype(float)
    assert (hashes(greys) == np.concatenate([hashes(grey[None]) for grey in greys])).all()


def test_the_hash_is_the_sign_of_the_low_frequencies():
    """Against the transform written out, frequency by frequency."""
    grey = np.random.default_rng(1).integers(0, 256, (32, 32)).astype(float)
    place = np.arange(32)
    waves = [np.cos(np.pi * frequency * (2 * place + 1) / 64) / 4 for frequency in range(1, 9)]
    strengths = np.array([[down @ grey @ across for across in waves] for down in waves]).ravel()
    wanted = strengths > 0.1 * np.sqrt((strengths**2).mean()) + 1
    assert f"{hashes(grey[None])[0]:064b}" == "".join(str(int(bit)) for bit in wanted)


# ---- search


def each_with_each(values: list[int], sought: int, reach: int) -> list[Neighbour]:
    found = [Neighbour((value ^ sought).bit_count(), 0, index) for index, value in enumerate(values)]
    return sorted(one for one in found if one.distance <= reach)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 15))
def test_the_search_by_bands_finds_what_each_with_each_finds(data, reach):
    values = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
    flipped = data.draw(st.sets(st.integers(0, 63), max_size=reach + 2))
    sought = data.draw(st.sampled_from(values)) ^ sum(1 << bit for bit in flipped)
    index = Index(reach)
    for value in values:
        index.add(Look(value, NO_COLOURS))
    assert index.near(Look(sought, NO_COLOURS)) == each_with_each(values, sought, reach)


@pytest.mark.parametrize("reach", [3, 4, 7, 8, 11])
def test_no_spread_of_flips_over_the_bands_escapes(reach):
    values = [0x0123456789ABCDEF]
    index = Index(reach)
    index.add(Look(values[0], NO_COLOURS))
    for spread in range(200):
        flips = np.random.default_rng(spread).choice(64, reach, replace=False)
        sought = values[0] ^ sum(1 << int(bit) for bit in flips)
        assert [one.distance for one in index.near(Look(sought, NO_COLOURS))] == [reach]


def test_the_nearest_comes_first_by_bits_then_colour_then_age():
    index = Index(3)
    for value, grey in ((0b111, 0), (0b1, 9), (0b10, 4), (0b100, 4), (0b11111111, 0)):
        index.add(Look(value, bytes([grey] * 192)))
    assert index.near(Look(0, bytes(192))) == [Neighbour(1, 4, 2), Neighbour(1, 4, 3), Neighbour(1, 9, 1), Neighbour(3, 0, 0)]


def test_an_index_grows():
    index, values = Index(0), np.random.default_rng(0).integers(0, 2**64, 3000, np.uint64)
    for value in values:
        index.add(Look(int(value), NO_COLOURS))
    assert len(index) == 3000 and (index.hashes == values).all()
    assert [index.near(Look(int(values[row]), NO_COLOURS))[0].index for row in (0, 1023, 1024, 2999)] == [0, 1023, 1024, 2999]


def test_the_nearest_hash_of_each_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    ours, others = rng.integers(0, 2**64, 700, np.uint64), rng.integers(0, 2**64, 90, np.uint64)
    bits, index = nearest(ours, others)
    table = [[(int(one) ^ int(other)).bit_count() for other in others] for one in ours[:40]]
    assert bits[:40].tolist() == [min(row) for row in table] and index[:40].tolist() == [row.index(min(row)) for row in table]
    assert len(bits) == 700 and nearest(ours[:0], others)[0].shape == (0,)


# ---- the limit that the data pick


def test_a_tail_is_carried_on_by_as_many_tens_as_it_takes():
    """1 % of the pairs are nearer than 20, 0.1 % nearer than 17: 0.01 % are nearer than 14, 0.001 % than 11."""
    pairs = np.sort(np.concatenate([np.full(1, 16.0), np.full(9, 18.0), np.full(9_990, 30.0)]))
    near, nearer = np.quantile(pairs, [0.01, 0.001])
    assert by_chance(pairs, others=10) == pytest.approx(nearer)    # 10 others × 0.1 % = 1 % of the pictures
    assert by_chance(pairs, others=1000) == pytest.approx(nearer - 2 * (near - nearer))


def test_hardly_a_picture_has_a_neighbour_within_the_limit_by_chance():
    """Signs of Gaussians are the hashes of nothing; the limit leaves few of them a twin, and would still find planted ones."""
    values = np.random.default_rng(0).integers(0, 2**64, 2000, np.uint64)
    limit = hash_by_chance(values)
    bits = np.partition(distances(values[:, None], values), 1, axis=1)[:, 1]    # of the nearest other one
    assert 4 <= limit <= 13 and (bits <= limit).mean() <= 0.02


def test_twins_hardly_move_the_limit_and_families_do():
    values = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    with_twins = np.concatenate([values, values[:50]])
    families = np.repeat(values[:40], 25)    # 1 pair in 40 is equal, so that to be equal says nothing
    assert abs(hash_by_chance(with_twins) - hash_by_chance(values)) <= 1
    assert hash_by_chance(families) < 0
