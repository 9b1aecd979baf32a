"""Samples + scorer -> scores and one best-first grid per prompt (results/ranked).

With `decoder: {paint: kept}` the samples are the image tokenizer's images; the decoder makes the best of each prompt again,
and these are what the grids, and all figures of samples, show.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from stages.runtime.program import program
from stages.runtime.stage import Stage
from thousandwords import components
from thousandwords.core.filenames import slug
from thousandwords.core.files import write_bytes
from thousandwords.core.manifest import clear, write_manifest
from thousandwords.core.parquet import table_bytes
from thousandwords.core.progress import progress
from thousandwords.data.contact_sheet import make_contact_sheet
from thousandwords.data.images import encode_png, to_float
from thousandwords.inference.batched import paint
from thousandwords.inference.sample_shards import PAINTED, Samples, painted_table, read_samples

MAX_CANDIDATES = 16  # in a grid
MAX_PROMPTS = 24  # in the overview


def rank_images(
    samples: Path, image_tokenizer: Path, decoder: Path, scorer: Path, out: Path, context: Stage
) -> None:
    generated = read_samples(samples)
    device = context.world.device
    decoder_of_kept = load_decoder_of_kept(image_tokenizer, decoder, device)
    model = components.load("scorers", scorer, fix="dvc repro train_scorer").to(device)
    scores = np.zeros((len(generated.prompts), generated.candidates), np.float32)
    names = []
    clear(out, "*.parquet", "*.png")
    for prompt in progress(range(len(generated.prompts)), "rank_images", len(generated.prompts), "prompt"):
        images = generated.images(prompt)
        scores[prompt] = score_images(model, images, generated.prompts[prompt], device)
        if decoder_of_kept:
            best = order_of(scores[prompt])[:MAX_CANDIDATES]
            images[best] = paint(decoder_of_kept, generated.tokens(prompt)[best])
            generated.painted.update({(prompt, int(row)): encode_png(images[row]) for row in best})
        name = f"{prompt:03d}-{slug(generated.prompts[prompt])}.png"
        sheet = best_first(images, scores[prompt], generated.kept_parts.get(prompt))
        write_bytes(out / name, encode_png(sheet))
        names.append(name)
    write_bytes(out / "scores.parquet", table_bytes(score_table(scores)))
    write_bytes(out / "overview.png", encode_png(overview(generated, scores)))
    files = {name: None for name in (*names, "overview.png")} | {"scores.parquet": scores.size}
    if decoder_of_kept:
        write_bytes(out / PAINTED, table_bytes(painted_table(generated.painted)))
        files[PAINTED] = len(generated.painted)
    write_manifest(out, files, {"candidates": generated.candidates, "prompts": len(generated.prompts)})
    context.record_files(out / "overview.png")
    text_only = scores[generated.text_only_prompts()]
    best = text_only.max(axis=1)
    context.record_metrics({"clip_score_n1": text_only.mean(), "clip_score_best": best.mean()})


def load_decoder_of_kept(image_tokenizer: Path, decoder: Path, device: str) -> torch.nn.Module | None:
    """What makes the images of kept samples; None where samples have them already."""
    model = components.load("decoders", decoder, fix="dvc repro train_decoder")
    if model.header.get("paint") != "kept":
        return None
    tokenizer = components.load("image_tokenizers", image_tokenizer, fix="dvc repro train_image_tokenizer")
    return components.with_decoder(tokenizer, model).to(device)


def order_of(scores: np.ndarray) -> np.ndarray:
    """The candidates of scores (N,), best first."""
    return np.argsort(-scores, kind="stable")


def score_images(model: torch.nn.Module, images: np.ndarray, prompt: str, device: str) -> np.ndarray:
    """The scores of N candidates of one prompt: (N,)."""
    return model.score(to_float(images).to(device), [prompt] * len(images)).cpu().numpy()


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


def best_first(images: np.ndarray, scores: np.ndarray, kept_part: np.ndarray | None = None) -> np.ndarray:
    """A contact sheet of the best candidates with their scores below; `kept_part`, if any, comes first."""
    order = order_of(scores)[:MAX_CANDIDATES]
    best, labels = images[order], [f"{scores[row]:.3f}" for row in order]
    if kept_part is not None:
        best, labels = np.concatenate([kept_part[None], best]), ["kept", *labels]
    return make_contact_sheet(best, columns=min(8, len(best)), labels=labels, zoom=zoom_of(images))


def overview(samples: Samples, scores: np.ndarray) -> np.ndarray:
    """The best candidate of some prompts of every split, with the prompt below."""
    chosen = np.unique(np.linspace(0, len(samples.prompts) - 1, MAX_PROMPTS).astype(int))
    best = np.stack([samples.images(prompt)[scores[prompt].argmax()] for prompt in chosen])
    labels = [
        f"{'inpainted: ' if prompt in samples.kept_parts else ''}{samples.prompts[prompt]}"
        for prompt in chosen
    ]
    return make_contact_sheet(best, columns=6, labels=labels, zoom=2 * zoom_of(best))


def zoom_of(images: np.ndarray) -> int:
    """The factor by which small images are enlarged in a grid."""
    return max(1, 96 // images.shape[1])


main = program(rank_images)


if __name__ == "__main__":
    main()
