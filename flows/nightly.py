"""python -m flows.nightly: new data -> the pipeline -> its figures -> the gate -> a new champion, or why not.

Registering and promoting are side effects, so they are tasks here and never DVC stages: a cache would skip or replay them.
What the night made is committed (`dvc.lock`, and what `dvc update` wrote), since the gate wants a commit that says how a version
was made. Where somebody's own changes are in the folder nothing is committed, and the gate refuses.
"""
from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows._alone import alone, held_places
from flows._git import changes, commit_all_of
from flows._lifeline import end_with_worker
from flows.machines import LOCK
from flows.pipeline import pipeline
from flows.repro import stream
from thousandwords.errors import UserError

IMPORTED = Path("data")  # where `dvc import` and `dvc import-url` leave their files


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[30, 120])
def take_new_data() -> list[str]:
    """Brings what `dvc import` took from elsewhere up to date; a folder of one's own is looked at by the pipeline itself."""
    log, files = get_run_logger(), sorted(str(path) for path in IMPORTED.glob("*.dvc"))
    if files:
        words = [sys.executable, "-m", "dvc", "update", *files]
        code, lines = stream(words, log.info, held_places())
        if code:
            raise RuntimeError(f"dvc update failed with code {code}: " + " / ".join(lines[-5:]))
    return files


@task(cache_policy=NO_CACHE)
def commit() -> str | None:
    """The commit that records this night; None where nothing has changed, or not by this night alone."""
    log, made = get_run_logger(), commit_all_of(is_of_a_run, "Record a nightly run")
    if made:
        log.info("committed what this run made as %s", made)
    elif others := [name for name in changes("-uno") if not is_of_a_run(name)]:
        log.warning("not committed, since this folder has changes of somebody's own: %s", ", ".join(others))
    return made


def is_of_a_run(name: str) -> bool:
    """Whether a run writes this file: is_of_a_run("data/photos.dvc") -> True"""
    path = Path(name)
    return name == LOCK or (path.suffix == ".dvc" and path.parent == IMPORTED)


@task(cache_policy=NO_CACHE)
def register() -> str:
    """The package as a version of the registry; its number."""
    from flows import registry  # here: it loads MLflow, which no other flow needs

    return str(registry.register(Path(".")))


@task(cache_policy=NO_CACHE)
def promote(version: str) -> list[str]:
    """Makes the version the champion; what the gate has against it where it does not."""
    from flows import registry

    try:
        registry.promote(Path("."), version)
    except UserError as error:
        return str(error).splitlines()
    return []


@flow(name="nightly")
def nightly() -> dict:
    """{"ran": stages that ran, "version": its number, "refusals": []}. A version that the gate refuses is no failure."""
    end_with_worker()
    with alone(get_run_logger().info):
        take_new_data()
        ran = [stage for stage, how in pipeline().items() if how == "ran"]
        commit()
        version = register()
        refusals = promote(version)
    create_markdown_artifact(markdown=told(version, refusals, ran), key="champion", description="What the gate said")
    return {"ran": ran, "version": version, "refusals": refusals}


def told(version: str, refusals: list[str], ran: list[str]) -> str:
    """What became of the night, as Markdown."""
    outcome = f"version {version} is the champion" if not refusals else f"version {version} was not promoted"
    lines = [f"# {outcome}", f"Stages that ran: {', '.join(ran) or 'none'}", *(f"- {line.lstrip('- ')}" for line in refusals)]
    return "\n\n".join(lines)


def main() -> None:
    try:
        done = nightly()
    except (RuntimeError, UserError) as error:
        print(f"nightly: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    print(told(done["version"], done["refusals"], done["ran"]))


if __name__ == "__main__":
    main()
