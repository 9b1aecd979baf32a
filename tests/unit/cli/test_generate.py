"""python -m thousandwords draw: grids and pictures, or one clear sentence and the exit code 2."""
from __future__ import annotations

import re

import pytest
from PIL import Image

from tests.tiny import SIDE, pictures
from thousandwords import __main__ as command
from thousandwords import images
from thousandwords.commands import draw as draw_command
from thousandwords.completion import given_words, top_rows
from thousandwords.package import load_package


@pytest.fixture
def draw(package_folder, tmp_path):
    """Runs the command on the tiny package and tells which files it wrote."""

    def run(*words: str) -> list[str]:
        command.main(["draw", *words, "--package", str(package_folder), "--out", str(tmp_path / "drawn"), "-n", "3"])
        return sorted(str(path.relative_to(tmp_path / "drawn")) for path in (tmp_path / "drawn").rglob("*.png"))

    return run


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs a command that has to end with code 2 before any model is loaded; gives its one sentence."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        def never(*_):
            raise AssertionError("a model was loaded before the command line was checked")

        with monkeypatch.context() as patched, pytest.raises(SystemExit) as caught:
            patched.setattr(draw_command, "load_package", never)
            command.main(["draw", *words])
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err.rstrip("\n")

    return run


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_a_prompt_gives_a_grid_and_single_pictures(draw, package_folder, tmp_path, capsys):
    assert draw("A red star", "--seed", "7") == [
        "a-red-star-seed7.png",
        "a-red-star-seed7/000.png",
        "a-red-star-seed7/001.png",
        "a-red-star-seed7/002.png",
    ]

    best = load_package(package_folder).draw("a red star", candidates=3, seed=7)[0]
    folder = tmp_path / "drawn" / "a-red-star-seed7"
    assert (images.decode_png((folder / "000.png").read_bytes()) == best.picture).all()
    grid = images.decode_png(folder.with_suffix(".png").read_bytes())
    assert grid.shape[0] >= 8 * SIDE and grid.shape[1] >= 3 * 8 * SIDE
    line = rf"a red star: 3 candidates in \d+\.\d s -> {re.escape(str(folder))}\.png\n"
    assert re.fullmatch(line, capsys.readouterr().out)


def test_several_prompts_each_get_files_of_their_own(draw, capsys):
    files = draw("a star", "A star!", "🦊")
    assert [name for name in files if "/" not in name] == ["a-star-2-seed0.png", "a-star-seed0.png", "prompt-seed0.png"]
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["[1/3]", "[2/3]", "[3/3]"]


def test_prompts_may_come_from_a_file_one_per_line(draw, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa red star\r\n\n  \nein grüner Kreis\n", encoding="utf-8")
    files = draw("--prompts", str(tmp_path / "prompts.txt"))
    assert [name for name in files if "/" not in name] == ["a-red-star-seed0.png", "ein-grüner-kreis-seed0.png"]


def test_the_same_command_writes_the_same_bytes(draw, tmp_path):
    draw("a red star", "--temperature", "0.8", "--top-k", "5", "--top-p", "0.9")
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    draw("a red star", "--temperature", "0.8", "--top-k", "5", "--top-p", "0.9")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == first


@pytest.fixture
def picture(tmp_path):
    """A picture on the disk, larger than the models' and no square."""
    pixels = images.to_uint8(pictures(1))[0].repeat(3, axis=0).repeat(4, axis=1)
    (tmp_path / "given").mkdir()
    (tmp_path / "given/picture.png").write_bytes(images.encode_png(pixels))
    return tmp_path / "given/picture.png"


def written(tmp_path, name: str) -> list:
    """The single pictures of one prompt."""
    return [images.decode_png(path.read_bytes()) for path in sorted((tmp_path / "drawn" / name).glob("*.png"))]


def test_a_picture_is_completed_and_shown_first_with_the_rest_greyed_out(draw, tmp_path, package_folder, picture):
    files = draw("a red star", "--complete", str(picture), "--keep-rows", "1")

    assert "a-red-star-completed-seed0.png" in files
    package, pixels = load_package(package_folder), images.decode_png(picture.read_bytes())
    given = given_words(package.image_tokenizer, pixels, top_rows(4, 1))
    wanted = package.draw("a red star", candidates=3, given=given)
    found = written(tmp_path, "a-red-star-completed-seed0")
    assert all((one.picture == other).all() for one, other in zip(wanted, found, strict=True))
    grid = images.decode_png((tmp_path / "drawn/a-red-star-completed-seed0.png").read_bytes())
    first = grid[4 : 4 + 8 * SIDE : 8, 4 : 4 + 8 * SIDE : 8]
    assert (first[:4] == images.fit_square(pixels, SIDE)[:4]).all() and (first[4:] == first[4:, :, :1]).all()
    assert grid.shape[1] == 4 + 4 * (8 * SIDE + 4)  # it and three candidates


def test_half_of_a_picture_is_kept_if_nothing_else_is_asked_for(draw, tmp_path, picture):
    draw("a red star", "--complete", str(picture))
    halves = written(tmp_path, "a-red-star-completed-seed0")
    draw("a red star", "--complete", str(picture), "--keep-rows", "2")
    assert all((one == other).all() for one, other in zip(halves, written(tmp_path, "a-red-star-completed-seed0"), strict=True))


def test_a_mask_keeps_what_is_white_in_it_and_not_what_is_transparent(draw, tmp_path, package_folder, picture):
    mask = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (16, 0, 32, 32))
    mask.save(tmp_path / "given/mask.png")

    draw("a red star", "--complete", str(picture), "--keep-mask", str(tmp_path / "given/mask.png"))

    package, right = load_package(package_folder), top_rows(4, 2).T[:, ::-1].copy()
    given = given_words(package.image_tokenizer, images.decode_png(picture.read_bytes()), right)
    wanted = package.draw("a red star", candidates=3, given=given)
    found = written(tmp_path, "a-red-star-completed-seed0")
    assert all((one.picture == other).all() for one, other in zip(wanted, found, strict=True))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], 'draw: no prompt was given. For example: make draw PROMPT="a small red star on sand"'),
        ([""], 'draw: the prompt is empty. Say what to draw, for example "a small red star on sand"'),
        (["a star", " "], 'draw: the prompt is empty. Say what to draw, for example "a small red star on sand"'),
        (["--prompts", "none.txt"], "draw: there is no file none.txt. Give a text file with one prompt per line"),
        (["--prompts", "."], "draw: there is no file .. Give a text file with one prompt per line"),
        (["a star", "--temperature", "0"], "draw: sampling.temperature is 0.0; it needs to be above 0"),
        (
            ["a star", "--top-p", "1.5"],
            "draw: sampling.top_p is 1.5; it needs to be in (0, 1], or null for all words",
        ),
    ],
)
def test_a_wrong_request_ends_with_one_sentence_before_a_model_is_loaded(refused, words, sentence):
    assert refused(*words) == sentence


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_prompt_is_refused(refused, tmp_path, content):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert refused("--prompts", "prompts.txt") == "draw: prompts.txt holds no prompt. Write one per line"


