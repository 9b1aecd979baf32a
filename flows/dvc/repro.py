"""Run one stage with DVC: its command line, its output line by line, and what its exit code means. Without Prefect."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence

from flows.dvc.damage import discard, find_damage
from flows.dvc.repair import can_hold_locks, repair

CACHED, RAN = "unchanged", "ran"
DVC = (sys.executable, "-m", "dvc")
TAKEN_FROM_CACHE = re.compile(r"Stage '(.+)' is cached - skipping run|Pulling data for stage: '(.+)'")
# DVC 3.67 asks for the age of each file in its run cache, and fails if another run with that cache just renamed one
RUN_CACHE_RACE = re.compile(r"No such file or directory: '.*/runs/.*\.tmp'")
Log = Callable[[str], None]


class StageFailed(RuntimeError):
    """A stage ended with an error that may be temporary: it is retried."""


class PermanentStageFailure(StageFailed):
    """A stage that the user has to fix, or that was stopped: a retry would end the same way."""


def repro_command(stage: str) -> list[str]:
    """The command line that brings one stage up to date, and no other."""
    return [*DVC, "--wait-for-lock", "repro", "-s", stage]


def stream(
    command: Sequence[str],
    on_line: Log,
    pass_fds: Collection[int] = (),
    on_start: Callable[[subprocess.Popen], object] = lambda process: None,
    **options: object,
) -> tuple[int, list[str]]:
    """Run a command, which inherits `pass_fds`, and call `on_line` for each line of output; exit code and lines.
    If it fails because another run just wrote to DVC's run cache, it says so and runs again."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    lines = []
    for _ in range(10):
        earlier = len(lines)
        process = subprocess.Popen(command, pass_fds=tuple(pass_fds), **pipes, **options)
        on_start(process)
        for line in process.stdout:
            if line.strip():
                lines.append(line.rstrip())
                on_line(lines[-1])
        if process.wait() == 0 or not any(map(RUN_CACHE_RACE.search, lines[earlier:])):
            break
        on_line("another run just wrote to DVC's run cache; the command runs again")
    return process.returncode, lines


def run_stage(stage: str, on_line: Log, log: Log, command: Sequence[str], **options: object) -> str:
    """Bring one stage up to date with `command`: CACHED or RAN. Raises StageFailed with the last lines. Waits
    for another `dvc`, and runs the stage again if what DVC took from its cache is damaged."""
    while True:
        code, lines = stream(command, on_line, **options)
        if code and wait_if_busy("\n".join(lines), log):
            continue
        if code:
            raise stage_error(stage, code, lines)
        if not discard_damaged(lines, log):
            is_skipped = any(line.startswith(f"Stage '{stage}' didn't change, skipping") for line in lines)
            return CACHED if is_skipped else RAN


def discard_damaged(lines: Sequence[str], log: Log) -> bool:
    """Whether damaged files were taken from the cache, which are removed here and there."""
    taken = {match[1] or match[2] for line in lines if (match := TAKEN_FROM_CACHE.search(line))}
    damages = find_damage(taken) if taken else []
    for damage in damages:
        log(f"{damage}. It is removed, and made again")
    discard(damages)
    return bool(damages)


def stage_error(stage: str, code: int, lines: list[str]) -> StageFailed:
    """The exception for a stage that ended with `code`; the stage's own exit code is in DVC's last lines."""
    stage_codes = re.findall(r"exited with (-?\d+)", "\n".join(lines))
    stage_code = int(stage_codes[-1]) if stage_codes else code
    is_permanent = stage_code in (2, 130, 143, -2, -15) or code in (130, 143)
    error_class = PermanentStageFailure if is_permanent else StageFailed
    return error_class(f"stage {stage} failed with code {stage_code}: " + " / ".join(lines[-5:]))


def wait_if_busy(output: str, log: Log) -> bool:
    """If DVC says that a stage is busy, wait for the processes that it names; else False."""
    _, is_busy, names = output.partition("is busy, it is being blocked by:")
    if not is_busy:
        return False
    pids = sorted({int(pid) for pid in re.findall(r"\(PID (\d+)\)", names)})
    log(f"another `dvc` is running in this folder (process {pids[0] if pids else ''}); this run waits for it")
    while any(can_hold_locks(pid) for pid in pids):
        time.sleep(0.5)
    repair(wait=True)
    return True
