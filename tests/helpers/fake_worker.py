"""A worker of the studio that is slow, dies or fails on request. It imports no torch, so it starts at once."""

import os
import signal
import time
from collections.abc import Iterator


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class FakeWorker:
    """Does what the caption says: sleeps, dies, fails; any other caption is answered with itself."""

    def __init__(self, _: object) -> None:
        pass

    def index_some(self) -> bool:
        return False

    def free_memory(self) -> None:
        pass

    def events(self, name: str, **fields: object) -> Iterator[dict]:
        return getattr(self, name)(**fields)

    def warm_up(self, folder: str) -> Iterator[dict]:
        if folder == "die":
            os._exit(9)
        yield {"folder": folder}

    def generate(self, folder: str, prompt: str) -> Iterator[dict]:
        yield {"event": "started", "prompt": prompt}
        if prompt == "sleep":
            for _ in range(600):
                time.sleep(0.05)
        if prompt == "ignore signals":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            time.sleep(60)
        if prompt == "die":
            os._exit(9)
        if prompt == "fail":
            raise ZeroDivisionError("failed on purpose")
        if prompt == "CUDA":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if prompt == "out of memory":
            raise OutOfMemoryError("CUDA out of memory")
        yield {"event": "ranked", "prompt": prompt}
