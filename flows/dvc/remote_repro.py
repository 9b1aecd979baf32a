"""python -m flows.dvc.remote_repro work --stage STAGE [--revision REV] | collect: a pipeline over machines.

Each machine has its own clone; all exchange outputs through one DVC remote, and none pushes to git. A worker
fetches what others have run (DVC's run-cache), runs its stage, and pushes the outputs. At the end the coordinator
finds every stage in the run-cache, and so writes one complete `dvc.lock` without merging. Not here: which worker
runs which stage when; `flows.fleet` does that with Prefect.
"""

import contextlib
import functools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.command_line import one_sentence, parser
from flows.dvc.git import changed_files, discard_run_outputs, git, git_succeeds, is_run_output
from flows.dvc.repro import DVC, discard_damaged, stream
from thousandwords.core.errors import UserError


class CommandFailed(UserError):
    """A command of git or DVC ended with an error."""


def work(stage: str, revision: str | None = None, repro: Callable[..., list[str]] | None = None) -> list[str]:
    """Run one stage, at `revision` if given, and push its outputs; returns the stages that had to run.

    `repro` runs DVC's command and returns its lines (default: `run`). Raises UserError if neither this clone nor its
    origin has that revision.
    """
    check_clone()
    discard_run_outputs()  # the run-cache has all of them, and another revision may be checked out
    if revision:
        exists = functools.partial(git_succeeds, "rev-parse", "--verify", f"{revision}^{{commit}}")
        if not exists():
            run("git", "fetch", "--quiet", "--tags")
        if not exists():
            found = f"neither this clone nor its origin has the revision {revision}"
            raise UserError(f"{found}. Push it first: git push")
        git("checkout", "--quiet", "--detach", revision)
    fetch()
    ran = repro_sound(repro or run, stage)
    # with the stages it needs: if this worker had to run those too, no other worker has their outputs
    run(*DVC, "push", "--run-cache", "--with-deps", stage)
    push_uncached()
    return ran


def push_uncached() -> None:
    """Push the outputs with `cache: false`, which `dvc push` leaves to git: without them no other machine can take their
    stage from the run-cache."""
    from dvc.repo import Repo  # late: loading takes a second

    with Repo() as repo:
        outs = [out for out in repo.index.outs if not out.use_cache and out.hash_info]
        repo.cloud.push({out.hash_info for out in outs if repo.cache.local.exists(out.hash_info.value)})


def collect(targets: Sequence[str] | None = None) -> list[str]:
    """Collect the outputs of all workers, for `targets` or all stages; the stages that had to run here."""
    check_clone()
    fetch()
    return repro_sound(run, *(targets or ()))


def repro_sound(run: Callable[..., list[str]], *stages: str) -> list[str]:
    """Bring the stages up to date, with what the remote has; the stages that had to run.

    What is damaged in the remote or the cache is made again, without the remote.
    """
    lines = run(*DVC, "--wait-for-lock", "repro", "--pull", *stages)
    if discard_damaged(lines, print):
        lines += run(*DVC, "--wait-for-lock", "repro", *stages)
    return [line.split("'")[1] for line in lines if line.startswith("Running stage '")]


def checkout_outputs() -> None:
    """Check out what `dvc.lock` names, as far as the remote has it, so that it need not be run again."""
    fetch()
    with contextlib.suppress(CommandFailed):
        run(*DVC, "checkout", "--allow-missing")


def fetch() -> None:
    """Fetch the run-cache. If the remote lacks files that a `dvc.lock` names, their stages run again here."""
    try:
        run(*DVC, "fetch", "--run-cache")
    except CommandFailed as error:
        print(f"remote_repro: {error}; what is missing is made here", file=sys.stderr)


def check_clone() -> None:
    """Raises UserError unless this is a clone without own changes, with a remote that all machines share."""
    if not Path("dvc.yaml").is_file():
        raise UserError("there is no dvc.yaml here. Run this in the root of a clone of the project")
    if not git_succeeds("rev-parse", "--is-inside-work-tree"):
        fix = "Clone the project, so that every machine has the same revision"
        raise UserError(f"this folder is not a git clone. {fix}")
    if files := [name for name in changed_files() if not is_run_output(name)]:
        raise UserError(
            f"this clone has changes that no other machine has: {', '.join(files)}. Commit them and check that revision "
            "out everywhere, or stash them"
        )
    if not subprocess.run([*DVC, "config", "core.remote"], capture_output=True, text=True).stdout.strip():
        raise UserError(
            "no DVC remote is configured, through which the machines exchange outputs. Add one that all of them reach: "
            "dvc remote add --default store s3://BUCKET/FOLDER (or a shared folder), and commit .dvc/config"
        )


def run(*command: str) -> list[str]:
    """Run a command and print its lines, which are returned. Raises CommandFailed with the last ones."""
    typed = " ".join(command).replace(" ".join(DVC), "dvc")  # as a user would type it
    print(f"$ {typed}", flush=True)
    code, lines = stream(command, functools.partial(print, flush=True))
    if code:
        raise CommandFailed(f"`{typed}` failed with code {code}: {' / '.join(lines[-3:])}")
    return lines


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    commands = arguments.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("work", help="in a worker's clone: run one stage and push its outputs")
    worker.add_argument("--stage", required=True, help="a stage of dvc.yaml")
    worker.add_argument("--revision", help="a commit, branch or tag to check out (default: what is here)")
    commands.add_parser("collect", help="in the coordinator's clone: collect what the workers ran")
    options = arguments.parse_args(argv)
    with one_sentence("remote_repro"):
        ran = work(options.stage, options.revision) if options.command == "work" else collect()
        where = "here" if options.command == "work" else "here, since no worker had run them"
        print(f"remote_repro: {len(ran)} stages ran {where}{': ' if ran else ''}{', '.join(ran)}")


if __name__ == "__main__":
    main()
