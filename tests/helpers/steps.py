"""python -m tests.helpers.steps CHECKPOINT TARGET: a training with ranks, data loaders and a detached child.

Each step changes a number that depends on all steps before. It resumes from its checkpoint; SIGTERM saves one
and ends it with exit code 143. It ends at the step in the file TARGET, as soon as there is one, and writes
the number to TARGET.reached.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RANKS, LOADERS = 2, 2
CHECKPOINT_EVERY = 20  # steps from one checkpoint to the next


def after(steps: int, start: int = 0, number: str = "") -> str:
    """The number after that many steps."""
    for step in range(start, steps):
        number = hashlib.sha256(f"{number} {step}".encode()).hexdigest()
    return number


def train(checkpoint: Path, target: Path) -> None:
    stop_requests = []
    signal.signal(signal.SIGTERM, lambda *_: stop_requests.append(True))
    done = json.loads(checkpoint.read_text()) if checkpoint.is_file() else {"step": 0, "number": ""}
    while not stop_requests:
        step = done["step"]
        if target.is_file() and int(target.read_text()) <= step:
            target.with_suffix(".reached").write_text(json.dumps(done))
            return
        done = {"step": step + 1, "number": after(step + 1, step, done["number"])}
        if done["step"] % CHECKPOINT_EVERY == 0:
            save(checkpoint, done)
        time.sleep(0.01)
    save(checkpoint, done)
    raise SystemExit(143)


def save(checkpoint: Path, done: dict) -> None:
    partial = checkpoint.with_suffix(".tmp")
    partial.write_text(json.dumps(done))
    partial.rename(checkpoint)


def start_companions() -> None:
    """Start other ranks with data loaders, and a process in its own session that sometimes ignores SIGTERM."""
    for _ in range(RANKS):
        if not os.fork():
            for _ in range(LOADERS):
                if not os.fork():
                    break
            while True:
                time.sleep(60)
    stubborn = "trap '' TERM; " if os.getpid() % 4 == 0 else ""
    subprocess.Popen(["sh", "-c", f"{stubborn}sleep 600; sleep 600"], start_new_session=True, close_fds=False)


if __name__ == "__main__":
    start_companions()
    train(Path(sys.argv[1]), Path(sys.argv[2]))
