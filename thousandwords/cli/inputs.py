"""Inputs of the commands other than prompts: image files and numbers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thousandwords.core.errors import InvalidInput, UserError
from thousandwords.data.image_decoding import FORMATS, WHITE, decode_image


def read_image(path: Path, background: Sequence[int] = WHITE) -> np.ndarray:
    """The image in a file, uint8 (H, W, 3), upright and without transparency; raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no file {path}. Give an image ({', '.join(FORMATS)})")
    try:
        return decode_image(path.read_bytes(), background)
    except InvalidInput as problem:
        raise UserError(
            f"{path} cannot be used as an image: {problem.detail}. Save it again, for example as PNG"
        ) from problem
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Check its permissions") from error


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too few; give 1 or more")
    return value
