"""What `import thousandwords` gives: load a trained model; generate, encode, decode, score; share it on a model hub.

Images are taken as Pillow images, files, or uint8 arrays (H, W, 3) of any size, and given as Pillow images. An image
follows from package, prompt, settings and seed, and is the same to the bit as that of the command line.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import huggingface_hub  # loads its parts when they are used
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from thousandwords.clone import fetch_registered
from thousandwords.core.errors import InvalidInput, UserError
from thousandwords.core.files import write_bytes
from thousandwords.core.manifest import DamagedArtefact, copy_artifact, read_manifest
from thousandwords.data.image_decoding import DEEP_MODES, FORMATS, WHITE, decode_image
from thousandwords.data.images import fit_square, to_float, to_uint8
from thousandwords.inference.batched import decode_in_batches, encode_in_batches
from thousandwords.inference.config import check_guidance, check_prompt, replace_settings
from thousandwords.inference.inpainting import cells_from_mask, fixed_tokens_of, grid_side, top_rows
from thousandwords.inference.likelihood import Likelihood, likelihood
from thousandwords.inference.package import Package, load_package
from thousandwords.inference.provenance import Provenance, encode_png_with_provenance

StrPath: TypeAlias = str | os.PathLike[str]
Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, 3)
AnyImage: TypeAlias = Image.Image | StrPath | Pixels
Images: TypeAlias = AnyImage | Sequence[AnyImage]

LAST_RUN = Path("models/package")  # the only package that this project can make again
EXAMPLE = Path(__file__).parent / "example"  # a small trained package, which ships with the library
EXAMPLE_ANSWERS = (
    f"there is no {LAST_RUN} here, so the example model answers: scenes of two shapes, 64×64. "
    "Train your own: make run DATA=/path/to/images"
)
MAX_SEED = 2**63 - 1
SCORE_BATCH = 64  # images scored at a time
HUB_FILES = ["*.json", "*.safetensors"]  # what is fetched from a hub
CARD = """\
---
{header}
---

# {name}

A text-to-image model in two steps, after DALL-E (arXiv 2102.12092): a generator samples image tokens for a caption, and an image
tokenizer decodes them to pixels. A CLIP model ranks the candidates. It generates images like those it was trained on, from
captions like theirs.

```python
import thousandwords

model = thousandwords.from_pretrained("{name}")
model.generate("a small red star on sand", seed=7)[0].save("image.png")  # the best of 32
```

| part | kind | fingerprint |
|---|---|---|
{parts}

Package `{fingerprint}`. The weights are safetensors, and every file is compared with its manifest before it is used.
"""


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """One image of a prompt, its score, and all that it follows from."""

    image: Image.Image
    score: float  # CLIP's cosine with the prompt
    tokens: NDArray[np.int64]  # (L,)
    provenance: Provenance  # prompt, seed, number of the candidate, package and settings

    def save(self, path: StrPath) -> None:
        """Write a PNG that records how it was generated: the same bytes as the command line's, which the studio reads."""
        write_bytes(Path(path), encode_png_with_provenance(np.asarray(self.image), self.provenance))


