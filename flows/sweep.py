"""python -m flows.sweep generator.training.learning_rate=0.001,0.004 seed=0,1: a DVC experiment per combination of values.

Each runs in a copy of the project that DVC makes, so the folder itself stays as it is. `dvc exp show` compares them, and so
does MLflow: each experiment's parent run has its values and its figures, and the tag `sweep`.
"""
from __future__ import annotations

import argparse
import itertools
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows._alone import alone, held_places
from flows._lifeline import end_with_worker
from flows.artifacts import table
from flows.pipeline import places
from flows.placement import read_placement
from flows.repro import StageFailed, stream
from thousandwords.errors import UserError

EXPERIMENT = "thousandwords"  # that of the stages (stages/_run.py)
LARGEST = 200  # experiments in one sweep: a typing error should not cost a month


def combinations(grid: dict[str, list]) -> list[dict[str, object]]:
    """{"a": [1, 2], "b": [3]} -> [{"a": 1, "b": 3}, {"a": 2, "b": 3}]; raises UserError for none or too many."""
    if not grid or not all(grid.values()):
        raise UserError("a sweep needs values to try, such as generator.training.learning_rate=0.001,0.004")
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(found) > LARGEST:
        raise UserError(f"these values make {len(found)} experiments, more than {LARGEST}. Try fewer values at once")
    return found


def check_knobs(grid: dict[str, list], params: Path = Path("params.yaml")) -> None:
    """Raises UserError for a knob that params.yaml does not set: DVC would add it, and the stage refuse it hours later."""
    known = yaml.safe_load(params.read_text(encoding="utf-8"))
    for knob in grid:
        block = known
        for name in knob.split("."):
            if not isinstance(block, dict) or name not in block:
                raise UserError(f"params.yaml has no {knob}. Write the knob there with its usual value, then sweep over others")
            block = block[name]


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def run_experiment(name: str, values: dict[str, object], parallel: int) -> str:
    """One experiment by DVC, in a copy of the project. Raises StageFailed with the last lines."""
    log = get_run_logger()
    sets = [word for knob, value in values.items() for word in ("-S", f"{knob}={yaml.safe_dump(value).split(chr(10))[0]}")]
    keeper = [sys.executable, "-m", "flows.keeper", "--gpus", "1", "--what", name, "--", "env", f"THOUSANDWORDS_PIPELINE={name}"]
    with places(parallel):
        words = [*keeper, sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, *sets]
        code, lines = stream(words, lambda line: log.info("%s | %s", name, line), held_places())
    if code:
        raise StageFailed(f"experiment {name} failed with code {code}: " + " / ".join(lines[-5:]))
    return name


@flow(name="sweep")
def sweep(grid: dict[str, list]) -> list[dict]:
    """A row for each combination: its name, its values, and its figures as DVC knows them."""
    end_with_worker()
    wanted = combinations(grid)
    check_knobs(grid)
    with alone(get_run_logger().info):
        use_one_diary()
        title = datetime.now(UTC).strftime("sweep-%Y%m%d-%H%M%S")
        parallel = read_placement(list(yaml.safe_load(Path("dvc.yaml").read_text())["stages"])).parallel
        futures = [run_experiment.submit(f"{title}-{n}", values, parallel) for n, values in enumerate(wanted)]
        for future in futures:
            future.wait()
    rows = compare(title, wanted)
    create_table_artifact(table=rows, key="sweep", description=title)
    failed = [str(one.result(raise_on_failure=False)) for one in futures if one.state.is_failed()]
    if failed:
        raise RuntimeError("; ".join(failed))
    return rows


def use_one_diary() -> None:
    """All experiments write into this folder's MLflow, though DVC runs each in a copy of it."""
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path('.mlflow').resolve()}/mlflow.db")
    Path(".mlflow").mkdir(exist_ok=True)
    client = diary()
    if client.get_experiment_by_name(EXPERIMENT) is None:
        is_local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:")
        client.create_experiment(EXPERIMENT, Path(".mlflow/artifacts").resolve().as_uri() if is_local else None)


def diary():
    """MLflow's client; it loads when it is needed."""
    import mlflow

    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def compare(title: str, wanted: list[dict[str, object]]) -> list[dict]:
    """The rows of a sweep, from what DVC keeps of its experiments; written into MLflow beside what the stages wrote."""
    from dvc.api import exp_show

    known = {row.get("Experiment"): row for row in exp_show()}
    knobs = {row["figure"] for row in table(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")))}
    rows = []
    for number, values in enumerate(wanted):
        name = f"{title}-{number}"
        figures = {key: value for key, value in known.get(name, {}).items() if is_figure(key, value) and key not in knobs}
        rows.append({"experiment": name, **values, **{key: round(value, 4) for key, value in figures.items()}})
        write_down(title, name, values, figures)
    return rows


def is_figure(key: str, value: object) -> bool:
    """Whether a column of `dvc exp show` is a number of a metrics file."""
    return isinstance(value, int | float) and not isinstance(value, bool) and "params.yaml" not in key


def write_down(title: str, name: str, values: dict[str, object], figures: dict[str, float]) -> None:
    """Gives the parent run of an experiment its values and figures, so that MLflow's own page compares them."""
    client = diary()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    found = client.search_runs([experiment], f"tags.pipeline = '{name}'", max_results=1)
    tags = {"pipeline": name, "mlflow.runName": name}
    run = found[0].info.run_id if found else client.create_run(experiment, tags=tags).info.run_id
    client.set_tag(run, "sweep", title)
    for knob, value in values.items():
        client.log_param(run, knob, value)
    for key, value in figures.items():
        client.log_metric(run, key.replace("/", ".").replace(":", "."), value)


def parsed(words: list[str]) -> dict[str, list]:
    """["a.b=1,2"] -> {"a.b": [1, 2]}; raises UserError."""
    grid = {}
    for word in words:
        knob, equals, values = word.partition("=")
        if not equals or not values:
            raise UserError(f"{word!r} should be a knob and its values, such as generator.training.learning_rate=0.001,0.004")
        grid[knob] = [yaml.safe_load(value) for value in values.split(",")]
    return grid


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", nargs="+", metavar="KNOB=VALUE,VALUE")
    try:
        rows = sweep(parsed(parser.parse_args(argv).values))
    except (RuntimeError, UserError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    print("\n".join(str(row) for row in rows))


if __name__ == "__main__":
    main()
