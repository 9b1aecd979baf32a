"""python -m thousandwords generate: grids and images, or one clear sentence and the exit code 2."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers import commands
from tests.helpers.tiny_models import SIDE, fitting_package, random_images, tiny
from thousandwords import __main__ as command
from thousandwords.cli import generate as generate_command
from thousandwords.data.images import decode_png, encode_png, fit_square, to_uint8
from thousandwords.inference.inpainting import fixed_tokens_of, top_rows
from thousandwords.inference.package import Package
from thousandwords.inference.provenance import read_provenance


@pytest.fixture
def generate(package_folder, tmp_path):
    """Runs the command on the tiny package and returns the files it wrote."""

    def run(*arguments: str) -> list[str]:
        out = tmp_path / "generated"
        count = () if "-n" in arguments else ("-n", "3")
        command.main(["generate", *arguments, "--package", str(package_folder), "--out", str(out), *count])
        return sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))

    return run


@pytest.fixture
def rejected(monkeypatch, capsys, tmp_path):
    """Runs a command that has to end with code 2 before any model is loaded; returns its one sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate_command, "read_chosen_package", lambda *_: pytest.fail("a model was loaded"))
    return lambda *arguments: commands.rejected(capsys, "generate", *arguments)


def test_a_prompt_gives_a_grid_and_single_images(generate, package, tmp_path, capsys):
    images = [f"a-red-star-seed7/{number}.png" for number in ("000", "001", "002")]
    assert generate("A red star", "--seed", "7") == ["a-red-star-seed7.png", *images]

    best = package.generate("a red star", candidates=3, seed=7)[0]
    folder = tmp_path / "generated" / "a-red-star-seed7"
    assert (decode_png((folder / "000.png").read_bytes()) == best.image).all()
    grid = decode_png(folder.with_suffix(".png").read_bytes())
    assert grid.shape[0] >= 8 * SIDE and grid.shape[1] >= 3 * 8 * SIDE
    line = rf"a red star: 3 candidates in \d+\.\d s -> {re.escape(str(folder))}\.png\n"
    assert re.fullmatch(line, capsys.readouterr().out)


