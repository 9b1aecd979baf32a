"""Prompts + models -> N candidates per prompt (results/samples): words, pictures and seeds."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from stages._progress import progress
from stages._stage import Stage, arguments, stage
from stages._training import device_of
from thousandwords import components, images, text
from thousandwords.completion import TO_DRAW, faded, given_words, read_completions, rows_of, side_of, top_rows
from thousandwords.config import section
from thousandwords.drawing import Drawn, Prompts, check_prompt, decode_in_parts, draw_candidates
from thousandwords.errors import UserError
from thousandwords.pair_shards import read_captions, splits
from thousandwords.samples import COMPLETED, sample_table, write_samples

OWN = "own"  # the split of prompts that were written in params.yaml


def sample_images(
    pairs: Path, text_tokenizer: Path, image_tokenizer: Path, generator: Path, out: Path, run: Stage
) -> None:
    settings = section(run.params.get("sampling"), "sampling", Prompts)
    completions = list(read_completions(settings.complete)) if settings.complete else []
    prompts = choose_prompts(pairs, settings) + [(COMPLETED, caption) for caption, _ in completions]
    words = text.load(text_tokenizer)
    pictures = components.load("tokenizers", image_tokenizer, mend="dvc repro train_image_tokenizer")
    drawer = components.load("generators", generator, mend="dvc repro train_generator")
    _check_match(drawer.header, words.fingerprint, pictures.fingerprint)
    device = device_of(run)
    drawer, pictures = drawer.to(device), pictures.to(device)
    given, shown = given_to(len(prompts), [picture for _, picture in completions], pictures, settings.complete_share)
    batches = -(-len(prompts) * settings.candidates // settings.batch_size)
    drawn = draw_candidates(drawer, words, [prompt for _, prompt in prompts], settings, run.seed, given)
    with torch.no_grad():
        tables = [_table(part, prompts, pictures) for part in progress(drawn, "sample_images", batches, "batch")]
    facts = {"candidates": settings.candidates, "prompts": len(prompts), "seed": run.seed}
    write_samples(out, tables, facts, shown)
    run.record_metrics({"prompts": len(prompts), "pictures": len(prompts) * settings.candidates})


def choose_prompts(pairs: Path, settings: Prompts) -> list[tuple[str, str]]:
    """(split, prompt): the first captions of each held-out split, then the user's own; each prompt once."""
    chosen = dict.fromkeys(_held_out_captions(pairs, settings.prompts_per_split))
    own = [(OWN, check_prompt(prompt, f"sampling.prompts[{i}]")) for i, prompt in enumerate(settings.prompts)]
    taken = {prompt for _, prompt in chosen}
    return [*chosen, *(pair for pair in dict.fromkeys(own) if pair[1] not in taken)]


def _held_out_captions(pairs: Path, count: int) -> Iterator[tuple[str, str]]:
    for split in splits(pairs):
        if split == "train":
            continue
        captions = dict.fromkeys(check_prompt(several[0]) for several in read_captions(pairs, split))
        yield from [(split, caption) for caption in captions][:count]


def given_to(
    prompts: int, originals: Sequence[np.ndarray], tokenizer: torch.nn.Module, share: float
) -> tuple[torch.Tensor | None, dict[int, np.ndarray]]:
    """(words given to each prompt (P, L), -1 elsewhere; {prompt: what is seen of its picture}): the last have a picture."""
    if not originals:
        return None, {}
    side, first = side_of(tokenizer.scales), prompts - len(originals)
    kept = top_rows(side, rows_of(share, side))
    given = torch.full((prompts, tokenizer.num_tokens), TO_DRAW)
    given[first:] = torch.stack([given_words(tokenizer, original, kept) for original in originals])
    fitted = [images.fit_square(original, tokenizer.image_size) for original in originals]
    return given, {first + number: faded(original, kept) for number, original in enumerate(fitted)}


def _check_match(header: dict, text_fingerprint: str, image_fingerprint: str) -> None:
    """A generator speaks the words of the tokenizers it was trained with, and of no others."""
    for name, found in (("text_tokenizer", text_fingerprint), ("image_tokenizer", image_fingerprint)):
        if header[name] != found:
            raise UserError(
                f"models/generator was trained with {name} {header[name][:12]}, but models/{name} holds {found[:12]}. "
                "Run: dvc repro train_generator"
            )


def _table(part: Drawn, prompts: list[tuple[str, str]], tokenizer: torch.nn.Module) -> pa.Table:
    pictures = images.to_uint8(decode_in_parts(tokenizer, part.tokens))
    rows = [
        {"prompt_id": prompt, "split": prompts[prompt][0], "prompt": prompts[prompt][1], "candidate": one, "seed": seed}
        for prompt, one, seed in zip(part.prompt_ids, part.candidates, part.seeds, strict=True)
    ]
    return sample_table(rows, part.tokens, pictures)


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "pairs", "text-tokenizer", "image-tokenizer", "generator", "out", argv=argv)
    with stage("sample_images", options, "sampling") as run:
        sample_images(
            options.pairs, options.text_tokenizer, options.image_tokenizer, options.generator, options.out, run
        )


if __name__ == "__main__":
    main()
