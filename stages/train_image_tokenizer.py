"""The training pictures -> a discrete VAE (models/image_tokenizer), its curves, and a look at what it keeps.

With `image_tokenizer.init` the tokenizer of that folder is checked and taken over, and nothing is trained.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from stages import _pretrained
from stages._launch import launch_processes, share_cores
from stages._pairs import open_pairs
from stages._progress import progress
from stages._stage import Stage, arguments, stage
from stages._training import device_of, train
from thousandwords import components, images, metrics, training
from thousandwords.config import section
from thousandwords.files import write_bytes, write_json
from thousandwords.loader import Ahead, ImageLoader, positions
from thousandwords.seeds import step_rng
from thousandwords.shards import in_order

LOOK = 256  # validation pictures that are watched while training


def train_image_tokenizer(pairs: Path, out: Path, curves: Path, run: Stage) -> None:
    block = run.params.get("image_tokenizer") or {}
    settings = _pretrained.check_block(block)
    if _pretrained.folder_of(block):
        return take_over(block, pairs, out, curves, run)
    config = section(block["training"], "image_tokenizer.training", training.Config)
    reader, held_out = open_pairs(pairs, "train"), open_pairs(pairs, "validation")
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

    def parts_of(step: int) -> list[Tensor]:
        return [loader.batch(share) for share in run.world.shares(positions(step, config.batch_size), config.accumulation)]

    with Ahead(parts_of, config.steps, config.workers_on(device)) as parts:
        state, history = train(
            run,
            model,
            config,
            batches_of=lambda step: [part.to(device) for part in parts(step)],
            loss_of=lambda model, batch, step, rng: model.loss(batch, step, rng),
            evaluate=lambda model: look(model, watched),
            settings=block,
            inputs=(reader.fingerprint,),
        )
    if run.world.is_first:
        components.save(model, out, state)
        write_json(curves, history)
        _show(components.load("tokenizers", out), watched.cpu()[:16], curves.with_suffix(".png"), run)


def take_over(block: dict, pairs: Path, out: Path, curves: Path, run: Stage) -> None:
    """The tokenizer of `image_tokenizer.init`, checked, for pictures of this size; looked at as a trained one would be."""
    held_out = open_pairs(pairs, "validation")
    model = _pretrained.load(block, held_out.image_size).to(device_of(run))
    watched = images.to_float(held_out.images(list(range(min(LOOK, len(held_out))))))
    tokens, decoded = _through(model, watched)
    figures = {f"validation/{name}": value for name, value in _figures(model, watched, tokens, decoded).items()}
    components.save(model, out, **_pretrained.facts_of(model))
    run.log(0, figures)
    write_json(curves, [{"step": 0, **figures}])
    _write_sheet(watched[:16], decoded[:16], curves.with_suffix(".png"), run)
    print(f"{run.name}: took over {block['init']} (fingerprint {model.fingerprint}); nothing was trained", flush=True)


def _through(model: nn.Module, watched: Tensor) -> tuple[Tensor, Tensor]:
    """(words, pictures drawn of them), on the CPU, in parts that fit into memory."""
    device, parts = next(model.parameters()).device, []
    batches = list(in_order(len(watched), model.images_at_once))
    for rows in progress(batches, "train_image_tokenizer: looking", len(batches), "batch"):
        tokens = model.encode(watched[rows].to(device))
        parts.append((tokens.cpu(), model.decode(tokens).cpu()))
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([decoded for _, decoded in parts])


def look(model: nn.Module, watched: Tensor) -> dict[str, float]:
    """Hard (arg-max) PSNR, and how much of the codebook held-out pictures use: the figures that cannot flatter."""
    tokens = torch.cat([model.encode(watched[rows]) for rows in in_order(len(watched), model.images_at_once)])
    decoded = torch.cat([model.decode(tokens[rows]) for rows in in_order(len(watched), model.images_at_once)])
    return _figures(model, watched, tokens, decoded)


def _figures(model: nn.Module, watched: Tensor, tokens: Tensor, decoded: Tensor) -> dict[str, float]:
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
    _write_sheet(originals, model.decode(model.encode(originals)), path, run)


def _write_sheet(originals: Tensor, decoded: Tensor, path: Path, run: Stage) -> None:
    rows = [part for start in range(0, len(originals), 8) for part in (originals[start:][:8], decoded[start:][:8])]
    sheet = images.grid(images.to_uint8(torch.cat(rows)), columns=8)
    write_bytes(path, images.encode_png(sheet))
    run.record_files(path)


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "pairs", "out", "curves", argv=argv)
    share_cores()
    launch_processes("train_image_tokenizer", options.params, "image_tokenizer", argv)
    with stage("train_image_tokenizer", options, "image_tokenizer", "data") as run:
        train_image_tokenizer(options.pairs, options.out, options.curves, run)


if __name__ == "__main__":
    main()
