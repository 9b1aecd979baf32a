"""python -m bench.decoders [--kinds unet,flow,consistency] [--updates 300,900 | --minutes 2,6] [--seeds 0,1]: decoders.

All are trained on the tokens of one trained image tokenizer, that of `--package`; each has the settings of its preset and
nothing else changed, and those that count updates are scaled to the updates of the run. Images are the built-in scenes, or `--pairs`.
A kind with `steps` is judged with 1, 2 and 4 of them, by the same weights.

Of each, over held-out images: PSNR in dB; sharpness, as a share of that of the true images; the Fréchet distance to the
true images by the features of the package's scorer, and by those of such a network that was never trained, each in units of its deviation; "read", the share of captions that
are right in the decoder's images, of scenes; the seconds in which 16 images are decoded; the minutes of the training. A Fréchet distance falls with noise that looks
like detail, so look at the sheet too: true images, the tokenizer's, and each decoder's of the same tokens, one above the other.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench import _results as results
from bench._results import Row
from bench._runs import add_runs, read_runs
from bench.tokenizers import READ_IMAGES, merged, run_stages, share_read
from thousandwords import components
from thousandwords.api import EXAMPLE
from thousandwords.core.command_line import one_sentence
from thousandwords.core.files import write_bytes
from thousandwords.data.contact_sheet import make_contact_sheet
from thousandwords.data.images import encode_png, to_float, to_uint8
from thousandwords.data.pair_shards import PairReader, open_pairs, splits
from thousandwords.data.sampler import first_rows
from thousandwords.evaluation.features import scorer_extractor
from thousandwords.evaluation.fid import frechet_distance
from thousandwords.evaluation.reconstruction import sharpness
from thousandwords.inference.batched import decode_in_batches
from thousandwords.nn.metrics import mean_psnr
from thousandwords.planning.presets import read_preset
from thousandwords.scenes.render import is_scene_caption

KINDS = {"unet": "default", "flow": "flow", "consistency": "consistency"}  # kind: its preset
SHEET_IMAGES = 10
STEPS = (1, 2, 4)  # that a decoder with steps is judged with
PAINTED = 16  # images whose seconds are measured
TRIAL_UPDATES = (10, 40)  # the seconds of an update are measured between them
COLUMNS = {
    "psnr": "dB",
    "psnr_unseen": "dB unseen",
    "sharpness": "sharpness",
    "frechet_scorer": "Fréchet, scorer",
    "frechet_untrained": "Fréchet, untrained",
    "read": "read",
    "read_unseen": "read unseen",
    "seconds_of_16": "s for 16",
    "minutes": "minutes",
}


@dataclass(frozen=True)
class Training:
    """One training of a decoder."""

    kind: str
    updates: int
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.updates}-{self.seed}"


@dataclass(frozen=True)
class HeldOut:
    """Images of a split (B, 3, H, W) in [0, 1], their captions, their tokens (B, L), and the tokenizer's images of these."""

    images: Tensor
    captions: list[str]
    tokens: Tensor
    decoded: Tensor


