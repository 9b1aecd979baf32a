"""A finished run as the comparison and the human evaluation sheet need it: samples, scores and figures, verified; of a
run of another machine only what git has. Prompts that inpaint an image are left out: two runs may start from different
images."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from thousandwords.core.errors import UserError
from thousandwords.core.files import fingerprint
from thousandwords.core.manifest import DamagedArtefact, read_manifest
from thousandwords.evaluation.prompt_figures import Rows, read_prompts
from thousandwords.inference.sample_shards import INPAINTED, Samples, read_samples

FIX = "dvc repro rank_images"


class NoCommonPrompts(UserError):
    """Two runs have no images of the same prompts."""


@dataclass(frozen=True)
class FinishedRun:
    """The outputs of a run: P prompts with N candidates each, their scores (P, N), metrics.json and prompts.csv. With
    no images here, there are no samples and scores, and of metrics.json the headline numbers only."""

    name: str
    samples: Samples | None
    scores: np.ndarray | None
    metrics: dict
    prompts: Rows
    fingerprint: str  # of all of it

    def best(self, prompt: int, count: int = 1) -> list[tuple[np.ndarray, float]]:
        """The best candidates of a prompt, best first: (image uint8 (H, W, 3), score)."""
        order = np.argsort(-self.scores[prompt], kind="stable")[:count]
        images = self.samples.images(prompt)
        return [(images[candidate], float(self.scores[prompt, candidate])) for candidate in order]

    def prompt_numbers(self) -> dict[str, int]:
        """{caption: the number of its prompt}, of the prompts generated from text alone."""
        if self.samples is None:
            missing = "results/samples is missing; dvc repro rank_images makes it"
            raise NoCommonPrompts(f"the images of {self.name} are not here ({missing})")
        rows = enumerate(zip(self.samples.prompts, self.samples.splits, strict=True))
        return {caption: prompt for prompt, (caption, split) in rows if split != INPAINTED}


@dataclass(frozen=True)
class CommonPrompt:
    """A caption that is in both runs, and the number of its prompt in each."""

    caption: str
    split: str
    a: int
    b: int


def read_run(folder: Path, name: str) -> FinishedRun:
    """The run whose outputs are in `folder`/results, verified; raises UserError that names the run."""
    results = Path(folder) / "results"
    if not results.is_dir():
        raise UserError(
            f"{name} has no results/, so no run has ended there. Give the folder of a finished run"
        )
    prompts, small = read_prompts(results / "prompts.csv"), results / "headline.json"
    if small.is_file() and not (results / "samples").exists():
        metrics = read_json(small)
        return FinishedRun(name, None, None, metrics, prompts, fingerprint([None, None, metrics]))
    try:
        samples = read_samples(results / "samples", results / "ranked")
        ranked = read_manifest(results / "ranked", fix=FIX)
    except DamagedArtefact as error:
        raise UserError(f"the outputs of {name} cannot be used: {error}") from error
    table = pq.read_table(results / "ranked/scores.parquet", page_checksum_verification=True)
    scores, count = table["score"].to_numpy(), len(samples.prompts)
    if scores.size != count * samples.candidates:
        raise UserError(
            f"{name}: results/ranked holds {scores.size} scores, but results/samples {count} prompts with "
            f"{samples.candidates} candidates each, so they are of different runs. Run: {FIX}"
        )
    path = results / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    samples_sha256 = read_manifest(results / "samples", verify=False)["sha256"]
    all_of_it = fingerprint([samples_sha256, ranked["sha256"], metrics])
    return FinishedRun(name, samples, scores.reshape(count, -1), metrics, prompts, all_of_it)


def read_json(path: Path) -> dict:
    """What a stage or command wrote there; raises UserError if it is missing or damaged."""
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__} in place of keys and values")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be used ({error}). If a run wrote it, run there: make repair"
        ) from error
    return values


def common_prompts(a: FinishedRun, b: FinishedRun) -> list[CommonPrompt]:
    """The captions of both runs, in the order of `a`; raises NoCommonPrompts, or UserError if the runs are equal."""
    if a.fingerprint == b.fingerprint:
        raise UserError(
            f"{a.name} and {b.name} have the very same images, scores and figures: there is nothing to compare. Name a "
            "revision with another dvc.lock: git log --oneline -- dvc.lock"
        )
    prompts_a, prompts_b = a.prompt_numbers(), b.prompt_numbers()
    common = [
        CommonPrompt(caption, a.samples.splits[prompt], prompt, prompts_b[caption])
        for caption, prompt in prompts_a.items()
        if caption in prompts_b
    ]
    if not common:
        raise NoCommonPrompts(
            f"{a.name} has {len(prompts_a)} prompts and {b.name} {len(prompts_b)}, none of them the same. Give both the same "
            "seed and data, or prompts of your own in sampling.prompts (params.yaml)"
        )
    return common
