"""A finished run as one compares it: what it drew, what the scorer said of it, its figures. A folder with results/ in; verified.

Left out: prompts that completed a picture. Two runs may have been given different parts of it, so they had not the same task.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact, fingerprint, read_manifest
from thousandwords.samples import COMPLETED, Samples, read_samples

MEND = "dvc repro rank_images"


@dataclass(frozen=True)
class Run:
    """P prompts with N candidates each, and their scores (P, N); `known` is the fingerprint of all of it."""

    name: str
    drawn: Samples
    scores: np.ndarray
    metrics: dict
    known: str

    def best(self, prompt: int, count: int = 1) -> list[tuple[np.ndarray, float]]:
        """The best candidates of a prompt, best first: (picture uint8 (H, W, 3), score)."""
        order = np.argsort(-self.scores[prompt], kind="stable")[:count]
        pictures = self.drawn.pictures(prompt)
        return [(pictures[row], float(self.scores[prompt, row])) for row in order]

    def rows(self) -> dict[str, int]:
        """{caption: its prompt's number}, of those drawn from text alone."""
        drawn = self.drawn
        return {prompt: row for row, prompt in enumerate(drawn.prompts) if drawn.splits[row] != COMPLETED}


@dataclass(frozen=True)
class Common:
    """A caption that both runs drew: the number of its prompt in each."""

    caption: str
    split: str
    a: int
    b: int


def read_run(folder: Path, name: str) -> Run:
    """The run whose outputs lie in `folder`/results, every file checked; raises UserError that names the run."""
    results = Path(folder) / "results"
    try:
        drawn, ranked = read_samples(results / "samples"), read_manifest(results / "ranked", mend=MEND)
    except DamagedArtefact as error:
        raise UserError(f"the outputs of {name} cannot be used: {error}") from error
    scores = pq.read_table(results / "ranked/scores.parquet", page_checksum_verification=True)["score"].to_numpy()
    wanted = len(drawn.prompts), drawn.candidates
    if scores.size != wanted[0] * wanted[1]:
        raise UserError(
            f"{name}: results/ranked holds {scores.size} scores, but results/samples {wanted[0]} prompts with {wanted[1]} "
            f"candidates each, so they are of two runs. Run: {MEND}"
        )
    path = results / "metrics.json"
    metrics = json.loads(path.read_bytes()) if path.is_file() else {}
    known = fingerprint([read_manifest(results / "samples", verify=False)["sha256"], ranked["sha256"], metrics])
    return Run(name, drawn, scores.reshape(wanted), metrics, known)


def common_prompts(a: Run, b: Run) -> list[Common]:
    """The captions that both drew, in the order of `a`; raises UserError where there is none, or where both are one run."""
    if a.known == b.known:
        raise UserError(
            f"{a.name} and {b.name} have the very same pictures, scores and figures: there is nothing to compare. Name a "
            "revision with another dvc.lock: git log --oneline -- dvc.lock"
        )
    ours, theirs = a.rows(), b.rows()
    both = [Common(caption, a.drawn.splits[row], row, theirs[caption]) for caption, row in ours.items() if caption in theirs]
    if not both:
        raise UserError(
            f"{a.name} drew {len(ours)} prompts and {b.name} {len(theirs)}, none of them the same. Give both the same seed and "
            "data, or prompts of your own in sampling.prompts (params.yaml)"
        )
    return both
