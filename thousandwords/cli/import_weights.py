"""python -m thousandwords import-weights --from llamagen --weights vq_ds16_c2i.pt

Convert a published image tokenizer to a folder of safetensors, without running its pickles: the DALL-E release
(--from dalle, the default), or one of taming-transformers, LlamaGen or VAR. Set `image_tokenizer.init` in params.yaml to
that folder, and the pipeline uses it instead of training one.
"""

import argparse
import json
from pathlib import Path

from thousandwords.core.errors import UserError
from thousandwords.pretrained import dalle_release, var_weights, vqgan_weights
from thousandwords.pretrained.torch_container import is_legacy


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--from",
        dest="source",
        choices=["dalle", *vqgan_weights.LAYOUTS, "var"],
        default="dalle",
        help="whose weights they are (default: dalle)",
    )
    add("--encoder", type=Path, default=Path("encoder.pkl"), help="of dalle (default: encoder.pkl)")
    add("--decoder", type=Path, default=Path("decoder.pkl"), help="of dalle (default: decoder.pkl)")
    add("--weights", type=Path, help="the checkpoint of taming, llamagen or var")
    add("--out", type=Path, help="(default: models/dalle_release, models/taming_release, ...)")
    for name in ("encoder", "decoder", "weights"):
        add(f"--{name}-sha256", help="reject a file with another sha256")


def run(options: argparse.Namespace) -> None:
    """Convert the file or both files, and print their sha256 and the fingerprint of the folder."""
    out = options.out or Path(f"models/{options.source}_release")
    if (options.weights is None) != (options.source == "dalle"):
        raise UserError(
            "--weights names the checkpoint of --from taming, --from llamagen or --from var. Give both or neither"
        )
    names = ["encoder", "decoder"] if options.source == "dalle" else ["weights"]
    files = {name: getattr(options, name) for name in names}
    expected_sha256 = {name: getattr(options, f"{name}_sha256") for name in names}
    if options.source == "dalle":
        fingerprint = dalle_release.import_weights(files, out, expected_sha256)
    elif options.source == "var":
        fingerprint = var_weights.import_weights(files["weights"], out, expected_sha256["weights"])
    else:
        fingerprint = vqgan_weights.import_weights(
            files["weights"], options.source, out, expected_sha256["weights"]
        )
    header = json.loads((out / "config.json").read_bytes())
    for name, path in files.items():
        print(f"{name}: {path}, sha256 {header['pickle_sha256'][name]}")
        if is_legacy(path) and expected_sha256[name] is None:
            print(
                f"{name}: torch's legacy container has no checksum; only --{name}-sha256 sees a damaged number in it"
            )
    if part := header.get("pickle_part"):
        print(f"weights: those under {part!r} in the checkpoint")
    print(
        f"{out}: fingerprint {fingerprint}. Use it by image_tokenizer: {{kind: {header['kind']}, init: {out}}}"
    )
