"""Two finished runs to compare: small outputs of sample_images, rank_images and evaluate, made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stages.rank_images import score_table
from thousandwords.core.files import write_bytes, write_json
from thousandwords.core.manifest import write_manifest
from thousandwords.core.parquet import table_bytes
from thousandwords.inference.sample_shards import COLUMNS, INPAINTED, sample_table, write_samples

CANDIDATES = 3
METRICS = {
    "caption_match": {"seen": {"all": {"n1": 0.50, "n1_interval": [0.40, 0.60], "best": 0.9}}},
    "clip_score": {"n1": 0.25, "best": 0.30},
    "fidelity": {"clip_frechet": {"distance": [0.04, 0.03], "real": 100}},
    "reconstruction": {"psnr_hard": 27.5},
    "seconds": {"evaluate": 3.0},
    "protocol": {"features": "own"},
}
BETTER = {
    "caption_match": {"seen": {"all": {"n1": 0.70, "n1_interval": [0.65, 0.75], "best": 0.9}}},
    "clip_score": {"n1": 0.35, "best": 0.30},
    "fidelity": {"clip_frechet": {"distance": [0.05, 0.03], "real": 100}},
    "reconstruction": {"psnr_hard": 26.25},
    "seconds": {"evaluate": 2.0},
    "protocol": {"features": "others"},
}


def write_run(
    folder: Path,
    captions: list[str],
    gray: int,
    metrics: dict | None = None,
    num_inpainted: int = 0,
    image_size: int = 8,
) -> Path:
    """Write a run with CANDIDATES images per caption and return `folder`; the last `num_inpainted` inpaint an image.

    Candidate c has the gray level gray + c, and the middle one has the best score.
    """
    rows, images = [], []
    for number, caption in enumerate(captions):
        split = INPAINTED if number >= len(captions) - num_inpainted else "validation"
        for candidate in range(CANDIDATES):
            rows.append(dict(zip(COLUMNS, (number, split, caption, candidate, candidate), strict=True)))
            images.append(np.full((image_size, image_size, 3), gray + candidate, np.uint8))
    tokens = torch.zeros(len(rows), 4, dtype=torch.int64)
    metadata = {"candidates": CANDIDATES, "prompts": len(captions), "seed": 0}
    write_samples(folder / "results/samples", [sample_table(rows, tokens, np.stack(images))], metadata)
    write_scores(folder, np.tile(np.float32([0.1, 0.3, 0.2]), (len(captions), 1)))
    if metrics is not None:
        write_json(folder / "results/metrics.json", metrics)
    return folder


def write_scores(folder: Path, scores: np.ndarray) -> None:
    """Write scores (P, N) as rank_images does."""
    ranked = folder / "results/ranked"
    write_bytes(ranked / "scores.parquet", table_bytes(score_table(scores)))
    metadata = {"candidates": scores.shape[1], "prompts": scores.shape[0]}
    write_manifest(ranked, {"scores.parquet": scores.size}, metadata)
