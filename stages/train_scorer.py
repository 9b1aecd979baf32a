"""Pairs -> CLIP (models/scorer), which ranks candidates; or a pretrained open_clip model, taken as it is."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stages._launch import launch_processes, share_cores
from stages._pairs import open_pairs
from stages._stage import Stage, arguments, stage
from stages._training import device_of, train
from thousandwords import components, images, metrics, training
from thousandwords.config import check_keys, section
from thousandwords.files import write_json
from thousandwords.loader import Ahead, ImageLoader, positions
from thousandwords.pair_shards import PairReader
from thousandwords.seeds import step_rng
from thousandwords.text import normalise

LOOK = 256  # validation pairs that are watched while training


def train_scorer(pairs: Path, out: Path, curves: Path, run: Stage) -> None:
    block = run.params.get("scorer") or {}
    check_keys(block, "scorer", ["kind", block.get("kind"), "training"])
    config = section(block["training"], "scorer.training", training.Config)
    reader, held_out = open_pairs(pairs, "train"), open_pairs(pairs, "validation")
    device = device_of(run)
    torch.manual_seed(run.seed)
    model = components.build(
        "scorers",
        block["kind"],
        components.model_config("scorers", block, "scorer"),
        image_size=reader.image_size,
    ).to(device)
    history: list[dict[str, float]] = []
    state = None
    if model.is_trainable:
        watched = list(range(min(LOOK, len(held_out))))
        watched_pairs = _watched(held_out, watched, device)
        loader = ImageLoader(reader, run.seed)

        def pairs_of(step: int) -> tuple[torch.Tensor, list[str]]:
            (share,) = run.world.shares(positions(step, config.batch_size))
            return _batch(loader, share)

        with Ahead(pairs_of, config.steps, config.workers_on(device)) as shown:
            state, history = train(
                run,
                model,
                config,
                batches_of=lambda step: [_on(device, *shown(step))],
                loss_of=lambda model, batch, step, rng: model.loss(*batch, step, rng, run.world.gather_rows),
                evaluate=lambda model: retrieval(model, *watched_pairs),
                settings=block,
                inputs=(reader.fingerprint,),
            )
    if run.world.is_first:
        components.save(model, out, state)
        write_json(curves, history)


def retrieval(model: nn.Module, pictures: torch.Tensor, captions: list[str]) -> dict[str, float]:
    """How often the right caption, among those of all watched pairs, is the nearest to a picture; and the loss."""
    loss, _ = model.loss(pictures, captions, 0, step_rng(0, 0))
    similarity = model.embed_images(pictures) @ model.embed_captions(captions).T
    return {"loss": float(loss), "top1": metrics.top1(similarity.float().cpu().numpy())}


def _watched(reader: PairReader, indices: list[int], device: str) -> tuple[torch.Tensor, list[str]]:
    pictures = images.to_float(reader.images(indices)).to(device)
    return pictures, [normalise(reader.captions(row)[0]) for row in indices]


def _batch(loader: ImageLoader, shown: range) -> tuple[torch.Tensor, list[str]]:
    return loader.batch(shown), [normalise(caption) for caption in loader.captions(shown)]


def _on(device: str, pictures: torch.Tensor, captions: list[str]) -> tuple[torch.Tensor, list[str]]:
    return pictures.to(device), captions


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "pairs", "out", "curves", argv=argv)
    share_cores()
    launch_processes("train_scorer", options.params, "scorer", argv)
    with stage("train_scorer", options, "scorer") as run:
        train_scorer(options.pairs, options.out, options.curves, run)


if __name__ == "__main__":
    main()
