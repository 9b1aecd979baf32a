"""The library from Python: what `import thousandwords` gives, with the bits of the command line."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import thousandwords
from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import flipped
from thousandwords import __main__ as command
from thousandwords.api import read_image
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.inference.likelihood import likelihood

STAR, SQUARE = "a red star", "a blue square"


@pytest.fixture(scope="module")
def model(package_folder):
    return thousandwords.load(package_folder, device="cpu")


@pytest.fixture
def project(package_folder, tmp_path, monkeypatch):
    """The current folder, with a trained package where `make run` writes it."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/package").symlink_to(package_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def image() -> Image.Image:
    """Not square, and larger than the images of the model."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    return Image.fromarray(pixels)


def example_of(page: str) -> str:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return example


def test_the_example_of_the_readme_gives_the_best_image_of_the_command_line(project):
    names: dict = {}
    exec(example_of("README.md"), names)  # as a user pastes it
    prompt = "a small red star above a large blue square"
    command.main(["generate", prompt, "--candidates", "16", "--seed", "7"])

    names["best"].save("best.png")

    folder = project / "generated/a-small-red-star-above-a-large-blue-square-seed7"
    assert Path("best.png").read_bytes() == (folder / "000.png").read_bytes()
    with Image.open("star.png") as star:
        assert star.size == (256, 256)


def test_the_example_of_the_page_about_python_runs(project, image):
    image.save("cat.png")
    exec(example_of("docs/python.md"), {})
    assert Path("star.png").is_file() and Path("cat-from-its-tokens.png").is_file()


def test_numbers_of_numpy_are_taken_as_those_of_python(model, project):
    for name, number, seed, temperature in (
        ("a", 2, 7, 0.5),
        ("b", np.int64(2), np.uint32(7), np.float32(0.5)),
    ):
        model.generate(STAR, number, seed, temperature=temperature)[0].save(f"{name}.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_an_image_is_inpainted_as_on_the_command_line(model, image, project):
    image.save("image.png")
    arguments = ["--inpaint", "image.png", "--keep-rows", "1", "--top-p", "0.9", "-n", "2"]
    command.main(["generate", STAR, *arguments])

    best, _ = model.generate(STAR, candidates=2, top_p=0.9, inpaint=image, keep_rows=1)

    best.save("best.png")
    assert Path("best.png").read_bytes() == Path("generated/a-red-star-inpainted-seed0/000.png").read_bytes()
    assert (best.tokens[:4] == model.encode(image)[0, :4]).all()


def test_tokens_scores_and_likelihoods_are_those_of_the_models(model, package_folder, image):
    best, last = model.generate(STAR, candidates=2)

    (decoded,) = model.decode(best.tokens)
    assert np.abs(np.asarray(decoded, int) - np.asarray(best.image)).max() <= 1  # it was decoded among others
    assert model.encode([image, best.image]).shape == (2, 16)
    both = model.score([best.image, last.image], STAR)
    assert both == pytest.approx([best.score, last.score], abs=0.02)  # of pixels of 8 bits
    other = model.score([last.image], SQUARE)
    assert model.score([best.image, last.image], [STAR, SQUARE]) == pytest.approx(
        [both[0], other[0]], abs=1e-6
    )
    pixels = np.asarray(best.image)
    expected = [likelihood(model.package, caption, [pixels])[0].image_bits for caption in (STAR, SQUARE)]
    found = model.likelihood([best.image, best.image], [STAR, SQUARE])
    assert [each.image_bits for each in found] == expected
    assert model.likelihood(best.image, STAR)[0].image_bits == expected[0]


def test_an_image_is_the_same_as_a_file_a_pillow_image_and_an_array(image, tmp_path):
    transparent = image.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    transparent.save(tmp_path / "transparent.png")
    image.save(tmp_path / "turned.png", exif=exif)
    image.convert("P").save(tmp_path / "palette.gif")
    for name in ("transparent.png", "turned.png", "palette.gif"):
        pixels = read_image(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            assert (read_image(opened) == pixels).all(), name
        assert (read_image(pixels) == pixels).all()


def test_words_that_the_model_never_saw_are_a_warning(model):
    with pytest.warns(UserWarning, match='^"a sun": no training caption has: sun$'):
        model.generate("A sun", candidates=1)


BOTH = "keep_rows and keep_mask both say what stays. Give one of them"
NO_IMAGE = "keep_rows says what stays of an image, but no image is given. Name it with inpaint"
CAPTIONS = "there are 2 captions for 1 images. Give one each, or one for all"


@pytest.mark.parametrize(
    ("request_of", "sentence"),
    [
        (lambda model, image: model.generate(" "), "the prompt is empty. Say what to generate"),
        (lambda model, image: model.generate(STAR, temperature=0.0), "sampling.temperature is 0.0; it needs"),
        (lambda model, image: model.generate(STAR, guidance=2.0), "sampling.guidance is 2.0, but"),
        (
            lambda model, image: model.generate(STAR, seed=-1),
            "the seed is -1; seeds run from 0 to 2^63 - 1. Give",
        ),
        (lambda model, image: model.generate(None), "the prompt is None. Give it as text"),
        (
            lambda model, image: model.generate(STAR, "4"),
            "sampling.candidates should be a whole number, found '4'",
        ),
        (lambda model, image: model.generate(STAR, seed="7"), "the seed is '7'; seeds run from 0"),
        (lambda model, image: model.encode(None), "an image is None. Give a PIL image, uint8 (H, W, 3), or"),
        (lambda model, image: model.score(image, None), "the caption is None. Give it as text"),
        (lambda model, image: model.decode(None), "tokens are object. Give them as int64 (B, L)"),
        (lambda model, image: model.generate(STAR, keep_rows=2), NO_IMAGE),
        (lambda model, image: model.generate(STAR, inpaint=image, keep_rows=2, keep_mask=image), BOTH),
        (lambda model, image: model.encode("none.png"), "there is no file none.png. Give an image (JPEG,"),
        (lambda model, image: model.encode([]), "no image was given. Give one or more"),
        (lambda model, image: model.encode(np.zeros((4, 4, 3))), "an image is float64 (4, 4, 3). Give uint8"),
        (
            lambda model, image: model.encode(image.convert("F")),
            "an image has pixels of mode 'F'. Give its file",
        ),
        (lambda model, image: model.score(image, [STAR, SQUARE]), CAPTIONS),
        (
            lambda model, image: model.decode([[1, 2]]),
            "tokens have shape (1, 2); this tokenizer takes (B, 16)",
        ),
    ],
)
def test_a_wrong_request_is_an_error_with_the_fix(model, image, request_of, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        request_of(model, image)


def test_the_fix_of_a_damaged_package_fits_the_place_where_it_is(package_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, fix in (
        ("copy", "Copy the whole package to copy again"),
        ("models/package", "Run: make repair"),
    ):
        shutil.copytree(package_folder, folder)
        weights = Path(folder, "generator/weights.safetensors")
        weights.write_bytes(flipped(weights.read_bytes(), 1000))
        with pytest.raises(DamagedArtefact, match=rf"^{weights} is damaged: .*, found \w+\. {fix}$"):
            thousandwords.load(folder)


def test_what_is_no_package_is_an_error_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no package at none: nothing has been trained here yet"):
        thousandwords.load("none")
    (tmp_path / "image.png").touch()
    (tmp_path / "folder").mkdir()
    for name, found in (("image.png", "is a file"), ("folder", "has neither manifest.json nor package.json")):
        message = (
            f"{name} is not a package: it {found}. Give the folder that `dvc repro package_model` writes"
        )
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            thousandwords.load(name)
    message = r"models:/cats@champion names no package of the registry. Give models:/thousandwords@champion"
    with pytest.raises(UserError, match=message):
        thousandwords.load("models:/cats@champion")
    fetch = "python -m flows.registry fetch 3; then load the folder that it prints"
    message = f"models:/thousandwords/3 needs a clone of thousandwords, but {tmp_path} is none. In a clone run: {fetch}"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        thousandwords.load("models:/thousandwords/3")
    (tmp_path / "flows").mkdir()
    (tmp_path / "dvc.yaml").touch()
    failed = subprocess.CompletedProcess(
        [], 2, "", "a warning\nregistry: the registry has no version '3'. Run: it\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    message = "models:/thousandwords/3 was not fetched: the registry has no version '3'. Run: it"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        thousandwords.load("models:/thousandwords/3")
    with pytest.raises(AttributeError, match="module 'thousandwords' has no attribute 'laod'"):
        thousandwords.laod("models/package")
    assert {"load", "from_pretrained", "__version__"} <= set(dir(thousandwords))
