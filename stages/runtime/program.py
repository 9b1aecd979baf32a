"""The command line of a stage, made from its function: each parameter is a path, `pair_shards` is --pair-shards."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from stages.runtime.launch import launch_processes, share_cores
from stages.runtime.stage import RECORDS, stage


def program(
    work: Callable[..., None], *sections: str, trains: str | None = None, shares_cores: bool = False
) -> Callable[[list[str] | None], None]:
    """The `main` of a stage, which calls `work(*paths, context)`; `sections` of params.yaml are logged.

    `trains` is the section that says how many processes train together.
    """
    name = work.__name__
    paths = [path for path in inspect.signature(work).parameters if path != "context"]

    def main(argv: list[str] | None = None) -> None:
        parser = argparse.ArgumentParser(
            description=sys.modules[work.__module__].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "--params", type=Path, default=Path("params.yaml"), help="the settings (default: params.yaml)"
        )
        for path in paths:
            parser.add_argument(f"--{path.replace('_', '-')}", type=Path, required=True, metavar="PATH")
        parser.add_argument(
            "--record", type=Path, help=f"the record of this run (default: {RECORDS}/<stage>.json)"
        )
        options = parser.parse_args(argv)
        if shares_cores:
            share_cores()
        if trains:
            launch_processes(name, options.params, trains, argv)
        with stage(name, options, *sections) as context:
            work(*(getattr(options, path) for path in paths), context)

    return main
