"""python -m thousandwords import-weights --encoder encoder.pkl --decoder decoder.pkl --out
models/dalle_release

Convert the DALL-E release's image tokenizer to a folder of safetensors, without running its pickles. Set
`image_tokenizer.init` in params.yaml to that folder, and the pipeline uses it instead of training one.
"""

import argparse
import json
from pathlib import Path

from thousandwords.pretrained.dalle_release import import_weights
from thousandwords.pretrained.torch_container import is_legacy


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--encoder", type=Path, default=Path("encoder.pkl"), help="(default: encoder.pkl)")
    add("--decoder", type=Path, default=Path("decoder.pkl"), help="(default: decoder.pkl)")
    add("--out", type=Path, default=Path("models/dalle_release"), help="(default: models/dalle_release)")
    add("--encoder-sha256", help="reject a file with another sha256")
    add("--decoder-sha256", help="reject a file with another sha256")


def run(options: argparse.Namespace) -> None:
    """Convert both files, and print their sha256 and the fingerprint of the folder."""
    pickles = {"encoder": options.encoder, "decoder": options.decoder}
    expected_sha256 = {"encoder": options.encoder_sha256, "decoder": options.decoder_sha256}
    fingerprint = import_weights(pickles, options.out, expected_sha256)
    header = json.loads((options.out / "config.json").read_bytes())
    for half, path in pickles.items():
        print(f"{half}: {path}, sha256 {header['pickle_sha256'][half]}")
        if is_legacy(path) and expected_sha256[half] is None:
            print(
                f"{half}: torch's legacy container has no checksum; only --{half}-sha256 sees a damaged number in it"
            )
    print(f"{options.out}: fingerprint {fingerprint}. Use it by image_tokenizer.init: {options.out}")
