"""python -m thousandwords generate: grids and images, or one clear sentence and the exit code 2."""

import re

import pytest
from PIL import Image

from tests.helpers import commands
from tests.helpers.tiny_models import SIDE, fitting_package, random_images, tiny
from thousandwords import __main__ as command
from thousandwords.cli import generate as generate_command
from thousandwords.data.images import decode_png, encode_png, fit_square, to_uint8
from thousandwords.inference.inpainting import fixed_tokens_of, top_rows
from thousandwords.inference.package import Package, load_package
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
    monkeypatch.setattr(generate_command, "load_package", lambda *_: pytest.fail("a model was loaded"))
    return lambda *arguments: commands.rejected(capsys, "generate", *arguments)


# --- generate ------------------------------------------------------------------------------------------------------


def test_a_prompt_gives_a_grid_and_single_images(generate, package_folder, tmp_path, capsys):
    assert generate("A red star", "--seed", "7") == [
        "a-red-star-seed7.png",
        "a-red-star-seed7/000.png",
        "a-red-star-seed7/001.png",
        "a-red-star-seed7/002.png",
    ]

    best = load_package(package_folder).generate("a red star", candidates=3, seed=7)[0]
    folder = tmp_path / "generated" / "a-red-star-seed7"
    assert (decode_png((folder / "000.png").read_bytes()) == best.image).all()
    grid = decode_png(folder.with_suffix(".png").read_bytes())
    assert grid.shape[0] >= 8 * SIDE and grid.shape[1] >= 3 * 8 * SIDE
    line = rf"a red star: 3 candidates in \d+\.\d s -> {re.escape(str(folder))}\.png\n"
    assert re.fullmatch(line, capsys.readouterr().out)


def test_several_prompts_each_get_their_own_files(generate, capsys):
    files = generate("a star", "A star!", "🦊")
    assert [name for name in files if "/" not in name] == [
        "a-star-2-seed0.png",
        "a-star-seed0.png",
        "🦊-seed0.png",
    ]
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["[1/3]", "[2/3]", "[3/3]"]


def test_prompts_may_come_from_a_file_one_per_line(generate, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa red star\r\n\n  \nein grüner Kreis\n", encoding="utf-8")
    files = generate("--prompts", str(tmp_path / "prompts.txt"))
    assert [name for name in files if "/" not in name] == [
        "a-red-star-seed0.png",
        "ein-grüner-kreis-seed0.png",
    ]


def test_the_same_command_writes_the_same_bytes(generate, tmp_path):
    generate("a red star", "--temperature", "0.8", "--top-k", "5", "--top-p", "0.9")
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    generate("a red star", "--temperature", "0.8", "--top-k", "5", "--top-p", "0.9")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == first


def test_a_long_prompt_file_resumes_where_it_was_stopped(generate, tmp_path, monkeypatch, capsys):
    generate("a star", "a circle")
    out, capture = tmp_path / "generated", capsys.readouterr
    (out / "a-circle-seed0.png").unlink()  # what a kill before its grid leaves
    capture()
    sampled = []
    plain = Package.generate
    monkeypatch.setattr(
        Package, "generate", lambda *args, **kw: sampled.append(args[1]) or plain(*args, **kw)
    )

    generate("a star", "a circle")

    lines = capture().out.splitlines()
    assert sampled == ["a circle"]
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


def written(tmp_path, name: str) -> list:
    """The single images of one prompt."""
    return [decode_png(path.read_bytes()) for path in sorted((tmp_path / "generated" / name).glob("*.png"))]


def test_an_inpainted_image_comes_first_with_the_rest_grayed_out(generate, tmp_path, package_folder, image):
    files = generate("a red star", "--inpaint", str(image), "--keep-rows", "1")

    assert "a-red-star-inpainted-seed0.png" in files
    package, pixels = load_package(package_folder), decode_png(image.read_bytes())
    fixed_tokens = fixed_tokens_of(package.image_tokenizer, pixels, top_rows(4, 1))
    expected = package.generate("a red star", candidates=3, fixed_tokens=fixed_tokens)
    images = written(tmp_path, "a-red-star-inpainted-seed0")
    assert all((a.image == b).all() for a, b in zip(expected, images, strict=True))
    grid = decode_png((tmp_path / "generated/a-red-star-inpainted-seed0.png").read_bytes())
    first = grid[4 : 4 + 8 * SIDE : 8, 4 : 4 + 8 * SIDE : 8]
    assert (first[:4] == fit_square(pixels, SIDE)[:4]).all() and (first[4:] == first[4:, :, :1]).all()
    assert grid.shape[1] == 4 + 4 * (8 * SIDE + 4)  # it and three candidates


def test_a_next_scale_generator_inpaints_too(tmp_path, image):
    package = fitting_package(tmp_path, tiny("image_tokenizers", "multi_scale"), "next_scale")
    command.main(
        [
            "generate",
            "a red star",
            "-n",
            "1",
            "--inpaint",
            str(image),
            "--package",
            str(package),
            "--out",
            str(tmp_path),
        ]
    )

    fixed_tokens = read_provenance(
        (tmp_path / "a-red-star-inpainted-seed0/000.png").read_bytes()
    ).fixed_tokens
    assert [token >= 0 for token in fixed_tokens] == [True] * 13 + [
        False
    ] * 8  # grids of 1, 2 and 4 cells a side


def test_half_of_an_image_is_kept_by_default(generate, tmp_path, image):
    generate("a red star", "--inpaint", str(image))
    halves = written(tmp_path, "a-red-star-inpainted-seed0")
    generate("a red star", "--inpaint", str(image), "--keep-rows", "2")
    assert all(
        (a == b).all() for a, b in zip(halves, written(tmp_path, "a-red-star-inpainted-seed0"), strict=True)
    )


def test_a_mask_keeps_what_is_white_in_it_and_not_what_is_transparent(
    generate, tmp_path, package_folder, image
):
    mask = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (16, 0, 32, 32))
    mask.save(tmp_path / "input/mask.png")

    generate("a red star", "--inpaint", str(image), "--keep-mask", str(tmp_path / "input/mask.png"))

    package, right = load_package(package_folder), top_rows(4, 2).T[:, ::-1].copy()
    fixed_tokens = fixed_tokens_of(package.image_tokenizer, decode_png(image.read_bytes()), right)
    expected = package.generate("a red star", candidates=3, fixed_tokens=fixed_tokens)
    images = written(tmp_path, "a-red-star-inpainted-seed0")
    assert all((a.image == b).all() for a, b in zip(expected, images, strict=True))