def settings(training: Training, changes: dict) -> dict:
    """The settings of a training; `changes` are merged into those of the preset."""
    params = read_preset(KINDS[training.kind])
    block = params["decoder"] = merged(params["decoder"], changes)
    share = training.updates / block["training"]["steps"]
    block["training"] |= dict.fromkeys(("steps", "evaluate_every", "checkpoint_every"), training.updates)
    block["training"]["warmup_steps"] = min(block["training"]["warmup_steps"], training.updates // 6)
    model = block[training.kind]
    model |= {key: round(share * model[key]) for key in model if key.endswith("_from")}
    return params | {"seed": training.seed}


def train(training: Training, folder: Path, shared: Path, changes: dict) -> float:
    """Train a decoder in the folder; the seconds it took. Raises UserError."""
    shutil.copytree(shared, folder)
    run_stages(folder, settings(training, changes), ["train_decoder"])
    return seconds_of_training(folder)


def seconds_of_training(folder: Path) -> float:
    return json.loads((folder / "results/runs/train_decoder.json").read_bytes())["seconds"]


def updates_in(minutes: float, kind: str, folder: Path, shared: Path, changes: dict) -> int:
    """How many updates of a kind take so many minutes here, from two short trainings."""
    trials = [Training(kind, count, 0) for count in TRIAL_UPDATES]
    seconds = [train(trial, folder / str(trial), shared, changes) for trial in trials]
    each = (seconds[1] - seconds[0]) / (TRIAL_UPDATES[1] - TRIAL_UPDATES[0])
    return max(TRIAL_UPDATES[1], round(60 * minutes / each))


def read_held_out(reader: PairReader, tokenizer: nn.Module, count: int) -> HeldOut:
    """The first `count` images of a split, from all sources."""
    rows = first_rows(min(count, len(reader)), len(reader), reader.mixture)
    images = to_float(reader.images(rows))
    tokens = torch.cat([tokenizer.encode(part) for part in images.split(tokenizer.max_batch_size)])
    captions = [reader.captions(row)[0] for row in rows]
    return HeldOut(images, captions, tokens, decode_in_batches(tokenizer, tokens))


def decode(decoder: nn.Module, held_out: HeldOut) -> Tensor:
    """The decoder's images (B, 3, H, W) in [0, 1]."""
    parts = zip(held_out.tokens.split(64), held_out.decoded.split(64), strict=True)
    return torch.cat([decoder.decode(tokens, images) for tokens, images in parts])


def variants(name: str, decoder: nn.Module) -> Iterator[str]:
    """The names of what a decoder is judged with; while one is in use the decoder has its number of steps."""
    config = decoder.config
    if not hasattr(config, "steps"):
        yield name
        return
    for steps in STEPS:
        decoder.config = dataclasses.replace(config, steps=steps)
        yield f"{name}, {steps} step{'s' * (steps > 1)}"
    decoder.config = config


class Judge:
    """Figures of decoded images, compared with the true ones of each split."""

    def __init__(self, package: Path, pairs: Path, count: int):
        tokenizer = components.load("image_tokenizers", package / "image_tokenizer")
        scorer = components.load("scorers", package / "scorer")
        built_as = scorer.built_as
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            untrained = components.build(
                "scorers", built_as["kind"], scorer.config, **built_as["arguments"]
            ).eval()
        self.extractors = {
            "frechet_scorer": scorer_extractor(scorer),
            "frechet_untrained": scorer_extractor(untrained),
        }
        self.held_out = {
            name: read_held_out(open_pairs(pairs, name), tokenizer, count) for name in splits(pairs)[1:]
        }
        self.first = next(iter(self.held_out.values()))
        self.true_features = {name: self._features(name, self.first.images) for name in self.extractors}
        # those of the untrained network hardly differ: in units of their deviation over the true images
        self.units = {name: torch.ones(()) for name in self.extractors}
        self.units["frechet_untrained"] = self.true_features["frechet_untrained"].std(dim=0)

    def _features(self, name: str, images: Tensor) -> Tensor:
        return torch.cat([self.extractors[name](part)[0].double() for part in images.split(64)])

    def figures(self, decoded: dict[str, Tensor]) -> dict[str, float]:
        """Figures of the images of each split; those of the first split have plain names."""
        figures = {}
        for number, (split, images) in enumerate(decoded.items()):
            held_out, end = self.held_out[split], f"_{split}" * (number > 0)
            figures[f"psnr{end}"] = mean_psnr(held_out.images, images)
            if is_scene_caption(held_out.captions[0]):
                figures[f"read{end}"] = share_read(images, held_out.captions[:READ_IMAGES])
            if number == 0:
                figures["sharpness"] = sharpness(images) / sharpness(held_out.images)
                for name, true in self.true_features.items():
                    unit = self.units[name]
                    figures[name] = frechet_distance(self._features(name, images) / unit, true / unit)
        return figures


def seconds_of(decoder: nn.Module, held_out: HeldOut) -> float:
    """The seconds in which PAINTED images are decoded from their tokens."""
    tokens, images = held_out.tokens[:PAINTED], held_out.decoded[:PAINTED]
    return results.seconds(lambda: decoder.decode(tokens, images))[0]


@torch.no_grad()
def judge(training: Training, folder: Path, judged: Judge) -> Iterator[tuple[str, dict[str, float], Tensor]]:
    """(name, figures, the first images) of a trained decoder, with each number of steps."""
    decoder = components.load("decoders", folder / "models/decoder")
    minutes = seconds_of_training(folder) / 60
    for name in variants(training.kind, decoder):
        decoded = {split: decode(decoder, held_out) for split, held_out in judged.held_out.items()}
        seconds = seconds_of(decoder, judged.first)
        figures = judged.figures(decoded) | {"seconds_of_16": seconds, "minutes": minutes}
        yield name, figures, next(iter(decoded.values()))[:SHEET_IMAGES]


def line(name: str, updates: int | str, seed: int | str, figures: dict[str, float]) -> str:
    """A line of the table."""
    cells = [f"{figures[key]:.4g}" if key in figures else "" for key in COLUMNS]
    return f"| {name} | {updates} | {seed} | {' | '.join(cells)} |"


def make_sheet(rows: dict[str, Tensor]) -> np.ndarray:
    """A row of images for each name: uint8 (H', W', 3)."""
    images = to_uint8(torch.cat([images[:SHEET_IMAGES] for images in rows.values()]))
    columns = len(images) // len(rows)
    return make_contact_sheet(images, columns=columns, zoom=max(1, 128 // images.shape[1]))


def row_of(name: str, training: Training, figures: dict[str, float], of_tokenizer: float) -> Row:
    """PSNR compared with the tokenizer's own, and every other figure in words."""
    text = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
    what = f"{name}, {training.updates} updates, seed {training.seed}: {text}"
    identity = f"decoder_{training.kind}"
    return Row(identity, what, "held-out images", figures["psnr"], "dB", "tokenizer", of_tokenizer)


def main(argv: list[str] | None = None) -> None:
    arguments = results.parser_of(__doc__)
    add_runs(arguments, KINDS, "decoders", "`decoder`")
    add = arguments.add_argument
    add("--updates", help="of each training, as in 300,900 (default: those of the preset)")
    add("--minutes", help="of each training, as in 2,6, in place of updates")
    add("--package", type=Path, default=EXAMPLE, help="its image tokenizer and scorer (default: the example)")
    add("--pairs", type=Path, help="pairs of your own (default: the built-in scenes)")
    add("--images", type=int, default=1000, help="of each held-out split that is decoded (default: 1000)")
    options = arguments.parse_args(argv)
    if options.updates and options.minutes:
        arguments.error("give --updates or --minutes, not both")
    runs = read_runs(arguments, options, KINDS)
    changes = runs.changes
    shared = options.folder / "shared"
    if options.pairs:
        shutil.copytree(options.pairs, shared / "data/pairs")
    else:
        run_stages(shared, read_preset("default"), ["prepare_pairs"])
    shutil.copytree(options.package / "image_tokenizer", shared / "models/image_tokenizer")

    def lengths(kind: str) -> list[int]:
        if options.minutes:
            trials, minutes = options.folder / "trials", map(float, options.minutes.split(","))
            return [updates_in(each, kind, trials / f"{each:g}", shared, changes) for each in minutes]
        if options.updates:
            return [int(count) for count in options.updates.split(",")]
        return [read_preset(KINDS[kind])["decoder"]["training"]["steps"]]

    judged = Judge(options.package, shared / "data/pairs", options.images)
    own = judged.figures({split: held_out.decoded for split, held_out in judged.held_out.items()})
    lines, sheet = [line("tokenizer", "", "", own)], {"true": judged.first.images}
    sheet["tokenizer"] = judged.first.decoded
    for training in [
        Training(kind, count, seed) for kind in runs.kinds for count in lengths(kind) for seed in runs.seeds
    ]:
        started, folder = time.monotonic(), options.folder / str(training)
        train(training, folder, shared, changes)
        for name, figures, images in judge(training, folder, judged):
            lines.append(line(name, training.updates, training.seed, figures))
            sheet[f"{name}, {training.updates} updates, seed {training.seed}"] = images
            results.record([row_of(name, training, figures, own["psnr"])], options.out)
            print(lines[-1], file=sys.stderr, flush=True)
        print(f"{training}: {(time.monotonic() - started) / 60:.1f} minutes", file=sys.stderr, flush=True)
        write_bytes(options.folder / "sheet.png", encode_png(make_sheet(sheet)))
    header = f"| decoder | updates | seed | {' | '.join(COLUMNS.values())} |"
    print("\n".join([header, f"|{'---|' * (len(COLUMNS) + 3)}", *lines]))
    print(f"{options.folder}/sheet.png, from above: {'; '.join(sheet)}")


if __name__ == "__main__":
    with one_sentence("decoders"):
        main()
