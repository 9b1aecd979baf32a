"""Check every setting of params.yaml before any long work: misspelt keys, wrong types, missing folders, empty
prompts.

DVC removes a stage's old outputs before it runs it. This check comes first, so a typing error costs nothing. It
also fetches the registered packages that `init` names, and records in data/init/ what each section starts from.
"""

import subprocess
import sys
from pathlib import Path

from stages.runtime.program import program
from stages.runtime.stage import Stage
from thousandwords import preflight
from thousandwords.core import init_models
from thousandwords.core.config import ConfigError
from thousandwords.core.files import write_bytes

FETCHED = Path(".store/registry")  # may be deleted at any time


def check_params(out: Path, context: Stage) -> None:
    records = out.parent / init_models.RECORDS.name
    for name in init_models.SECTIONS:
        block = context.params.get(name)
        if version := init_models.registered_version(block, name):
            package = fetch(version, f"params.yaml: {name}.init is {block['init']}")
            init_models.write_record(name, block["init"], package / name, records)
    preflight.check_params(context.params, context.seed)
    for name in init_models.SECTIONS:
        block = context.params[name]
        folder = init_models.init_folder(block, name)
        perceptual = init_models.perceptual_fingerprints(block, name)
        init_models.write_record(name, block.get("init"), folder, records, perceptual)
    # always the same bytes: later stages wait for this check, but do not rerun because of it
    write_bytes(out, b"ok\n")


def fetch(version: str, setting: str) -> Path:
    """The package of a version of the registry, verified; fetched by a command, as stages know no registry."""
    command = [sys.executable, "-m", "flows.registry", "fetch", version, "--out", str(FETCHED)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode:
        raise ConfigError(f"{setting}, which cannot be fetched: {lines[-1] if lines else done.returncode}")
    return Path(lines[-1])


main = program(check_params, *preflight.SECTIONS[1:])


if __name__ == "__main__":
    main()