# --- what is rejected ------------------------------------------------------------------------------------------------


NO_PROMPT = 'no prompt was given. For example: make generate PROMPT="a small red star on sand"'
EMPTY = 'the prompt is empty. Say what to generate, for example "a small red star on sand"'
NO_PROMPTS = "there is no file {}. Give a text file with one prompt per line"
NO_IMAGE = "there is no file {}. Give an image (JPEG, PNG, WEBP, GIF, BMP, TIFF)"
TEXT = (
    "text.png cannot be used as an image: the bytes begin with b'a text'. Save it again, for example as PNG"
)
BOTH = "--keep-rows and --keep-mask both say what stays. Give one of them"
WHAT_STAYS = "{} says what stays of an image, but no image is given. Name it with --inpaint"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], NO_PROMPT),
        ([""], EMPTY),
        (["a star", " "], EMPTY),
        (["--prompts", "none.txt"], NO_PROMPTS.format("none.txt")),
        (["--prompts", "."], NO_PROMPTS.format(".")),
        (["a star", "--temperature", "0"], "sampling.temperature is 0.0; it needs to be above 0"),
        (
            ["a star", "--top-p", "1.5"],
            "sampling.top_p is 1.5; it needs to be in (0, 1], or null for all tokens",
        ),
        (["a star", "--inpaint", "none.png"], NO_IMAGE.format("none.png")),
        (["a star", "--inpaint", "."], NO_IMAGE.format(".")),
        (["a star", "--inpaint", "text.png"], TEXT),
        (["a star", "--inpaint", "ok.png", "--keep-mask", "none.png"], NO_IMAGE.format("none.png")),
        (["a star", "--inpaint", "ok.png", "--keep-mask", "ok.png", "--keep-rows", "2"], BOTH),
        (["a star", "--keep-rows", "2"], WHAT_STAYS.format("--keep-rows")),
        (["a star", "--keep-mask", "ok.png"], WHAT_STAYS.format("--keep-mask")),
    ],
)
def test_a_wrong_request_ends_with_one_sentence_before_a_model_is_loaded(
    rejected, tmp_path, arguments, sentence
):
    (tmp_path / "text.png").write_text("a text")
    (tmp_path / "ok.png").write_bytes(encode_png(to_uint8(random_images(1))[0]))
    assert rejected(*arguments) == f"generate: {sentence}"


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_prompt_is_rejected(rejected, tmp_path, content):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert rejected("--prompts", "prompts.txt") == "generate: prompts.txt holds no prompt. Write one per line"


def test_a_file_that_is_not_utf8_is_rejected_with_its_line(rejected, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("a star\nein grüner Kreis\n".encode("latin-1"))
    sentence = rejected("--prompts", "prompts.txt")
    assert sentence.startswith("generate: prompts.txt, line 2 is not text in UTF-8: 'ein gr")
    assert sentence.endswith("Type it again, or save it as UTF-8")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--keep-rows", "4"], "4 rows cannot be kept: these images have 4 rows of tokens. Keep 1 to 3"),
        (["--keep-mask", "black.png"], "the mask cannot be used: no cell of it is white enough."),
    ],
)
def test_what_only_the_models_can_refuse_is_rejected_before_anything_is_generated(
    generate, image, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "black.png").write_bytes(encode_png(0 * to_uint8(random_images(1))[0]))
    with pytest.raises(SystemExit) as caught:
        generate("a star", "--inpaint", str(image), *arguments)
    assert caught.value.code == 2 and not (tmp_path / "generated").exists()
    assert capsys.readouterr().err.startswith(f"generate: {sentence}")


@pytest.mark.parametrize("arguments", [["-n", "0"], ["--top-k", "0"], ["--keep-rows", "0"]])
def test_a_count_below_one_is_rejected(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["generate", "a star", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("0 is too few; give 1 or more\n")


def test_without_a_package_the_fix_is_to_train_one(capsys, tmp_path):
    assert commands.rejected(capsys, "generate", "a star", "--package", f"{tmp_path}/none") == (
        f"generate: there is no package at {tmp_path}/none: nothing has been trained here yet. Run: make run"
    )
