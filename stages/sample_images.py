"""Prompts + models -> N candidates per prompt (results/samples): words, pictures and seeds.

A batch of candidates is a file, and stands for itself: each candidate has a random generator of its own. So the batches may be
drawn in any number of processes (`_engine.py`).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from stages._engine import engine_of, run_units
from stages._progress import progress
from stages._stage import Stage, arguments, stage
from stages._training import device_of
from thousandwords import components, images, text
from thousandwords.completion import TO_DRAW, faded, given_words, read_completions, rows_of, side_of, top_rows
from thousandwords.config import section
from thousandwords.drawing import Drawn, Prompts, check_guidance, check_prompt, count_batches, decode_in_parts, draw_batch
from thousandwords.errors import UserError
from thousandwords.pair_shards import read_captions, splits
from thousandwords.samples import COMPLETED, sample_table, write_samples

OWN = "own"  # the split of prompts that were written in params.yaml


@dataclass(frozen=True)
class Models:
    """The three that draw."""

    words: text.TextTokenizer
    pictures: nn.Module
    drawer: nn.Module

    @property
    def fingerprints(self) -> tuple[str, str, str]:
        return self.words.fingerprint, self.pictures.fingerprint, self.drawer.fingerprint

    def to(self, device: str) -> Models:
        return Models(self.words, self.pictures.to(device), self.drawer.to(device))


@dataclass(frozen=True)
class Work:
    """What all batches are drawn from: what a worker is told once."""

    folders: tuple[Path, Path, Path]
    fingerprints: tuple[str, str, str]
    prompts: list[tuple[str, str]]  # (split, prompt)
    settings: Prompts
    seed: int
    given: np.ndarray | None  # (prompts, L), as an array: a tensor would be handed over by a share of memory


def sample_images(
    pairs: Path, text_tokenizer: Path, image_tokenizer: Path, generator: Path, out: Path, run: Stage
) -> None:
    settings = section(run.params.get("sampling"), "sampling", Prompts)
    engine = engine_of(run.params, device_of(run))
    completions = list(read_completions(settings.complete)) if settings.complete else []
    prompts = choose_prompts(pairs, settings) + [(COMPLETED, caption) for caption, _ in completions]
    folders = (text_tokenizer, image_tokenizer, generator)
    models = load_models(*folders).to(device_of(run))
    check_guidance(settings.guidance, models.drawer.config)
    originals = [picture for _, picture in completions]
    given, shown = given_to(len(prompts), originals, models.pictures, settings.complete_share)
    work = Work(folders, models.fingerprints, prompts, settings, run.seed, None if given is None else given.numpy())
    open_worker = partial(_drawing, models, work) if engine.is_alone else partial(open_drawer, work)
    batches = range(count_batches(len(prompts), settings))
    drawn = run_units(open_worker, batches, engine, "sample_images")
    drawn = progress(drawn, "sample_images", len(batches), "batch") if engine.is_alone else drawn
    tables = [table for _, table in drawn]
    facts = {"candidates": settings.candidates, "prompts": len(prompts), "seed": run.seed}
    write_samples(out, tables, facts, shown)
    run.record_metrics({"prompts": len(prompts), "pictures": len(prompts) * settings.candidates})


def load_models(text_tokenizer: Path, image_tokenizer: Path, generator: Path) -> Models:
    """The three, verified; raises UserError where they do not belong together."""
    words = text.load(text_tokenizer)
    pictures = components.load("tokenizers", image_tokenizer, mend="dvc repro train_image_tokenizer")
    drawer = components.load("generators", generator, mend="dvc repro train_generator")
    _check_match(drawer.header, words.fingerprint, pictures.fingerprint)
    return Models(words, pictures, drawer)


def open_drawer(work: Work, device: str) -> Callable[[int], pa.Table]:
    """What a worker does with a batch's number: it draws it with the models that it finds for itself."""
    models = load_models(*work.folders)
    if models.fingerprints != work.fingerprints:
        raise UserError("the models here are not those where the stage was started. Run there and here: dvc checkout")
    return _drawing(models, work, device)


def _drawing(models: Models, work: Work, device: str) -> Callable[[int], pa.Table]:
    """The number of a batch -> its rows of a sample shard."""
    models = models.to(device)
    given = None if work.given is None else torch.tensor(work.given)
    prompts = [prompt for _, prompt in work.prompts]

    def draw(number: int) -> pa.Table:
        with torch.no_grad():
            part = draw_batch(models.drawer, models.words, prompts, work.settings, work.seed, number, given)
            return _table(part, work.prompts, models.pictures)

    return draw


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
    import stages.sample_images  # under its own name, by which workers know what is in it

    stages.sample_images.main()
