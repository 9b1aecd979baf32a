"""python -m flows.run: brings every stage up to date, those that need nothing of each other side by side. What `make run` calls.

The same graph, commands and bytes as `dvc repro`, which has one stage at a time: on two cores the scorer learns on one while the
image tokenizer learns on the other. Where there is a GPU the stages take turns, each with all of it. No server is needed.
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

from flows import gpu
from flows._alone import alone
from flows._screen import Screen
from flows.graph import Graph, read_graph_when_free
from flows.placement import read_placement
from flows.repro import CACHED, RAN, StageFailed, begin, command, failure, has_waited_for_others, is_skipped
from thousandwords.errors import UserError

PATIENCE = 12.0  # seconds for a last checkpoint once a run is stopped


@dataclass
class Job:
    """A stage at work."""

    process: subprocess.Popen
    lines: list[str] = field(default_factory=list)


class Jobs:
    """The stages at work, whose lines and ends come one after the other."""

    def __init__(self) -> None:
        self.at_work: dict[str, Job] = {}
        self._events: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

    def start(self, stage: str) -> None:
        # a group of its own: Ctrl-C comes to this process, which passes it on once
        job = self.at_work[stage] = Job(begin(command(stage), process_group=0))
        threading.Thread(target=self._read, args=(stage, job), daemon=True).start()

    def next(self) -> tuple[str, str | None, Job]:
        """(stage, line, job) of the next line; the line is None where the stage has ended."""
        stage, line = self._events.get()
        job = self.at_work[stage]
        if line is None:
            job.process.wait()
            del self.at_work[stage]
        else:
            job.lines.append(line)
        return stage, line, job

    def stop(self) -> None:
        """Asks all to end as Ctrl-C does, and sees to it that they have: what trains keeps a checkpoint first."""
        for number, patience in ((signal.SIGINT, PATIENCE / 2), (signal.SIGTERM, PATIENCE), (signal.SIGKILL, PATIENCE)):
            alive = [job.process for job in self.at_work.values() if job.process.poll() is None]
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


def run(graph: Graph, parallel: int, screen: Screen) -> dict[str, str]:
    """Every stage as soon as what it needs is done: {stage: "ran" or "unchanged"}.

    Raises StageFailed as soon as one fails; the others are stopped, and go on from their last checkpoint in the next run.
    """
    done: dict[str, str] = {}
    jobs = Jobs()
    try:
        while len(done) < len(graph.needs):
            for stage in ready(graph, done, jobs):
                if stage not in graph.stale and RAN not in [done[other] for other in graph.needs[stage]]:
                    done[stage] = CACHED
                elif len(jobs.at_work) < parallel:
                    screen.begins(stage)
                    jobs.start(stage)
            if jobs.at_work:
                done |= follow(jobs, screen)
        return done
    finally:
        jobs.stop()
        screen.close()


def ready(graph: Graph, done: dict[str, str], jobs: Jobs) -> list[str]:
    """The stages that nothing keeps from running."""
    return [stage for stage, needs in graph.needs.items()
            if stage not in done and stage not in jobs.at_work and done.keys() >= set(needs)]  # fmt: skip


def follow(jobs: Jobs, screen: Screen) -> dict[str, str]:
    """Shows the next line; where a stage has ended with it, what became of it."""
    stage, line, job = jobs.next()
    if line is not None:
        screen.line(stage, line)
        return {}
    screen.ends(stage)
    if not job.process.returncode:
        return {stage: CACHED if is_skipped(stage, job.lines) else RAN}
    if not has_waited_for_others("\n".join(job.lines), screen.tell):
        raise failure(stage, job.process.returncode, job.lines)
    return {}  # it is begun anew


def count_places(stages: list[str]) -> int:
    """How many stages may be at work at once: of those with a GPU one, which sees all GPUs of this machine."""
    return 1 if gpu.visible() else read_placement(stages).parallel


def stop_on_signals() -> None:
    """SIGTERM and the end of a terminal stop this program as Ctrl-C does."""

    def on_signal(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help="only these stages and what they need (default: all)")
    wanted = parser.parse_args(argv).stages
    os.environ.setdefault("THOUSANDWORDS_PIPELINE", f"run-{os.getpid()}-{int(time.time())}")  # one MLflow parent for all
    screen, started = Screen(), time.monotonic()
    if screen.is_terminal:
        os.environ["THOUSANDWORDS_SECONDS_BETWEEN_LINES"] = "0.5"
    try:
        stop_on_signals()
        with alone(screen.tell):
            whole = read_graph_when_free(screen.tell)
            done = run(whole.part(wanted) if wanted else whole, count_places(list(whole.needs)), screen)
    except StageFailed as error:  # its lines stand above
        told = str(error).partition(":")[0]
        print(f"run: {told}. What was made before it stays; mend it, and run the same again", file=sys.stderr)
        raise SystemExit(1) from error
    except (RuntimeError, UserError) as error:
        print(f"run: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        print("run: stopped. What was training goes on from its last checkpoint in the next run", file=sys.stderr)
        raise SystemExit(130) from error
    print(summary(done, round(time.monotonic() - started)))


def summary(done: dict[str, str], seconds: int) -> str:
    """summary({"a": "ran", "b": "unchanged"}, 65) -> "1 stage ran in 1 min 5 s; unchanged: b" """
    ran = sum(how == RAN for how in done.values())
    unchanged = [stage for stage, how in done.items() if how == CACHED]
    if not ran:
        return "nothing has changed: every stage is up to date"
    taken = f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
    return f"{ran} stage{'s' * (ran > 1)} ran in {taken}" + (f"; unchanged: {', '.join(unchanged)}" if unchanged else "")


if __name__ == "__main__":
    main()
