"""Time, memory and disk of a run before it starts. Examples:

python -m scripts.plan    (the settings in params.yaml, on a machine like this one)
python -m scripts.plan --preset paper --pairs 250000000 --on gpu --gpus 256
python -m scripts.plan --data /your/images --minutes 20    (what `make run DATA=/your/images MINUTES=20` would do)
"""

from pathlib import Path

import torch

from scripts.use_data import add_options, use_data
from thousandwords.core.command_line import one_sentence, parser
from thousandwords.core.errors import UserError
from thousandwords.planning.estimate import format_estimate, format_own_images


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    add, device = arguments.add_argument, "gpu" if torch.cuda.is_available() else "cpu"
    add("--params", type=Path, default=Path("params.yaml"), help="the settings (default: params.yaml)")
    add("--preset", help="use presets/NAME.yaml instead")
    add("--data", help="own images, instead of settings: a folder, table or archive")
    add_options(add)
    add("--pairs", type=int, help="number of pairs (default: those in data.path)")
    add("--on", choices=("cpu", "gpu"), default=device)
    add("--gpus", type=int, default=1, help="number of devices (default: 1)")
    add("--tflops", type=float, help="sustained speed of one GPU, in 10^12 operations a second")
    add(
        "--project",
        type=Path,
        default=Path("."),
        help="the folder whose last run gives the rates (default: this one)",
    )
    add("--benchmarks", type=Path, default=Path("bench/results.jsonl"), help="results of make bench")
    add("--runs", type=Path, default=Path("bench/runs.yaml"), help="recorded runs, to say what to expect")
    options = arguments.parse_args(argv)
    with one_sentence("plan", errors=(UserError, ValueError, FileNotFoundError)):
        for name, value in (("pairs", options.pairs), ("gpus", options.gpus), ("tflops", options.tflops)):
            if value is not None and value <= 0:
                raise UserError(f"--{name} is {value:g}; it needs to be above 0")
        if options.data:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            resolved = use_data(options.data, options.minutes, options.size, device, options.start)
            print(resolved.message)
            print(format_own_images(resolved.params, resolved.seconds, options))
        else:
            print(format_estimate(options))


if __name__ == "__main__":
    main()
