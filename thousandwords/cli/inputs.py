"""What the commands take in besides prompts: pictures from a disk, refused with a sentence where they are none."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thousandwords.errors import UserError
from thousandwords.images import FORMATS, WHITE, Refused, decode_image


def read_picture(path: Path, background: Sequence[int] = WHITE) -> np.ndarray:
    """The picture in a file, uint8 (H, W, 3), upright and without transparency; raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no file {path}. Give a picture ({', '.join(FORMATS)})")
    try:
        return decode_image(path.read_bytes(), background)
    except Refused as problem:
        raise UserError(f"{path} is no picture that can be used: {problem.detail}. Save it anew, as PNG say") from problem
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. See who may read it") from error


def positive(word: str) -> int:
    """A number of things, for argparse."""
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too few; give 1 or more")
    return value
