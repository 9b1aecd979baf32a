"""The command line of a stage, made from its function: each parameter is a path, `pair_shards` is --pair-shards;
one with a default may be left out.

A stage that trains in several processes replaces itself by torchrun, which starts it once per process; so
`dvc repro` and the flows need not know about it. On several machines start torchrun yourself: `torchrun --nnodes 2
--nproc-per-node 8 --rdzv-endpoint HOST:PORT -m stages.train_generator …` with the rest of the stage's `cmd`.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from stages.runtime.stage import device_kind, stage
from thousandwords.core.errors import UserError
from thousandwords.core.params import read_params
from thousandwords.training.distributed import is_started_by_torchrun


def program(
    work: Callable[..., None], *sections: str, trains: str | None = None, shares_cores: bool = False
) -> Callable[[list[str] | None], None]:
    """The `main` of a stage, which calls `work(**paths, context=context)`; `sections` of params.yaml are logged.
    `trains` is the section that says how many processes train together."""
    name = work.__name__
    paths = {
        name: parameter.default
        for name, parameter in inspect.signature(work).parameters.items()
        if name != "context"
    }

    def main(argv: list[str] | None = None) -> None:
        parser = argparse.ArgumentParser(
            description=sys.modules[work.__module__].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        add("--params", type=Path, default=Path("params.yaml"), help="the settings (default: params.yaml)")
        for path, default in paths.items():
            is_required = default is inspect.Parameter.empty
            add(f"--{path.replace('_', '-')}", type=Path, required=is_required, metavar="PATH")
        options = parser.parse_args(argv)
        if shares_cores:
            share_cores()
        if trains:
            launch_processes(name, options.params, trains, argv)
        with stage(name, options, *sections) as context:
            work(**{path: getattr(options, path) for path in paths}, context=context)

    return main


def launch_processes(stage: str, params: Path, section: str, argv: list[str] | None) -> None:
    """Replace this process by torchrun if the section's `training.num_processes` is more than one."""
    if is_started_by_torchrun():
        return
    num_processes = count_processes(params, section)
    if num_processes > 1:
        # together as many threads as one process would have
        threads = max(1, torch.get_num_threads() // num_processes)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        torchrun = f"-m stages.runtime.torchrun --standalone --nproc-per-node {num_processes}"
        arguments = sys.argv[1:] if argv is None else argv
        os.execv(sys.executable, [sys.executable, *torchrun.split(), "-m", f"stages.{stage}", *arguments])


def share_cores() -> None:
    """Use half of this machine's cores, before anything is computed.

    The image tokenizer and the scorer are independent, so `python -m flows.run_local` trains them at the same
    time, and the decoder beside the generator. A plain `dvc repro` trains them one after the other with the same
    half: another number of threads splits sums differently and changes the last bits.
    """
    if not is_started_by_torchrun():  # else the launcher has set the number of threads
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))


def count_processes(params: Path, section: str) -> int:
    """The number of processes that the file asks for; 1 if it cannot be read: the stage reports that error.

    "auto" is one per GPU, and two on a CPU with enough threads: two threads synchronize at every product, two
    processes once per update. That is no faster on an idle machine, but faster beside other work
    (docs/recipes-clip.md).
    """
    try:
        settings = read_params(params)
        num_processes = settings[section]["training"].get("num_processes", 1)
    except (UserError, KeyError, TypeError, AttributeError):
        return 1
    if num_processes == "auto":
        has_gpu = device_kind(settings) == "cuda"
        return max(1, torch.cuda.device_count()) if has_gpu else min(2, torch.get_num_threads())
    return num_processes if isinstance(num_processes, int) else 1
