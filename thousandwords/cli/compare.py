"""python -m thousandwords compare --a FOLDER --b FOLDER --out compare.html

Two finished runs side by side, each a folder with results/ in it: images of the same prompts, and metrics.
`make compare` does the same for revisions, and adds what git and DVC know about them.
"""

import argparse
from pathlib import Path

from thousandwords.cli.inputs import positive
from thousandwords.core.files import write_bytes
from thousandwords.reporting.finished_run import FinishedRun, read_json, read_run


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    add = parser.add_argument
    add("--out", type=Path, default=Path("compare.html"), help="the page (default: compare.html)")
    add("--prompts", type=positive, default=48, help="prompts on the page (default: 48)")
    add("--best", type=positive, default=4, help="images per prompt and run, best first (default: 4)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the two runs, and metadata about them."""
    add = parser.add_argument
    add("--a", type=Path, required=True, metavar="FOLDER", help="a run: the folder that holds its results/")
    add("--b", type=Path, required=True, metavar="FOLDER", help="the other run")
    text = "names, commits and differences, as flows.compare writes them"
    add("--metadata", type=Path, metavar="JSON", help=text)


def read_runs(options: argparse.Namespace) -> tuple[FinishedRun, FinishedRun, dict]:
    """Both runs, verified, and the metadata about them."""
    metadata = read_json(options.metadata) if options.metadata else {}
    names = [metadata.get(side, {}).get("name", str(getattr(options, side))) for side in ("a", "b")]
    return read_run(options.a, names[0]), read_run(options.b, names[1]), metadata


def run(options: argparse.Namespace) -> None:
    """Write the page and print the metrics."""
    # imported here: it needs jinja2, which the library alone does not install
    from thousandwords.reporting.comparison import compare

    a, b, metadata = read_runs(options)
    page, lines = compare(a, b, metadata, options.prompts, options.best)
    write_bytes(options.out, page.encode())
    print("\n".join(lines))
    print(f"-> {options.out}")
