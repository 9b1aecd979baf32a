"""Runs to compare: what sample_images, rank_images and evaluate leave of a few prompts, made by hand."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stages.rank_images import score_table
from thousandwords.files import write_bytes, write_json, write_manifest
from thousandwords.samples import COMPLETED, sample_table, write_samples
from thousandwords.tables import table_bytes

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
    folder: Path, captions: list[str], grey: int, metrics: dict | None = None, completed: int = 0, side: int = 8
) -> Path:
    """A run: of each caption CANDIDATES pictures, candidate c all of the level grey + c, the middle one best; the last
    `completed` of them completed a picture. Returns `folder`."""
    rows, pictures = [], []
    for number, caption in enumerate(captions):
        split = COMPLETED if number >= len(captions) - completed else "validation"
        for candidate in range(CANDIDATES):
            rows.append({"prompt_id": number, "split": split, "prompt": caption, "candidate": candidate, "seed": candidate})
            pictures.append(np.full((side, side, 3), grey + candidate, np.uint8))
    tokens = torch.zeros(len(rows), 4, dtype=torch.int64)
    facts = {"candidates": CANDIDATES, "prompts": len(captions), "seed": 0}
    write_samples(folder / "results/samples", [sample_table(rows, tokens, np.stack(pictures))], facts)
    write_scores(folder, np.tile(np.float32([0.1, 0.3, 0.2]), (len(captions), 1)))
    if metrics is not None:
        write_json(folder / "results/metrics.json", metrics)
    return folder


def write_scores(folder: Path, scores: np.ndarray) -> None:
    ranked = folder / "results/ranked"
    write_bytes(ranked / "scores.parquet", table_bytes(score_table(scores)))
    write_manifest(ranked, {"scores.parquet": scores.size}, {"candidates": scores.shape[1], "prompts": scores.shape[0]})
