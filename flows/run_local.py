"""python -m flows.run_local: brings every stage up to date, independent stages in parallel.

`make run` calls it. The same graph, commands and bytes as `dvc repro`, which runs one stage at a time. With a GPU
the stages run one by one, each with all GPUs. No server is needed.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

from tqdm import tqdm

from flows.command_line import one_sentence, parse_targets
from flows.dvc.graph import read_graph_when_free, run_graph
from flows.dvc.repro import CACHED, RAN, StageFailed, repro_command, run_stage
from flows.workers import gpu_lock
from flows.workers.placement import read_placement
from flows.workers.run_lock import lock_handles, run_lock
from flows.workers.supervisor import supervised
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable
from thousandwords.core.processes import STOP_SIGNALS, on_signals

PROGRESS = re.compile(
    r"(?P<label>[^/]+): (?P<done>\d+)/(?P<total>\d+) \(\d+ %\), \S+ (?P<unit>\w+)/s, \S+ left(?:, (?P<note>.*))?"
)
DVC_CHATTER = re.compile(  # what DVC prints at the end of every stage
    r"Running stage|> |Generating lock|Updating lock|To track the changes|To enable auto staging|Use `dvc push`|\tgit add|"
    r"\tdvc config|Data and pipelines are up to date|Verifying data sources|Stage '\w+' didn't change"
)
PATIENCE = 12.0  # seconds for a last checkpoint once a run is stopped


class ProgressDisplay:
    """Shows the output of parallel stages; bars are made from lines of thousandwords/core/progress.py."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.bars: dict[str, dict[str, tqdm]] = {}  # {running stage: {label: bar}}

    def start(self, stage: str) -> None:
        self.bars[stage] = {}
        self.print(f"{stage} ...")

    def show_line(self, stage: str, text: str) -> None:
        if self.is_terminal and (match := PROGRESS.fullmatch(text)):
            bars, label, done = self.bars.setdefault(stage, {}), match["label"], int(match["done"])
            if label not in bars:  # the rate counts from here: a resumed training starts late
                options = {"unit": match["unit"], "dynamic_ncols": True, "leave": False, "file": sys.stderr}
                bars[label] = tqdm(initial=done, total=int(match["total"]), desc=label, **options)
            bars[label].n = done
            bars[label].set_postfix_str(match["note"] or "")
        elif not DVC_CHATTER.match(text):
            self.print(text if text.startswith(f"{stage}: ") else f"{stage}: {text}")

    def end(self, stage: str) -> None:
        for bar in self.bars.pop(stage, {}).values():
            bar.close()

    def print(self, text: str) -> None:
        if self.is_terminal:
            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


class LocalStages:
    """Runs stages as child processes, which can be stopped."""

    def __init__(self, display: ProgressDisplay) -> None:
        self.display, self.processes, self.is_stopped = display, [], False

    def run(self, stage: str) -> str:
        self.display.start(stage)

        def on_line(line: str) -> None:
            self.display.show_line(stage, line)

        command = supervised(repro_command(stage), len(gpu_lock.visible()), stage)
        # a process group of its own: Ctrl-C reaches this process only, which passes it on once
        options = {"on_start": self._started, "process_group": 0, "pass_fds": lock_handles()}
        try:
            return run_stage(stage, on_line, self.display.print, command, **options)
        finally:
            self.display.end(stage)

    def stop(self) -> None:
        """Stop all as Ctrl-C does, and wait: a training stage saves a checkpoint first."""
        self.is_stopped = True
        waits = {signal.SIGINT: PATIENCE / 2, signal.SIGTERM: PATIENCE, signal.SIGKILL: PATIENCE}
        for number, patience in waits.items():
            alive = [process for process in self.processes if process.poll() is None]
            for process in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + patience
            for process in alive:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))

    def _started(self, process: subprocess.Popen) -> None:
        self.processes.append(process)
        if self.is_stopped:  # in this moment
            os.killpg(process.pid, signal.SIGKILL)


def max_parallel(stages: list[str]) -> int:
    """How many stages may run at once: one with a GPU, since each sees all GPUs of this machine."""
    return 1 if gpu_lock.visible() else read_placement(stages).parallel


def _exit(number: int) -> None:
    for other in STOP_SIGNALS:  # a closed terminal sends its signal more than once
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> None:
    targets = parse_targets(__doc__, argv)
    # one MLflow parent run for all stages
    os.environ.setdefault("THOUSANDWORDS_PIPELINE", f"run-{os.getpid()}-{int(time.time())}")
    display, started = ProgressDisplay(), time.monotonic()
    if display.is_terminal:
        os.environ["THOUSANDWORDS_SECONDS_BETWEEN_LINES"] = "0.5"
    stages = LocalStages(display)
    try:
        with one_sentence("run"), on_signals(_exit, *STOP_SIGNALS), run_lock(display.print):
            check_writable()
            whole = read_graph_when_free(display.print)
            parallel = max_parallel(list(whole.needs))
            try:
                results = run_graph(whole.part(targets), stages.run, parallel, stages.stop, fail_fast=True)
            except StageFailed as error:  # its output is above
                message = f"{str(error).partition(':')[0]}. Finished stages are kept; fix it, and run the same again"
                raise UserError(message) from error
    except KeyboardInterrupt as error:
        print("run: stopped. Training resumes from its last checkpoint in the next run", file=sys.stderr)
        raise SystemExit(130) from error
    with one_sentence("run"):
        print(summary(results, round(time.monotonic() - started)))


def summary(results: dict[str, str], seconds: int) -> str:
    """summary({"a": "ran", "b": "unchanged"}, 65) -> "1 stage ran in 1 min 5 s; unchanged: b" """
    num_ran = sum(result == RAN for result in results.values())
    unchanged = [stage for stage, result in results.items() if result == CACHED]
    if not num_ran:
        return "nothing has changed: every stage is up to date"
    duration = f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
    text = f"{num_ran} stage{'s' * (num_ran > 1)} ran in {duration}"
    return f"{text}; unchanged: {', '.join(unchanged)}" if unchanged else text


if __name__ == "__main__":
    main()
