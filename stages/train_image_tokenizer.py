"""The training pictures -> a discrete VAE (models/image_tokenizer), its curves, and a look at what it keeps."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from stages._launch import launch_processes
from stages._stage import Stage, arguments, stage
from stages._training import device_of, train
from thousandwords import components, images, metrics, training
from thousandwords.config import model_block, section
from thousandwords.files import write_bytes, write_json
from thousandwords.loader import ImageLoader, PictureSettings, positions
from thousandwords.pair_shards import PairReader
from thousandwords.seeds import step_rng
from thousandwords.shards import in_order

LOOK = 256  # validation pictures that are watched while training


def train_image_tokenizer(pairs: Path, out: Path, curves: Path, run: Stage) -> None:
    block = run.params.get("image_tokenizer") or {}
    settings = model_block(block, "image_tokenizer", PictureSettings)
    config = section(block["training"], "image_tokenizer.training", training.Config)
    reader, held_out = PairReader(pairs, "train"), PairReader(pairs, "validation")
    loader = ImageLoader(reader, run.seed, settings.augmentation)
    device = device_of(run)
    torch.manual_seed(run.seed)
    model = components.build(
        "tokenizers",
        block["kind"],
        components.model_config("tokenizers", block, "image_tokenizer"),
        image_size=reader.image_size,
    ).to(device)
    model.prepare(_one_epoch(loader, config.batch_size, device), step_rng(run.seed, 0, device))
    watched = images.to_float(held_out.images(list(range(min(LOOK, len(held_out)))))).to(device)
    state, history = train(
        run,
        model,
        config,
        batches_of=lambda step: [
            loader.batch(share).to(device)
            for share in run.world.shares(positions(step, config.batch_size), config.accumulation)
        ],
        loss_of=lambda model, batch, step, rng: model.loss(batch, step, rng),
        evaluate=lambda model: look(model, watched),
        settings=block,
        inputs=(reader.fingerprint,),
    )
    if run.world.is_first:
        components.save(model, out, state)
        write_json(curves, history)
        _show(components.load("tokenizers", out), watched.cpu()[:16], curves.with_suffix(".png"), run)


def look(model: nn.Module, watched: Tensor) -> dict[str, float]:
    """Hard (arg-max) PSNR, and how much of the codebook held-out pictures use: the figures that cannot flatter."""
    tokens = torch.cat([model.encode(watched[rows]) for rows in in_order(len(watched), 64)])
    decoded = torch.cat([model.decode(tokens[rows]) for rows in in_order(len(watched), 64)])
    usage = metrics.codebook_usage(tokens, model.vocab_size)
    return {
        "psnr_hard": metrics.mean_psnr(watched, decoded),
        "codebook_used": usage["used"],
        "codebook_perplexity": usage["perplexity"],
    }


def _one_epoch(loader: ImageLoader, batch_size: int, device: str) -> Iterator[Tensor]:
    """The first epoch, lazily, for a tokenizer that wants to look at some pictures before it starts."""
    for step in range(max(1, len(loader.reader) // batch_size)):
        yield loader.batch(positions(step, batch_size)).to(device)


def _show(model: nn.Module, originals: Tensor, path: Path, run: Stage) -> None:
    """A contact sheet: originals above their hard reconstructions."""
    decoded = model.decode(model.encode(originals))
    rows = [part for start in range(0, len(originals), 8) for part in (originals[start:][:8], decoded[start:][:8])]
    sheet = images.grid(images.to_uint8(torch.cat(rows)), columns=8)
    write_bytes(path, images.encode_png(sheet))
    run.record_files(path)


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "pairs", "out", "curves", argv=argv)
    launch_processes("train_image_tokenizer", options.params, "image_tokenizer", argv)
    with stage("train_image_tokenizer", options, "image_tokenizer", "data") as run:
        train_image_tokenizer(options.pairs, options.out, options.curves, run)


if __name__ == "__main__":
    main()
