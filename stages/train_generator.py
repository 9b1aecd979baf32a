"""Token shards + text tokenizer -> a generator of image tokens (models/generator) and its curves."""

import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.runtime.program import program
from stages.runtime.run_training import train
from stages.runtime.stage import Stage
from stages.runtime.training_view import samples
from thousandwords import components
from thousandwords.core.cache import STORE, Store
from thousandwords.core.config import model_block, section
from thousandwords.core.files import write_json
from thousandwords.core.manifest import read_manifest
from thousandwords.core.rng import step_rng
from thousandwords.core.special_tokens import PAD
from thousandwords.data.loader import CaptionConfig, TokenLoader
from thousandwords.data.sampler import first_rows, sequential_batches
from thousandwords.data.token_shards import AnyTokenRows, all_captions, open_token_rows, read_token_rows
from thousandwords.text.bpe import TextTokenizer, load
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import World
from thousandwords.training.tuning import freeze

VALIDATION_ROWS = 512  # evaluated during training
MAX_CAPTIONS_COUNTED = 1_000_000  # captions whose length is checked, which takes some seconds


def train_generator(
    tokens: Path, text_tokenizer: Path, image_tokenizer: Path, out: Path, curves: Path, context: Stage
) -> None:
    block = context.params.get("generator") or {}
    settings = model_block(block, "generator", CaptionConfig)
    config = section(block["training"], "generator.training", TrainingConfig)
    tokenizer = load(text_tokenizer)
    of_images = components.load("image_tokenizers", image_tokenizer, fix="dvc repro train_image_tokenizer")
    fingerprint = of_images.fingerprint
    held_out = read_token_rows(tokens, "validation", fingerprint, first=VALIDATION_ROWS)
    rows = open_token_rows(tokens, "train", fingerprint, Store(STORE / "rows", keep_runs=2))
    device = context.world.device
    torch.manual_seed(context.seed)
    sizes = {
        "text_vocab_size": tokenizer.vocab_size,
        "text_length": tokenizer.text_length,
        "image_vocab_size": rows.header.vocab_size,
        "scales": rows.header.scales,
        **components.component("generators", block["kind"])[0].sizes_for(of_images),
    }
    model, origin = components.first_model("generators", block, "generator", **sizes)
    model.use_tokenizer(of_images)
    freeze(model.to(device), settings.tune)
    loader = TokenLoader(rows, tokenizer, context.seed, settings.bpe_dropout)
    _count_truncated(tokenizer, rows, context)
    indices = first_rows(VALIDATION_ROWS, len(held_out), held_out.mixture, repeat=True)
    prompts = [held_out.captions[row][0] for row in indices]
    validation_text = tokenizer.encode(prompts).to(device)
    validation_tokens = held_out.batch(indices)[1].to(device)
    state, history = train(
        context,
        model,
        config,
        batch_of=loader.batch,
        to_device=lambda micro_batches: _to_device(micro_batches, context.world),
        loss_of=lambda model, batch, step, rng: model.loss(*batch[:2], step, rng, num_text_tokens=batch[2]),
        evaluate=lambda model: held_out_losses(model, validation_text, validation_tokens),
        settings=block,
        inputs=(tokenizer.fingerprint, read_manifest(tokens, verify=False)["sha256"], *origin.values()),
        make_sheet=samples(prompts, validation_text, image_tokenizer, context.params, device),
    )
    if context.world.is_main_process:
        fingerprints = {
            "text_tokenizer": tokenizer.fingerprint,
            "image_tokenizer": rows.header.tokenizer_fingerprint,
        }
        components.save(model, out, state, **fingerprints, **origin)
        write_json(curves, history)


def held_out_losses(model: nn.Module, text_tokens: Tensor, image_tokens: Tensor) -> dict[str, float]:
    """Mean loss per token in nats over held-out rows: the whole loss, the text's part if the generator models text, the
    image's part."""
    totals: dict[str, float] = {}
    for rows in sequential_batches(len(text_tokens), 64):
        loss, parts = model.loss(text_tokens[rows], image_tokens[rows], 0, step_rng(0, 0))
        for name, value in {"loss": loss, **parts}.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(rows) / len(text_tokens)
    return totals


def _count_truncated(tokenizer: TextTokenizer, rows: AnyTokenRows, context: Stage) -> None:
    captions = list(itertools.islice(all_captions(rows), MAX_CAPTIONS_COUNTED))
    num_truncated = tokenizer.count_truncated(captions)
    context.record_metrics({"captions": len(captions), "captions_cut": num_truncated})
    if num_truncated and context.world.is_main_process:
        message = tokenizer.describe_truncation(num_truncated, len(captions))
        print(f"train_generator: {message}", file=sys.stderr, flush=True)


def _to_device(
    micro_batches: list[tuple[Tensor, Tensor]], world: World
) -> list[tuple[Tensor, Tensor, float]]:
    """(text, image tokens, mean number of text tokens per micro-batch over all processes) of each."""
    counts = [int((text_tokens != PAD).sum()) for text_tokens, _ in micro_batches]
    mean = world.mean(sum(counts) / len(counts))
    return [(text.to(world.device), tokens.to(world.device), mean) for text, tokens in micro_batches]


main = program(train_generator, "generator", trains="generator")


if __name__ == "__main__":
    main()
