"""Pairs as the stages open them: in memory where they fit, else by the store on disk that all stages share."""
from __future__ import annotations

from pathlib import Path

from thousandwords.pair_shards import PairReader
from thousandwords.store import STORE, Store

KEPT = 4  # splits on disk: the two or three of these pairs, and one of those before


def open_pairs(folder: Path, split: str) -> PairReader:
    """The pairs of a split, verified; memory holds no more than `pair_shards.MOST_IN_MEMORY` bytes of them."""
    return PairReader(folder, split, Store(STORE / "pairs", kept_runs=KEPT))
