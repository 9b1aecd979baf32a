"""What a process asks of its C library: to keep the memory that tensors let go."""
from __future__ import annotations

import ctypes
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # malloc.h: the least size with a mapping of its own, the most that is kept free


def keep_freed_memory() -> None:
    """The process keeps what it frees, for the next tensor; not on systems whose C library knows no such wish.

    Else glibc hands every large tensor back to the kernel at once, and touching the next one anew takes a tenth of a training
    step on a CPU (5 to 25 thousand page faults), and a twentieth of drawing a word. The peak stays what it was.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option:
        set_option(MMAP_THRESHOLD, 2**30)
        set_option(TRIM_THRESHOLD, 2**31 - 1)
