"""python -m scripts.use_data PATH --minutes 20 --size auto: write a whole params.yaml for your own captioned images.

Counts the pairs, measures this device for some seconds, and resolves every number from the minutes
(thousandwords/planning/budget.py). With --from the run goes on from a package's models.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import yaml

from scripts.use_preset import PARAMS, replace_params
from stages.check_params import fetch
from thousandwords.api import LAST_RUN, read_package
from thousandwords.core.command_line import one_sentence, parser
from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.core.files import unit_hash
from thousandwords.core.init_models import REGISTERED, SECTIONS, registered_version
from thousandwords.core.manifest import copy_artifact
from thousandwords.core.params import read_params
from thousandwords.inference.package import PARTS, Package
from thousandwords.ingest.config import DataConfig, SourceConfig
from thousandwords.ingest.counts import check_rejections, histogram
from thousandwords.ingest.ingest import check_path, check_source, group_of, prepare_all, resolve_source
from thousandwords.ingest.near_duplicates import ExactDuplicates
from thousandwords.ingest.records import Pair, Rejection
from thousandwords.planning import budget as planning
from thousandwords.planning.budget import BudgetConfig, Device, Seconds, measure_update
from thousandwords.planning.presets import read_preset
from thousandwords.preflight import build_models

OF_ONE_SOURCE = {each.name for each in fields(SourceConfig)} & {each.name for each in fields(DataConfig)}
OF_ONE_SOURCE -= {"source", "path"}
COUNTED = 2_000  # inputs; up to here all are prepared once, so that the held-out pairs are counted and not estimated
MEASURED = 256  # of more inputs so many are prepared, to measure how long it takes
HEADER = "# Written by `make run DATA={path} MINUTES={minutes:g} {more}`. Edit any value by hand; docs/training.md lists them all.\n"
ALONE = "delete the section data of params.yaml to go on with the new images alone"
GOING_ON = {
    "data": "a mixture reads the images of the run before as often as the new ones; validation_share of the pairs is held out",
    "image_tokenizer": "only the decoder goes on, so that tokens stay valid; without tune and training it is copied",
    "generator": "goes on from the model's weights, at a lower peak rate than a first training",
}
COMMENTS = {
    "budget": "where the numbers below came from; no stage reads it",
    "data": "your images; validation_share holds out at least min(64, a tenth) of the pairs",
    "image_tokenizer": "grid and steps follow from the pairs and the minutes",
    "generator": "width, depth and steps follow from the pairs and the minutes",
    "sampling": "prompts are captions of held-out images; add your own to `prompts`",
}


@dataclass(frozen=True)
class Resolved:
    params: dict  # `init` names folders of this machine
    init: str | None  # what it shall name
    message: str
    seconds: Seconds


def use_data(path: str, minutes: float, size: str, device: str, start: str | None = None) -> Resolved:
    """Count the pairs, measure this device, resolve; `start` names the package that the run goes on from."""
    base = read_preset("default")
    try:
        BudgetConfig(minutes, size)
    except ValueError as error:
        raise UserError(str(error).replace("budget.minutes", "MINUTES")) from error
    if _is_missing(path):
        dvc_file = Path(f"{path.rstrip('/')}.dvc")
        fix = f"Run: dvc pull {dvc_file}" if dvc_file.is_file() else "Give the path of your captioned images"
        raise UserError(f"DATA is {path}, and there is no such file or folder. {fix}")
    if start and size != "auto":
        raise UserError(f"SIZE is {size}, but with FROM the sizes are those of the model. Leave SIZE out")
    init, folder, package = find_package(start) if start else (None, None, None)
    path = os.path.expanduser(path)
    image_size = package.image_tokenizer.image_size if package else base["data"]["image_size"]
    base = base | {"data": {"source": "auto", "path": path}} | (with_data_before(path) if start else {})
    data, seed = base["data"] | {"image_size": image_size}, base["seed"]
    config = section(data, "data", DataConfig)
    check_path(config)
    config, detected = resolve_source(config)  # as prepare_pairs: the groups depend on it
    num_pairs = check_source(config)
    num_words, lines = 16, [detected] if detected else []
    with contextlib.closing(prepare_all(config, seed)) as outcomes:
        first = [*itertools.islice(outcomes, 1)]
        began = time.perf_counter()  # now the worker processes run
        prepared = [*first, *itertools.islice(outcomes, COUNTED if num_pairs <= COUNTED else MEASURED)]
    preparing = num_pairs * (time.perf_counter() - began) / max(1, len(prepared))
    if num_pairs <= COUNTED:
        duplicates, groups, words = ExactDuplicates(), [], []
        for split, pair in prepared:
            if isinstance(pair, Pair) and not duplicates.is_duplicate(pair, split):
                groups.append(group_of(pair, config))
                words.append(max(len(caption.split()) for caption in pair.captions))
        rejections = [outcome for _, outcome in prepared if isinstance(outcome, Rejection)]
        check_rejections(len(prepared), len(groups), rejections, config)
        if rejections or duplicates.count:
            reasons = (histogram(rejections), f"{duplicates.count} duplicate" if duplicates.count else "")
            lines.append(f"left out of {len(prepared):,} inputs: {', '.join(filter(None, reasons))}")
        num_pairs = len(groups)
        if not any(unit_hash(group, seed) < data.get("validation_share", 0) for group in groups):
            data["validation_share"] = planning.validation_share(groups, seed)
        num_words = sorted(words)[int(0.95 * (num_pairs - 1))]
    data.setdefault("validation_share", 0.05)
    budget = BudgetConfig(minutes, size, num_pairs)
    threads, is_parallel = torch.get_num_threads(), device == "cpu" and (os.cpu_count() or 1) > 1

    def measure(params: dict, name: str) -> float:
        # the other trainings run in parallel, each with half of the cores
        torch.set_num_threads(threads if name == "generator" else max(1, threads // 2))
        return measure_update(params, name, device)

    machine = Device(measure, is_parallel, preparing)
    if package:
        params, seconds = planning.resolve_from(package, str(folder), base, data, budget, machine)
        lines.append(f"goes on from {init}: {describe(params)}")
        if package.captioner:
            lines.append(f"its captioner is not part of that: only {init} goes on writing captions")
    else:
        params, seconds = planning.resolve(base, data, budget, num_words, machine)
        lines.append(describe(params))
    return Resolved(params, init, "\n".join(lines), seconds)


def find_package(start: str) -> tuple[str, Path, Package]:
    """(what `init` of params.yaml says, its folder here, the package), verified; the last run's own is copied."""
    init = f"models:/thousandwords@{start}" if start in ("champion", "challenger") else start
    if start.startswith("models:") and not REGISTERED.fullmatch(start):
        fix = "Give champion, or models:/thousandwords/3 for a number"
        raise UserError(f"FROM is {start}, which names no package of this project's registry. {fix}")
    if version := registered_version({"init": init}, "generator"):
        try:
            folder = fetch(version, f"FROM is {start}")
        except ConfigError as error:
            raise UserError(f"{error}. To go on from your own last run: FROM={LAST_RUN}") from error
        return init, folder, read_package(folder, "cpu")
    folder = Path(start).expanduser()
    hint = f"Give the folder of a package, such as {LAST_RUN} of your last run, or champion"
    if not folder.is_dir():
        raise UserError(f"FROM is {start}, and there is no such folder. {hint}")
    if not (folder / "package.json").is_file():
        raise UserError(f"FROM is {start}, which is not a package: it has no package.json. {hint}")
    package = read_package(folder, "cpu")
    if folder.resolve() == LAST_RUN.resolve():
        copy = LAST_RUN.with_name(f"start-{package.fingerprint[:12]}")
        parts = [part for part in PARTS if (folder / part).is_dir()]  # an earlier version's has no decoder
        for part in (*parts, "."):  # the package's own manifest last
            copy_artifact(folder / part, copy / part)
        folder = copy
    return str(folder), folder, package


