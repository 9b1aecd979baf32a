"""One stage by DVC, for whoever runs the graph: its command, its lines as they come, and what its end means. Without Prefect."""
from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Collection

from flows.repair import repair, wait_for

CACHED, RAN = "unchanged", "ran"
Tell = Callable[[str], None]


class StageFailed(RuntimeError):
    """A stage ended with an error that may pass: it is tried again."""


class StageRefused(StageFailed):
    """A stage that a user has to mend, or that somebody stopped: the same again would end the same way."""


def command(stage: str) -> list[str]:
    """The command line that brings one stage up to date, and no other."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", stage]


def begin(words: list[str], **how) -> subprocess.Popen:
    """Starts a command whose lines can be read from its `stdout`, the errors among them."""
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **how)


def stream(words: list[str], on_line: Tell, held: Collection[int] = ()) -> tuple[int, list[str]]:
    """Runs a command and hands on its lines as they come; its code and the lines. It has the open files `held`, too."""
    process = begin(words, pass_fds=tuple(held))
    lines = []
    for line in process.stdout:
        if line.strip():
            lines.append(line.rstrip())
            on_line(lines[-1])
    return process.wait(), lines


def failure(stage: str, code: int, lines: list[str]) -> StageFailed:
    """What to raise for a stage that ended with `code`: DVC tells the stage's own code in its last lines."""
    told = re.findall(r"exited with (-?\d+)", "\n".join(lines))
    ended = int(told[-1]) if told else code
    is_final = ended in (2, 130, 143, -2, -15) or code in (130, 143)
    kind = StageRefused if is_final else StageFailed
    return kind(f"stage {stage} failed with code {ended}: " + " / ".join(lines[-5:]))


def is_skipped(stage: str, lines: list[str]) -> bool:
    return any(line.startswith(f"Stage '{stage}' didn't change, skipping") for line in lines)


def has_waited_for_others(told: str, tell: Tell) -> bool:
    """Waits for the end of those whom DVC names where it says that a stage is busy; False where it says something else."""
    _, is_busy, names = told.partition("is busy, it is being blocked by:")
    if not is_busy:
        return False
    pids = sorted({int(pid) for pid in re.findall(r"\(PID (\d+)\)", names)})
    tell(f"a `dvc` of somebody else is at work here (process {', '.join(map(str, pids[:1]))}); this run waits for it")
    wait_for(pids)
    repair(wait=True)
    return True
