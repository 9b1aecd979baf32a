"""Contact sheet: many images on one, with a few lines of text under each."""

import itertools
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from thousandwords.core.unspaced_scripts import WITHOUT_SPACES
from thousandwords.data import fonts
from thousandwords.data.image_decoding import WHITE

LABEL_LINES, LABEL_SIZE = 3, 10
LARGE_LABEL_SIZE = 14  # where a label has more than Latin letters: Chinese characters are hard to read at 10


def make_contact_sheet(
    images: np.ndarray, columns: int, pad: int = 4, labels: Sequence[str] | None = None, zoom: int = 1
) -> np.ndarray:
    """Arrange images row by row: uint8 (B, H, W, 3) -> (H', W', 3), with small text under each image."""
    assert len(images) and columns > 0 and (labels is None or len(labels) == len(images))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[1] * zoom, images.shape[2] * zoom
    labels = [fonts.readable(label) for label in labels or ()]
    size = LABEL_SIZE if all(map(fonts.is_plain, labels)) else LARGE_LABEL_SIZE
    wrapped = [_wrap(label, width, size) for label in labels]
    cell = height + pad + max(map(len, wrapped), default=0) * (size + 2)
    sheet = Image.new("RGB", (pad + columns * (width + pad), pad + rows * cell), WHITE)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = pad + index % columns * (width + pad), pad + index // columns * cell
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(wrapped[index] if wrapped else ()):
            fonts.render_line(
                draw, (left, top + height + number * (size + 2), width), line, size, (40, 40, 40)
            )
    return np.array(sheet)


def _wrap(text: str, width: int, size: int) -> list[str]:
    """Break a text into lines of up to `width` pixels; longer text ends in an ellipsis."""
    lines, line = [], ""
    for piece in _pieces(text):
        joined = (line + piece).strip()
        if line and fonts.line_length(joined, size) > width:
            lines, joined = [*lines, line], piece.strip()
        line = joined
    lines = [*lines, line]
    if len(lines) > LABEL_LINES:
        lines = [*lines[: LABEL_LINES - 1], lines[LABEL_LINES - 1] + "…"]
    return [_shorten(line, width, size) for line in lines]


def _pieces(text: str) -> list[str]:
    """What a line keeps together: _pieces("red 星星，蓝") -> ["red", " 星", "星，", "蓝"]"""
    pieces: list[str] = []
    for number, word in enumerate(text.split()):
        space = " " if number else ""
        cuts = [0, *(cut for cut in range(1, len(word)) if _may_break(word[cut - 1], word[cut])), len(word)]
        parts = [word[start:end] for start, end in itertools.pairwise(cuts)]
        pieces += [space + parts[0], *parts[1:]]
    return pieces


def _may_break(before: str, after: str) -> bool:
    """Beside characters of a script without spaces, but not before a comma or a mark, or after an opening bracket."""
    if not (_is_unspaced(before) or _is_unspaced(after)):
        return False
    kinds = unicodedata.category(before), unicodedata.category(after)
    return kinds[0] not in ("Ps", "Pi") and (kinds[1] in ("Ps", "Pi") or kinds[1][0] not in "PMC")


def _is_unspaced(character: str) -> bool:
    is_wide_mark = (
        unicodedata.east_asian_width(character) in "WF" and unicodedata.category(character)[0] == "P"
    )
    return is_wide_mark or WITHOUT_SPACES.match(character) is not None


def _shorten(line: str, width: int, size: int) -> str:
    while len(line) > 1 and fonts.line_length(line, size) > width:
        line = line.rstrip("…")[:-1] + "…"
    return line
