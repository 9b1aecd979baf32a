"""Request handlers: a package and the fields of a request -> its only event, or its events one by one.

Images in events are PNG in base64, grids of tokens are lists of rows. `studio.api.schema` has checked the types
of a request; what depends on the model is checked here and rejected with a UserError.
"""

import base64
import contextlib
import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from studio.worker.process import Event, FieldError, Grid
from thousandwords.core.errors import InvalidInput, UserError
from thousandwords.core.special_tokens import UNKNOWN
from thousandwords.data.image_decoding import decode_image
from thousandwords.data.images import encode_png, fit_square, to_float, to_uint8
from thousandwords.inference import token_editing
from thousandwords.inference.batched import decode_in_batches, encode_in_batches
from thousandwords.inference.candidates import count_batches
from thousandwords.inference.config import SamplingConfig, check_guidance, check_prompt, replace_settings
from thousandwords.inference.inpainting import grid_side
from thousandwords.inference.likelihood import likelihood_of_tokens
from thousandwords.inference.package import Candidate, Package, rank_candidates
from thousandwords.inference.provenance import Provenance, encode_png_with_provenance, read_provenance
from thousandwords.nn import metrics

BATCH_SIZE = {"cpu": 8, "cuda": 32}  # small: the first images appear soon, and a stop takes effect soon
MAX_BATCH_SIZE = 64  # that a file's provenance may name: memory is allocated for the whole batch
NUM_LEAST_LIKELY = 5  # tokens in the answer of /api/likelihood


def describe(package: Package) -> Event:
    """Metadata of a package that a client needs to send requests."""
    names = ("temperature", "top_k", "top_p", "guidance")
    side = None
    with contextlib.suppress(UserError):  # this generator keeps no part of an image with several grids
        side = grid_side(package.image_tokenizer.scales, package.generator.keeps_parts)
    return {
        "fingerprint": package.fingerprint,
        "image_size": package.image_tokenizer.image_size,
        "side": side,
        "can_edit": len(package.image_tokenizer.scales) == 1,
        "vocab_size": package.image_tokenizer.vocab_size,
        "text_length": package.text_tokenizer.text_length,
        "settings": {name: getattr(package.settings, name) for name in names},
        "can_guide": bool(getattr(package.generator.config, "caption_dropout", 0)),
    }


def generate(
    package: Package, prompt: str, candidates: int, seed: int, fixed_tokens: Grid | None, changes: dict
) -> Iterator[Event]:
    """Yield each candidate when it is finished, then their ranking. Raises FieldError before the first."""
    prompt, tokenizer = prompt_of(prompt), package.text_tokenizer
    settings, fixed = settings_of(package, candidates, changes), None
    if fixed_tokens is not None:  # (L,), -1 for a token to sample
        with _field_errors("fixed_tokens"):
            grid_side(package.image_tokenizer.scales, package.generator.keeps_parts)
        fixed = flat_tokens_of(package, fixed_tokens, "fixed_tokens", first=UNKNOWN)
        if (fixed >= 0).all() or (fixed < 0).all():
            message = "fixed_tokens fixes all tokens or none. Fix some of them, and set the others to -1"
            raise FieldError("fixed_tokens", message)
        with _field_errors("fixed_tokens"):
            package.generator.check_fixed_tokens(fixed[None], 1)
    fixed_numbers = None if fixed is None else tuple(fixed.tolist())
    provenance = Provenance(prompt, seed, 0, package.fingerprint, settings, fixed_numbers)
    yield {
        "event": "started",
        "fingerprint": package.fingerprint,
        "prompt": prompt,
        "candidates": candidates,
        "seed": seed,
        "text_used": tokenizer.text_read(prompt),
        "truncated": tokenizer.is_truncated(prompt),
        "unseen_words": tokenizer.unseen_words(prompt),
    }
    finished: list[Candidate] = []
    for number in range(count_batches(1, settings)):
        for candidate in package.generate_batch(prompt, settings, seed, number, fixed):
            finished.append(candidate)
            image_provenance = dataclasses.replace(provenance, candidate=candidate.candidate)
            yield {
                "event": "candidate",
                "candidate": candidate.candidate,
                "png": base64_of(encode_png_with_provenance(candidate.image, image_provenance)),
                "tokens": grid_of(candidate.tokens),
                "score": round(candidate.score, 6),
            }
    yield {
        "event": "ranked",
        "order": [candidate.candidate for candidate in rank_candidates(finished)],
        "settings": dataclasses.asdict(settings),
    }