def with_data_before(path: str) -> dict:
    """The seed and the section data of params.yaml: of these images, or a mixture of its own images and these, each half
    of what training reads, as a model that reads only new images forgets the others. The pairs that its models have
    learned from are not held out now. {} if it has no images of yours.
    """
    try:
        params = read_params(PARAMS)
        data, seed = params["data"], params["seed"]
        config = section(data, "data", DataConfig)
        if config.source == "scenes":
            return {}
        sources = data.get("sources") or [{"source": config.source, "path": config.path}]
        if path in [source["path"] for source in sources]:
            return {"seed": seed, "data": data}
    except (ConfigError, KeyError, TypeError, AttributeError):
        return {}
    if config.url:
        raise UserError(
            f"FROM reads the images before beside the new ones, but those of params.yaml are at {config.url}, and a "
            f"mixture reads local files only. Copy them to a folder and set data.path, or {ALONE}"
        )
    for source in sources:
        if _is_missing(source["path"]):
            raise UserError(
                f"FROM reads the images before beside the new ones, and data of params.yaml names {source['path']}, "
                f"which is not there. Bring it back, or {ALONE}"
            )
    if config.source != "mixture":
        sources[0] |= {name: data.pop(name) for name in OF_ONE_SOURCE if name in data}
    counts = [1] * len(sources)
    if config.source == "mixture" and not any("weight" in source for source in sources):  # each pair once
        counts = [check_source(replace(config, sources=(source,))) for source in config.sources]
    sources = [{"weight": count} | source for source, count in zip(sources, counts, strict=True)]
    new = {"source": "auto", "path": path, "weight": sum(source["weight"] for source in sources)}
    path = DataConfig.path  # what DVC watches; the sources have their own
    return {"seed": seed, "data": data | {"source": "mixture", "path": path, "sources": [*sources, new]}}


