"""python -m flows.run_local: brings every stage up to date, independent stages in parallel.

`make run` calls it. The same graph, commands and bytes as `dvc repro`, which runs one stage at a time: on two
cores the scorer trains on one while the image tokenizer trains on the other. With a GPU the stages run one by
one, each with all GPUs. No server is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from flows.dvc.graph import Graph, read_graph_when_free
from flows.dvc.repro import (
    CACHED,
    RAN,
    StageFailed,
    is_skipped,
    repro_command,
    stage_error,
    start_process,
    wait_if_busy,
)
from flows.progress_display import ProgressDisplay
from flows.workers import gpu_lock
from flows.workers.placement import read_placement
from flows.workers.run_lock import lock_handles, run_lock
from flows.workers.supervisor import supervised
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable
from thousandwords.core.processes import STOP_SIGNALS, on_signals

PATIENCE = 12.0  # seconds for a last checkpoint once a run is stopped


@dataclass
class Job:
    """A running stage."""

    process: subprocess.Popen
    lines: list[str] = field(default_factory=list)


class Jobs:
    """The running stages; their lines and ends come one after the other."""

    def __init__(self) -> None:
        self.running: dict[str, Job] = {}
        self._events: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

    def start(self, stage: str) -> None:
        # a process group of its own: Ctrl-C reaches this process only, which passes it on once
        command = supervised(repro_command(stage), len(gpu_lock.visible()), stage)
        job = self.running[stage] = Job(start_process(command, process_group=0, pass_fds=lock_handles()))
        threading.Thread(target=self._read, args=(stage, job), daemon=True).start()

    def next(self) -> tuple[str, str | None, Job]:
        """(stage, line, job) of the next line; the line is None if the stage has ended."""
        stage, line = self._events.get()
        job = self.running[stage]
        if line is None:
            job.process.wait()
            del self.running[stage]
        else:
            job.lines.append(line)
        return stage, line, job

    def stop(self) -> None:
        """Stop all as Ctrl-C does and wait until they have ended.

        A training stage saves a checkpoint first.
        """
        for number, patience in (
            (signal.SIGINT, PATIENCE / 2),
            (signal.SIGTERM, PATIENCE),
            (signal.SIGKILL, PATIENCE),
        ):
            alive = [job.process for job in self.running.values() if job.process.poll() is None]
            for process in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + patience
            for process in alive:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))

    def _read(self, stage: str, job: Job) -> None:
        for line in job.process.stdout:
            if line.strip():
                self._events.put((stage, line.rstrip()))
        self._events.put((stage, None))


def run(graph: Graph, parallel: int, display: ProgressDisplay) -> dict[str, str]:
    """Run each stage as soon as what it needs is done: {stage: "ran" or "unchanged"}.

    Raises StageFailed as soon as one fails; the others are stopped, and resume from their last checkpoint in
    the next run.
    """
    results: dict[str, str] = {}
    jobs = Jobs()
    try:
        while len(results) < len(graph.needs):
            for stage in ready_stages(graph, results, jobs):
                if stage not in graph.stale and RAN not in [results[other] for other in graph.needs[stage]]:
                    results[stage] = CACHED
                elif len(jobs.running) < parallel:
                    display.start(stage)
                    jobs.start(stage)
            if jobs.running:
                results |= handle_next_line(jobs, display)
        return results
    finally:
        jobs.stop()
        display.close()


def ready_stages(graph: Graph, results: dict[str, str], jobs: Jobs) -> list[str]:
    """The stages that could start now."""
    return [
        stage
        for stage, needs in graph.needs.items()
        if stage not in results and stage not in jobs.running and results.keys() >= set(needs)
    ]


def handle_next_line(jobs: Jobs, display: ProgressDisplay) -> dict[str, str]:
    """Show the next line; {stage: result} if a stage has ended, else {}. Raises StageFailed."""
    stage, line, job = jobs.next()
    if line is not None:
        display.show_line(stage, line)
        return {}
    display.end(stage)
    if not job.process.returncode:
        return {stage: CACHED if is_skipped(stage, job.lines) else RAN}
    if not wait_if_busy("\n".join(job.lines), display.print):
        raise stage_error(stage, job.process.returncode, job.lines)
    return {}  # it is started again


def max_parallel(stages: list[str]) -> int:
    """How many stages may run at once: one with a GPU, since each sees all GPUs of this machine."""
    return 1 if gpu_lock.visible() else read_placement(stages).parallel


def stop(number: int) -> None:
    """End this program as Ctrl-C does; a closed terminal sends its signal more than once."""
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", help="only these stages and what they need (default: all)")
    targets = parser.parse_args(argv).stages
    # one MLflow parent run for all stages
    os.environ.setdefault("THOUSANDWORDS_PIPELINE", f"run-{os.getpid()}-{int(time.time())}")
    display, started = ProgressDisplay(), time.monotonic()
    if display.is_terminal:
        os.environ["THOUSANDWORDS_SECONDS_BETWEEN_LINES"] = "0.5"
    try:
        check_writable()
        with on_signals(stop, *STOP_SIGNALS), run_lock(display.print):
            whole = read_graph_when_free(display.print)
            graph = whole.part(targets) if targets else whole
            results = run(graph, max_parallel(list(whole.needs)), display)
    except StageFailed as error:  # its output is above
        message = str(error).partition(":")[0]
        print(f"run: {message}. Finished stages are kept; fix it, and run the same again", file=sys.stderr)
        raise SystemExit(1) from error
    except (RuntimeError, UserError) as error:
        print(f"run: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        print("run: stopped. Training resumes from its last checkpoint in the next run", file=sys.stderr)
        raise SystemExit(130) from error
    print(summary(results, round(time.monotonic() - started)))


def summary(results: dict[str, str], seconds: int) -> str:
    """summary({"a": "ran", "b": "unchanged"}, 65) -> "1 stage ran in 1 min 5 s; unchanged: b" """
    num_ran = sum(result == RAN for result in results.values())
    unchanged = [stage for stage, result in results.items() if result == CACHED]
    if not num_ran:
        return "nothing has changed: every stage is up to date"
    duration = f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
    text = f"{num_ran} stage{'s' * (num_ran > 1)} ran in {duration}"
    return text + (f"; unchanged: {', '.join(unchanged)}" if unchanged else "")


if __name__ == "__main__":
    main()
