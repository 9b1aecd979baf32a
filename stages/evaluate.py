"""Pairs + models + samples -> all figures (results/metrics.json), plots, and a page to look at
(results/report.html). What compares runs is small and in git: headline.json, prompts.csv, plot_data/.

None of it says when, where or how fast it was made: the same run gives the same bytes. results/runs.html does, and is
no output of DVC."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.runtime.program import program
from stages.runtime.stage import Stage
from stages.runtime.tracking import find_records, tracking_uri
from thousandwords import components
from thousandwords.core.config import section
from thousandwords.core.files import write_bytes, write_json
from thousandwords.core.manifest import read_manifest
from thousandwords.core.params import flatten
from thousandwords.core.run_records import output_paths
from thousandwords.data.pair_shards import open_pairs
from thousandwords.data.recaptions import open_recaptions
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.evaluate_run import EvaluationInputs, evaluate_run
from thousandwords.evaluation.features import load_extractor
from thousandwords.evaluation.headline import headline
from thousandwords.evaluation.prompt_figures import prompt_csv
from thousandwords.evaluation.verdict import verdicts
from thousandwords.inference.sample_shards import read_samples
from thousandwords.reporting import report_data
from thousandwords.reporting.html_report import render_report
from thousandwords.reporting.plot_data import plot_data
from thousandwords.reporting.runs_page import render_runs


def evaluate(
    pairs: Path,
    image_tokenizer: Path,
    decoder: Path,
    scorer: Path,
    samples: Path,
    ranked: Path,
    history: Path,
    out: Path,
    context: Stage,
    recaptions: Path | None = None,
) -> None:
    config = section(context.params.get("evaluation"), "evaluation", EvaluationConfig)
    training, validation = open_pairs(pairs, "train"), open_pairs(pairs, "validation")
    device = context.world.device
    extractor = load_extractor(config.features) if config.features else None
    if extractor:
        extractor.network.to(device)
    curves = {
        path.stem: json.loads(path.read_bytes()) for path in sorted((history / "curves").glob("*.json"))
    }
    # the exact bytes that the figures are about
    folders = {"pairs": pairs, "image_tokenizer": image_tokenizer, "decoder": decoder, "scorer": scorer}
    folders |= {"samples": samples, "ranked": ranked}
    decoder_model = components.load("decoders", decoder, fix="dvc repro train_decoder")
    inputs = EvaluationInputs(
        training=training,
        validation=validation,
        tokenizer=components.load("image_tokenizers", image_tokenizer, fix="dvc repro train_image_tokenizer"),
        scorer=components.load("scorers", scorer, fix="dvc repro train_scorer").to(device),
        samples=read_samples(samples, ranked),
        scores=read_scores(ranked),
        generator_curve=curves["train_generator"],
        checkpoints={name: read_manifest(path, verify=False)["sha256"] for name, path in folders.items()},
        decoder=decoder_model if decoder_model.is_trainable else None,
    )
    evaluation = evaluate_run(inputs, config, context.seed, extractor)
    figures = evaluation.figures
    figures["held_out_pairs"] = len(validation)
    if captions := open_recaptions(recaptions, pairs).metadata.get("figures"):
        figures["captioner"] = captions
    found = verdicts(curves, figures, len(validation))
    figures["verdicts"] = {model: str(verdict) for model, verdict in found.items()}
    plots = report_data.render_plots(evaluation, curves)
    for name, png in plots.items():
        write_bytes(out / "plots" / f"{name}.png", png)
    write_bytes(out / "plots/samples.png", (ranked / "overview.png").read_bytes())
    for name, rows in plot_data(evaluation, curves).items():
        write_json(out / "plot_data" / f"{name}.json", rows)
    data = report_data.gather(config.report_images, context.params, inputs, evaluation, plots, pairs)
    write_bytes(out / "report.html", render_report(data).encode())
    write_json(out / "metrics.json", figures)
    write_json(out / "headline.json", headline(figures))
    write_bytes(out / "prompts.csv", prompt_csv(inputs.samples, inputs.scores, evaluation.matches))
    numbers = {name: value for name, value in flatten(figures).items() if isinstance(value, int | float)}
    context.record_metrics(numbers)
    context.tracker.tags({f"verdict.{model}": text for model, text in figures["verdicts"].items()})
    records = find_records() | {context.name: context.record()}
    runs = render_runs(list(output_paths()), records, history / "training", tracking_uri())
    write_bytes(out / "runs.html", runs.encode())
    context.record_files(*(out / name for name in ("report.html", "runs.html", "metrics.json")))


def read_scores(ranked: Path) -> np.ndarray:
    """scores (P, N), verified."""
    manifest = read_manifest(ranked, fix="dvc repro rank_images")
    table = pq.read_table(ranked / "scores.parquet", page_checksum_verification=True)
    return table["score"].to_numpy().reshape(manifest["facts"]["prompts"], manifest["facts"]["candidates"])


main = program(evaluate, "evaluation")


if __name__ == "__main__":
    main()