def reproduce(package: Package, data: bytes) -> Event:
    """Generate the image of a PNG file again and compare both. Raises FieldError before it generates."""
    provenance, pixels = read_provenance(data), pixels_of(data)
    batch_size = min(provenance.settings.batch_size, provenance.settings.candidates)
    if batch_size > MAX_BATCH_SIZE:
        found = f"this image's provenance says that {batch_size} images were generated at a time"
        fix = f"the maximum here is {MAX_BATCH_SIZE}. The file was changed; use another copy of it"
        raise FieldError("image", f"{found}; {fix}")
    numbers = provenance.fixed_tokens
    fixed = None if numbers is None else torch.tensor(numbers, dtype=torch.int64)
    try:
        check_prompt(provenance.caption, "its caption")
        check_guidance(provenance.settings.guidance, package.generator.config)
        if fixed is not None:
            package.generator.check_fixed_tokens(fixed[None], 1)
    except ValueError as error:
        raise FieldError("image", f"this image's provenance does not fit this model: {error}") from error
    number, place = divmod(provenance.candidate, provenance.settings.batch_size)
    request = (provenance.caption, provenance.settings, provenance.seed, number, fixed)
    candidate = package.generate_batch(*request)[place]
    reproduced = encode_png_with_provenance(candidate.image, provenance)
    return {
        "same": reproduced == data,
        "same_pixels": np.array_equal(pixels, candidate.image),
        "png": base64_of(reproduced),
        "tokens": grid_of(candidate.tokens),
        "score": round(candidate.score, 6),
        "provenance": dataclasses.asdict(provenance),
    }


@torch.no_grad()
def encode_image(package: Package, data: bytes) -> Event:
    """Encode an image file: its center square, its tokens and their reconstruction; and its caption by the captioner, if
    the package has one. Raises FieldError."""
    pixels = pixels_of(data)
    square = fit_square(pixels, package.image_tokenizer.image_size)
    tokens = encode_in_batches(package.image_tokenizer, [square])
    reconstruction = _decode(package, tokens[0])
    provenance = read_provenance(data)
    return {
        "tokens": grid_of(tokens[0]),
        "png": base64_of(encode_png(square)),
        "reconstruction": base64_of(encode_png(reconstruction)),
        "psnr": round(metrics.mean_psnr(to_float(square[None]), to_float(reconstruction[None])), 2),
        "caption": None if package.captioner is None else package.caption([pixels])[0],
        "provenance": None if provenance is None else dataclasses.asdict(provenance),
    }


def edit_tokens(package: Package, grid: Grid, stitch: dict | None, flip: bool, set: list[dict]) -> Event:
    """Stitch a grid of tokens, then flip it, then set single tokens; decode the result. Raises FieldError."""
    tokens = tokens_of(package, grid, "tokens")
    if stitch is not None:
        other = tokens_of(package, stitch["tokens"], "stitch.tokens")
        with _field_errors("stitch"):
            tokens = token_editing.stitch(tokens, other, stitch["columns"])
    if flip:
        tokens = token_editing.flip(tokens)
    vocab_size = package.image_tokenizer.vocab_size
    with _field_errors("set"):
        for cell in set:
            row, column, token = cell["row"], cell["column"], cell["token"]
            tokens = token_editing.set_token(tokens, row, column, token, vocab_size)
    return {"tokens": tokens.tolist(), "png": base64_of(encode_png(_decode(package, tokens.flatten())))}