class Model:
    """A trained model: prompts in, ranked images out. `load` and `from_pretrained` give one."""

    def __init__(self, folder: Path, package: Package) -> None:
        self.folder, self.package = folder, package

    def generate(
        self,
        prompt: str,
        candidates: int = 32,
        seed: int = 0,
        *,
        keep: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        inpaint: AnyImage | None = None,
        keep_rows: int | None = None,
        keep_mask: AnyImage | None = None,
    ) -> list[GeneratedImage]:
        """The candidates of a prompt, or the `keep` best, best first. A setting that is None is the package's own.

        Of the image `inpaint` the upper half stays, or `keep_rows` rows of tokens, or what is white in `keep_mask`; the
        rest is sampled. Warns of words that no training caption has. Raises UserError.
        """
        package, prompt = self.package, check_prompt(prompt)
        seed = check_seed(seed)
        if keep is not None and keep < 1:
            raise UserError(f"keep is {keep}; it needs to be 1 or more. Leave it out to get all candidates")
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        changes: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        sampling = replace_settings(package.settings, candidates=candidates, **changes)
        check_guidance(sampling.guidance, package.generator.config)
        image, mask = read_inpainted(inpaint, keep_rows, keep_mask)
        fixed_tokens = None
        if image is not None:
            is_kept = kept_cells(package, mask, keep_rows)
            fixed_tokens = fixed_tokens_of(package.image_tokenizer, image, is_kept)
        fixed_numbers = None if fixed_tokens is None else tuple(fixed_tokens.tolist())
        provenance = Provenance(prompt, seed, 0, package.fingerprint, sampling, fixed_numbers)
        for note in package.text_tokenizer.describe_prompt(prompt):
            warnings.warn(f'"{prompt}": {note}', stacklevel=2)
        return [
            GeneratedImage(
                Image.fromarray(candidate.image),
                candidate.score,
                candidate.tokens.numpy(),
                replace(provenance, candidate=candidate.candidate),
            )
            for candidate in package.generate(prompt, candidates, seed, fixed_tokens, keep, **changes)
        ]

    def encode(self, images: Images) -> NDArray[np.int64]:
        """The tokens (B, L) of images, of which the middle square is taken as in training."""
        tokens: NDArray[np.int64] = encode_in_batches(
            self.package.image_tokenizer, read_images(images)
        ).numpy()
        return tokens

    def decode(self, tokens: ArrayLike) -> list[Image.Image]:
        """The images of tokens (B, L), or of one image's (L,)."""
        array = np.atleast_2d(np.asarray(tokens))
        if not np.can_cast(array.dtype, np.int64):
            raise UserError(f"tokens are {array.dtype}. Give them as int64 (B, L)")
        rows = torch.from_numpy(array.astype(np.int64))
        tokenizer: Any = self.package.image_tokenizer
        tokenizer.check_tokens(rows)
        return [Image.fromarray(pixels) for pixels in to_uint8(decode_in_batches(tokenizer, rows))]

    def score(self, images: Images, captions: str | Sequence[str]) -> NDArray[np.float32]:
        """CLIP's cosine of each image with its caption, or with the only one: (B,)."""
        pixels = read_images(images)
        texts = [check_prompt(text, "the caption") for text in _one_each(captions, len(pixels))]
        tokenizer: Any = self.package.image_tokenizer
        scorer: Any = self.package.scorer
        squares = np.stack([fit_square(image, tokenizer.image_size) for image in pixels])
        device = next(scorer.parameters()).device
        batches = [slice(first, first + SCORE_BATCH) for first in range(0, len(texts), SCORE_BATCH)]
        scores = [scorer.score(to_float(squares[rows], device), texts[rows]).cpu() for rows in batches]
        return np.concatenate([batch.numpy() for batch in scores])

    def caption(self, images: Images, seed: int = 0) -> list[str]:
        """A caption of each image, of which the middle square is read; it depends on the image, the package and the seed.

        Raises UserError if the package has no captioner: few have one (docs/data.md, second captions).
        """
        return self.package.caption(read_images(images), check_seed(seed))

    def likelihood(self, images: Images, captions: str | Sequence[str]) -> list[Likelihood]:
        """How likely the tokens of each image are under its caption, or the only one: `image_bits`, `bits_per_token`."""
        pixels = read_images(images)
        if isinstance(captions, str):
            return likelihood(self.package, captions, pixels)
        pairs = zip(_one_each(captions, len(pixels)), pixels, strict=True)
        return [likelihood(self.package, caption, [image])[0] for caption, image in pairs]

    def save_pretrained(
        self, folder: StrPath, repo_id: str | None = None, license: str | None = None
    ) -> None:
        """Write the package as a model hub shows it: safetensors, configs and manifests, and a card, README.md."""
        folder, manifest = Path(folder), read_manifest(self.folder, verify=False)
        if manifest["sha256"] != self.package.fingerprint:
            raise UserError(
                f"{self.folder} holds another package than the one that was loaded. Load it again"
            )
        rows = []
        for name, sha256 in manifest["facts"]["parts"].items():
            copy_artifact(self.folder / name, folder / name)
            kind = json.loads((folder / name / "config.json").read_bytes()).get("kind", "byte-level BPE")
            rows.append(f"| {name} | {kind} | `{sha256[:12]}` |")
        copy_artifact(self.folder, folder)
        metadata = {"library_name": "thousandwords", "pipeline_tag": "text-to-image", "license": license}
        header = huggingface_hub.ModelCardData(**metadata).to_yaml()
        name, fingerprint = repo_id or folder.resolve().name, manifest["sha256"][:12]
        card = CARD.format(header=header, name=name, parts="\n".join(rows), fingerprint=fingerprint)
        write_bytes(folder / "README.md", card.encode())

    def push(
        self, repo_id: str, *, private: bool = True, license: str | None = None, token: str | None = None
    ) -> str:
        """Upload the package to a repository on the Hugging Face Hub, made if there is none; the commit's URL.

        A new repository is yours alone, unless `private` is False.
        """
        hub = huggingface_hub.HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id, license)
            hub.create_repo(repo_id, private=private, exist_ok=True)
            message = f"Package {self.package.fingerprint[:12]}"
            commit = hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        return str(commit.commit_url)


def load(path_or_uri: StrPath | None = None, device: str = "auto") -> Model:
    """The model in a package's folder, or in the registry: models:/thousandwords@champion, models:/thousandwords/3.

    Without one: that of the last run, models/package, or with a warning the example model that ships with the library.
    Every file is verified, and no code of the package is run. `device` is auto (a GPU where there is one), cpu or cuda.
    Raises UserError.
    """
    source = "" if path_or_uri is None else os.fspath(path_or_uri)
    folder = fetch_registered(source) if source.startswith("models:") else Path(source)
    if path_or_uri is None and (folder := default_package()) == EXAMPLE:
        warnings.warn(EXAMPLE_ANSWERS, stacklevel=2)
    return Model(folder, read_package(folder, device))


def default_package() -> Path:
    """The package of the last run in this folder, or the example if there was none."""
    return LAST_RUN if LAST_RUN.exists() else EXAMPLE


