"""One folder that takes a prompt and gives ranked images: the models and the sampling settings.

`load_package(folder).generate("a small red star on sand", candidates=16)` needs neither DVC nor MLflow, and
runs no code from the folder.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thousandwords import components
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_json
from thousandwords.core.manifest import MANIFEST, copy_artifact, read_manifest, write_manifest
from thousandwords.data.images import fit_square, to_uint8
from thousandwords.data.recaptions import RecaptionConfig
from thousandwords.inference.batched import decode_in_batches, paint, score_in_batches
from thousandwords.inference.candidates import count_batches, sample_batch
from thousandwords.inference.captions import caption_images
from thousandwords.inference.config import SamplingConfig, check_guidance, check_prompt, replace_settings
from thousandwords.text.bpe import TextTokenizer, load

FAMILIES = {
    "image_tokenizer": "image_tokenizers",
    "decoder": "decoders",
    "generator": "generators",
    "scorer": "scorers",
    "captioner": "captioners",
}
OPTIONAL_PARTS = ("captioner",)  # a package has one only if it was trained
PARTS = ("text_tokenizer", *(name for name in FAMILIES if name not in OPTIONAL_PARTS))
FIX = "dvc repro package_model"
HOW_TO_GIVE = f"Give the folder that `{FIX}` writes"


@dataclass(frozen=True)
class Candidate:
    """One image of a prompt, and all that is needed to generate it again."""

    image: np.ndarray  # uint8 (H, W, 3)
    score: float  # CLIP's cosine with the prompt, of the tokenizer's image where `decoder.paint` is kept
    candidate: int
    seed: int  # the seed that `generate` was called with
    tokens: Tensor  # (L,) int64


@dataclass(frozen=True)
class Package:
    """The models and the sampling settings: prompts in, ranked images out."""

    text_tokenizer: TextTokenizer
    image_tokenizer: torch.nn.Module  # with the decoder, if there is one
    generator: torch.nn.Module
    scorer: torch.nn.Module
    settings: SamplingConfig
    fingerprint: str
    captioner: torch.nn.Module | None = None

    def generate(
        self,
        prompt: str,
        candidates: int | None = None,
        seed: int = 0,
        fixed_tokens: Tensor | None = None,
        keep: int | None = None,
        **changes: object,
    ) -> list[Candidate]:
        """The `keep` best candidates of one prompt (None: all), best first. `changes` replaces settings: temperature=0.8,
        top_p=0.9; `fixed_tokens` (L,) are those of `inpainting.fixed_tokens_of`, -1 where one is to be sampled."""
        prompt = check_prompt(prompt)
        if candidates is not None:
            changes["candidates"] = candidates
        settings = replace_settings(self.settings, **changes)
        batches = [
            self._score_batch(prompt, settings, seed, number, fixed_tokens)
            for number in range(count_batches(1, settings))
        ]
        return self._paint(rank_candidates([candidate for batch in batches for candidate in batch])[:keep])

    def generate_batch(
        self,
        prompt: str,
        settings: SamplingConfig,
        seed: int,
        number: int,
        fixed_tokens: Tensor | None = None,
    ) -> list[Candidate]:
        """Batch `number` of a prompt's candidates, all kept, by number: the same bits, with or without those before it."""
        return self._paint(self._score_batch(prompt, settings, seed, number, fixed_tokens))

    @torch.no_grad()
    def _score_batch(
        self, prompt: str, settings: SamplingConfig, seed: int, number: int, fixed_tokens: Tensor | None
    ) -> list[Candidate]:
        """Batch `number` of a prompt's candidates, with the images that they are ranked by."""
        check_guidance(settings.guidance, self.generator.config)
        fixed_tokens = None if fixed_tokens is None else fixed_tokens[None]
        batch = sample_batch(
            self.generator, self.text_tokenizer, [prompt], settings, seed, number, fixed_tokens
        )
        images = decode_in_batches(components.ranked_by(self.image_tokenizer), batch.tokens)
        scores = score_in_batches(self.scorer, images, prompt).tolist()
        rows = zip(to_uint8(images), scores, batch.candidates, batch.tokens, strict=True)
        return [Candidate(image, score, candidate, seed, tokens) for image, score, candidate, tokens in rows]

    def caption(self, images: Sequence[np.ndarray], seed: int = 0) -> list[str]:
        """A caption of each image uint8 (H, W, 3), whose middle square is read; another seed may give another one.

        Raises UserError if the package has no captioner.
        """
        if self.captioner is None:
            raise UserError(
                "this package has no captioner: it was trained with captioner.kind none. Train one: "
                "make run PRESET=recaption"
            )
        squares = np.stack([fit_square(image, self.captioner.image_size) for image in images])
        config = RecaptionConfig(**self.captioner.header["captions"])
        return caption_images(self.captioner, self.text_tokenizer, squares, [seed] * len(images), config)

    def _paint(self, candidates: list[Candidate]) -> list[Candidate]:
        """Kept candidates with the decoder's images, if they do not have them yet."""
        if not getattr(self.image_tokenizer, "paints_kept", False):
            return candidates
        images = paint(self.image_tokenizer, torch.stack([candidate.tokens for candidate in candidates]))
        return [replace(candidate, image=image) for candidate, image in zip(candidates, images, strict=True)]