def test_a_file_that_is_not_utf8_is_refused_with_its_line(refused, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("a star\nein grüner Kreis\n".encode("latin-1"))
    sentence = refused("--prompts", "prompts.txt")
    assert sentence.startswith("draw: prompts.txt, line 2 is not text in UTF-8: 'ein gr")
    assert sentence.endswith("Type it again, or save it as UTF-8")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--complete", "none.png"], "there is no file none.png. Give a picture (JPEG, PNG, WEBP, GIF, BMP, TIFF)"),
        (["--complete", "."], "there is no file .. Give a picture (JPEG, PNG, WEBP, GIF, BMP, TIFF)"),
        (
            ["--complete", "text.png"],
            "text.png is no picture that can be used: the bytes begin with b'a text'. Save it anew, as PNG say",
        ),
        (["--complete", "ok.png", "--keep-mask", "none.png"], "there is no file none.png. Give a picture"),
        (
            ["--complete", "ok.png", "--keep-mask", "ok.png", "--keep-rows", "2"],
            "--keep-rows and --keep-mask both say what stays. Give one of them",
        ),
        (
            ["--keep-rows", "2"],
            "--keep-rows says what stays of a picture, but no picture is given. Name it with --complete",
        ),
        (
            ["--keep-mask", "ok.png"],
            "--keep-mask says what stays of a picture, but no picture is given. Name it with --complete",
        ),
    ],
)
def test_a_wrong_request_to_complete_ends_before_a_model_is_loaded(refused, tmp_path, words, sentence):
    (tmp_path / "text.png").write_text("a text")
    (tmp_path / "ok.png").write_bytes(images.encode_png(images.to_uint8(pictures(1))[0]))
    assert refused("a star", *words).startswith(f"draw: {sentence}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--keep-rows", "4"], "4 rows cannot be kept: these pictures have 4 rows of words. Keep 1 to 3"),
        (["--keep-mask", "black.png"], "the mask is of no use: no cell of it is white enough."),
    ],
)
def test_what_only_the_models_can_refuse_is_refused_before_anything_is_drawn(
    draw, picture, tmp_path, monkeypatch, capsys, words, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "black.png").write_bytes(images.encode_png(0 * images.to_uint8(pictures(1))[0]))
    with pytest.raises(SystemExit) as caught:
        draw("a star", "--complete", str(picture), *words)
    assert caught.value.code == 2 and not (tmp_path / "drawn").exists()
    assert capsys.readouterr().err.startswith(f"draw: {sentence}")


@pytest.mark.parametrize("words", [["-n", "0"], ["--top-k", "0"], ["--keep-rows", "0"]])
def test_a_count_below_one_is_refused(words, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["draw", "a star", *words])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("0 is too few; give 1 or more\n")


def test_without_a_package_the_mend_is_to_train_one(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        command.main(["draw", "a star", "--package", str(tmp_path / "none")])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"draw: there is no package at {tmp_path}/none: nothing has been trained here yet. Run: make run\n"
    )