def _is_missing(path: str) -> bool:
    return not Path(path).expanduser().exists() and not any(character in path for character in "*?[")


def describe(params: dict) -> str:
    pairs, tokenizer = params["budget"]["pairs"], build_models(params)["image_tokenizer"]
    grids = " + ".join(f"{side} × {side}" for side in tokenizer.scales)
    trained = [name for name in SECTIONS[1:] if "training" in params[name]]
    steps = [f"{name.replace('_', ' ')} {params[name]['training']['steps']:,}" for name in trained]
    return (
        f"{pairs:,} pairs, about {planning.num_held_out(pairs):,} held out; {grids} tokens of {tokenizer.vocab_size:,}; "
        f"updates: {', '.join(steps)}; {params['budget']['minutes']:g} minutes"
    )


def text_of(params: dict, path: str, start: str | None = None) -> str:
    budget, comments = params["budget"], COMMENTS | (GOING_ON if start else {})
    more = f"FROM={start}" if start else f"SIZE={budget['size']}"
    parts = [HEADER.format(path=path, minutes=budget["minutes"], more=more)]
    for name in dict.fromkeys(("seed", "device", "budget", "data", *params)):
        comment = f"# {comments[name]}\n" if name in comments else ""
        block = yaml.safe_dump({name: params[name]}, sort_keys=False, allow_unicode=True, width=110)
        parts.append(comment + block)
    return "\n".join(parts)


def add_options(add: Callable) -> None:
    """The options of a run on own images, shared with scripts.plan."""
    sizes = ("auto", "small", "medium", "large")
    add("--minutes", type=float, default=20.0, help="for the whole run (default: 20)")
    add("--size", choices=sizes, default="auto", help="of the models (default: auto)")
    add("--from", dest="start", metavar="PACKAGE", help="go on from champion, or the folder of a package")


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("path", help="a folder, table or archive of captioned images")
    add_options(arguments.add_argument)
    options = arguments.parse_args(argv)
    with one_sentence("data", errors=(UserError, ValueError)):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        resolved = use_data(options.path, options.minutes, options.size, device, options.start)
        if resolved.init:
            for name in SECTIONS:
                resolved.params[name]["init"] = resolved.init
        text = text_of(resolved.params, options.path, options.start).encode()
        print(f"{resolved.message}. See params.yaml{replace_params(text)}")


if __name__ == "__main__":
    main()
