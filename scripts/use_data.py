"""python -m scripts.use_data PATH --minutes 20 --size auto: write a whole params.yaml for your own captioned images.

Counts the pairs, measures this device for some seconds, and resolves every number from the minutes
(thousandwords/planning/budget.py). Your own settings are kept in params.before.yaml.
"""

import os
from pathlib import Path

import torch
import yaml

from scripts.use_preset import replace_params
from thousandwords.core.command_line import one_sentence, parser
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.ingest import check_source, group_of, prepare_all
from thousandwords.ingest.near_duplicates import ExactDuplicates
from thousandwords.ingest.records import Pair
from thousandwords.planning.budget import (
    BudgetConfig,
    measure_update,
    num_held_out,
    resolve,
    validation_share,
)
from thousandwords.planning.presets import read_preset

COUNTED = 2_000  # inputs; up to here all are prepared once, so that the held-out pairs are counted and not estimated
HEADER = "# Written by `make run DATA={path} MINUTES={minutes:g} SIZE={size}`. Edit any value by hand; docs/training.md lists them all.\n"
COMMENTS = {
    "budget": "where the numbers below came from; no stage reads it",
    "data": "your images; validation_share holds out at least min(64, a tenth) of the pairs",
    "image_tokenizer": "grid and steps follow from the pairs and the minutes",
    "generator": "width, depth and steps follow from the pairs and the minutes",
    "sampling": "prompts are captions of held-out images; add your own to `prompts`",
}


def use_data(path: str, minutes: float, size: str, device: str, base: dict) -> tuple[dict, str]:
    """(the params, the message to print)."""
    budget = section({"minutes": minutes, "size": size}, "budget", BudgetConfig)
    if not Path(path).expanduser().exists() and not any(character in path for character in "*?["):
        raise UserError(
            f"DATA is {path}, and there is no such file or folder. Give the path of your captioned images"
        )
    path = os.path.expanduser(path)
    data = {"source": "auto", "path": path, "image_size": base["data"]["image_size"]}
    config, seed = section(data, "data", DataConfig), base["seed"]
    num_pairs = check_source(config)
    num_words = 16
    if num_pairs <= COUNTED:
        duplicates, groups, words = ExactDuplicates(), [], []
        for split, pair in prepare_all(config, seed):
            if isinstance(pair, Pair) and not duplicates.is_duplicate(pair, split):
                groups.append(group_of(pair, config))
                words.append(max(len(caption.split()) for caption in pair.captions))
        num_pairs = len(groups)
        data["validation_share"] = validation_share(groups, seed)
        num_words = sorted(words)[int(0.95 * (num_pairs - 1))]
    else:
        data["validation_share"] = 0.05
    budget = BudgetConfig(minutes, size, num_pairs)
    cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # as in the stages that run in parallel
    params = resolve(
        base, data, budget, num_words, lambda params, name: measure_update(params, name, device),
        parallel=device == "cpu" and cores > 1,
    )  # fmt: skip
    return params, describe(params)


def describe(params: dict) -> str:
    """What was resolved, in one line."""
    pairs = params["budget"]["pairs"]
    dvae = params["image_tokenizer"]["dvae"]
    grid = params["data"]["image_size"] // (dvae["patch"] * 2 ** (dvae["groups"] - 1))
    steps = ", ".join(
        f"{name.replace('_', ' ')} {params[name]['training']['steps']:,}"
        for name in ("image_tokenizer", "generator", "scorer")
    )
    return (
        f"{pairs:,} pairs, about {num_held_out(pairs):,} held out; {grid} × {grid} tokens of {dvae['vocab_size']:,}; "
        f"updates: {steps}; {params['budget']['minutes']:g} minutes. See params.yaml"
    )


def text_of(params: dict, path: str) -> str:
    """params.yaml with its comments."""
    order = [
        "seed",
        "device",
        "budget",
        "data",
        *(name for name in params if name not in ("seed", "device", "budget", "data")),
    ]
    parts = [HEADER.format(path=path, **{name: params["budget"][name] for name in ("minutes", "size")})]
    for name in order:
        comment = f"# {COMMENTS[name]}\n" if name in COMMENTS else ""
        parts.append(
            comment + yaml.safe_dump({name: params[name]}, sort_keys=False, allow_unicode=True, width=110)
        )
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("path", help="a folder, table or archive of captioned images")
    add("--minutes", type=float, default=20.0, help="for the whole run (default: 20)")
    add(
        "--size",
        choices=("auto", "small", "medium", "large"),
        default="auto",
        help="of the models (default: auto)",
    )
    options = arguments.parse_args(argv)
    with one_sentence("data", errors=(UserError, ValueError)):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        base = read_preset("default")
        base["data"].pop("scenes", None)
        params, message = use_data(options.path, options.minutes, options.size, device, base)
        text = text_of(params, options.path).encode()
        print(message + replace_params(text))


if __name__ == "__main__":
    main()
