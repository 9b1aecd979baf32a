"""Prepare one input, in a worker process: filter its captions, decode and fit its image."""

import hashlib
from dataclasses import replace

import numpy as np

from thousandwords.core.errors import InvalidInput
from thousandwords.data.image_decoding import decode_with_flags
from thousandwords.data.images import area_resize, encode_png, fit_square
from thousandwords.data.recaptions import is_recaptioned
from thousandwords.ingest import caption_filter
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.perceptual_hash import image_hash_of
from thousandwords.ingest.records import Pair, Rejection
from thousandwords.ingest.sources.base import RawPair, clean_captions


def prepare_pair(raw_pair: RawPair, config: DataConfig, seed: int) -> Pair | Rejection:
    """Filter the captions of a raw pair and fit its image; a Rejection says why the pair cannot be used.

    The pair's split follows from its original captions. Raises MemoryError: it may be caused by this process alone.
    """
    raw_pair = select_captions(raw_pair, seed, config.recaption_share)
    try:
        if raw_pair.problem:
            raise raw_pair.problem
        captions, dropped = caption_filter.filter_captions(raw_pair.captions, config.caption_rules)
        image = decode_with_flags(raw_pair.image, config.background, config.min_side, config.max_aspect)
        whole = None  # not the square: the caption speaks of the whole image
        if config.drops_near_duplicates:
            whole = area_resize(image.pixels, config.image_size, config.image_size)
        image_hash = None if whole is None else image_hash_of(whole)
        return Pair(
            raw_pair.key,
            encode_png(stored_pixels(image.pixels, config)),
            captions,
            raw_pair.provenance,
            dropped,
            bool(raw_pair.recaptions),
            image_hash,
            image.format,
            image.flags,
            raw_pair.shard,
        )
    except InvalidInput as problem:
        return reject(raw_pair, problem.reason, problem.detail)


def reject(raw_pair: RawPair, reason: str, detail: str) -> Rejection:
    """The row of the quarantine table for this input."""
    digest = None if raw_pair.image is None else hashlib.sha256(raw_pair.image).hexdigest()
    size = None if raw_pair.image is None else len(raw_pair.image)
    return Rejection(raw_pair.key, raw_pair.provenance, digest, size, reason, detail, raw_pair.shard)


def stored_pixels(pixels: np.ndarray, config: DataConfig) -> np.ndarray:
    """The pixels (H, W, 3) to store: the center square, or the image with a short side up to `keep_side`."""
    if config.keep == "square":
        return fit_square(pixels, config.image_size)
    height, width = pixels.shape[:2]
    side = min(height, width)
    if config.keep_side is None or side <= config.keep_side:
        return pixels
    return area_resize(
        pixels, round(height * config.keep_side / side), round(width * config.keep_side / side)
    )


def select_captions(raw_pair: RawPair, seed: int, recaption_share: float) -> RawPair:
    """The pair with the captions to train on: for a share of the keys its recaptions, if it has any."""
    texts = [text for text in raw_pair.recaptions if text.strip()]
    if raw_pair.problem or not texts or not is_recaptioned(raw_pair.key, seed, recaption_share):
        return replace(raw_pair, recaptions=())
    try:
        return replace(raw_pair, captions=clean_captions(texts))
    except InvalidInput as problem:
        return replace(raw_pair, captions=(), problem=problem)
