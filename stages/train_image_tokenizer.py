"""The training images -> a discrete VAE (models/image_tokenizer), its curves, and a sheet of reconstructions.

With `image_tokenizer.init` the tokenizer of that folder is checked and copied, and nothing is trained.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.runtime.program import program
from stages.runtime.run_training import train
from stages.runtime.stage import Stage
from stages.runtime.training_view import pairs_sheet, reconstructions
from thousandwords import components
from thousandwords.core.config import section
from thousandwords.core.files import write_bytes, write_json
from thousandwords.core.init_models import perceptual_fingerprints
from thousandwords.core.progress import progress
from thousandwords.core.rng import step_rng
from thousandwords.data.images import encode_png, to_float
from thousandwords.data.loader import ImageLoader
from thousandwords.data.pair_shards import PairReader, open_pairs
from thousandwords.data.sampler import first_rows, positions, sequential_batches
from thousandwords.nn import metrics
from thousandwords.pretrained import tokenizer_init
from thousandwords.pretrained.image_losses import build_image_losses
from thousandwords.training.config import TrainingConfig
from thousandwords.training.tuning import freeze

VALIDATION_IMAGES = 256  # evaluated during training


def train_image_tokenizer(pairs: Path, out: Path, curves: Path, context: Stage) -> None:
    block = context.params.get("image_tokenizer") or {}
    settings = tokenizer_init.check_block(block)
    goes_on = tokenizer_init.folder_of(block) is not None
    if goes_on and settings.tune == "none":
        return copy_pretrained(block, pairs, out, curves, context)
    config = section(block["training"], "image_tokenizer.training", TrainingConfig)
    reader, held_out = open_pairs(pairs, "train"), open_pairs(pairs, "validation")
    loader = ImageLoader(reader, context.seed, settings.augmentation)
    device = context.world.device
    torch.manual_seed(context.seed)
    origin = {}
    if goes_on:
        model = tokenizer_init.load(block, reader.image_size).requires_grad_(True).to(device)
        origin = {"init": model.fingerprint}
        freeze(model, ("decoder.*",), "image_tokenizer")
    else:
        model_config = components.model_config("image_tokenizers", block, "image_tokenizer")
        size = reader.image_size
        model = components.build("image_tokenizers", block["kind"], model_config, image_size=size).to(device)
        model.prepare(_one_epoch(loader, config.batch_size, device), step_rng(context.seed, 0, device))
    validation = _first_images(held_out).to(device)
    model.training_only = build_image_losses(settings, reader.image_size, "image_tokenizer").to(device)
    state, history = train(
        context,
        model,
        config,
        batch_of=loader.batch,
        to_device=lambda micro_batches: [batch.to(device) for batch in micro_batches],
        loss_of=lambda model, batch, step, rng: (
            model.decoder_loss(batch, step) if goes_on else model.loss(batch, step, rng)
        ),
        evaluate=lambda model: evaluate(model, validation),
        settings=block,
        inputs=(
            reader.fingerprint,
            *origin.values(),
            *perceptual_fingerprints(block, "image_tokenizer").values(),
        ),
        make_sheet=reconstructions(validation),
    )
    if context.world.is_main_process:
        components.save(model, out, state, **origin)
        write_json(curves, history)
        originals = validation.cpu()[:16]
        saved = components.load("image_tokenizers", out)
        _write_sheet(originals, saved.decode(saved.encode(originals)), curves.with_suffix(".png"), context)


def copy_pretrained(block: dict, pairs: Path, out: Path, curves: Path, context: Stage) -> None:
    """Copy the tokenizer of `image_tokenizer.init`, checked, and evaluate it like a trained one."""
    held_out = open_pairs(pairs, "validation")
    model = tokenizer_init.load(block, held_out.image_size).to(context.world.device)
    validation = _first_images(held_out)
    tokens, decoded = _encode_and_decode(model, validation)
    values = _metrics(model, validation, tokens, decoded)
    values = {f"validation/{name}": value for name, value in values.items()}
    tokenizer_init.save(model, block, out)
    context.log(0, values)
    write_json(curves, [{"step": 0, **values}])
    _write_sheet(validation[:16], decoded[:16], curves.with_suffix(".png"), context)
    print(
        f"{context.name}: copied {block['init']} (fingerprint {model.fingerprint}); nothing was trained",
        flush=True,
    )


def _first_images(held_out: PairReader) -> Tensor:
    """The held-out images that are evaluated during training: (N, 3, H, W) in [0, 1]."""
    return to_float(
        held_out.images(first_rows(VALIDATION_IMAGES, len(held_out), held_out.mixture, repeat=True))
    )


def _encode_and_decode(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, reconstructions) on the CPU, in batches that fit into memory."""
    device, results = next(model.parameters()).device, []
    batches = list(sequential_batches(len(images), model.max_batch_size))
    for rows in progress(batches, "train_image_tokenizer: evaluating", len(batches), "batch"):
        tokens = model.encode(images[rows].to(device))
        results.append((tokens.cpu(), model.decode(tokens).cpu()))
    return torch.cat([tokens for tokens, _ in results]), torch.cat([decoded for _, decoded in results])


def evaluate(model: nn.Module, images: Tensor) -> dict[str, float]:
    """PSNR of reconstructions from arg-max tokens, and the codebook usage of held-out images."""
    batches = list(sequential_batches(len(images), model.max_batch_size))
    tokens = torch.cat([model.encode(images[rows]) for rows in batches])
    decoded = torch.cat([model.decode(tokens[rows]) for rows in batches])
    return _metrics(model, images, tokens, decoded)


def _metrics(model: nn.Module, images: Tensor, tokens: Tensor, decoded: Tensor) -> dict[str, float]:
    usage = metrics.codebook_usage(tokens, model.vocab_size)
    values = {
        "psnr_hard": metrics.mean_psnr(images, decoded),
        "codebook_used": usage["used"],
        "codebook_perplexity": usage["perplexity"],
    }
    for side, figures in metrics.figures_by_scale(model, images, tokens).items():
        names = {"psnr": "psnr", "used": "codebook_used", "perplexity": "codebook_perplexity"}
        values |= {f"{names[key]}_scale_{side}": value for key, value in figures.items() if key in names}
    return values


def _one_epoch(loader: ImageLoader, batch_size: int, device: str) -> Iterator[Tensor]:
    """The batches of the first epoch, lazily, for a tokenizer that is initialized from images."""
    for step in range(max(1, len(loader.reader) // batch_size)):
        yield loader.batch(positions(step, batch_size)).to(device)


def _write_sheet(originals: Tensor, decoded: Tensor, path: Path, context: Stage) -> None:
    """Write a contact sheet: originals above their reconstructions."""
    write_bytes(path, encode_png(pairs_sheet(originals, decoded)))
    context.record_files(path)


main = program(train_image_tokenizer, "image_tokenizer", "data", trains="image_tokenizer", shares_cores=True)


if __name__ == "__main__":
    main()
