"""python -m thousandwords tokens and likelihood: files and numbers, or one clear sentence and the exit code 2."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch

from tests.helpers import commands
from tests.helpers.tiny_models import SIDE, fitting_package, random_images, tiny
from thousandwords import __main__ as command
from thousandwords.cli import likelihood as likelihood_command
from thousandwords.cli import tokens as tokens_command
from thousandwords.data.images import decode_png, encode_png, to_uint8
from thousandwords.inference.batched import encode_in_batches
from thousandwords.inference.likelihood import likelihood

IMAGES = to_uint8(random_images(3))
FILES = ["decoded.png", "original.png", "side_by_side.png", "tokens.json", "tokens.png"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own with three images, a.png, b.png and c.png, and a text file text.png."""
    monkeypatch.chdir(tmp_path)
    for name, image in zip("abc", IMAGES, strict=True):
        (tmp_path / f"{name}.png").write_bytes(encode_png(image))
    (tmp_path / "text.png").write_text("a text")
    return tmp_path


@pytest.fixture
def tokens(here, package_folder):
    """Runs `tokens`; returns its grid of tokens and the files it wrote."""

    def run(*arguments: str, out: str = "tokens") -> tuple[list, list[str]]:
        command.main(["tokens", *arguments, "--package", str(package_folder), "--out", out])
        metadata = json.loads((here / out / "tokens.json").read_text())
        return metadata["tokens"], sorted(path.name for path in (here / out).iterdir())

    return run


@pytest.fixture
def rejected(here, package_folder, capsys):
    """Runs a command that has to end with code 2 and one sentence, which it returns."""

    def run(*arguments: str) -> str:
        sentence = commands.rejected(capsys, *arguments, "--package", str(package_folder))
        assert not (here / "tokens").exists()
        return sentence

    return run


def grid_of(package, number: int) -> np.ndarray:
    return encode_in_batches(package.image_tokenizer, IMAGES[[number]]).reshape(4, 4).numpy()


def image_in(path) -> np.ndarray:
    return decode_png(path.read_bytes())


def test_an_image_becomes_a_grid_of_tokens_and_images(tokens, here, package):
    grid, files = tokens("a.png")

    assert grid == grid_of(package, 0).tolist() and files == FILES
    metadata = json.loads((here / "tokens/tokens.json").read_text())
    assert metadata["image_tokenizer"] == package.image_tokenizer.fingerprint
    assert np.array_equal(image_in(here / "tokens/original.png"), IMAGES[0])
    rebuilt = package.image_tokenizer.decode(encode_in_batches(package.image_tokenizer, IMAGES[:1]))
    assert np.array_equal(image_in(here / "tokens/decoded.png"), to_uint8(rebuilt)[0])
    assert image_in(here / "tokens/side_by_side.png").shape[1] == 4 + 3 * (16 * SIDE + 4)


def test_edits_are_made_in_the_order_stitch_flip_set_and_decoded(tokens, here, package):
    stitched = np.concatenate([grid_of(package, 0)[:, :1], grid_of(package, 1)[:, 1:]], axis=1)
    expected = stitched[:, ::-1].copy()
    expected[0, 3], expected[2, 1] = 7, 5

    grid, _ = tokens(
        "a.png", "--set", "0,3=7", "--set", " 2, 1 = 5", "--flip", "--stitch", "b.png", "--columns", "1"
    )

    assert grid == expected.tolist()
    decoded = package.image_tokenizer.decode(torch.tensor(grid).reshape(1, -1))
    assert np.array_equal(image_in(here / "tokens/decoded.png"), to_uint8(decoded)[0])


def test_a_run_can_continue_from_the_tokens_of_an_earlier_one(tokens, here):
    first, _ = tokens("a.png", "--set", "1,1=0")
    again, _ = tokens("tokens/tokens.json", out="again")
    stitched, _ = tokens("tokens/tokens.json", "--stitch", "tokens/tokens.json", out="stitched")
    flipped, _ = tokens("tokens/tokens.json", "--flip", out="flipped")

    assert again == first == stitched and flipped == [row[::-1] for row in first]
    assert (here / "again/decoded.png").read_bytes() == (here / "tokens/decoded.png").read_bytes()


def test_a_caption_adds_the_surprisal_of_each_token(tokens, here, package, capsys):
    _, files = tokens("a.png", "--caption", "A red star")

    (result,) = likelihood(package, "a red star", IMAGES[:1])
    lines = capsys.readouterr().out.splitlines()
    assert files == sorted([*FILES, "heat.png"])
    assert lines[0] == (
        f"{result.image_bits:.1f} bits, {result.bits_per_token:.2f} per token (a uniform guess: 3.58); "
        f"the caption {result.caption_bits:.1f} bits. Expected least:"
    )
    pattern = r" +([0-9.]+) bits  row (\d), column (\d): token (\d+)"
    cells = [re.fullmatch(pattern, line).groups() for line in lines[1:6]]
    bits = [float(first) for first, *_ in cells]
    assert bits == sorted(bits, reverse=True)
    worst = int(result.image.argmin())
    expected = (
        f"{-result.image[worst] / math.log(2):.1f}",
        *divmod(worst, 4),
        grid_of(package, 0).ravel()[worst],
    )
    assert cells[0] == tuple(map(str, expected))


