"""Contact sheet: many images on one, with a few lines of text under each."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thousandwords.data.image_decoding import WHITE

LABEL_LINES, LABEL_SIZE = 3, 10


def make_contact_sheet(
    images: np.ndarray, columns: int, pad: int = 4, labels: Sequence[str] | None = None, zoom: int = 1
) -> np.ndarray:
    """Arrange images row by row: uint8 (B, H, W, 3) -> (H', W', 3), with small text under each image."""
    assert len(images) and columns > 0 and (labels is None or len(labels) == len(images))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[1] * zoom, images.shape[2] * zoom
    font = ImageFont.load_default(LABEL_SIZE)
    wrapped = [_wrap(label, width, font) for label in labels or ()]
    cell = height + pad + max(map(len, wrapped), default=0) * (LABEL_SIZE + 2)
    sheet = Image.new("RGB", (pad + columns * (width + pad), pad + rows * cell), WHITE)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = pad + index % columns * (width + pad), pad + index // columns * cell
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(wrapped[index] if wrapped else ()):
            draw.text((left, top + height + number * (LABEL_SIZE + 2)), line, fill=(40, 40, 40), font=font)
    return np.array(sheet)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a text between words into lines of up to `width` pixels; longer text ends in an ellipsis."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}".strip()
        if line and font.getlength(joined) > width:
            lines, joined = [*lines, line], word
        line = joined
    lines = [*lines, line]
    if len(lines) > LABEL_LINES:
        lines = [*lines[: LABEL_LINES - 1], lines[LABEL_LINES - 1] + "…"]
    return [_shorten(line, width, font) for line in lines]


def _shorten(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while len(line) > 1 and font.getlength(line) > width:
        line = line.rstrip("…")[:-1] + "…"
    return line
