"""A stage that trains in several processes: it becomes torchrun, which starts the stage once per process.

So `dvc repro` and the flows need know nothing of it. On several machines start torchrun yourself:
`torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT -m stages.train_generator …` with the rest of the stage's `cmd`.
"""
from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from stages._stage import device_kind, read_params
from thousandwords.distributed import is_started_by_torchrun
from thousandwords.errors import UserError


def launch_processes(stage: str, params: Path, section: str, argv: list[str] | None) -> None:
    """Replaces this process by torchrun where the section's `training.processes` asks for more than one; else returns."""
    if is_started_by_torchrun():
        return
    wanted = count_processes(params, section)
    if wanted > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // wanted)))  # as many as one would have
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(wanted), "-m", f"stages.{stage}"]
        os.execv(sys.executable, [sys.executable, *torchrun, *(sys.argv[1:] if argv is None else argv)])


def share_cores() -> None:
    """Half of this machine's cores for this process, before it computes.

    The image tokenizer and the scorer need nothing of each other, so `python -m flows.run` trains them side by side. A plain
    `dvc repro` trains them one after the other with the same half: sums are cut up by threads, and other threads would give
    other last bits.
    """
    if not is_started_by_torchrun():  # which has the threads that its starter gave it
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))


def count_processes(params: Path, section: str) -> int:
    """How many processes the file asks for. A file that cannot be read is the stage's to refuse.

    "auto" is one per GPU; on a CPU with threads for it two: two threads meet at every product, two processes once
    an update. On a quiet machine that is no faster, beside other work it is (docs/recipes-clip.md).
    """
    try:
        settings = read_params(params)
        wanted = settings[section]["training"].get("processes", 1)
    except (UserError, KeyError, TypeError, AttributeError):
        return 1
    if wanted == "auto":
        return max(1, torch.cuda.device_count()) if device_kind(settings) == "cuda" else min(2, torch.get_num_threads())
    return wanted if isinstance(wanted, int) else 1
