"""Pairs + image tokenizer -> a decoder (models/decoder): better images of the same tokens, its curves, and a sheet.

With `decoder: {kind: none}` nothing is trained, and images stay those of the image tokenizer.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stages.runtime.program import program
from stages.runtime.run_training import train
from stages.runtime.stage import Stage
from stages.runtime.training_view import MakeSheet, sheet
from thousandwords import components
from thousandwords.core.config import model_block, section
from thousandwords.core.files import write_bytes, write_json
from thousandwords.core.init_models import perceptual_fingerprints
from thousandwords.data.images import encode_png, to_float
from thousandwords.data.loader import DecoderConfig, ImageLoader
from thousandwords.data.pair_shards import open_pairs
from thousandwords.data.sampler import first_rows, sequential_batches
from thousandwords.nn.metrics import mean_psnr
from thousandwords.pretrained.image_losses import build_image_losses
from thousandwords.training.config import TrainingConfig

VALIDATION_IMAGES = 256  # evaluated during training
SHEET_IMAGES = 8


def train_decoder(pairs: Path, image_tokenizer: Path, out: Path, curves: Path, context: Stage) -> None:
    block = context.params.get("decoder") or {}
    settings = model_block(block, "decoder", DecoderConfig)
    device = context.world.device
    fix = "dvc repro train_image_tokenizer"
    tokenizer = components.load("image_tokenizers", image_tokenizer, fix=fix).to(device)
    sizes = {"image_size": tokenizer.image_size, "vocab_size": tokenizer.vocab_size}
    torch.manual_seed(context.seed)
    model, origin = components.first_model("decoders", block, "decoder", **sizes, scales=tokenizer.scales)
    origin |= {"image_tokenizer": tokenizer.fingerprint}
    history: list[dict[str, float]] = []
    state = None
    if model.is_trainable:
        config = section(block["training"], "decoder.training", TrainingConfig)
        reader, held_out = open_pairs(pairs, "train"), open_pairs(pairs, "validation")
        loader = ImageLoader(reader, context.seed)
        rows = first_rows(VALIDATION_IMAGES, len(held_out), held_out.mixture, repeat=True)
        validation = with_tokens(tokenizer, to_float(held_out.images(rows)).to(device))
        model.training_only = build_image_losses(settings, tokenizer.image_size, "decoder")
        state, history = train(
            context,
            model.to(device),
            config,
            batch_of=loader.batch,
            to_device=lambda batches: [with_tokens(tokenizer, batch.to(device)) for batch in batches],
            loss_of=lambda model, batch, step, rng: model.loss(*batch, step, rng),
            evaluate=lambda model: evaluate(model, *validation),
            settings={key: block[key] for key in block if key != "paint"},  # it changes no weight
            inputs=(
                reader.fingerprint,
                *origin.values(),
                *perceptual_fingerprints(block, "decoder").values(),
            ),
            make_sheet=decoded_images(*validation),
        )
    if context.world.is_main_process:
        paint = {"paint": settings.paint} if settings.paint != "all" else {}
        components.save(model, out, state, **origin, **paint)
        write_json(curves, history)
        if model.is_trainable:
            saved = components.load("decoders", out).to(device)
            path = curves.with_suffix(".png")
            write_bytes(path, encode_png(decoded_images(*validation)(saved)))
            context.record_files(path)


@torch.no_grad()
def with_tokens(tokenizer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, H, W) in [0, 1] -> (the images, their tokens (B, L), the tokenizer's images of these)."""
    parts = [images[rows] for rows in sequential_batches(len(images), tokenizer.max_batch_size)]
    tokens = torch.cat([tokenizer.encode(part) for part in parts])
    decoded = [tokenizer.decode(part) for part in tokens.split(tokenizer.max_batch_size)]
    return images, tokens, torch.cat(decoded)


def evaluate(model: nn.Module, images: Tensor, tokens: Tensor, decoded: Tensor) -> dict[str, float]:
    """PSNR of the decoder's images, and the loss of held-out images."""
    loss, logged = model.loss(images, tokens, decoded, 0, torch.Generator())
    psnr = mean_psnr(images, model.decode(tokens, decoded))
    return {"loss": float(loss), "psnr_hard": psnr} | {name: float(value) for name, value in logged.items()}


def decoded_images(images: Tensor, tokens: Tensor, decoded: Tensor) -> MakeSheet:
    """Shows the first images, the tokenizer's reconstructions, and the decoder's, one above the other."""
    images, tokens, decoded = (each[:SHEET_IMAGES] for each in (images, tokens, decoded))

    def make_sheet(model: nn.Module) -> np.ndarray:
        rows = torch.cat([images, decoded, model.decode(tokens, decoded)])
        return sheet(rows, columns=len(images))

    return make_sheet


main = program(train_decoder, "decoder", trains="decoder", shares_cores=True)


if __name__ == "__main__":
    main()
