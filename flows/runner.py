"""Run the stages of a graph, each as soon as what it needs is done. `make run`, the flows and the fleet call it."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from flows.dvc.graph import Graph
from flows.dvc.repro import CACHED, RAN, StageFailed

PATIENCE = 15.0  # seconds for the running stages to end, once the run is stopped


def run_graph(
    graph: Graph,
    run_stage: Callable[[str], str],
    parallel: int,
    stop: Callable[[], object] = lambda: None,
    fail_fast: bool = False,
) -> dict[str, str]:
    """{stage: RAN or CACHED} in the order of the graph, by at most `parallel` calls of `run_stage` at a time, in threads.

    With `fail_fast` the first error ends the run, after `stop`; else all stages that do not need a failed one
    run first, and RuntimeError names every failure.
    """
    results: dict[str, str] = {}
    running: dict[Future, str] = {}
    failed: dict[str, BaseException] = {}
    try:
        while True:
            for stage, needs in graph.needs.items():
                if stage in results or not all(other in results for other in needs):
                    continue
                if stage not in graph.stale and RAN not in [results[other] for other in needs]:
                    results[stage] = CACHED
                elif stage not in failed and stage not in running.values() and len(running) < parallel:
                    running[_in_thread(run_stage, stage)] = stage
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, error = running.pop(future), future.exception()
                if error and fail_fast:
                    raise error
                (failed if error else results)[stage] = error or future.result()
    except BaseException:
        stop()
        wait(running, PATIENCE)
        raise
    if failed:
        errors = [error for error in failed.values() if isinstance(error, StageFailed)]
        raise RuntimeError("; ".join(map(str, errors or failed.values())))
    return {stage: results[stage] for stage in graph.needs}


def _in_thread(function: Callable[[str], str], stage: str) -> Future:
    """The result of a call in a thread with this one's context, which keeps no process alive."""
    future: Future = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(function, stage))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
