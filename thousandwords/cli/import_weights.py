"""python -m thousandwords import-weights --from llamagen --weights vq_ds16_c2i.pt

Convert a published image tokenizer to a folder of safetensors, without running its pickles: the DALL-E release
(--from dalle, the default), or one of taming-transformers, LlamaGen or VAR. Set `image_tokenizer.init` in params.yaml to
that folder, and the pipeline uses it instead of training one. --from var_transformer converts a generator: VAR's
class-conditional transformer, with a text tokenizer whose captions are the numbers of the classes.
"""

import argparse
import json
from pathlib import Path

from thousandwords.core.errors import UserError
from thousandwords.pretrained import dalle_release, var_transformer_weights, var_weights, vqgan_weights
from thousandwords.pretrained.torch_container import is_legacy


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--from",
        dest="source",
        choices=["dalle", *vqgan_weights.LAYOUTS, "var", "var_transformer"],
        default="dalle",
        help="whose weights they are (default: dalle)",
    )
    add("--encoder", type=Path, default=Path("encoder.pkl"), help="of dalle (default: encoder.pkl)")
    add("--decoder", type=Path, default=Path("decoder.pkl"), help="of dalle (default: decoder.pkl)")
    add("--weights", type=Path, help="the checkpoint of taming, llamagen, var or var_transformer")
    add(
        "--image-tokenizer",
        type=Path,
        default=Path("models/var_release"),
        help="of var_transformer: the folder that --from var wrote (default: models/var_release)",
    )
    add("--out", type=Path, help="(default: models/dalle_release, models/taming_release, ...)")
    for name in ("encoder", "decoder", "weights"):
        add(f"--{name}-sha256", help="reject a file with another sha256")


def run(options: argparse.Namespace) -> None:
    """Convert the file or both files, and print their sha256 and the fingerprint of the folder."""
    out = options.out or Path(f"models/{options.source}_release")
    if (options.weights is None) != (options.source == "dalle"):
        raise UserError(
            "--weights names the checkpoint of --from taming, llamagen, var or var_transformer. Give both or neither"
        )
    names = ["encoder", "decoder"] if options.source == "dalle" else ["weights"]
    files = {name: getattr(options, name) for name in names}
    expected_sha256 = {name: getattr(options, f"{name}_sha256") for name in names}
    weights, sha256, model = options.weights, options.weights_sha256, out
    if options.source == "dalle":
        fingerprint = dalle_release.import_weights(files, out, expected_sha256)
    elif options.source == "var":
        fingerprint = var_weights.import_weights(weights, out, sha256)
    elif options.source == "var_transformer":
        fingerprint = var_transformer_weights.import_weights(weights, options.image_tokenizer, out, sha256)
        model = out / "generator"
    else:
        fingerprint = vqgan_weights.import_weights(weights, options.source, out, sha256)
    header = json.loads((model / "config.json").read_bytes())
    for name, path in files.items():
        print(f"{name}: {path}, sha256 {header['pickle_sha256'][name]}")
        if is_legacy(path) and expected_sha256[name] is None:
            note = f"only --{name}-sha256 sees a damaged number in it"
            print(f"{name}: torch's legacy container has no checksum; {note}")
    if part := header.get("pickle_part"):
        print(f"weights: those under {part!r} in the checkpoint")
    use = f"image_tokenizer: {{kind: {header['kind']}, init: {out}}}"
    if options.source == "var_transformer":
        use = (
            f"text_tokenizer: {{init: {out}/text_tokenizer}}, image_tokenizer: {{kind: multi_scale, init: "
            f"{options.image_tokenizer}}}, generator: {{kind: {header['kind']}, init: {out}/generator}}"
        )
    print(f"{out}: fingerprint {fingerprint}. Use it by {use}")