def rank_candidates(candidates: list[Candidate]) -> list[Candidate]:
    """Candidates by score, best first; of equal ones the first sampled."""
    return sorted(candidates, key=lambda candidate: (-candidate.score, candidate.candidate))


def write_package(folder: Path, parts: dict[str, Path], settings: SamplingConfig, metadata: dict) -> str:
    """Copy the folders of the models, verified, into `folder`, bound together; returns the fingerprint."""
    folder, fingerprints = Path(folder), {}
    names = [*PARTS, *(name for name in OPTIONAL_PARTS if name in parts)]
    for name in names:
        fingerprints[name] = copy_artifact(parts[name], folder / name)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path)
    metadata = {"parts": fingerprints, "sampling": dataclasses.asdict(settings), **metadata}
    write_json(folder / "package.json", metadata)
    return write_manifest(folder, {"package.json": None}, {"parts": fingerprints})["sha256"]


def load_package(folder: Path, device: str = "cpu") -> Package:
    """The package in `folder`, every file verified, on `device`. Raises DamagedArtefact or UserError."""
    folder, device = Path(folder), check_device(device)
    if not folder.exists():
        raise UserError(f"there is no package at {folder}: nothing has been trained here yet. Run: make run")
    if not (folder / "package.json").is_file() and not (folder / MANIFEST).is_file():
        found = "has neither manifest.json nor package.json" if folder.is_dir() else "is a file"
        raise UserError(f"{folder} is not a package: it {found}. {HOW_TO_GIVE}")
    manifest = read_manifest(folder, fix=FIX)
    if "parts" not in manifest["facts"]:
        raise UserError(f"{folder} is not a package: its manifest describes something else. {HOW_TO_GIVE}")
    metadata = json.loads((folder / "package.json").read_bytes())
    for name, expected_sha256 in manifest["facts"]["parts"].items():
        sha256 = read_manifest(folder / name, verify=False, fix=FIX)["sha256"]
        if sha256 != expected_sha256:
            raise UserError(f"{folder / name} is not the part this package was made with. Run: {FIX}")
    models = {
        name: components.load(family, folder / name, fix=FIX).to(device)
        for name, family in FAMILIES.items()
        if name in manifest["facts"]["parts"]
    }
    if decoder := models.pop("decoder", None):  # packages of earlier versions have none
        models["image_tokenizer"] = components.with_decoder(models["image_tokenizer"], decoder, FIX)
    settings = section(metadata["sampling"], "sampling", SamplingConfig)
    text_tokenizer = load(folder / "text_tokenizer", fix=FIX)
    return Package(text_tokenizer, **models, settings=settings, fingerprint=manifest["sha256"])


def check_device(name: str) -> torch.device:
    """The device of that name, "auto": a GPU where there is one; raises UserError where this machine has none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UserError(
            f"there is no device {name!r} here. Give cpu, or cuda on a machine that has it"
        ) from error
