"""python -m flows.machines work --stage STAGE [--revision REV] | collect: one pipeline over many machines.

Each machine has a clone of its own, and all have one DVC remote, which is the only way between them: a worker fetches what others
have run (DVC's run-cache), runs its stage, and pushes what came of it; nobody pushes to git. At the end the coordinator collects:
it fetches the same, every stage is found in the run-cache, and its `dvc.lock` is whole, in one place, without merging.

A worker's own `dvc.lock` is thrown away when it begins again: all that it says is in the run-cache. Left out: who does which
stage when; `flows.fleet` does that by Prefect. A stage that needs another starts once that one is pushed, or its worker runs the
other, too.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flows._git import changes, git, is_known
from thousandwords.errors import UserError

LOCK = "dvc.lock"
DVC = (sys.executable, "-m", "dvc")
RUNS = "Running stage '"
os.environ.setdefault("DVC_NO_ANALYTICS", "1")


class CommandFailed(UserError):
    """A command of git or DVC ended with an error."""


def work(stage: str, revision: str | None = None, repro: Callable[..., list[str]] | None = None) -> list[str]:
    """Runs one stage, at `revision` where it is given, and hands over what came of it; the stages that had to run.

    `repro` runs DVC's command and returns its lines; `run` does if it is left out.
    """
    check_clone()
    forget_lock()
    if revision:
        check_out(revision)
    fetch()
    ran = stages_run((repro or run)(*DVC, "--wait-for-lock", "repro", "--pull", stage))
    # with what the stage needs: where this worker had to make that, too, nobody else has it
    run(*DVC, "push", "--run-cache", "--with-deps", stage)
    return ran


def collect(targets: Sequence[str] | None = None) -> list[str]:
    """Brings together what all workers have done, for `targets` or for all stages; those that no worker had done ran here."""
    check_clone()
    fetch()
    return stages_run(run(*DVC, "--wait-for-lock", "repro", "--pull", *(targets or ())))


def bring() -> None:
    """What `dvc.lock` names, as far as the remote has it: what is here already need not be asked of anybody."""
    fetch()
    with contextlib.suppress(CommandFailed):
        run(*DVC, "checkout", "--allow-missing")


def check_out(revision: str) -> None:
    """The clone at that revision; raises UserError where neither it nor its origin has it."""
    commit = f"{revision}^{{commit}}"
    if not is_known("rev-parse", "--verify", commit):
        run("git", "fetch", "--quiet", "--tags")
    if not is_known("rev-parse", "--verify", commit):
        raise UserError(f"neither this clone nor where it comes from has the revision {revision}. Push it first: git push")
    git("checkout", "--quiet", "--detach", revision)


def fetch() -> None:
    """What others have run. A `dvc.lock` that tells of files which nobody has pushed is no reason to stop: they are made anew."""
    try:
        run(*DVC, "fetch", "--run-cache")
    except CommandFailed as error:
        print(f"machines: {error}; what is missing is made here", file=sys.stderr)


def check_clone() -> None:
    """Raises UserError unless this is a clone as it was committed, with a remote that all machines share."""
    if not Path("dvc.yaml").is_file():
        raise UserError("there is no dvc.yaml here. Run this in the root of a clone of the project")
    if not is_known("rev-parse", "--is-inside-work-tree"):
        raise UserError("this folder is no git clone. Clone the project, so that every machine has the same revision")
    if changed := [name for name in changes() if name != LOCK]:
        raise UserError(
            f"this clone has changes that no other machine has: {', '.join(changed)}. Commit them and check that revision out "
            "everywhere, or stash them"
        )
    if not subprocess.run([*DVC, "config", "core.remote"], capture_output=True, text=True).stdout.strip():
        raise UserError(
            "no DVC remote is configured, by which machines hand over what they made. Add one that all of them reach: "
            "dvc remote add --default store s3://BUCKET/FOLDER (or a shared folder), and commit .dvc/config"
        )


def forget_lock() -> None:
    """`dvc.lock` as it was committed: another revision can then be checked out."""
    if git("ls-tree", "--name-only", "HEAD", LOCK):
        git("checkout", "--quiet", "HEAD", "--", LOCK)
        return
    git("rm", "--quiet", "--cached", "--force", "--ignore-unmatch", LOCK)
    Path(LOCK).unlink(missing_ok=True)


def stages_run(lines: Sequence[str]) -> list[str]:
    """["Running stage 'a':", "Stage 'b' is cached - …"] -> ["a"]"""
    return [line.split("'")[1] for line in lines if line.startswith(RUNS)]


def run(*words: str) -> list[str]:
    """A command's lines, shown as they come; raises CommandFailed with the last of them."""
    print(f"$ {told(words)}", flush=True)
    lines = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        last = " / ".join([line for line in lines if line][-3:])
        raise CommandFailed(f"`{told(words)}` failed with code {process.returncode}: {last}")
    return lines


def told(words: Sequence[str]) -> str:
    """The command as a reader would type it."""
    return " ".join(["dvc", *words[len(DVC) :]] if tuple(words[: len(DVC)]) == DVC else words)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("work", help="in a worker's clone: run one stage and hand it over")
    worker.add_argument("--stage", required=True, help="a stage of dvc.yaml")
    worker.add_argument("--revision", help="a commit, branch or tag to check out first (default: what is here)")
    commands.add_parser("collect", help="in the coordinator's clone: bring together what the workers did")
    options = parser.parse_args(argv)
    try:
        ran = work(options.stage, options.revision) if options.command == "work" else collect()
    except UserError as error:
        print(f"machines: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    where = "here" if options.command == "work" else "here, since no worker had done them"
    print(f"machines: {len(ran)} stages ran {where}{': ' if ran else ''}{', '.join(ran)}")


if __name__ == "__main__":
    main()
