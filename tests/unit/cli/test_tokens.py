"""python -m thousandwords words and likelihood: files and figures, or one clear sentence and the exit code 2."""
from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import torch

from tests.tiny import IMAGE_WORDS, SIDE, pictures
from thousandwords import __main__ as command
from thousandwords import images
from thousandwords.commands import likelihood as likelihood_command
from thousandwords.commands import words as words_command
from thousandwords.commands.words import parse_change
from thousandwords.drawing import encode_in_parts
from thousandwords.errors import UserError
from thousandwords.likelihood import likelihood
from thousandwords.package import load_package

PICTURES = images.to_uint8(pictures(3))
FILES = ["drawn.png", "picture.png", "side_by_side.png", "words.json", "words.png"]


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own with three pictures, a.png, b.png and c.png, and a text that is none."""
    monkeypatch.chdir(tmp_path)
    for name, picture in zip("abc", PICTURES, strict=True):
        (tmp_path / f"{name}.png").write_bytes(images.encode_png(picture))
    (tmp_path / "text.png").write_text("a text")
    return tmp_path


@pytest.fixture
def words(here, package_folder):
    """Runs `words`; gives its grid of words and which files there are."""

    def run(*arguments: str, out: str = "words") -> tuple[list, list[str]]:
        command.main(["words", *arguments, "--package", str(package_folder), "--out", out])
        facts = json.loads((here / out / "words.json").read_text())
        return facts["words"], sorted(path.name for path in (here / out).iterdir())

    return run


@pytest.fixture
def refused(here, package_folder, capsys):
    """Runs a command that has to end with code 2 and one sentence, which it gives."""

    def run(name: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            command.main([name, *arguments, "--package", str(package_folder)])
        assert caught.value.code == 2 and not (here / "words").exists()
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err.rstrip("\n")

    return run


def grid_of(package, number: int) -> np.ndarray:
    return encode_in_parts(package.image_tokenizer, PICTURES[[number]]).reshape(4, 4).numpy()


def picture_in(path) -> np.ndarray:
    return images.decode_png(path.read_bytes())


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_picture_becomes_a_grid_of_words_and_pictures_to_look_at(words, here, package):
    grid, files = words("a.png")

    assert grid == grid_of(package, 0).tolist() and files == FILES
    facts = json.loads((here / "words/words.json").read_text())
    assert facts["image_tokenizer"] == package.image_tokenizer.fingerprint
    assert np.array_equal(picture_in(here / "words/picture.png"), PICTURES[0])
    rebuilt = package.image_tokenizer.decode(encode_in_parts(package.image_tokenizer, PICTURES[:1]))
    assert np.array_equal(picture_in(here / "words/drawn.png"), images.to_uint8(rebuilt)[0])
    assert picture_in(here / "words/side_by_side.png").shape[1] == 4 + 3 * (16 * SIDE + 4)


def test_changes_are_made_in_the_order_stitch_flip_set(words, package):
    wanted = np.concatenate([grid_of(package, 0)[:, :1], grid_of(package, 1)[:, 1:]], axis=1)[:, ::-1].copy()
    wanted[0, 3], wanted[2, 1] = 7, 5

    grid, _ = words("a.png", "--set", "0,3=7", "--set", " 2, 1 = 5", "--flip", "--stitch", "b.png", "--columns", "1")

    assert grid == wanted.tolist()


def test_the_drawn_picture_is_that_of_the_changed_words(words, here, package):
    grid, _ = words("a.png", "--flip", "--stitch", "b.png")
    drawn = package.image_tokenizer.decode(torch.tensor(grid).reshape(1, -1))
    assert np.array_equal(picture_in(here / "words/drawn.png"), images.to_uint8(drawn)[0])


def test_one_can_go_on_from_the_words_of_an_earlier_run(words, here):
    first, _ = words("a.png", "--set", "1,1=0")
    again, _ = words("words/words.json", out="again")
    stitched, _ = words("words/words.json", "--stitch", "words/words.json", out="stitched")
    flipped, _ = words("words/words.json", "--flip", out="flipped")

    assert again == first == stitched and flipped == [row[::-1] for row in first]
    assert (here / "again/drawn.png").read_bytes() == (here / "words/drawn.png").read_bytes()


def test_with_a_caption_one_sees_what_surprises(words, here, package, capsys):
    _, files = words("a.png", "--caption", "A red star")

    (found,) = likelihood(package, "a red star", PICTURES[:1])
    lines = capsys.readouterr().out.splitlines()
    assert files == sorted([*FILES, "heat.png"])
    assert lines[0] == (
        f"{found.picture_bits:.1f} bits, {found.bits_per_word:.2f} a word (a blind guess: 3.58); "
        f"the caption {found.caption_bits:.1f} bits. Expected least:"
    )
    cells = [re.fullmatch(r" +([0-9.]+) bits  row (\d), column (\d): word (\d+)", line).groups() for line in lines[1:6]]
    assert [float(bits) for bits, *_ in cells] == sorted((float(bits) for bits, *_ in cells), reverse=True)
    worst = int(found.image.argmin())
    assert (int(cells[0][1]), int(cells[0][2])) == divmod(worst, 4)
    assert int(cells[0][3]) == grid_of(package, 0).ravel()[worst]


def test_the_same_command_writes_the_same_bytes(words, here):
    words("a.png", "--caption", "a red star", "--flip")
    first = {path.name: path.read_bytes() for path in (here / "words").iterdir()}
    words("a.png", "--caption", "a red star", "--flip")
    assert {path.name: path.read_bytes() for path in (here / "words").iterdir()} == first


def test_a_change_is_read_as_row_column_word():
    assert parse_change("3,4=17") == (3, 4, 17)
    for wrong in ("3,4", "3=4", "a,b=c", "1,2=-3", "", "1,2=3=4", "1.0,2=3"):
        with pytest.raises(UserError, match="is not understood. Give ROW,COLUMN=WORD, for example --set 3,4=17"):
            parse_change(wrong)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.png"], "there is no file none.png. Give a picture (JPEG, PNG, WEBP, GIF, BMP, TIFF)"),
        (["none.json"], "there is no file none.json. Give a picture (JPEG, PNG, WEBP, GIF, BMP, TIFF)"),
        (["text.png"], "text.png is no picture that can be used: the bytes begin with b'a text'. Save it anew, as PNG say"),
        (["a.png", "--stitch", "none.png"], "there is no file none.png. Give a picture (JPEG, PNG, WEBP, GIF, BMP, TIFF)"),
        (["a.png", "--set", "1=2"], "--set 1=2 is not understood. Give ROW,COLUMN=WORD, for example --set 3,4=17"),
        (["a.png", "--caption", " "], 'the caption is empty. Say what to draw, for example "a small red star on sand"'),
        (
            ["a.png", "--columns", "2"],
            "--columns says where two pictures meet, but there is one only. Name the other with --stitch",
        ),
    ],
)
def test_a_wrong_request_ends_with_one_sentence_before_a_model_is_loaded(refused, monkeypatch, arguments, sentence):
    monkeypatch.setattr(words_command, "load_package", None)
    assert refused("words", *arguments) == f"words: {sentence}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "4,0=1"], "there is no row 4: they run from 0 to 3"),
        (["--set", "0,9=1"], "there is no column 9: they run from 0 to 3"),
        (["--set", f"0,0={IMAGE_WORDS}"], f"there is no word {IMAGE_WORDS}: they run from 0 to {IMAGE_WORDS - 1}"),
        (["--stitch", "b.png", "--columns", "5"], "5 columns cannot be taken from a grid of 4; take 0 to 4"),
    ],
)
def test_a_change_that_does_not_fit_the_grid_is_refused_before_anything_is_written(refused, arguments, sentence):
    assert refused("words", "a.png", *arguments) == f"words: {sentence}"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"words": [[1, 2]], "image_tokenizer": "x"}', '{"words": [[1.5]], "image_tokenizer": "x"}',
                '{"words": [[1], [2, 3]], "image_tokenizer": "x"}', '{"words": [[1e400]]}', '{"words": [["a"]]}',
                '{"words": [[100000000000000000000000]], "image_tokenizer": "x"}', '{"words": [[1]]}', "\ud800",
                "[" * 100_000]
)  # fmt: skip
def test_what_is_no_grid_of_words_is_refused(refused, here, content, monkeypatch):
    monkeypatch.setattr(words_command, "load_package", None)
    (here / "wrong.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    sentence = refused("words", "wrong.json")
    assert sentence.startswith("words: wrong.json is no words.json that `words` wrote (")
    assert sentence.endswith("). Give a picture, or make it anew")


def test_words_of_another_tokenizer_are_refused(refused, here, package):
    (here / "other.json").write_text(json.dumps({"words": grid_of(package, 0).tolist(), "image_tokenizer": "3f9c" * 16}))
    assert refused("words", "other.json") == (
        "words: other.json holds words of the image tokenizer 3f9c3f9c3f9c, but this package speaks those of "
        f"{package.image_tokenizer.fingerprint[:12]}. Give the package that wrote it, or the picture itself"
    )


@pytest.mark.parametrize("grid", [[[0]], [[99] * 4] * 4, [[-1] * 4] * 4])
def test_words_that_were_changed_by_hand_into_none_are_refused(refused, here, package, grid):
    facts = {"words": grid, "image_tokenizer": package.image_tokenizer.fingerprint}
    (here / "mine.json").write_text(json.dumps(facts))
    sentence = refused("words", "mine.json")
    assert sentence.startswith("words: mine.json was changed by hand, and not well: tokens ")
    assert sentence.endswith(". Make it anew")


# --- likelihood ------------------------------------------------------------------------------------------------------


def test_pictures_are_told_likeliest_first_and_as_a_table(here, package, package_folder, capsys):
    command.main(["likelihood", "A red star", "a.png", "b.png", "c.png", "--csv", "out/l.csv", "--package", str(package_folder)])

    found = dict(zip(["a.png", "b.png", "c.png"], likelihood(package, "a red star", list(PICTURES)), strict=True))
    order = sorted(found, key=lambda name: found[name].picture_bits)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ") == ["bits per picture", "bits per word", "bits of the caption", "picture"]
    assert [line.split() for line in lines[1:]] == [
        [f"{one.picture_bits:.2f}", f"{one.bits_per_word:.3f}", f"{one.caption_bits:.2f}", name]
        for name, one in ((name, found[name]) for name in order)
    ]
    with open(here / "out/l.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == order
    assert [float(row["bits_per_picture"]) for row in rows] == pytest.approx([found[name].picture_bits for name in order])
    assert [float(row["caption_bits"]) for row in rows] == pytest.approx(3 * [found["a.png"].caption_bits])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([" ", "a.png"], 'the caption is empty. Say what to draw, for example "a small red star on sand"'),
        (["a star", "none.png"], "there is no file none.png. Give a picture (JPEG, PNG, WEBP, GIF, BMP, TIFF)"),
        (["a star", "a.png", "text.png"], "text.png is no picture that can be used: the bytes begin with b'a text'. "
                                          "Save it anew, as PNG say"),
    ],
)  # fmt: skip
def test_a_wrong_question_ends_with_one_sentence_before_a_model_is_loaded(refused, monkeypatch, arguments, sentence):
    monkeypatch.setattr(likelihood_command, "load_package", None)
    assert refused("likelihood", *arguments) == f"likelihood: {sentence}"


def test_without_a_package_the_mend_is_to_train_one(here, capsys):
    for arguments in (["words", "a.png"], ["likelihood", "a star", "a.png"]):
        with pytest.raises(SystemExit):
            command.main([*arguments, "--package", "none"])
        assert "there is no package at none: nothing has been trained here yet. Run: make run" in capsys.readouterr().err
