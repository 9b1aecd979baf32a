"""Samples + scorer -> scores and one best-first grid per prompt (results/ranked)."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from stages._progress import progress
from stages._stage import Stage, arguments, stage
from stages._training import device_of
from thousandwords import components, images
from thousandwords.files import clear, write_bytes, write_manifest
from thousandwords.naming import slug
from thousandwords.samples import Samples, read_samples
from thousandwords.tables import table_bytes

SHOWN = 16  # candidates in a grid
OVERVIEW = 24  # prompts in the overview


def rank_images(samples: Path, scorer: Path, out: Path, run: Stage) -> None:
    drawn = read_samples(samples)
    device = device_of(run)
    model = components.load("scorers", scorer, mend="dvc repro train_scorer").to(device)
    scores = np.zeros((len(drawn.prompts), drawn.candidates), np.float32)
    names = []
    clear(out, "*.parquet", "*.png")
    for prompt in progress(range(len(drawn.prompts)), "rank_images", len(drawn.prompts), "prompt"):
        pictures = drawn.pictures(prompt)
        scores[prompt] = score_pictures(model, pictures, drawn.prompts[prompt], device)
        name = f"{prompt:03d}-{slug(drawn.prompts[prompt])}.png"
        write_bytes(out / name, images.encode_png(best_first(pictures, scores[prompt], drawn.given.get(prompt))))
        names.append(name)
    write_bytes(out / "scores.parquet", table_bytes(score_table(scores)))
    write_bytes(out / "overview.png", images.encode_png(overview(drawn, scores)))
    files = {name: None for name in (*names, "overview.png")} | {"scores.parquet": scores.size}
    write_manifest(out, files, {"candidates": drawn.candidates, "prompts": len(drawn.prompts)})
    run.record_files(out / "overview.png")
    told = scores[drawn.from_text()]
    run.record_metrics({"clip_score_n1": told.mean(), "clip_score_best": told.max(axis=1).mean()})


def score_pictures(model: torch.nn.Module, pictures: np.ndarray, prompt: str, device: str) -> np.ndarray:
    """The scorer's opinion of N candidates of one prompt: (N,)."""
    return model.score(images.to_float(pictures).to(device), [prompt] * len(pictures)).cpu().numpy()


def score_table(scores: np.ndarray) -> pa.Table:
    """scores (P, N) -> rows of (prompt_id, candidate, score, rank); rank 0 is the best."""
    prompts, candidates = scores.shape
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    return pa.table(
        {
            "prompt_id": np.repeat(np.arange(prompts), candidates),
            "candidate": np.tile(np.arange(candidates), prompts),
            "score": scores.ravel(),
            "rank": ranks.ravel(),
        }
    )


def best_first(pictures: np.ndarray, scores: np.ndarray, given: np.ndarray | None = None) -> np.ndarray:
    """A contact sheet of the best candidates with their scores below; before them what they were given."""
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    shown, labels = pictures[order], [f"{scores[row]:.3f}" for row in order]
    if given is not None:
        shown, labels = np.concatenate([given[None], shown]), ["given", *labels]
    return images.grid(shown, columns=min(8, len(shown)), labels=labels, zoom=zoom_of(pictures))


def overview(drawn: Samples, scores: np.ndarray) -> np.ndarray:
    """The best candidate of some prompts of every split, with the prompt below."""
    chosen = np.unique(np.linspace(0, len(drawn.prompts) - 1, OVERVIEW).astype(int))
    best = np.stack([drawn.pictures(prompt)[scores[prompt].argmax()] for prompt in chosen])
    labels = [f"{'completed: ' if prompt in drawn.given else ''}{drawn.prompts[prompt]}" for prompt in chosen]
    return images.grid(best, columns=6, labels=labels, zoom=2 * zoom_of(best))


def zoom_of(pictures: np.ndarray) -> int:
    """How often a small picture is enlarged to be looked at."""
    return max(1, 96 // pictures.shape[1])


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "samples", "scorer", "out", argv=argv)
    with stage("rank_images", options) as run:
        rank_images(options.samples, options.scorer, options.out, run)


if __name__ == "__main__":
    main()