def test_the_prompts_of_a_file_one_per_line_each_get_their_own_files(generate, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\ufeffa star\r\n\n  \nA star!\nein grüner 🦊\n", encoding="utf-8")
    files = generate("--prompts", str(tmp_path / "prompts.txt"))
    names = ["a-star-2-seed0.png", "a-star-seed0.png", "ein-grüner-🦊-seed0.png"]
    assert [name for name in files if "/" not in name] == names
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["[1/3]", "[2/3]", "[3/3]"]


def test_a_long_list_of_prompts_resumes_where_it_was_stopped(generate, tmp_path, monkeypatch, capsys):
    generate("a star", "a circle")
    out, sampled, plain = tmp_path / "generated", [], Package.generate
    (out / "a-circle-seed0.png").unlink()  # what a kill before its grid leaves
    capsys.readouterr()
    monkeypatch.setattr(
        Package, "generate", lambda *args, **kw: sampled.append(args[1]) or plain(*args, **kw)
    )

    generate("a star", "a circle")

    assert sampled == ["a circle"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"[1/2] a star: finished before, kept -> {out}/a-star-seed0.png"
    assert lines[1] == (
        f"[2/2] a circle: {out}/a-circle-seed0.png was generated with other models or settings, or not to the end; "
        "it is generated anew"
    )


def test_other_settings_generate_anew_and_leave_no_old_image(generate, tmp_path, capsys):
    generate("a star", "-n", "4")
    before = (tmp_path / "generated/a-star-seed0/000.png").read_bytes()
    assert len(generate("a star", "--temperature", "0.5")) == 4  # the grid and three images
    assert (tmp_path / "generated/a-star-seed0/000.png").read_bytes() != before
    assert "it is generated anew" in capsys.readouterr().out


def test_another_prompt_of_the_same_name_leaves_the_images_before(generate, tmp_path):
    first = generate("a star")
    before = (tmp_path / "generated/a-star-seed0/000.png").read_bytes()
    both = generate("a star!")
    assert generate("a star!") == both and len(both) == 2 * len(first)  # found again
    assert {name.partition("/")[0] for name in both if "/" in name} == {
        "a-star-seed0",
        "a-star-c2e1ca48-seed0",
    }
    assert (tmp_path / "generated/a-star-seed0/000.png").read_bytes() == before


def test_of_many_candidates_the_best_are_kept_and_found_again(generate, package, tmp_path, capsys):
    keep = ("a star", "-n", "5", "--keep", "2")
    assert generate(*keep) == ["a-star-seed0.png", "a-star-seed0/000.png", "a-star-seed0/001.png"]
    for number, candidate in enumerate(package.generate("a star", 5)[:2]):
        data = (tmp_path / f"generated/a-star-seed0/{number:03d}.png").read_bytes()
        assert (decode_png(data) == candidate.image).all()
        assert read_provenance(data).candidate == candidate.candidate
    assert "a star: 2 of 5 candidates in " in capsys.readouterr().out
    generate(*keep)
    assert "finished before" in capsys.readouterr().out
    for other in ("3", "1"):
        assert len(generate(*keep[:-1], other)) == 1 + int(other)
        assert "it is generated anew" in capsys.readouterr().out


def test_a_damaged_image_is_generated_again(generate, tmp_path):
    generate("a star")
    image = tmp_path / "generated/a-star-seed0/001.png"
    data = image.read_bytes()
    image.write_bytes(data[:-20])
    generate("a star")
    assert image.read_bytes() == data


def test_text_that_the_model_cannot_use_is_reported(generate, capsys):
    generate("a star " * 99, "a sun")
    first, second = (line for line in capsys.readouterr().err.splitlines() if line.startswith("generate: "))
    assert first.startswith('generate: [1/2] "a star a star')
    assert 'tokens that the model reads. It reads only: "a star' in first
    assert second == 'generate: [2/2] "a sun": no training caption has: sun'


@pytest.fixture
def image(tmp_path):
    """An image on the disk, larger than the models' and not square."""
    pixels = to_uint8(random_images(1))[0].repeat(3, axis=0).repeat(4, axis=1)
    (tmp_path / "input").mkdir()
    (tmp_path / "input/image.png").write_bytes(encode_png(pixels))
    return tmp_path / "input/image.png"


@pytest.fixture
def assert_inpainted(tmp_path, package, image):
    """Asserts that the single images of "a red star" are those with these cells kept."""

    def check(is_kept: np.ndarray) -> None:
        fixed_tokens = fixed_tokens_of(package.image_tokenizer, decode_png(image.read_bytes()), is_kept)
        expected = package.generate("a red star", candidates=3, fixed_tokens=fixed_tokens)
        paths = sorted((tmp_path / "generated/a-red-star-inpainted-seed0").glob("*.png"))
        for candidate, path in zip(expected, paths, strict=True):
            assert (candidate.image == decode_png(path.read_bytes())).all()

    return check


@pytest.mark.parametrize(("options", "rows"), [(["--keep-rows", "1"], 1), ([], 2)])  # half by default
def test_an_inpainted_image_comes_first_with_the_rest_grayed_out(
    generate, tmp_path, image, assert_inpainted, options, rows
):
    files = generate("a red star", "--inpaint", str(image), *options)

    assert "a-red-star-inpainted-seed0.png" in files
    assert_inpainted(top_rows(4, rows))
    grid = decode_png((tmp_path / "generated/a-red-star-inpainted-seed0.png").read_bytes())
    first, kept = grid[4 : 4 + 8 * SIDE : 8, 4 : 4 + 8 * SIDE : 8], rows * SIDE // 4
    assert (first[:kept] == fit_square(decode_png(image.read_bytes()), SIDE)[:kept]).all()
    assert (first[kept:] == first[kept:, :, :1]).all()
    assert grid.shape[1] == 4 + 4 * (8 * SIDE + 4)  # it and three candidates


def test_a_next_scale_generator_inpaints_too(tmp_path, image):
    package = fitting_package(tmp_path, tiny("image_tokenizers", "multi_scale"), "next_scale")
    places = ["--package", str(package), "--out", str(tmp_path)]
    command.main(["generate", "a red star", "-n", "1", "--inpaint", str(image), *places])

    written = (tmp_path / "a-red-star-inpainted-seed0/000.png").read_bytes()
    is_fixed = [token >= 0 for token in read_provenance(written).fixed_tokens]
    assert is_fixed == [True] * 13 + [False] * 8  # grids of 1, 2 and 4 cells a side


def test_a_mask_keeps_what_is_white_in_it_and_not_what_is_transparent(
    generate, tmp_path, image, assert_inpainted
):
    mask = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (16, 0, 32, 32))
    mask.save(tmp_path / "input/mask.png")

    generate("a red star", "--inpaint", str(image), "--keep-mask", str(tmp_path / "input/mask.png"))

    assert_inpainted(top_rows(4, 2).T[:, ::-1].copy())


NO_PROMPT = 'no prompt was given. For example: make generate PROMPT="a small red star on sand"'
EMPTY = 'the prompt is empty. Say what to generate, for example "a small red star on sand"'
NO_FILE = "there is no file {}. Give a text file with one prompt per line"
LATIN = "latin.txt, line 2 is not text in UTF-8: 'gr\\udcfcn'. Type it again, or save it as UTF-8"
NO_IMAGE = "there is no file {}. Give an image (JPEG, PNG, WEBP, GIF, BMP, TIFF)"
BYTES = "the bytes begin with b'a star\\ngr\\xfcn'. Save it again, for example as PNG"
BOTH = "--keep-rows and --keep-mask both say what stays. Give one of them"
WHAT_STAYS = "{} says what stays of an image, but no image is given. Name it with --inpaint"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], NO_PROMPT),
        ([""], EMPTY),
        (["a star", " "], EMPTY),
        (["--prompts", "none.txt"], NO_FILE.format("none.txt")),
        (["--prompts", "."], NO_FILE.format(".")),
        (["--prompts", "empty.txt"], "empty.txt holds no prompt. Write one per line"),
        (["--prompts", "blank.txt"], "blank.txt holds no prompt. Write one per line"),
        (["--prompts", "mark.txt"], "mark.txt holds no prompt. Write one per line"),
        (["--prompts", "latin.txt"], LATIN),
        (["a star", "--temperature", "0"], "sampling.temperature is 0.0; it needs to be above 0"),
        (["a star", "--inpaint", "none.png"], NO_IMAGE.format("none.png")),
        (["a star", "--inpaint", "."], NO_IMAGE.format(".")),
        (["a star", "--inpaint", "latin.txt"], f"latin.txt cannot be used as an image: {BYTES}"),
        (["a star", "--inpaint", "ok.png", "--keep-mask", "none.png"], NO_IMAGE.format("none.png")),
        (["a star", "--inpaint", "ok.png", "--keep-mask", "ok.png", "--keep-rows", "2"], BOTH),
        (["a star", "--keep-rows", "2"], WHAT_STAYS.format("--keep-rows")),
        (["a star", "--keep-mask", "ok.png"], WHAT_STAYS.format("--keep-mask")),
    ],
)
def test_a_wrong_request_ends_with_one_sentence_before_a_model_is_loaded(
    rejected, tmp_path, arguments, sentence
):
    files = {
        "empty.txt": b"",
        "blank.txt": b"\n \n\t\n",
        "mark.txt": b"\xef\xbb\xbf",
        "latin.txt": b"a star\ngr\xfcn",
    }
    files["ok.png"] = encode_png(to_uint8(random_images(1))[0])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert rejected(*arguments) == f"generate: {sentence}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--keep-rows", "4"], "4 rows cannot be kept: these images have 4 rows of tokens. Keep 1 to 3"),
        (["--keep-mask", "0.png"], "the mask cannot be used: no cell of it is white enough. Paint white"),
        (["--keep-mask", "255.png"], "the mask cannot be used: all of it is white, so that nothing is"),
    ],
)
def test_what_only_the_models_can_refuse_is_rejected_before_anything_is_generated(
    generate, image, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    for level in (0, 255):
        (tmp_path / f"{level}.png").write_bytes(encode_png(np.full((16, 16, 3), level, np.uint8)))
    with pytest.raises(SystemExit) as caught:
        generate("a star", "--inpaint", str(image), *arguments)
    assert caught.value.code == 2 and not (tmp_path / "generated").exists()
    assert capsys.readouterr().err.startswith(f"generate: {sentence}")


def test_a_seed_that_no_image_can_record_is_rejected(rejected):
    assert rejected("a star", "--seed", "-1").startswith(
        "generate: the seed is -1; seeds run from 0 to 2^63 - 1"
    )


@pytest.mark.parametrize("arguments", [["-n", "0"], ["--top-k", "0"], ["--keep-rows", "0"]])
def test_a_count_below_one_is_rejected(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["generate", "a star", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("0 is too few; give 1 or more\n")


def test_without_a_package_the_fix_is_to_train_one(capsys, tmp_path):
    sentence = commands.rejected(capsys, "generate", "a star", "--package", f"{tmp_path}/none")
    missing = f"generate: there is no package at {tmp_path}/none: nothing has been trained here yet."
    assert sentence == f"{missing} Run: make run"
