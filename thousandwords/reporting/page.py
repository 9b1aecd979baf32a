"""What every page is made with: templates, and images as data URIs, so that a page is one file that loads
nothing."""

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

PIXEL_ART_WIDTH = 128  # images up to this width are shown with sharp pixels
QUALITY = 88  # of WebP: a candidate of 64 x 64 takes 0.6 kB instead of 7 as PNG


def page_environment() -> Environment:
    """The settings of jinja2 for every page."""
    # autoescape is set here because jinja2 would guess it from the last suffix, .j2, and get it wrong
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def thumbnail(pixels: np.ndarray, size: int) -> bytes:
    """uint8 (H, W, 3) -> WebP of at most `size` pixels in each direction; the same bytes every time."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def image_element(data: bytes) -> dict:
    """What an img element needs, from a PNG or a WebP: {"src": data URI, "width", "height", "pixel_art"}."""
    with Image.open(io.BytesIO(data)) as image:
        (width, height), kind = image.size, image.format.lower()
    src = f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
    return {"src": src, "width": width, "height": height, "pixel_art": width <= PIXEL_ART_WIDTH}
