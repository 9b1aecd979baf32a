"""A progress bar with rate and time left; in a log, a plain line every few seconds."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
# fewer where another program turns the lines into bars
SECONDS_BETWEEN_LINES = float(os.environ.get("THOUSANDWORDS_SECONDS_BETWEEN_LINES") or 15)


class ProgressBar:
    """Progress of `total` steps. `update(step, note)` may be called at any rate.

    In a log the lines read: "train_generator: 400/1200 (33 %), 4.1/s, 3:15 left, loss 2.1034".
    """

    def __init__(self, label: str, total: int, unit: str = "step") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.first_step: int | None = None
        self.started = self.last_line = time.monotonic()
        self.tqdm = (
            tqdm(total=total, desc=label, unit=unit, dynamic_ncols=True) if sys.stderr.isatty() else None
        )

    def update(self, step: int, note: str = "") -> None:
        """`step` of `total` are done."""
        if self.first_step is None:
            self.first_step = step - 1
        if self.tqdm is not None:
            self.tqdm.set_postfix_str(note, refresh=False)
            self.tqdm.update(step - self.tqdm.n)
            return
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            print(self._line(step, note, now), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.tqdm is not None:
            self.tqdm.close()

    def _line(self, step: int, note: str, now: float) -> str:
        rate = (step - self.first_step) / max(1e-9, now - self.started)
        left = int((self.total - step) / rate) if rate else 0
        line = f"{self.label}: {step}/{self.total} ({100 * step // self.total} %), {rate:.1f} {self.unit}/s, "
        return line + f"{left // 60}:{left % 60:02d} left" + (f", {note}" if note else "")


def progress(items: Iterable[T], label: str | None, total: int, unit: str = "row") -> Iterator[T]:
    """Iterate over `items` with a progress bar of `total` items; without a label there is no bar."""
    if label is None:
        yield from items
        return
    bar = ProgressBar(label, total, unit)
    try:
        for done, item in enumerate(items, start=1):
            yield item
            bar.update(done)
    finally:
        bar.close()
