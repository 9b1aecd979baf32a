"""python -m flows.nightly: new data -> pipeline -> metrics -> gate -> a new champion, or the reasons why not.

Registering and promoting are side effects, so they are tasks here and never DVC stages: a cache would skip or
replay them. The outputs are committed, since the gate requires a commit that says how a version was made; if the
folder has changes of a user, nothing is committed, and the gate rejects the version.
"""

from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.command_line import one_sentence
from flows.dvc.git import changed_files, commit_if_all, is_run_output
from flows.dvc.repro import DVC
from flows.pipeline import pipeline
from flows.run_name import run_name
from flows.workers.run_lock import run_lock, run_locked
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable

DATA = Path("data")  # where `dvc import` and `dvc import-url` leave their files


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[30, 120])
def update_data() -> list[str]:
    """Update what `dvc import` took from elsewhere; the pipeline itself detects changes of local folders."""
    files = sorted(str(path) for path in DATA.glob("*.dvc"))
    if files:
        run_locked([*DVC, "update", *files], get_run_logger().info, "dvc update")
    return files


@task(cache_policy=NO_CACHE)
def commit() -> str | None:
    """The commit that records this run; None if nothing changed, or if a user changed something, too."""
    log, commit_id = get_run_logger(), commit_if_all(may_commit, "Record a nightly run")
    if commit_id:
        log.info("committed the outputs of this run as %s", commit_id)
    elif others := [name for name in changed_files("-uno") if not may_commit(name)]:
        log.warning("not committed, since this folder has changes of a user: %s", ", ".join(others))
    return commit_id


def may_commit(name: str) -> bool:
    """Whether a nightly run writes this file: may_commit("data/photos.dvc") -> True"""
    path = Path(name)
    return is_run_output(name) or (path.suffix == ".dvc" and path.parent == DATA)


@task(cache_policy=NO_CACHE)
def register() -> str:
    from flows.registry import commands  # here: it loads MLflow, which other flows do not need

    return commands.register()


@task(cache_policy=NO_CACHE)
def promote(version: str) -> list[str]:
    """Make the version the champion; the gate's reasons if it does not."""
    from flows.registry import commands

    try:
        commands.promote(version=version)
    except UserError as error:
        return str(error).splitlines()
    return []


@flow(name="nightly", flow_run_name=run_name)
def nightly() -> dict:
    """{"ran": stages that ran, "version": its number, "refusals": []}; a rejected version is no failure"""
    with run_lock(get_run_logger().info):
        update_data()
        ran = [stage for stage, result in pipeline().items() if result == "ran"]
        commit()
        version = register()
        refusals = promote(version)
    text = summary(version, refusals, ran)
    create_markdown_artifact(markdown=text, key="champion", description="The decision of the gate")
    return {"ran": ran, "version": version, "refusals": refusals}


def summary(version: str, refusals: list[str], ran: list[str]) -> str:
    lines = [f"# version {version} {'was not promoted' if refusals else 'is the champion'}"]
    lines += [f"Stages that ran: {', '.join(ran) or 'none'}"]
    return "\n\n".join([*lines, *(f"- {line.lstrip('- ')}" for line in refusals)])


def main() -> None:
    with one_sentence("nightly"):
        check_writable()
        result = nightly()
        print(summary(result["version"], result["refusals"], result["ran"]))


if __name__ == "__main__":
    main()
