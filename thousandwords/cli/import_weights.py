"""python -m thousandwords convert --encoder encoder.pkl --decoder decoder.pkl --out models/released

Turns the released weights of DALL-E's image tokenizer into a folder of safetensors, without running their pickles. Name
that folder as `image_tokenizer.init` in params.yaml, and the pipeline uses it in place of one that it trains.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from thousandwords.released import convert


def add_to(subparsers) -> argparse.ArgumentParser:
    """The command line of `convert`."""
    parser = subparsers.add_parser("convert", help="released weights in, a tokenizer of ours out", description=__doc__)
    parser.add_argument("--encoder", type=Path, default=Path("encoder.pkl"), help="(default: encoder.pkl)")
    parser.add_argument("--decoder", type=Path, default=Path("decoder.pkl"), help="(default: decoder.pkl)")
    parser.add_argument("--out", type=Path, default=Path("models/released"), help="(default: models/released)")
    parser.add_argument("--encoder-sha256", help="refuse another file than this one")
    parser.add_argument("--decoder-sha256", help="refuse another file than this one")
    return parser


def run(options: argparse.Namespace) -> None:
    """Converts both files, and tells what they were and what became of them."""
    pickles = {"encoder": options.encoder, "decoder": options.decoder}
    pins = {"encoder": options.encoder_sha256, "decoder": options.decoder_sha256}
    fingerprint = convert(pickles, options.out, pins)
    header = json.loads((options.out / "config.json").read_bytes())
    for half, path in pickles.items():
        print(f"{half}: {path}, sha256 {header['pickle_sha256'][half]}")
    print(f"{options.out}: fingerprint {fingerprint}. Use it by image_tokenizer.init: {options.out}")
