"""Prompts + models -> N candidates per prompt (results/samples): tokens, images and seeds.

Each batch of candidates is a file of its own, and each candidate has its own random generator. So batches can
be sampled in any number of processes (section `engine` of params.yaml).
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stages.runtime.program import program
from stages.runtime.stage import Stage
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import read_manifest
from thousandwords.core.progress import progress
from thousandwords.core.special_tokens import UNKNOWN
from thousandwords.data.images import fit_square
from thousandwords.data.pair_shards import read_captions, splits
from thousandwords.data.sampler import Mixture, first_rows
from thousandwords.inference.candidates import count_batches
from thousandwords.inference.config import PromptsConfig, check_guidance, check_prompt
from thousandwords.inference.inpainting import (
    fixed_tokens_of,
    gray_out,
    grid_side,
    read_images_to_inpaint,
    rows_to_keep,
    top_rows,
)
from thousandwords.inference.sample_batches import SampleTask, load_models, make_sampler, open_sampler
from thousandwords.inference.sample_shards import INPAINTED, write_samples
from thousandwords.parallel.engine import engine_from_params, run_items

OWN = "own"  # the split of prompts from params.yaml


def sample_images(
    pairs: Path,
    text_tokenizer: Path,
    image_tokenizer: Path,
    decoder: Path,
    generator: Path,
    out: Path,
    context: Stage,
) -> None:
    settings = section(context.params.get("sampling"), "sampling", PromptsConfig)
    engine = engine_from_params(context.params, context.world.device)
    folders = (text_tokenizer, image_tokenizer, decoder, generator)
    models = load_models(*folders).to(context.world.device)
    to_inpaint = images_to_inpaint(settings, models.image_tokenizer.scales, models.generator.keeps_parts)
    prompts = choose_prompts(pairs, settings) + [(INPAINTED, caption) for caption, _ in to_inpaint]
    check_guidance(settings.guidance, models.generator.config)
    for split, prompt in prompts:
        if split in (OWN, INPAINTED):
            for note in models.text_tokenizer.describe_prompt(prompt):
                print(f'sample_images: "{prompt}": {note}', file=sys.stderr, flush=True)
    originals = [image for _, image in to_inpaint]
    fixed_tokens, kept_parts = inpaint_inputs(
        len(prompts), originals, models.image_tokenizer, settings.inpaint_keep_share
    )
    fixed = None if fixed_tokens is None else fixed_tokens.numpy()
    task = SampleTask(folders, models.fingerprints, prompts, settings, context.seed, fixed)
    is_single = engine.is_single_process
    open_worker = partial(make_sampler, models, task) if is_single else partial(open_sampler, task)
    batches = range(count_batches(len(prompts), settings))
    results = run_items(open_worker, batches, engine, "sample_images")
    if is_single:
        results = progress(results, "sample_images", len(batches), "batch")
    tables = [table for _, table in results]
    metadata = {"candidates": settings.candidates, "prompts": len(prompts), "seed": context.seed}
    write_samples(out, tables, metadata, kept_parts)
    context.record_metrics({"prompts": len(prompts), "pictures": len(prompts) * settings.candidates})


def choose_prompts(pairs: Path, settings: PromptsConfig) -> list[tuple[str, str]]:
    """(split, prompt): the first captions of each held-out split, then the user's own; each prompt once."""
    chosen = dict.fromkeys(_held_out_captions(pairs, settings.prompts_per_split))
    own = [(OWN, check_prompt(prompt, f"sampling.prompts[{i}]")) for i, prompt in enumerate(settings.prompts)]
    held_out_prompts = {prompt for _, prompt in chosen}
    return [*chosen, *(pair for pair in dict.fromkeys(own) if pair[1] not in held_out_prompts)]


def _held_out_captions(pairs: Path, count: int) -> Iterator[tuple[str, str]]:
    metadata = read_manifest(pairs, verify=False)["facts"]
    for split in splits(pairs):
        if split == "train":
            continue
        texts = list(read_captions(pairs, split))
        mixture = Mixture.from_metadata(metadata, split)
        if mixture:  # of each source its first captions
            texts = [texts[row] for row in first_rows(count, len(texts), mixture)]
        captions = dict.fromkeys(check_prompt(captions[0]) for captions in texts)
        yield from [(split, caption) for caption in captions][:count]


def images_to_inpaint(
    settings: PromptsConfig, scales: tuple[int, ...], keeps_parts: bool
) -> list[tuple[str, np.ndarray]]:
    """(caption, image) of each image to inpaint; none, and a note, where the generator can keep no part of an image: the
    default settings inpaint the images of a folder, and the other prompts can be sampled all the same."""
    if not settings.inpaint:
        return []
    try:
        grid_side(scales, keeps_parts)
    except UserError as reason:
        print(f"sample_images: {settings.inpaint} is not inpainted: {reason}", file=sys.stderr, flush=True)
        return []
    return list(read_images_to_inpaint(settings.inpaint))


def inpaint_inputs(
    num_prompts: int, originals: Sequence[np.ndarray], image_tokenizer: nn.Module, keep_share: float
) -> tuple[Tensor | None, dict[int, np.ndarray]]:
    """(fixed tokens of each prompt (P, L), -1 elsewhere; {prompt: kept part of its image}), the last ones."""
    if not originals:
        return None, {}
    side, first = image_tokenizer.scales[-1], num_prompts - len(originals)
    is_kept = top_rows(side, rows_to_keep(keep_share, side))
    fixed_tokens = torch.full((num_prompts, image_tokenizer.num_tokens), UNKNOWN)
    rows = [fixed_tokens_of(image_tokenizer, original, is_kept) for original in originals]
    fixed_tokens[first:] = torch.stack(rows)
    squares = [fit_square(original, image_tokenizer.image_size) for original in originals]
    return fixed_tokens, {first + number: gray_out(square, is_kept) for number, square in enumerate(squares)}


main = program(sample_images, "sampling")


if __name__ == "__main__":
    main()
