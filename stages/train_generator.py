"""Token shards + text tokenizer -> an autoregressive transformer (models/generator) and its curves."""
from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from stages._launch import launch_processes
from stages._stage import Stage, arguments, stage
from stages._training import device_of, train
from thousandwords import components, text, training
from thousandwords.config import model_block, section
from thousandwords.distributed import World
from thousandwords.files import read_manifest, write_json
from thousandwords.loader import Ahead, CaptionSettings, TokenLoader, positions
from thousandwords.seeds import step_rng
from thousandwords.shards import AnyTokenRows, all_captions, in_order, open_token_rows, read_token_rows
from thousandwords.store import STORE, Store
from thousandwords.text import PAD

LOOK = 512  # validation rows that are watched while training
MOST_COUNTED = 1_000_000  # captions looked at for their length, some seconds' work


def train_generator(tokens: Path, text_tokenizer: Path, image_tokenizer: Path, out: Path, curves: Path, run: Stage):
    block = run.params.get("generator") or {}
    settings = model_block(block, "generator", CaptionSettings)
    config = section(block["training"], "generator.training", training.Config)
    words = text.load(text_tokenizer)
    bound_to = read_manifest(image_tokenizer, mend="dvc repro train_image_tokenizer")["sha256"]
    held_out = read_token_rows(tokens, "validation", bound_to, first=LOOK)
    rows = open_token_rows(tokens, "train", bound_to, Store(STORE / "rows", kept_runs=2))
    device = device_of(run)
    torch.manual_seed(run.seed)
    model = components.build(
        "generators",
        block["kind"],
        components.model_config("generators", block, "generator"),
        text_vocab_size=words.vocab_size,
        text_length=words.text_length,
        image_vocab_size=rows.header.vocab_size,
        scales=rows.header.scales,
    ).to(device)
    loader = TokenLoader(rows, words, run.seed, settings.bpe_dropout)
    _count_cut(words, rows, run)
    watched = range(min(LOOK, len(held_out)))
    watched_text = words.encode([held_out.captions[row][0] for row in watched]).to(device)
    watched_tokens = held_out.batch(watched)[1].to(device)

    def parts_of(step: int) -> list[tuple[Tensor, Tensor]]:
        return [loader.batch(share) for share in run.world.shares(positions(step, config.batch_size), config.accumulation)]

    with Ahead(parts_of, config.steps, config.workers_on(device)) as parts:
        state, history = train(
            run,
            model,
            config,
            batches_of=lambda step: _batches(parts(step), run.world, device),
            loss_of=lambda model, batch, step, rng: model.loss(*batch[:2], step, rng, text_words=batch[2]),
            evaluate=lambda model: held_out_losses(model, watched_text, watched_tokens),
            settings=block,
            inputs=(words.fingerprint, read_manifest(tokens, verify=False)["sha256"]),
        )
    if run.world.is_first:
        bound = {"text_tokenizer": words.fingerprint, "image_tokenizer": rows.header.tokenizer_fingerprint}
        components.save(model, out, state, **bound)
        write_json(curves, history)


def held_out_losses(model: nn.Module, text_tokens: Tensor, image_tokens: Tensor) -> dict[str, float]:
    """Mean loss per token in nats over held-out rows: whole, of the text, of the picture."""
    totals = {"loss": 0.0, "text_loss": 0.0, "image_loss": 0.0}
    for rows in in_order(len(text_tokens), 64):
        loss, parts = model.loss(text_tokens[rows], image_tokens[rows], 0, step_rng(0, 0))
        for name, value in {"loss": loss, **parts}.items():
            totals[name] += float(value) * len(rows) / len(text_tokens)
    return totals


def _count_cut(words: text.TextTokenizer, rows: AnyTokenRows, run: Stage) -> None:
    captions = list(itertools.islice(all_captions(rows), MOST_COUNTED))
    cut = words.count_cut(captions)
    run.record_metrics({"captions": len(captions), "captions_cut": cut})
    if cut and run.world.is_first:
        print(f"train_generator: {words.told_cut(cut, len(captions))}", file=sys.stderr, flush=True)


def _batches(parts: list[tuple[Tensor, Tensor]], world: World, device: str) -> list[tuple[Tensor, Tensor, float]]:
    """This process's parts of a batch: text, image tokens, and how many words of text a part of the batch has on average."""
    text_words = world.mean(sum(int((text_tokens != PAD).sum()) for text_tokens, _ in parts) / len(parts))
    return [(text_tokens.to(device), image_tokens.to(device), text_words) for text_tokens, image_tokens in parts]


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "tokens", "text-tokenizer", "image-tokenizer", "out", "curves", argv=argv)
    launch_processes("train_generator", options.params, "generator", argv)
    with stage("train_generator", options, "generator") as run:
        train_generator(
            options.tokens, options.text_tokenizer, options.image_tokenizer, options.out, options.curves, run
        )


if __name__ == "__main__":
    main()
