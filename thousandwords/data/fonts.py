"""Text of any script as lines of an image: a font for each character, and the order and shapes that its script needs.

Fonts: the one that Pillow brings (Latin), matplotlib's DejaVu Sans (also Greek, Cyrillic, Hebrew, Arabic, some emoji),
then those of this machine: Chinese, Japanese, Korean and most emoji need one. What no font has is named in brackets,
never drawn as a box, and one line on stderr says what to install. Left out: colored emoji.
"""

import functools
import importlib.util
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont
PILLOW = ""  # in place of a path: the font that Pillow brings
# of the machine's fonts, the first to try: made for screens, with many characters
PREFERRED = ("DejaVuSans.", "DroidSansFallback", "NotoSansCJK-Regular", "wqy-", "Symbola", "unifont")
NO_LETTERS = re.compile(
    "LastResort|Blank", re.IGNORECASE
)  # fonts that have a box or nothing for each character
MISSING = "\U0010fffe"  # a noncharacter: what a font draws for it, it draws for all that it does not have
INSTALL = (
    "Run: apt-get install fonts-droid-fallback fonts-symbola fonts-noto-core "
    "(Debian, Ubuntu), or put a font that has them into ~/.local/share/fonts"
)


def render_line(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float],
    text: str,
    size: int,
    fill: tuple[int, int, int],
) -> None:
    """Write one line, as `readable` gives it, into `box` (left, top, width), from the right where its script runs from right to left."""
    left, top, width = box
    is_rtl, parts = _is_rtl(text), list(runs(text, size))
    if is_rtl:
        left, parts = left + max(0, width - line_length(text, size)), parts[::-1]
    baseline = top + ImageFont.load_default(size).getmetrics()[0]
    for font, part in parts:
        has_shaping = (
            font.layout_engine == ImageFont.Layout.RAQM
        )  # not Pillow's own font, nor Pillow without raqm
        direction = ("rtl" if is_rtl else "ltr") if has_shaping else None
        draw.text((left, baseline), part, fill=fill, font=font, anchor="ls", direction=direction)
        left += font.getlength(part)


def line_length(text: str, size: int) -> float:
    """The width of a line in pixels."""
    return sum(font.getlength(part) for font, part in runs(text, size))


def runs(text: str, size: int) -> Iterator[tuple[Font, str]]:
    """The parts of a line that one font can draw each, in reading order."""
    path, part, is_rtl = PILLOW, "", _is_rtl(text)
    for cluster in _clusters(text):
        # spaces and punctuation stay with what is before; so do all of a right-to-left line, which are put in order
        # within a part only
        stays = _has_all(path, cluster) and (is_rtl or not cluster[0].isalnum())
        other = path if stays else _path_for(cluster) or PILLOW
        if other != path and part:
            yield _load(path, size), part
            part = ""
        path, part = other, part + cluster
    if part:
        yield _load(path, size), part


def readable(text: str) -> str:
    """The text with what no font has in brackets: "a 🌵 红色" -> "a [cactus] [CJK]"; says so on stderr, once."""
    parts: list[str] = []
    for cluster in _clusters(text):
        base, plain = cluster[0], unicodedata.normalize("NFKC", cluster[0])
        if _path_for(cluster) is not None:
            parts.append(cluster)
        elif _path_for(base) is not None or _path_for(plain) is not None:
            parts.append(base if _path_for(base) is not None else plain)  # without its marks; full-width ones
        elif unicodedata.category(base)[0] == "P":
            parts.append(" ")
        else:
            is_symbol = unicodedata.category(base)[0] == "S"
            name = unicodedata.name(base, f"U+{ord(base):04X}").lower()
            name = name if is_symbol else name.split()[0].replace("cjk", "CJK")
            _report_once("emoji" if is_symbol else name)
            if not parts or parts[-1] != f"[{name}]":  # one note for a run of the same script
                parts.append(f"[{name}]")
    return "".join(parts)


def _clusters(text: str) -> list[str]:
    """Characters with the marks on them; without variation selectors, which ask for a colored emoji or a plain one."""
    clusters: list[str] = []
    for character in text:
        if "\ufe00" <= character <= "\ufe0f" or unicodedata.category(character) == "Cc":
            character = " " if character.isspace() else ""
        if clusters and unicodedata.category(character or "a") in ("Mn", "Mc", "Me", "Cf"):
            clusters[-1] += character
        elif character:
            clusters.append(character)
    return clusters


@functools.cache
def _report_once(script: str) -> None:
    print(
        f"no font here has {script} characters, so images name them in brackets. {INSTALL}", file=sys.stderr
    )


def is_plain(text: str) -> bool:
    """Whether Pillow's own font has all of a text."""
    return all(_has_all(PILLOW, cluster) for cluster in _clusters(text))


def _is_rtl(text: str) -> bool:
    """Whether the first letter belongs to a script that runs from right to left (Unicode, UAX #9, rule P2)."""
    kinds = (unicodedata.bidirectional(character) for character in text)
    return next((kind != "L" for kind in kinds if kind in ("L", "R", "AL")), False)


@functools.cache
def _path_for(cluster: str) -> str | None:
    return next((path for path in _paths() if _has_all(path, cluster)), None)


def _has_all(path: str, cluster: str) -> bool:
    """Whether a font has a character and its marks. Joiners have no glyph, but Pillow's own font draws a box."""
    joins = any(unicodedata.category(character) == "Cf" for character in cluster)
    if joins and not _has_shaping(path):
        return False
    return all(
        character.isspace() or unicodedata.category(character) == "Cf" or _has(path, character)
        for character in cluster
    )


@functools.cache
def _has_shaping(path: str) -> bool:
    try:
        return _load(path, 24).layout_engine == ImageFont.Layout.RAQM
    except OSError:  # not a font, or one of another size: colored emoji are images of one size
        return False


@functools.cache
def _has(path: str, character: str) -> bool:
    try:
        return _rendered(path, character) != _rendered(path, MISSING)
    except OSError:  # as above
        return False


@functools.lru_cache(maxsize=1024)
def _rendered(path: str, character: str) -> bytes:
    image = Image.new("L", (48, 48))
    # raqm puts a mark by itself on a circle, and joiners out of sight
    basic = ImageFont.Layout.BASIC
    font = _load(path, 24) if path == PILLOW else ImageFont.truetype(path, 24, layout_engine=basic)
    ImageDraw.Draw(image).text((8, 8), character, fill=255, font=font)
    return image.tobytes()


@functools.cache
def _load(path: str, size: int) -> Font:
    return ImageFont.load_default(size) if path == PILLOW else ImageFont.truetype(path, size)


@functools.cache
def _paths() -> tuple[str, ...]:
    """Pillow's font, matplotlib's, then the machine's in a fixed order."""
    home = Path.home()
    data_home = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    folders = ["/usr/share/fonts", "/usr/local/share/fonts", data_home / "fonts", home / ".fonts"]
    folders += ["/System/Library/Fonts", "/Library/Fonts", home / "Library/Fonts", "C:/Windows/Fonts"]
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.[toTO][tT][fcFC]"))
    files = [path for path in files if not NO_LETTERS.search(path.name)]
    files.sort(
        key=lambda path: next((i for i, name in enumerate(PREFERRED) if path.name.startswith(name)), 99)
    )
    spec = importlib.util.find_spec("matplotlib")  # found, not imported: that takes half a second
    if spec is not None and spec.origin is not None:
        files.insert(0, Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")
    return PILLOW, *(str(path) for path in files if path.is_file())
