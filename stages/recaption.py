"""Training pairs -> a captioner (models/captioner), and its captions of a share of them (data/recaptions).

Generator and scorer are trained on these in place of the original captions of those pairs (DALL-E 3: most captions of
the web say little of their image). Held-out pairs keep their own. With `captioner: {kind: none}` no caption is written.
Captions of each shard of pairs are cached in `.store/recaptions`, so that a killed run goes on at the shard where it was.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor, nn

from stages.runtime.program import program
from stages.runtime.run_training import train
from stages.runtime.stage import Stage, code_digest
from thousandwords import components
from thousandwords.core.cache import STORE, Store
from thousandwords.core.config import model_block, section
from thousandwords.core.files import fingerprint, write_bytes, write_json
from thousandwords.core.manifest import read_manifest, write_manifest
from thousandwords.core.params import flatten
from thousandwords.core.parquet import table_bytes
from thousandwords.core.progress import progress
from thousandwords.core.rng import step_rng
from thousandwords.data.images import to_float
from thousandwords.data.loader import ImageLoader
from thousandwords.data.pair_shards import FIX, PairReader, open_pairs, shard_names
from thousandwords.data.recaptions import (
    RecaptionConfig,
    is_recaptioned,
    read_table,
    recaption_table,
    write_recaptions,
)
from thousandwords.data.sampler import first_rows
from thousandwords.inference.caption_figures import describe_captions, scene_accuracy
from thousandwords.inference.captions import caption_images, caption_seed
from thousandwords.scenes.render import is_scene_caption
from thousandwords.text.bpe import TextTokenizer, load
from thousandwords.training.config import TrainingConfig

VALIDATION_PAIRS = 256  # evaluated during training
DESCRIBED_IMAGES = 1000  # held out, captioned for the figures
ROWS = "captions.parquet"  # the file of a store's entry: the captions of one shard


def recaption(
    pairs: Path, text_tokenizer: Path, out: Path, captions: Path, curves: Path, context: Stage
) -> None:
    block = context.params.get("captioner") or {}
    settings = model_block(block, "captioner", RecaptionConfig)
    tokenizer, manifest = load(text_tokenizer), read_manifest(pairs, verify=False, fix=FIX)
    image_size, device = manifest["facts"]["image_size"], context.world.device
    sizes = {"text_vocab_size": tokenizer.vocab_size, "text_length": tokenizer.text_length}
    torch.manual_seed(context.seed)
    config = components.model_config("captioners", block, "captioner")
    model = components.build("captioners", block["kind"], config, image_size=image_size, **sizes)
    if not model.is_trainable:
        components.save(model, out)
        write_recaptions(captions, {}, {"captioner": None})
        write_json(curves, [])
        return
    reader, held_out = open_pairs(pairs, "train"), open_pairs(pairs, "validation")
    indices = first_rows(VALIDATION_PAIRS, len(held_out), held_out.mixture, repeat=True)
    validation = (
        to_float(held_out.images(indices)).to(device),
        tokenizer.encode([held_out.captions(row)[0] for row in indices]).to(device),
    )
    loader = ImageLoader(reader, context.seed)

    def pairs_of(rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        return loader.batch(rows), tokenizer.encode(loader.captions(rows))

    state, history = train(
        context,
        model.to(device),
        section(block["training"], "captioner.training", TrainingConfig),
        batch_of=pairs_of,
        to_device=lambda batches: [(images.to(device), text.to(device)) for images, text in batches],
        loss_of=lambda model, batch, step, rng: model.loss(*batch, step, rng),
        evaluate=lambda model: {"loss": float(model.loss(*validation, 0, step_rng(0, 0))[0])},
        # how captions are chosen trains no weight
        settings={key: block[key] for key in ("kind", block["kind"], "training")},
        inputs=(reader.fingerprint, tokenizer.fingerprint),
    )
    if context.world.is_main_process:
        choice = {"candidates": settings.candidates, "top_p": settings.top_p}
        components.save(model, out, state, text_tokenizer=tokenizer.fingerprint, captions=choice)
        write_json(curves, history)
        saved = components.load("captioners", out).to(device)
        figures = describe(saved, tokenizer, held_out, settings, context)
        tables = caption_shards(pairs, saved, tokenizer, settings, context)
        metadata = {"captioner": saved.fingerprint, "pairs": manifest["sha256"], "seed": context.seed}
        metadata |= {"settings": vars(settings), "figures": figures}
        write_recaptions(captions, tables, metadata)


def caption_shards(
    pairs: Path, model: nn.Module, tokenizer: TextTokenizer, settings: RecaptionConfig, context: Stage
) -> dict[str, pa.Table]:
    """{shard of training pairs: the second captions of the chosen ones}"""
    manifest = read_manifest(pairs, fix=FIX)
    identity = {"captioner": model.fingerprint, "settings": vars(settings), "seed": context.seed}
    identity |= {"device": context.world.device.partition(":")[0], "torch": torch.__version__}
    identity |= {"code": code_digest()}
    names = shard_names(manifest, "train")
    keys = {name: fingerprint(identity | {"shard": manifest["files"][name]["sha256"]}) for name in names}
    store = Store(STORE / "recaptions")
    store.begin(list(keys.values()))

    def caption_shard(entry: Path, name: str) -> None:
        reader = PairReader.from_shard(pairs, manifest, name)
        rows = [
            row
            for row in range(len(reader))
            if is_recaptioned(reader.key(row), context.seed, settings.recaption_share)
        ]
        texts = caption_rows(model, tokenizer, reader, rows, settings, context)
        # an empty one is none: such a pair keeps its own captions
        written = {reader.key(row): text for row, text in zip(rows, texts, strict=True) if text.strip()}
        provenance = f"captioner {model.fingerprint[:12]}, seed {context.seed}"
        table = recaption_table(list(written), list(written.values()), provenance)
        write_bytes(entry / ROWS, table_bytes(table))
        write_manifest(entry, {ROWS: table.num_rows}, {})

    return {
        name: read_table(store.get(keys[name], partial(caption_shard, name=name)) / ROWS)
        for name in progress(names, "recaption", len(names), "shard")
    }


def caption_rows(
    model: nn.Module,
    tokenizer: TextTokenizer,
    reader: PairReader,
    rows: Sequence[int],
    settings: RecaptionConfig,
    context: Stage,
) -> list[str]:
    """A caption for each of the rows; it depends on its image, the seed and its key."""
    seeds = [caption_seed(context.seed, reader.key(row)) for row in rows]
    return caption_images(model, tokenizer, reader.images(rows), seeds, settings) if rows else []


def describe(
    model: nn.Module,
    tokenizer: TextTokenizer,
    held_out: PairReader,
    settings: RecaptionConfig,
    context: Stage,
) -> dict[str, object]:
    """Figures of the captions of held-out images: how varied they and the originals are; of scenes, how many are right."""
    rows = first_rows(DESCRIBED_IMAGES, len(held_out), held_out.mixture)
    captions = caption_rows(model, tokenizer, held_out, rows, settings, context)
    originals = [held_out.captions(row)[0] for row in rows]
    figures: dict = {"images": len(rows), "captions": describe_captions(captions)}
    figures["originals"] = describe_captions(originals)
    if all(map(is_scene_caption, originals)):
        figures["scenes"] = scene_accuracy(held_out.images(rows), captions)
        share = f"{figures['scenes']['all']:.1%} of {len(rows)} held-out scenes"
        print(f"recaption: every attribute of the caption is right in {share}", flush=True)
    context.record_metrics(flatten(figures))
    return figures


main = program(recaption, "captioner", trains="captioner", shares_cores=True)


if __name__ == "__main__":
    main()
