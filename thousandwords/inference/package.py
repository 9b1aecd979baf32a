"""One folder that takes a prompt and gives ranked pictures: the four models, how to draw, nothing but safetensors and JSON.

`load_package(folder).draw("a small red star on sand", candidates=16)` needs neither DVC nor MLflow, and runs no code from
the folder.
"""
from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thousandwords import components, images, text
from thousandwords.config import section
from thousandwords.drawing import (
    Settings,
    changed,
    check_guidance,
    check_prompt,
    count_batches,
    decode_in_parts,
    draw_batch,
    score_in_parts,
)
from thousandwords.errors import UserError
from thousandwords.files import MANIFEST, read_manifest, write_bytes, write_json, write_manifest

PARTS = ("text_tokenizer", "image_tokenizer", "generator", "scorer")
MEND = "dvc repro package_model"


@dataclass(frozen=True)
class Candidate:
    """One picture of a prompt, and all that is needed to draw it again."""

    picture: np.ndarray  # uint8 (H, W, 3)
    score: float  # CLIP's cosine with the prompt
    candidate: int
    seed: int  # the seed the whole draw was asked with
    tokens: Tensor  # (L,) int64


@dataclass(frozen=True)
class Package:
    """Everything a prompt needs to become ranked pictures."""

    text_tokenizer: text.TextTokenizer
    image_tokenizer: torch.nn.Module
    generator: torch.nn.Module
    scorer: torch.nn.Module
    settings: Settings
    fingerprint: str

    def draw(
        self, prompt: str, candidates: int | None = None, seed: int = 0, given: Tensor | None = None, **changes: object
    ) -> list[Candidate]:
        """Candidates of one prompt, best first. `changes` replaces settings: temperature=0.8, top_p=0.9.

        `given` (L,) are words that all candidates have, -1 where one is to be drawn (`completion.given_words`).
        """
        prompt = check_prompt(prompt)
        wanted = {**({} if candidates is None else {"candidates": candidates}), **changes}
        settings = changed(self.settings, **wanted)
        parts = [self.draw_part(prompt, settings, seed, number, given) for number in range(count_batches(1, settings))]
        return best_first([one for part in parts for one in part])

    @torch.no_grad()
    def draw_part(
        self, prompt: str, settings: Settings, seed: int, number: int, given: Tensor | None = None
    ) -> list[Candidate]:
        """Batch `number` of a prompt's candidates, in the order of their numbers: `settings.batch_size` of them, or the rest.

        The same batch of the same prompt gives the same bits again, without those before it.
        """
        check_guidance(settings.guidance, self.generator.config)
        given = None if given is None else given[None]
        part = draw_batch(self.generator, self.text_tokenizer, [prompt], settings, seed, number, given)
        decoded = decode_in_parts(self.image_tokenizer, part.tokens)
        scores = score_in_parts(self.scorer, decoded, prompt)
        rows = zip(images.to_uint8(decoded), scores.tolist(), part.candidates, part.tokens, strict=True)
        return [Candidate(picture, score, candidate, seed, tokens) for picture, score, candidate, tokens in rows]


def best_first(drawn: list[Candidate]) -> list[Candidate]:
    """The highest score in front; of equal ones the first drawn."""
    return sorted(drawn, key=lambda one: (-one.score, one.candidate))


def write_package(folder: Path, parts: dict[str, Path], settings: Settings, facts: dict) -> str:
    """Copies the four model folders, verified, into `folder` and binds them together; returns the fingerprint."""
    folder = Path(folder)
    fingerprints = {}
    for name in PARTS:
        manifest = read_manifest(parts[name])
        for file in (*manifest["files"], MANIFEST):
            write_bytes(folder / name / file, (Path(parts[name]) / file).read_bytes())
        fingerprints[name] = manifest["sha256"]
    for extra in set(path.name for path in folder.iterdir() if path.is_dir()) - set(PARTS):
        shutil.rmtree(folder / extra)
    write_json(
        folder / "package.json",
        {"parts": fingerprints, "sampling": dataclasses.asdict(settings), **facts},
    )
    return write_manifest(folder, {"package.json": None}, {"parts": fingerprints})["sha256"]


def load_package(folder: Path, device: str = "cpu") -> Package:
    """The package in `folder`, every file verified, on `device`. Raises DamagedArtefact or UserError."""
    folder, device = Path(folder), check_device(device)
    if not folder.is_dir():
        raise UserError(f"there is no package at {folder}: nothing has been trained here yet. Run: make run")
    manifest = read_manifest(folder, mend=MEND)
    if "parts" not in manifest["facts"]:
        raise UserError(f"{folder} is no package: its manifest tells of something else. Give the folder that `{MEND}` writes")
    facts = json.loads((folder / "package.json").read_bytes())
    for name, wanted in manifest["facts"]["parts"].items():
        found = read_manifest(folder / name, verify=False, mend=MEND)["sha256"]
        if found != wanted:
            raise UserError(f"{folder / name} is not the part this package was made with. Run: {MEND}")
    models = {
        name: components.load(family, folder / name, mend=MEND).to(device)
        for name, family in (("image_tokenizer", "tokenizers"), ("generator", "generators"), ("scorer", "scorers"))
    }
    return Package(
        text_tokenizer=text.load(folder / "text_tokenizer", mend=MEND),
        settings=section(facts["sampling"], "sampling", Settings),
        fingerprint=manifest["sha256"],
        **models,
    )


def check_device(name: str) -> torch.device:
    """The device of that name; raises UserError where this machine has none."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UserError(f"there is no device {name!r} here. Give cpu, or cuda on a machine that has it") from error
