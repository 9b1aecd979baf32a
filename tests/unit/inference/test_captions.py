"""Captions of images: figures of how varied and how right they are, and the captioner of a package."""

import json
import shutil

import numpy as np
import pytest

import thousandwords
from tests.helpers import commands
from tests.helpers.tiny_models import SIDE, random_images, tiny
from thousandwords import __main__ as command
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import read_manifest
from thousandwords.data.images import encode_png, to_uint8
from thousandwords.inference.caption_figures import describe_captions, distinct_ngrams, scene_accuracy
from thousandwords.inference.captions import caption_seed
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.package import PARTS, load_package, write_package
from thousandwords.scenes.render import parse_caption, render

IMAGES = to_uint8(random_images(3))


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    """A package with a captioner."""
    folder = tmp_path_factory.mktemp("captions")
    model = tiny("captioners", "cross_attention")
    components.save(model, folder / "captioner", captions={"candidates": 3, "top_p": 0.9})
    captioned = {**parts, "captioner": folder / "captioner"}
    write_package(folder / "package", captioned, SamplingConfig(candidates=4), {})
    return folder / "package"


def test_distinct_ngrams_are_the_share_of_different_ones():
    captions = ["a red star", "a red ring"]
    assert distinct_ngrams(captions, 1) == 4 / 6  # a, red, star, ring of 6
    assert distinct_ngrams(captions, 2) == 3 / 4
    assert distinct_ngrams(captions, 3) == 1.0
    assert distinct_ngrams(["star"], 2) == 0.0


def test_captions_are_described_by_their_length_and_variety():
    assert describe_captions(["a red star", "a red star", "a ring"]) == {
        "words": 8 / 3, "distinct_1": 4 / 8, "distinct_2": 3 / 5, "distinct_3": 1 / 2, "different": 2 / 3,
    }  # fmt: skip


def test_a_caption_of_a_scene_is_right_where_every_attribute_is():
    text = "a small red star above a large blue square on sand"
    image = render(parse_caption(text), np.random.default_rng(0))
    captions = [
        text,
        "a large blue square below a small red star",  # it names no background
        "a small red star above a large blue square in fog",
        "a small red ring above a large blue square on sand",
        "a small red star above a star on sand",  # no caption of a scene
    ]

    shares = scene_accuracy(np.stack([image] * 5), captions)

    assert shares == {
        "all": 0.4, "colour": 0.8, "shape": 0.6, "size": 0.8, "relation": 0.8, "background": 0.6,
        "readable": 0.8, "with_background": 0.6,
    }  # fmt: skip


def test_the_seed_of_a_caption_follows_from_seed_and_key():
    seeds = {caption_seed(seed, key) for seed in (0, 1) for key in ("a", "b")}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    assert caption_seed(0, "a") == caption_seed(0, "a")


def test_a_package_with_a_captioner_captions_images_and_names_it_among_its_parts(folder):
    package = load_package(folder)

    captions = package.caption(list(IMAGES), seed=5)

    assert len(captions) == 3 and all(isinstance(caption, str) and caption for caption in captions)
    assert package.caption([IMAGES[1]], seed=5) == captions[1:2] != package.caption([IMAGES[1]], seed=6)
    assert set(read_manifest(folder)["facts"]["parts"]) == {*PARTS, "captioner"}
    assert thousandwords.load(folder).caption(IMAGES[0], seed=5) == captions[:1]
    assert len(package.caption([np.zeros((3 * SIDE, 2 * SIDE, 3), np.uint8)])) == 1  # its middle square


def test_a_package_without_a_captioner_is_as_before_and_says_how_to_train_one(
    folder, parts, package_folder, tmp_path
):
    assert set(json.loads((package_folder / "package.json").read_bytes())["parts"]) == set(PARTS)
    shutil.copytree(folder, tmp_path / "package")
    write_package(tmp_path / "package", parts, SamplingConfig(), {})
    assert not (tmp_path / "package" / "captioner").exists()
    with pytest.raises(UserError) as caught:
        load_package(tmp_path / "package").caption(list(IMAGES))
    assert str(caught.value) == (
        "this package has no captioner: it was trained with captioner.kind none. Train one: make run "
        "PRESET=recaption"
    )


def test_the_command_prints_a_caption_for_each_image(folder, package_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, image in zip("ab", IMAGES, strict=False):
        (tmp_path / f"{name}.png").write_bytes(encode_png(image))

    command.main(["caption", "a.png", "b.png", "--seed", "5", "--package", str(folder)])

    captions = load_package(folder).caption(list(IMAGES[:2]), seed=5)
    assert capsys.readouterr().out == f"a.png: {captions[0]}\nb.png: {captions[1]}\n"
    for arguments, message in (
        (["c.png"], "caption: there is no file c.png. Give an image"),
        (["a.png", "--package", str(package_folder)], "caption: this package has no captioner"),
        (["a.png", "--seed", "-1"], "caption: the seed is -1; seeds run from 0"),
    ):
        assert message in commands.rejected(capsys, "caption", *arguments)
