"""Time, memory and disk of a run before it starts. Examples:

python -m scripts.plan    (the settings in params.yaml, on a machine like this one)
python -m scripts.plan --preset paper --pairs 250000000 --on gpu --gpus 256
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from thousandwords.core.errors import UserError
from thousandwords.planning.estimate import format_estimate


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="the settings (default: params.yaml)"
    )
    parser.add_argument("--preset", help="use presets/NAME.yaml instead")
    parser.add_argument("--pairs", type=int, help="number of pairs (default: those in data.path)")
    parser.add_argument("--on", choices=("cpu", "gpu"), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gpus", type=int, default=1, help="number of devices (default: 1)")
    parser.add_argument(
        "--tflops", type=float, help="sustained speed of one GPU, in 10^12 operations a second"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder with the records of the last run"
    )
    parser.add_argument(
        "--benchmarks", type=Path, default=Path("bench/results.jsonl"), help="results of make bench"
    )
    options = parser.parse_args(argv)
    try:
        for name, value in (("pairs", options.pairs), ("gpus", options.gpus), ("tflops", options.tflops)):
            if value is not None and value <= 0:
                raise UserError(f"--{name} is {value:g}; it needs to be above 0")
        print(format_estimate(options))
    except (UserError, FileNotFoundError) as error:
        print(f"plan: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
