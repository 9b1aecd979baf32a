"""python -m scripts.print_run_summary: the metrics of the last run in a few lines, and the paths of its results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from thousandwords.core.command_line import one_sentence
from thousandwords.core.files import write_bytes
from thousandwords.core.params import read_params
from thousandwords.core.run_records import RECORDS, output_paths, read_records
from thousandwords.evaluation.verdict import few_pairs

RESULTS = Path("results")


def headline(metrics: dict) -> str:
    """metrics.json -> the last lines of `make run`."""
    reconstruction, codebook = metrics["reconstruction"], metrics["codebook"]
    generator = metrics["generator"]
    text = f", {generator['val_loss_text']:.3f} per text token" if "val_loss_text" in generator else ""
    lines = [
        f"reconstruction   {reconstruction['psnr_hard']:.2f} dB hard PSNR (k-means of the same size {reconstruction['psnr_kmeans']:.2f} dB)",
        f"codebook         perplexity {codebook['perplexity']:.0f} (k-means {codebook['perplexity_kmeans']:.0f}), "
        f"{codebook['used']:.0%} of {codebook['vocab_size']} tokens in use",
        f"held-out loss    {generator['val_loss_image']:.3f} nats per image token{text}",
        f"CLIP score       {metrics['clip_score']['n1']:.3f} for one candidate, "
        f"{metrics['clip_score']['best']:.3f} for the best of {metrics['n']}",
    ]
    if decoder := metrics.get("decoder"):
        lines.insert(
            1,
            f"decoder          {decoder['psnr_hard']:.2f} dB hard PSNR from the same tokens, sharpness {decoder['sharpness']:.2f} "
            f"(tokenizer {decoder['sharpness_tokenizer']:.2f}, true images 1)",
        )
    for name, rates in metrics.get("caption_match", {}).items():
        lines.append(
            f"match, {name:9} every attribute {rates['all']['n1']:.1%}, best of {metrics['n']} {rates['all']['best']:.1%}; "
            f"colors, background, relation {rates['scene']['n1']:.1%} and {rates['scene']['best']:.1%}"
        )
    fidelity = metrics["fidelity"]
    if found := fidelity.get("caption_found"):
        lines.append(
            f"captions found   {found['found']:.0%} by CLIP from the best of {metrics['n']}, among {found['among']} of "
            f"{found['captions']} held-out captions (chance {found['chance']:.0%})"
        )
    if closeness := fidelity.get("true_or_nearest"):
        lines.append(
            f"nearest          {closeness['closer_to_true']:.0%} of the best samples for {closeness['prompts']} held-out captions are "
            f"closer to the true image than to the nearest training image, {closeness['closer_than_neighbor']:.0%} than to the "
            "training image nearest to the true one"
        )
    verdicts = metrics["verdicts"].items()
    lines += [f"{model.replace('_', ' '):16} {sentence}" for model, sentence in verdicts]
    if few := few_pairs(metrics["held_out_pairs"]):
        lines.append(f"held out         figures of held-out images and captions mean little: they are {few}")
    return "\n".join(lines)


def time_line(stages: Sequence[str], records: Mapping[str, dict]) -> str:
    """The time of all stages that have a record, and which have none."""
    minutes, seconds = divmod(sum(record["seconds"] for record in records.values()), 60)
    unknown = [stage for stage in stages if stage not in records]
    which = f"the {len(records)} of {len(stages)} stages" if unknown else "all stages"
    line = f"time             {int(minutes)} min {seconds:.0f} s for {which} together"
    return f"{line}; not known of {', '.join(unknown)}, made elsewhere" if unknown else line


def is_current(page: Path, records: Mapping[str, dict]) -> bool:
    """Whether the page of the run is about these records: `evaluate`, which writes it, ran here, and no stage after it."""
    written = [path.stat().st_mtime for path in RECORDS.glob("*.json")]
    return page.is_file() and "evaluate" in records and page.stat().st_mtime >= max(written)


def main() -> None:
    with one_sentence("summary"):
        metrics = json.loads((RESULTS / "metrics.json").read_bytes())
        stages, records, page = list(output_paths()), read_records(), RESULTS / "runs.html"
        if len(records) < len(stages) or not is_current(page, records):
            # late: they load MLflow and matplotlib
            from stages.runtime.tracking import find_records, tracking_uri
            from thousandwords.reporting.runs_page import render_runs

            records = find_records()
            write_bytes(page, render_runs(stages, records, RESULTS / "training", tracking_uri()).encode())
        overview, params = RESULTS / "ranked/overview.png", read_params(Path("params.yaml"))
        print(f"\n{headline(metrics)}\n{time_line(stages, records)}\n")
        print(f"look at          {(RESULTS / 'report.html').resolve()}")
        print(f"                 {overview.resolve()}, and one grid per prompt in the same folder")
        print(f'generate         make studio, or make generate PROMPT="{example(params)}"')


def example(params: dict) -> str:
    """A prompt to try: the first of `sampling.prompts`, which fit this data set."""
    return next(iter((params.get("sampling") or {}).get("prompts") or ()), "...")


if __name__ == "__main__":
    main()
