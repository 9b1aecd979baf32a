"""Kernel locks on files. A lock ends with the last process that has its file open, however that ends.

Of `filelock` only the lock of an open file is used: its FileLock unlocks at release, also for a child process
that inherited the file, and there a lock must live as long as any process of the run (tests/pipeline/test_locks.py).
"""

import contextlib
import json
import os
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from thousandwords.core.files import translate_write_errors


def take_lock(path: Path, wait: bool = False) -> IO[str] | None:
    """The locked file; None if another process holds it. To close it frees it.

    Raises CannotWrite where nothing can be locked.
    """
    with translate_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  open as long as the lock is held
            try:
                if not lock_descriptor(file.fileno(), blocking=wait):
                    file.close()
                    return None
            except BaseException:
                file.close()
                raise
            if _is_file_of(file, path):
                return file
            file.close()  # a holder removed the file while this process was opening it


def write_note(file: IO[str], **note: object) -> None:
    """Say in a locked file who holds it, by default this process; the lock holds even on a full disk."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), **note}))
        file.flush()


def read_note(path: Path) -> dict:
    """What the last holder wrote; empty if that was nothing, or only a part was written."""
    with contextlib.suppress(OSError, ValueError):
        note = json.loads(path.read_text(encoding="utf-8"))
        return note if isinstance(note, dict) else {}
    return {}


def holder(path: Path) -> dict | None:
    """The note of the process that holds this lock; None if it is free."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            return read_note(path)
    return None


def _is_file_of(file: IO[str], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False