def read_package(folder: Path, device: str = "auto") -> Package:
    """The package in a folder, verified. For one that was copied here, "make repair" would change nothing."""
    try:
        return load_package(folder, device)
    except DamagedArtefact as error:
        if folder.resolve() == LAST_RUN.resolve():
            raise
        reason = str(error).partition(" Run: ")[0]
        fix = "Install thousandwords" if folder == EXAMPLE else f"Copy the whole package to {folder}"
        raise DamagedArtefact(f"{reason} {fix} again") from error


def check_seed(seed: int) -> int:
    """The seed as an int of Python; raises UserError for one that no image can record."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
        raise UserError(f"the seed is {seed!r}; seeds run from 0 to 2^63 - 1. Give another one")
    return int(seed)


def from_pretrained(
    folder_or_repo_id: StrPath, device: str = "auto", revision: str | None = None, **options: Any
) -> Model:
    """The model that `save_pretrained` or `push` wrote; `load` verifies it.

    `options` are those of huggingface_hub.snapshot_download: token, cache_dir, force_download. Raises UserError.
    """
    source = os.fspath(folder_or_repo_id)
    if Path(source).is_dir():
        return load(source, device)
    try:
        folder = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=HUB_FILES, **options
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} is no folder here, and the Hub gave no model of that name: {' '.join(str(error).split())[:300]}"
        ) from error
    try:
        return load(folder, device)
    except DamagedArtefact as error:
        reason = str(error).rpartition(" Copy the whole package ")[0]
        raise DamagedArtefact(f"{source}: {reason} Download it again, with force_download=True") from error


def read_images(images: Images) -> list[Pixels]:
    """One image or several, each as `read_image` gives it."""
    if isinstance(images, Image.Image | str | os.PathLike) or getattr(images, "ndim", 4) == 3:
        images = [images]  # type: ignore[list-item]
    pixels = [read_image(image) for image in (images if isinstance(images, Iterable) else [images])]
    if not pixels:
        raise UserError("no image was given. Give one or more")
    return pixels


def read_image(image: AnyImage, background: Sequence[int] = WHITE) -> Pixels:
    """An image, or that in a file, as uint8 (H, W, 3), upright and without transparency; raises UserError."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"an image is {image.dtype} {image.shape}. Give uint8 (H, W, 3)")
        return image
    if isinstance(image, Image.Image):
        return _flatten(image, background)
    if not isinstance(image, str | os.PathLike):
        raise UserError(f"an image is {image!r}. Give a PIL image, uint8 (H, W, 3), or the path of a file")
    path = Path(image)
    if not path.is_file():
        raise UserError(f"there is no file {path}. Give an image ({', '.join(FORMATS)})")
    try:
        return decode_image(path.read_bytes(), background)
    except InvalidInput as problem:
        raise UserError(
            f"{path} cannot be used as an image: {problem.detail}. Save it again, for example as PNG"
        ) from problem
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Check its permissions") from error


def read_inpainted(
    image: AnyImage | None,
    keep_rows: int | None,
    keep_mask: AnyImage | None,
    names: Sequence[str] = ("inpaint", "keep_rows", "keep_mask"),
) -> tuple[Pixels | None, Pixels | None]:
    """The image to inpaint and the mask of what stays, None where not given; raises UserError with these `names`."""
    keeps = zip(names[1:], (keep_rows, keep_mask), strict=True)
    given = [name for name, value in keeps if value is not None]
    if given and image is None:
        raise UserError(
            f"{given[0]} says what stays of an image, but no image is given. Name it with {names[0]}"
        )
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} both say what stays. Give one of them")
    # transparent parts of a mask are not kept
    mask = None if keep_mask is None else read_image(keep_mask, background=(0, 0, 0))
    return None if image is None else read_image(image), mask


def kept_cells(package: Package, mask: Pixels | None, num_rows: int | None) -> NDArray[np.bool_]:
    """Which cells (side, side) of the tokens stay: white ones, or rows, half of them if neither is given. Raises UserError."""
    tokenizer: Any = package.image_tokenizer
    generator: Any = package.generator
    side = grid_side(tokenizer.scales, generator.keeps_parts)
    if mask is not None:
        return cells_from_mask(mask, side)
    return top_rows(side, side // 2 if num_rows is None else num_rows)


def _flatten(image: Image.Image, background: Sequence[int]) -> Pixels:
    if image.mode in DEEP_MODES:  # Pillow would clip the values
        raise UserError(
            f"an image has pixels of mode {image.mode!r}. Give its file instead, or convert it to 8 bits"
        )
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        canvas = Image.new("RGBA", upright.size, (*background, 255))
        upright = Image.alpha_composite(canvas, upright.convert("RGBA"))
    return np.array(upright.convert("RGB"))


def _one_each(captions: str | Sequence[str], count: int) -> list[str]:
    is_one = isinstance(captions, str) or not isinstance(captions, Iterable)
    texts = [captions] * count if is_one else list(captions)
    if len(texts) != count:
        raise UserError(f"there are {len(texts)} captions for {count} images. Give one each, or one for all")
    return texts
