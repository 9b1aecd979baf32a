"""python -m stages._headline: the figures of the last run in a few lines, and where to look."""
from __future__ import annotations

import json
from pathlib import Path

import yaml

RESULTS = Path("results")


def headline(figures: dict) -> str:
    """metrics.json -> the lines that `make run` ends with."""
    rebuilt, words, drawn = figures["reconstruction"], figures["codebook"], figures["generator"]
    lines = [
        f"reconstruction   {rebuilt['psnr_hard']:.2f} dB hard PSNR (k-means of the same size {rebuilt['psnr_kmeans']:.2f} dB)",
        f"codebook         perplexity {words['perplexity']:.0f} (k-means {words['perplexity_kmeans']:.0f}), "
        f"{words['used']:.0%} of {words['vocab_size']} words in use",
        f"transformer      {drawn['val_loss_image']:.3f} nats per image word, "
        f"{drawn['val_loss_text']:.3f} per text word (validation)",
        f"CLIP score       {figures['clip_score']['n1']:.3f} for one candidate, "
        f"{figures['clip_score']['best']:.3f} for the best of {figures['n']}",
    ]
    for name, rates in figures.get("caption_match", {}).items():
        lines.append(
            f"match, {name:9} every attribute {rates['all']['n1']:.1%}, best of {figures['n']} {rates['all']['best']:.1%}; "
            f"colours, background, relation {rates['scene']['n1']:.1%} and {rates['scene']['best']:.1%}"
        )
    seconds = sum(figures["seconds"].values())
    return "\n".join([*lines, f"time             {int(seconds // 60)} min {seconds % 60:.0f} s of all stages together"])


def main() -> None:
    figures = json.loads((RESULTS / "metrics.json").read_bytes())
    print()
    print(headline(figures))
    print()
    print(f"look at          {(RESULTS / 'report.html').resolve()}")
    print(f"                 {(RESULTS / 'ranked' / 'overview.png').resolve()}, and one grid per prompt beside it")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    print(f'draw             make studio, or make draw PROMPT="{example(params)}"')


def example(params: dict) -> str:
    """A prompt to try: the first of `sampling.prompts`, which are in the words of this data set."""
    return next(iter((params.get("sampling") or {}).get("prompts") or ()), "...")


if __name__ == "__main__":
    main()
