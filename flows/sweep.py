"""python -m flows.sweep generator.training.learning_rate=0.001,0.004 seed=0,1: an experiment per combination.

Each runs in a copy of the project that DVC makes, so the folder itself does not change. `dvc exp show`
compares them, and so does MLflow: each experiment's parent run has its values and its metrics, and the tag
`sweep`.
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

from flows.dvc.repro import StageFailed, stream
from flows.pipeline import stage_slots
from flows.prefect_artifacts import metrics_table
from flows.workers.parent_watch import end_with_worker
from flows.workers.placement import read_placement
from flows.workers.run_lock import lock_handles, run_lock
from flows.workers.supervisor import supervised
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable

EXPERIMENT = "thousandwords"  # that of the stages (stages/runtime/tracking.py)
MAX_EXPERIMENTS = 200  # in one sweep: a typing error should not cost a month


def combinations(grid: dict[str, list]) -> list[dict[str, object]]:
    """{"a": [1, 2], "b": [3]} -> [{"a": 1, "b": 3}, {"a": 2, "b": 3}].

    Raises UserError for none or too many.
    """
    if not grid or not all(grid.values()):
        raise UserError("a sweep needs values to try, such as generator.training.learning_rate=0.001,0.004")
    rows = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(rows) > MAX_EXPERIMENTS:
        raise UserError(
            f"these values make {len(rows)} experiments, more than {MAX_EXPERIMENTS}. Try fewer values at once"
        )
    return rows


def check_settings(grid: dict[str, list], params: Path = Path("params.yaml")) -> None:
    """Raises UserError for a setting not in params.yaml: DVC would add it, and a stage reject it hours later."""
    settings = yaml.safe_load(params.read_text(encoding="utf-8"))
    for setting in grid:
        block = settings
        for name in setting.split("."):
            if not isinstance(block, dict) or name not in block:
                raise UserError(
                    f"params.yaml has no {setting}. Add it there with its default value, then sweep over others"
                )
            block = block[name]


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def run_experiment(name: str, values: dict[str, object], parallel: int) -> str:
    """Run one experiment with DVC, in a copy of the project. Raises StageFailed with the last lines."""
    log = get_run_logger()
    command = ["env", f"THOUSANDWORDS_PIPELINE={name}", sys.executable, "-m", "dvc", "exp", "run", "--temp"]
    command += ["--name", name]
    for setting, value in values.items():
        command += ["-S", f"{setting}={yaml.safe_dump(value).split(chr(10))[0]}"]
    with stage_slots(parallel):
        code, lines = stream(
            supervised(command, 1, name), lambda line: log.info("%s | %s", name, line), lock_handles()
        )
    if code:
        raise StageFailed(f"experiment {name} failed with code {code}: " + " / ".join(lines[-5:]))
    return name


@flow(name="sweep")
def sweep(grid: dict[str, list]) -> list[dict]:
    """Run every combination; a row for each with its name, its values and its metrics."""
    end_with_worker()
    settings = combinations(grid)
    check_settings(grid)
    with run_lock(get_run_logger().info):
        use_shared_tracking()
        title = datetime.now(UTC).strftime("sweep-%Y%m%d-%H%M%S")
        parallel = read_placement(list(yaml.safe_load(Path("dvc.yaml").read_text())["stages"])).parallel
        futures = [
            run_experiment.submit(f"{title}-{n}", values, parallel) for n, values in enumerate(settings)
        ]
        for future in futures:
            future.wait()
    rows = compare(title, settings)
    create_table_artifact(table=rows, key="sweep", description=title)
    errors = [str(future.result(raise_on_failure=False)) for future in futures if future.state.is_failed()]
    if errors:
        raise RuntimeError("; ".join(errors))
    return rows


def use_shared_tracking() -> None:
    """Let all experiments write into this folder's MLflow, although DVC runs each in a copy of the folder."""
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path('.mlflow').resolve()}/mlflow.db")
    Path(".mlflow").mkdir(exist_ok=True)
    client = mlflow_client()
    if client.get_experiment_by_name(EXPERIMENT) is None:
        is_local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:")
        client.create_experiment(
            EXPERIMENT, Path(".mlflow/artifacts").resolve().as_uri() if is_local else None
        )


def mlflow_client():
    """MLflow's client."""
    import mlflow  # late: loading takes a second

    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def compare(title: str, settings: list[dict[str, object]]) -> list[dict]:
    """The rows of a sweep, from DVC's table of experiments.

    Also written into MLflow, next to the stages' runs.
    """
    from dvc.api import exp_show

    experiments = {row.get("Experiment"): row for row in exp_show()}
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    param_names = {row["figure"] for row in metrics_table(params)}
    rows = []
    for number, values in enumerate(settings):
        name = f"{title}-{number}"
        metrics = {
            key: value
            for key, value in experiments.get(name, {}).items()
            if is_metric(key, value) and key not in param_names
        }
        rows.append(
            {"experiment": name, **values, **{key: round(value, 4) for key, value in metrics.items()}}
        )
        log_experiment(title, name, values, metrics)
    return rows


def is_metric(key: str, value: object) -> bool:
    """Whether a column of `dvc exp show` is a number of a metrics file."""
    return isinstance(value, int | float) and not isinstance(value, bool) and "params.yaml" not in key


def log_experiment(title: str, name: str, values: dict[str, object], metrics: dict[str, float]) -> None:
    """Log values and metrics to the parent run of an experiment, so that MLflow's own page compares them."""
    client = mlflow_client()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    runs = client.search_runs([experiment], f"tags.pipeline = '{name}'", max_results=1)
    tags = {"pipeline": name, "mlflow.runName": name}
    run = runs[0].info.run_id if runs else client.create_run(experiment, tags=tags).info.run_id
    client.set_tag(run, "sweep", title)
    for setting, value in values.items():
        client.log_param(run, setting, value)
    for key, value in metrics.items():
        client.log_metric(run, key.replace("/", ".").replace(":", "."), value)


def parse_grid(args: list[str]) -> dict[str, list]:
    """["a.b=1,2"] -> {"a.b": [1, 2]}; raises UserError."""
    grid = {}
    for arg in args:
        setting, equals, values = arg.partition("=")
        if not equals or not values:
            raise UserError(
                f"{arg!r} must be a setting and its values, such as generator.training.learning_rate=0.001,0.004"
            )
        grid[setting] = [yaml.safe_load(value) for value in values.split(",")]
    return grid


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("values", nargs="+", metavar="SETTING=VALUE,VALUE")
    values = parser.parse_args(argv).values
    try:
        check_writable()
        rows = sweep(parse_grid(values))
    except (RuntimeError, UserError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    print("\n".join(str(row) for row in rows))


if __name__ == "__main__":
    main()
