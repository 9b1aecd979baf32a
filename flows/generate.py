"""python -m flows.draw "a small red star on sand": prompts in, ranked pictures out, by the registry's champion."""
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows import gpu
from flows._alone import held_places
from flows._lifeline import end_with_worker
from flows.artifacts import fitting, page
from flows.keeper import kept
from flows.repro import stream
from thousandwords.errors import UserError

OUT = Path("drawn")


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[5, 20])
def fetch_champion(alias: str) -> str:
    """The folder of the package with that alias, verified."""
    from flows import registry  # here: it loads MLflow, which no other flow needs

    return str(registry.fetch(alias, registry.FETCHED))


@task(cache_policy=NO_CACHE)
def draw_prompts(package: str, prompts: list[str], candidates: int, seed: int, out: str) -> list[str]:
    """The grids, one per prompt, best first. Raises RuntimeError with the last lines."""
    log = get_run_logger()
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "prompts.txt"
        lines.write_text("\n".join(prompts), encoding="utf-8", errors="surrogateescape")
        code, said = stream(command(package, lines, candidates, seed, out), log.info, held_places())
    if code:
        raise RuntimeError(f"drawing failed with code {code}: " + " / ".join(said[-5:]))
    return [line.rpartition(" -> ")[2] for line in said if " -> " in line]


def command(package: str, prompts: Path, candidates: int, seed: int, out: str) -> list[str]:
    device = "cuda" if gpu.visible() else "cpu"
    words = ["--prompts", str(prompts), "--candidates", str(candidates), "--seed", str(seed), "--out", out, "--device", device]
    return kept([sys.executable, "-m", "thousandwords", "draw", "--package", package, *words], 1, "draw")


@flow(name="draw")
def draw(prompts: list[str], candidates: int = 32, seed: int = 0, alias: str = "champion", out: str = str(OUT)) -> list[str]:
    """Ranked pictures of each prompt by the version with that alias; the files of the grids."""
    end_with_worker()
    lines = [prompt.strip() for prompt in prompts]
    if not lines or not all(lines) or any("\n" in line for line in lines):
        raise UserError("each prompt should be one line of text, and there should be one at least")
    grids = draw_prompts(fetch_champion(alias), lines, candidates, seed, out)
    shown = page(fitting([Path(one) for one in grids]))
    create_markdown_artifact(markdown=shown, key="drawn", description="; ".join(lines)[:200])
    return grids


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="*", help="what to draw; several prompts may be given")
    parser.add_argument("--prompts", type=Path, help="a text file with one prompt per line")
    parser.add_argument("--out", default=str(OUT), help=f"where the pictures go (default: {OUT})")
    parser.add_argument("--candidates", "-n", type=int, default=32, help="drawn per prompt (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures (default: 0)")
    parser.add_argument("--alias", default="champion", help="which version draws (default: champion)")
    options = parser.parse_args(argv)
    from thousandwords.commands.prompts import read_prompts  # here: it loads torch, which a worker's flow does not need

    try:
        prompts = read_prompts(options.prompt, options.prompts)
        print("\n".join(draw(prompts, options.candidates, options.seed, options.alias, options.out)))
    except (RuntimeError, UserError) as error:
        print(f"draw: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
