"""Pairs -> CLIP (models/scorer), which ranks candidates; or a pretrained open_clip model, used as it is."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from stages.runtime.program import program
from stages.runtime.run_training import train
from stages.runtime.stage import Stage
from thousandwords import components
from thousandwords.core.config import model_block, section
from thousandwords.core.files import write_json
from thousandwords.core.init_models import ModelConfig
from thousandwords.core.rng import step_rng
from thousandwords.data.images import to_float
from thousandwords.data.loader import ImageLoader
from thousandwords.data.pair_shards import open_pairs
from thousandwords.data.recaptions import open_recaptions
from thousandwords.data.sampler import first_rows
from thousandwords.nn import metrics
from thousandwords.text.normalize import normalize
from thousandwords.training.config import TrainingConfig

VALIDATION_PAIRS = 256  # evaluated during training


def train_scorer(
    pairs: Path, out: Path, curves: Path, context: Stage, recaptions: Path | None = None
) -> None:
    block = context.params.get("scorer") or {}
    model_block(block, "scorer", ModelConfig)
    config = section(block["training"], "scorer.training", TrainingConfig)
    reader = open_pairs(pairs, "train", open_recaptions(recaptions, pairs))
    held_out = open_pairs(pairs, "validation")
    device = context.world.device
    torch.manual_seed(context.seed)
    model, origin = components.first_model("scorers", block, "scorer", image_size=reader.image_size)
    model.to(device)
    history: list[dict[str, float]] = []
    state = None
    if model.is_trainable:
        indices = first_rows(VALIDATION_PAIRS, len(held_out), held_out.mixture)
        images = to_float(held_out.images(indices)).to(device)
        validation = images, [normalize(held_out.captions(row)[0]) for row in indices]
        loader = ImageLoader(reader, context.seed)

        def pairs_of(rows: Sequence[int]) -> tuple[torch.Tensor, list[str]]:
            return loader.batch(rows), [normalize(caption) for caption in loader.captions(rows)]

        state, history = train(
            context,
            model,
            config,
            batch_of=pairs_of,
            to_device=lambda batches: [(images.to(device), captions) for images, captions in batches],
            loss_of=lambda model, batch, step, rng: model.loss(*batch, step, rng, context.world.gather_rows),
            evaluate=lambda model: retrieval(model, *validation),
            settings=block,
            inputs=(reader.fingerprint, *origin.values()),
        )
    if context.world.is_main_process:
        components.save(model, out, state, **origin)
        write_json(curves, history)


def retrieval(model: nn.Module, images: torch.Tensor, captions: list[str]) -> dict[str, float]:
    """The loss, and how often the right caption among those of all pairs is the nearest to an image."""
    loss, _ = model.loss(images, captions, 0, step_rng(0, 0))
    similarity = model.embed_images(images) @ model.embed_captions(captions).T
    return {"loss": float(loss), "top1": metrics.top1(similarity.float().cpu().numpy())}


main = program(train_scorer, "scorer", trains="scorer", shares_cores=True)


if __name__ == "__main__":
    main()