NO_FILE = "there is no file {}. Give an image (JPEG, PNG, WEBP, GIF, BMP, TIFF)"
NO_IMAGE = (
    "text.png cannot be used as an image: the bytes begin with b'a text'. Save it again, for example as PNG"
)
NO_CAPTION = 'the caption is empty. Say what to generate, for example "a small red star on sand"'
ONE_IMAGE = "--columns says where two images meet, but there is only one. Name the other with --stitch"
BY_HAND = "other.json was edited by hand and is not valid: tokens "
NO_EDIT = "--set {} is not understood. Give ROW,COLUMN=TOKEN, for example --set 3,4=17"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tokens", "none.png"], NO_FILE.format("none.png")),
        (["tokens", "none.json"], NO_FILE.format("none.json")),
        (["tokens", "text.png"], NO_IMAGE),
        (["tokens", "a.png", "--stitch", "none.png"], NO_FILE.format("none.png")),
        *(
            (["tokens", "a.png", f"--set={text}"], NO_EDIT.format(text))
            for text in ("1=2", "3,4", "a,b=c", "1,2=-3", "", "1,2=3=4", "1.0,2=3")
        ),
        (["tokens", "a.png", "--caption", " "], NO_CAPTION),
        (["tokens", "a.png", "--columns", "2"], ONE_IMAGE),
        (["likelihood", " ", "a.png"], NO_CAPTION),
        (["likelihood", "a star", "none.png"], NO_FILE.format("none.png")),
        (["likelihood", "a star", "a.png", "text.png"], NO_IMAGE),
    ],
)
def test_a_wrong_request_ends_with_one_sentence_before_a_model_is_loaded(
    rejected, monkeypatch, arguments, sentence
):
    for module in (tokens_command, likelihood_command):
        monkeypatch.setattr(module, "read_chosen_package", None)
    assert rejected(*arguments) == f"{arguments[0]}: {sentence}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "4,0=1"], "there is no row 4: they run from 0 to 3"),
        (["--set", "0,9=1"], "there is no column 9: they run from 0 to 3"),
        (["--set", "0,0=12"], "there is no token 12: they run from 0 to 11"),
        (["--stitch", "b.png", "--columns", "5"], "5 columns cannot be taken from a grid of 4; take 0 to 4"),
    ],
)
def test_an_edit_that_does_not_fit_the_grid_is_rejected_before_anything_is_written(
    rejected, arguments, sentence
):
    assert rejected("tokens", "a.png", *arguments) == f"tokens: {sentence}"


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "\ud800", "[" * 100_000),
        *('{"tokens": [[1e400]]}', '{"tokens": [["a"]]}', '{"tokens": [[1]]}'),
        '{"tokens": [[1, 2]], "image_tokenizer": "x"}',
        '{"tokens": [[1.5]], "image_tokenizer": "x"}',
        '{"tokens": [[1], [2, 3]], "image_tokenizer": "x"}',
        '{"tokens": [[100000000000000000000000]], "image_tokenizer": "x"}',
    ],
)
def test_a_file_that_is_not_a_grid_of_tokens_is_rejected(rejected, here, content, monkeypatch):
    monkeypatch.setattr(tokens_command, "read_chosen_package", None)
    (here / "wrong.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    sentence = rejected("tokens", "wrong.json")
    assert sentence.startswith("tokens: wrong.json is not a tokens.json that `tokens` wrote (")
    assert sentence.endswith("). Give an image, or write the file again")


@pytest.mark.parametrize(
    ("change", "start", "end"),
    [
        (
            {"image_tokenizer": "3f9c" * 16},
            "other.json holds tokens of the image tokenizer 3f9c3f9c3f9c, but this package has ",
            ". Give the package that wrote it, or the image itself",
        ),
        ({"tokens": [[0]]}, BY_HAND, ". Write the file again"),
        ({"tokens": [[99] * 4] * 4}, BY_HAND, ". Write the file again"),
        ({"tokens": [[-1] * 4] * 4}, BY_HAND, ". Write the file again"),
    ],
)
def test_tokens_of_another_tokenizer_or_that_are_not_valid_are_rejected(
    rejected, here, package, change, start, end
):
    metadata = {
        "tokens": grid_of(package, 0).tolist(),
        "image_tokenizer": package.image_tokenizer.fingerprint,
    }
    (here / "other.json").write_text(json.dumps(metadata | change))
    sentence = rejected("tokens", "other.json")
    assert sentence.startswith(f"tokens: {start}") and sentence.endswith(end)


def test_images_are_listed_likeliest_first_and_as_a_table(here, package, package_folder, capsys):
    names = ["a.png", "b.png", "c.png"]
    arguments = ["A red star", *names, "--csv", "out/l.csv", "--package", str(package_folder)]
    command.main(["likelihood", *arguments])

    results = dict(zip(names, likelihood(package, "a red star", list(IMAGES)), strict=True))
    order = sorted(results, key=lambda name: results[name].image_bits)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ") == ["bits per image", "bits per token", "bits of the caption", "image"]
    assert [line.split() for line in lines[1:]] == [
        [f"{result.image_bits:.2f}", f"{result.bits_per_token:.3f}", f"{result.caption_bits:.2f}", name]
        for name, result in ((name, results[name]) for name in order)
    ]
    with open(here / "out/l.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == order
    for column, attribute in (("bits_per_image", "image_bits"), ("caption_bits", "caption_bits")):
        expected = [getattr(results[name], attribute) for name in order]
        assert [float(row[column]) for row in rows] == pytest.approx(expected)


def test_of_a_generator_that_does_not_model_text_the_captions_bits_are_absent(here, capsys):
    folder = fitting_package(here / "models", tiny("image_tokenizers", "multi_scale"), "next_scale")
    command.main(["likelihood", "a red star", "a.png", "--csv", "l.csv", "--package", str(folder)])

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[2:] == ["–", "a.png"]
    assert lines[2] == "This generator gives captions no probability of their own."
    with open(here / "l.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["caption_bits"] == "" and float(row["bits_per_image"]) > 0
