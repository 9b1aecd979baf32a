"""python -m flows.generate "a small red star on sand": ranked images by the registry's champion."""

import sys
import tempfile
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.command_line import one_sentence, parser
from flows.prefect_artifacts import fit_size_limit, image_page
from flows.workers import gpu_lock
from flows.workers.run_lock import end_with_worker, run_locked
from flows.workers.supervisor import supervised
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable

OUT = Path("generated")


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[5, 20])
def fetch_package(alias: str) -> str:
    """The folder of the package with that alias, verified."""
    from flows.registry.commands import FETCHED, fetch  # here: it loads MLflow, which other flows do not need

    return str(fetch(alias, FETCHED))


@task(cache_policy=NO_CACHE)
def generate_images(package: str, prompts: list[str], candidates: int, seed: int, out: str) -> list[str]:
    """The image grids, one per prompt, best candidate first, made on a GPU if there is one. Raises StageFailed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("\n".join(prompts), encoding="utf-8", errors="surrogateescape")
        command = [sys.executable, "-m", "thousandwords", "generate", "--package", package]
        command += ["--prompts", str(file), "--candidates", str(candidates), "--seed", str(seed)]
        command += ["--out", out, "--device", "cuda" if gpu_lock.visible() else "cpu"]
        lines = run_locked(supervised(command, 1, "generate"), get_run_logger().info, "generating")
    return [line.rpartition(" -> ")[2] for line in lines if " -> " in line]


@flow(name="generate", flow_run_name="{alias} seed {seed}")
def generate(
    prompts: list[str], candidates: int = 32, seed: int = 0, alias: str = "champion", out: str = str(OUT)
) -> list[str]:
    """Generate ranked images of each prompt with the version of that alias; the files of the grids."""
    end_with_worker()
    lines = [prompt.strip() for prompt in prompts]
    if not lines or not all(lines) or any("\n" in line for line in lines):
        raise UserError("give one prompt or more; each prompt must be one line of text")
    grids = generate_images(fetch_package(alias), lines, candidates, seed, out)
    page = image_page(fit_size_limit([Path(grid) for grid in grids]))
    create_markdown_artifact(markdown=page, key="generated", description="; ".join(lines)[:200])
    return grids


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("prompt", nargs="*", help="one or more prompts")
    arguments.add_argument("--prompts", type=Path, help="a text file with one prompt per line")
    arguments.add_argument("--out", default=str(OUT), help=f"folder of the images (default: {OUT})")
    arguments.add_argument("--candidates", "-n", type=int, default=32, help="images per prompt (default: 32)")
    arguments.add_argument("--seed", type=int, default=0, help="another seed, other images (default: 0)")
    arguments.add_argument("--alias", default="champion", help="the version to use (default: champion)")
    options = arguments.parse_args(argv)
    from thousandwords.cli.inputs import read_prompts  # late: a worker's flow does not need torch

    with one_sentence("generate"):
        check_writable()
        prompts = read_prompts(options.prompt, options.prompts)
        print("\n".join(generate(prompts, options.candidates, options.seed, options.alias, options.out)))


if __name__ == "__main__":
    main()