def likelihood(package: Package, prompt: str, grid: Grid) -> Event:
    """The bits that each token of an image costs under a caption, with a heat map."""
    prompt, tokens = prompt_of(prompt), tokens_of(package, grid, "tokens")
    (result,) = likelihood_of_tokens(package, prompt, tokens.reshape(1, -1))
    log_probabilities = token_editing.as_grid(result.image)
    heat_map = token_editing.heat_map(_decode(package, tokens.flatten()), log_probabilities)
    return {
        "bits": token_editing.surprisal(log_probabilities).reshape(tokens.shape).round(4).tolist(),
        "image_bits": round(result.image_bits, 4),
        "caption_bits": None if result.caption_bits is None else round(result.caption_bits, 4),
        "bits_per_token": round(result.bits_per_token, 4),
        "uniform_bits_per_token": round(math.log2(package.image_tokenizer.vocab_size), 4),
        "least_likely": [
            {"row": row, "column": column, "token": int(tokens[row, column]), "bits": round(bits, 4)}
            for row, column, bits in token_editing.most_surprising_cells(log_probabilities, NUM_LEAST_LIKELY)
        ],
        "png": base64_of(encode_png(heat_map)),
    }


@contextlib.contextmanager
def _field_errors(field: str) -> Iterator[None]:
    """Turn an error of the library into a FieldError for `field`."""
    try:
        yield
    except ValueError as error:
        raise FieldError(field, str(error).removeprefix("sampling.")) from error


def prompt_of(prompt: str) -> str:
    """The prompt, normalized for the models. Raises FieldError."""
    with _field_errors("prompt"):
        return check_prompt(prompt, "the caption")


def pixels_of(data: bytes) -> np.ndarray:
    """Decode an image file to uint8 (H, W, 3). Raises FieldError."""
    try:
        return decode_image(data)
    except InvalidInput as error:
        message = f"this image cannot be read: {error.detail}. Save it again, for example as PNG"
        raise FieldError("image", message) from error


def settings_of(package: Package, candidates: int, changes: dict) -> SamplingConfig:
    """The package's sampling settings with the changes of a request. Raises FieldError."""
    for name, value in changes.items():
        with _field_errors(name):
            replace_settings(package.settings, **{name: value})
    batch_size = BATCH_SIZE.get(device_of(package.generator).type, 8)
    settings = replace_settings(package.settings, **changes, candidates=candidates, batch_size=batch_size)
    with _field_errors("guidance"):
        check_guidance(settings.guidance, package.generator.config)
    return settings


def tokens_of(package: Package, grid: Grid, field: str) -> Tensor:
    """The tokens of an image that has one grid of them, as int64 (side, side). Raises FieldError."""
    if len(scales := package.image_tokenizer.scales) > 1:
        raise FieldError(
            field,
            f"the tokens of this model form {len(scales)} grids, of {', '.join(map(str, scales))} cells a side, and a "
            "coarse token covers many cells, so single tokens are not edited or measured here. Choose a model whose "
            "image tokenizer has one grid",
        )
    return flat_tokens_of(package, grid, field).reshape(scales[0], scales[0])


def flat_tokens_of(package: Package, grid: Grid, field: str, first: int = 0) -> Tensor:
    """The tokens of an image as int64 (L,), each from `first` to vocab_size - 1: rows of one grid, or of several
    grids one after the other in rows of any length. Raises FieldError."""
    tokenizer, side = package.image_tokenizer, package.image_tokenizer.scales[0]
    if len(tokenizer.scales) == 1 and (len(grid) != side or any(len(row) != side for row in grid)):
        message = f"{field} must be {side} rows of {side} tokens each, the grid of this model's images"
        raise FieldError(field, message)
    tokens = torch.tensor([token for row in grid for token in row], dtype=torch.int64)
    if (count := tokens.numel()) != tokenizer.num_tokens:
        message = f"{field} has {count} tokens; images of this model have {tokenizer.num_tokens}"
        raise FieldError(field, message)
    if tokens.min() < first or tokens.max() >= tokenizer.vocab_size:
        found = f"{field} has tokens from {int(tokens.min())} to {int(tokens.max())}"
        message = f"{found}; this model's tokens are from {first} to {tokenizer.vocab_size - 1}"
        raise FieldError(field, message)
    return tokens


def _decode(package: Package, tokens: Tensor) -> np.ndarray:
    """Decode tokens (L,) to uint8 (H, W, 3)."""
    with torch.no_grad():
        return to_uint8(decode_in_batches(package.image_tokenizer, tokens[None]))[0]


def grid_of(tokens: Tensor) -> Grid:
    """Tokens (L,) as rows of a square grid; a single row if L is not a square."""
    side = math.isqrt(len(tokens))
    return tokens.reshape(side if side * side == len(tokens) else 1, -1).tolist()


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
