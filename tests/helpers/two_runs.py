"""Two finished runs to compare: small outputs of sample_images, rank_images and evaluate, made by hand."""

from pathlib import Path

import numpy as np
import torch

from stages.rank_images import score_table
from thousandwords.core.files import write_bytes, write_json
from thousandwords.core.manifest import write_manifest
from thousandwords.core.parquet import table_bytes
from thousandwords.inference.sample_shards import COLUMNS, INPAINTED, sample_table, write_samples

CANDIDATES = 3


def metrics(match: float, interval: list[float], score: float, distance: float, psnr: float, **more) -> dict:
    return {
        "caption_match": {"seen": {"all": {"n1": match, "n1_interval": interval, "best": 0.9}}},
        "clip_score": {"n1": score, "best": 0.30},
        "fidelity": {"clip_frechet": {"distance": [distance, 0.03], "real": 100}},
        "reconstruction": {"psnr_hard": psnr},
        **more,
    }


METRICS = metrics(
    0.50, [0.40, 0.60], 0.25, 0.04, 27.5, seconds={"evaluate": 3.0}, protocol={"features": "own"}
)
BETTER = metrics(
    0.70, [0.65, 0.75], 0.35, 0.05, 26.25, seconds={"evaluate": 2.0}, protocol={"features": "others"}
)


def write_run(
    folder: Path,
    captions: list[str],
    gray: int,
    figures: dict | None = None,
    num_inpainted: int = 0,
    image_size: int = 8,
) -> Path:
    """Write a run with CANDIDATES images per caption and return `folder`. Candidate c has the gray level gray
    + c, and the middle one has the best score. The last `num_inpainted` prompts inpaint an image."""
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
    if figures is not None:
        write_json(folder / "results/metrics.json", figures)
    return folder


def write_scores(folder: Path, scores: np.ndarray) -> None:
    """Write scores (P, N) as rank_images does."""
    ranked = folder / "results/ranked"
    write_bytes(ranked / "scores.parquet", table_bytes(score_table(scores)))
    metadata = {"candidates": scores.shape[1], "prompts": scores.shape[0]}
    write_manifest(ranked, {"scores.parquet": scores.size}, metadata)
