"""python -m scripts.make_example: write models/package in half precision into the library, as its example model.

Run it after `make run PRESET=example`. The figures in its card are those of the halved weights.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from thousandwords.api import EXAMPLE, LAST_RUN, read_package
from thousandwords.core.command_line import one_sentence
from thousandwords.core.files import write_bytes
from thousandwords.core.manifest import read_manifest
from thousandwords.core.model_files import read_model, write_model
from thousandwords.core.progress import progress
from thousandwords.data.images import to_float
from thousandwords.inference.batched import decode_in_batches, encode_in_batches
from thousandwords.inference.package import FAMILIES, Package, write_package
from thousandwords.nn.metrics import mean_psnr
from thousandwords.scenes.parse import match_caption
from thousandwords.scenes.render import scene_pairs

CARD = """\
# The example model

What `make generate`, `make studio` and `thousandwords.load()` use before a first run: `PRESET=example` of this project, seed 0, in half
precision ({size:.1f} MB). It generates scenes of two shapes on a background, 64×64, from captions such as "a small red star above a large blue
square"; of other words it says that it never saw them. All training images were rendered by this project; Apache-2.0.

| figure | value |
|---|---|
| hard reconstruction by the decoder, {num_images} held-out scenes | {psnr:.2f} dB PSNR |
| every attribute of the caption right, {num_captions} held-out captions: one sample / best of {candidates} | {seen[0]:.1%} / {seen[1]:.1%} |
| the same, pairs of color and shape never seen in training | {unseen[0]:.1%} / {unseen[1]:.1%} |

Made by `python -m scripts.make_example`; package `{fingerprint}`.
"""
NUM_IMAGES, NUM_CAPTIONS, CANDIDATES = 200, 96, 16


def write_half(package: Path, out: Path) -> None:
    """The package with float16 in place of float32; a model that names the image tokenizer names the new one."""
    settings = read_package(package, "cpu").settings  # every file is verified
    metadata = json.loads((package / "package.json").read_bytes())
    others = {key: value for key, value in metadata.items() if key not in ("parts", "sampling")}
    fingerprints: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        parts = {name: Path(folder) / name for name in FAMILIES if name in metadata["parts"]}
        for name, part in parts.items():
            saved = read_model(package / name)
            state = {
                key: tensor.half() if tensor.is_floating_point() else tensor
                for key, tensor in saved.state.items()
            }
            header = saved.header | {
                name: fingerprints[name] for name in fingerprints if name in saved.header
            }
            fingerprints[name] = write_model(part, header, state)
        parts["text_tokenizer"] = package / "text_tokenizer"
        write_package(out, parts, settings, others)


def reconstruction_psnr(package: Package, count: int = NUM_IMAGES) -> float:
    """dB, the mean over the first `count` held-out scenes of each image's PSNR."""
    images = np.stack(
        [image for _, image, _ in scene_pairs(count, 0, "validation", package.image_tokenizer.image_size)]
    )
    tokens = encode_in_batches(package.image_tokenizer, images)
    return mean_psnr(to_float(images), decode_in_batches(package.image_tokenizer, tokens))


def caption_match(package: Package, split: str) -> tuple[float, float]:
    """The share of samples with every attribute right: of all, and of the best by CLIP of each caption."""
    captions = [caption for _, _, caption in scene_pairs(NUM_CAPTIONS, 0, split)]
    rows = []
    for caption in progress(captions, f"make_example: {split}", len(captions), "caption"):
        candidates = package.generate(caption, CANDIDATES)
        rows.append([all(match_caption(each.image, caption).values()) for each in candidates])
    matches = np.array(rows)
    return float(matches.mean()), float(matches[:, 0].mean())


def main() -> None:
    with one_sentence("make_example"):
        write_half(LAST_RUN, EXAMPLE)
        package = read_package(EXAMPLE, "cpu")
        with torch.no_grad():
            psnr = reconstruction_psnr(package)
        card = CARD.format(
            size=sum(path.stat().st_size for path in EXAMPLE.rglob("*") if path.is_file()) / 1e6,
            num_images=NUM_IMAGES,
            psnr=psnr,
            num_captions=NUM_CAPTIONS,
            candidates=CANDIDATES,
            seen=caption_match(package, "validation"),
            unseen=caption_match(package, "unseen"),
            fingerprint=read_manifest(EXAMPLE)["sha256"][:12],
        )
        write_bytes(EXAMPLE / "README.md", card.encode())
        print(card)


if __name__ == "__main__":
    main()
