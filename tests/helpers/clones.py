"""For tests of many machines: a small committed project, its clones, and a folder as their DVC remote."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.helpers.paths import ROOT

IDENTITY = {f"GIT_{role}_{key}": "test" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
STAGE = """import os, sys, time
time.sleep(float(os.environ.get("SECONDS", "0")))
open(sys.argv[1], "w").write(" ".join(sys.argv[1:]))
print(sys.argv[1], file=open(os.environ["RUN"], "a"))
"""


def environment(folder: Path) -> dict[str, str]:
    """The environment of a command in a clone; each stage that runs adds a line to a file beside it."""
    quiet = {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT), "RUN": str(folder.parent / "run.txt")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **quiet, **IDENTITY, "PATH": path}


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(arguments, cwd=folder, env=environment(folder), **options)


def must(folder: Path, *arguments: str) -> str:
    done = command(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_origin(folder: Path, needs: dict[str, tuple[str, ...]], files: dict[str, str] | None = None) -> Path:
    """A committed project whose stages write NAME.txt from the files they need; its remote is beside it."""
    origin = folder / "origin"
    (origin / ".dvc").mkdir(parents=True)
    (folder / "remote").mkdir()
    stages = {}
    for name, before in needs.items():
        command, deps = f"python stage.py {name}.txt {' '.join(before)}", [f"{other}.txt" for other in before]
        stages[name] = {"cmd": command, "outs": [f"{name}.txt"], "deps": ["stage.py", *deps]}
    remote = f"['remote \"store\"']\n    url = {folder / 'remote'}\n"
    project_files = {
        ".dvc/config": "[core]\n    remote = store\n    autostage = true\n" + remote,
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".gitignore": "/.prefect/\n" + "".join(f"/{name}.txt\n" for name in needs),
        "stage.py": STAGE,
        "dvc.yaml": yaml.safe_dump({"stages": stages}),
    }
    for name, text in {**project_files, **(files or {})}.items():
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / name).write_text(text)
    must(origin, "git", "init", "-q", "-b", "main")
    must(origin, "git", "add", "-A")
    must(origin, "git", "commit", "-qm", "small stages")
    return origin


def clone(origin: Path, name: str) -> Path:
    must(origin.parent, "git", "clone", "-q", str(origin), name)
    return origin.parent / name


def ran(origin: Path) -> list[str]:
    """The stages that ran on any machine, in order."""
    log = origin.parent / "run.txt"
    return [line.removesuffix(".txt") for line in log.read_text().splitlines()] if log.exists() else []
