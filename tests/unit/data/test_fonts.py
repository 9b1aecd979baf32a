"""Labels in any script: fonts, order, line breaks; never a box, and a sentence where no font has a character."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, features

from thousandwords.data import fonts
from thousandwords.data.contact_sheet import LABEL_SIZE, _pieces, _wrap, make_contact_sheet


@pytest.fixture
def few_fonts(monkeypatch):
    """Only the fonts that Python packages bring, as on a machine without others."""
    packaged = [path for path in fonts._paths() if not path or "mpl-data" in path]
    monkeypatch.setattr(fonts, "_paths", lambda: packaged)
    fonts._path_for.cache_clear()
    fonts._report_once.cache_clear()
    yield
    fonts._path_for.cache_clear()
    fonts._report_once.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a star", "a star"),
        ("نجمة حمراء", "نجمة حمراء"),
        ("a 🌵 红色，星", "a [cactus] [CJK],[CJK]"),
        ("👩\u200d🚀 ❤\ufe0f", "[woman][rocket] ❤"),
        ("ดาว", "[thai]"),
    ],
)
def test_what_no_font_has_is_named_in_brackets(few_fonts, text, expected):
    assert fonts.readable(text) == expected


def test_a_missing_font_is_reported_once_with_what_to_install(few_fonts, capsys):
    fonts.readable("红色")
    fonts.readable("蓝色")
    assert capsys.readouterr().err == (
        "no font here has CJK characters, so images name them in brackets. Run: apt-get install "
        "fonts-droid-fallback fonts-symbola fonts-noto-core (Debian, Ubuntu), or put a font that has them into "
        "~/.local/share/fonts\n"
    )


def test_a_line_breaks_between_chinese_characters_but_not_before_a_comma():
    assert _pieces("red 星星，（蓝）dog cat") == ["red", " 星", "星，", "（蓝）", "dog", " cat"]
    assert len(_wrap("\u661f" * 30, 60, LABEL_SIZE)) == 3


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm, which joins Arabic letters")
def test_arabic_is_joined_and_starts_at_the_right(few_fonts):
    def rendered(text: str) -> np.ndarray:
        image = Image.new("RGB", (200, 30), "white")
        fonts.render_line(ImageDraw.Draw(image), (0, 0, 200), text, 14, (0, 0, 0))
        return np.argwhere(np.array(image).min(axis=2) < 128)

    assert rendered("نجمة")[:, 1].min() > 100 and rendered("star")[:, 1].min() < 10
    assert len(rendered("نجم")) != len(rendered("ن\u200cج\u200cم"))  # joined, and kept apart
    three = rendered("نجمة 3")  # the digit is read last, so it is at the left
    assert three[:, 1].min() < rendered("نجمة")[:, 1].min()


def test_a_sheet_with_captions_of_several_scripts_has_ink_under_each_image():
    images = np.full((3, 96, 96, 3), 255, np.uint8)
    sheet = make_contact_sheet(images, 3, labels=["红色的星星在蓝色的方块上", "نجمة حمراء", "🌵 a cactus"])
    for column in range(3):
        assert (sheet[100:, 4 + column * 100 : 100 + column * 100].min(axis=2) < 128).any()
