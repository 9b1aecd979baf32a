"""python -m flows.sweep generator.training.learning_rate=0.001,0.004 seed=0,1: an experiment per combination.

Each runs in a copy of the project that DVC makes. `dvc exp show` compares them, and so does MLflow: each
experiment's parent run has its values and its metrics, and the tag `sweep`.
"""

import functools
import itertools
import os
from datetime import UTC, datetime
from pathlib import Path

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.command_line import one_sentence, parser
from flows.dvc.git import git
from flows.dvc.graph import Graph, run_graph
from flows.dvc.repro import DVC, RAN
from flows.run_name import run_name
from flows.workers.placement import read_placement
from flows.workers.run_lock import run_lock, run_locked
from flows.workers.supervisor import supervised
from stages.runtime import tracking
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable
from thousandwords.core.params import flatten, paths_in, read_params

PARAMS = Path("params.yaml")
MAX_COPIED = 1000  # files and folders that git does not track, for each experiment
MAX_EXPERIMENTS = 200  # in one sweep: a typing error should not cost a month


def combinations(grid: dict[str, list]) -> list[dict[str, object]]:
    """{"a": [1, 2], "b": [3]} -> [{"a": 1, "b": 3}, {"a": 2, "b": 3}]; UserError for none or too many"""
    if not grid or not all(grid.values()):
        raise UserError("a sweep needs values to try, such as generator.training.learning_rate=0.001,0.004")
    rows = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(rows) > MAX_EXPERIMENTS:
        found = f"these values make {len(rows)} experiments, more than {MAX_EXPERIMENTS}"
        raise UserError(f"{found}. Try fewer values at once")
    return rows


def check_settings(grid: dict[str, list]) -> None:
    """Raises UserError for a setting not in params.yaml: DVC would add it, and a stage reject it hours later."""
    settings = [f"{name}." for name in flatten(read_params(PARAMS))]
    for setting in grid:
        if not any(name.startswith(f"{setting}.") for name in settings):
            fix = "Add it there with its default value, then sweep over others"
            raise UserError(f"params.yaml has no {setting}. {fix}")


def untracked_inputs(params: dict) -> list[str]:
    """The files and folders that settings name and git does not track: DVC's copy of the project lacks them.

    What `dvc add` versions is none of them, as DVC checks it out. Raises UserError for what cannot be copied.
    """
    places = []
    for name, path in paths_in(params).items():
        place = Path(path)
        if place.is_absolute() or not place.exists():  # found from a copy, or reported by check_params
            continue
        if not place.resolve().is_relative_to(Path.cwd()):
            raise UserError(
                f"params.yaml: {name} is {path}, relative and outside of this project, but an experiment runs in a "
                f"copy that lies elsewhere. Write the whole path: {place.resolve()}"
            )
        if name.endswith("path") and place.is_file() and place.parent != Path("."):
            place = place.parent  # a list, and its images are beside it
        places.append(str(place))
    if not places:
        return []
    listed = git("ls-files", "-z", "--others", "--directory", "--", *places).split("\0")
    found = {path.rstrip("/") for path in listed if path}
    paths = sorted(path for path in found if not Path(f"{path}.dvc").is_file())
    if len(paths) > MAX_COPIED:
        raise UserError(
            f"{Path(paths[0]).parent} has {len(paths)} files of your own beside files of the project, too many to copy "
            "one by one. Move them to a folder of their own, such as data/own/images, and set the setting to it"
        )
    return paths


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def run_experiment(name: str, values: dict[str, object], inputs: list[str]) -> str:
    """Run one experiment with DVC, in a copy of the project with these `inputs`. Raises StageFailed."""
    command = ["env", f"THOUSANDWORDS_PIPELINE={name}", *DVC, "--wait-for-lock", "exp", "run", "--temp"]
    command += ["--name", name, *(f"--copy-paths={path}" for path in inputs)]
    for setting, value in values.items():
        command += ["-S", f"{setting}={yaml.safe_dump(value).split(chr(10))[0]}"]
    on_line = functools.partial(get_run_logger().info, "%s | %s", name)
    run_locked(supervised(command, 1, name), on_line, f"experiment {name}")
    return RAN


@flow(name="sweep", flow_run_name=run_name)
def sweep(grid: dict[str, list]) -> list[dict]:
    """Run every combination; a row for each with its name, its values and its metrics."""
    settings = combinations(grid)
    check_settings(grid)
    inputs = untracked_inputs(read_params(PARAMS))
    title = datetime.now(UTC).strftime("sweep-%Y%m%d-%H%M%S")
    experiments = {f"{title}-{number}": values for number, values in enumerate(settings)}
    graph, error = Graph({name: [] for name in experiments}, frozenset(experiments)), None
    with run_lock(get_run_logger().info):
        # all experiments write into this folder's MLflow, although DVC runs each in a copy of the folder
        os.environ.setdefault("MLFLOW_TRACKING_URI", tracking.tracking_uri())
        tracking.if_usable("sweep", lambda: tracking.experiment_of(tracking.client()))
        parallel = read_placement(list(yaml.safe_load(Path("dvc.yaml").read_text())["stages"])).parallel
        try:
            run_graph(graph, lambda name: run_experiment(name, experiments[name], inputs), parallel)
        except RuntimeError as failure:
            error = failure
    rows = compare(title, experiments)
    create_table_artifact(table=rows, key="sweep", description=title)
    if error:
        raise error
    return rows


def compare(title: str, experiments: dict[str, dict[str, object]]) -> list[dict]:
    """The rows of a sweep, from DVC's table of experiments; MLflow gets them, too."""
    from dvc.api import exp_show

    shown = {row.get("Experiment"): row for row in exp_show()}
    settings = flatten(read_params(PARAMS))
    rows = []
    for name, values in experiments.items():
        metrics = {
            key: value
            for key, value in shown.get(name, {}).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
            if "params.yaml" not in key and key not in settings
        }
        rounded = {key: round(value, 4) for key, value in metrics.items()}
        rows.append({"experiment": name, **values, **rounded})
        tracking.if_usable("sweep", lambda row=(title, name, values, metrics): tracking.log_experiment(*row))
    return rows


def parse_grid(args: list[str]) -> dict[str, list]:
    """["a.b=1,2"] -> {"a.b": [1, 2]}; raises UserError."""
    grid = {}
    for arg in args:
        setting, equals, values = arg.partition("=")
        if not equals or not values:
            example = "generator.training.learning_rate=0.001,0.004"
            raise UserError(f"{arg!r} must be a setting and its values, such as {example}")
        grid[setting] = [yaml.safe_load(value) for value in values.split(",")]
    return grid


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("values", nargs="+", metavar="SETTING=VALUE,VALUE")
    values = arguments.parse_args(argv).values
    with one_sentence("sweep"):
        check_writable()
        rows = sweep(parse_grid(values))
        print("\n".join(str(row) for row in rows))


if __name__ == "__main__":
    main()
