"""The options of the benchmarks that train each kind with each seed.

Apart from _results.py, since bench.gpu needs that one on machines without PyYAML.
"""

import argparse
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

BENCH = Path(".bench")


@dataclass(frozen=True)
class Runs:
    """What the benchmarks that train each kind with each seed were asked for."""

    kinds: list[str]
    seeds: list[int]
    changes: dict  # settings that replace those of the presets
    folder: Path  # empty


def add_runs(arguments: argparse.ArgumentParser, kinds: Collection[str], name: str, replaced: str) -> None:
    """The options that `read_runs` reads; the folder is .bench/`name`, and `replaced` is what --settings changes."""
    add, default = arguments.add_argument, BENCH / name
    add("--kinds", default=",".join(kinds), help=f"default: {','.join(kinds)}")
    add("--seeds", default="0", help="numbers, as in 0,1")
    add("--settings", type=Path, help=f"a YAML file whose settings replace those of {replaced}")
    add(
        "--folder",
        type=Path,
        default=default,
        help=f"of the runs; emptied if below {BENCH} (default: {default})",
    )


def read_runs(
    arguments: argparse.ArgumentParser, options: argparse.Namespace, known: Collection[str]
) -> Runs:
    """The kinds, seeds, changes and the emptied folder of the options; ends the program if they are wrong.

    A folder elsewhere than in .bench is never emptied: it could be a user's own.
    """
    kinds, folder = options.kinds.split(","), options.folder
    if unknown := [kind for kind in kinds if kind not in known]:
        arguments.error(f"there is no kind {unknown[0]}; there is {', '.join(known)}")
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and BENCH.resolve() not in folder.resolve().parents:
        arguments.error(f"--folder: {folder} is not empty. Remove it, or give a new folder")
    shutil.rmtree(folder, ignore_errors=True)
    changes = yaml.safe_load(options.settings.read_text(encoding="utf-8")) if options.settings else {}
    return Runs(kinds, [int(seed) for seed in options.seeds.split(",")], changes, folder)
