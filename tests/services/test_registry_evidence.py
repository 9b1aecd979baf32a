"""The problems of a version: parts, tokens, metrics and settings that do not belong together."""

import shutil
from pathlib import Path

import pytest
import yaml

from flows.registry import evidence
from tests.helpers.registering import METRICS
from tests.helpers.tiny_models import HEADER, tiny, write_shards
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_json


def write_other_tokens(root: Path) -> None:
    write_shards(root / "data/tokens", {"train": 4}, HEADER)


def other_generator(root: Path) -> None:
    components.save(tiny("generators", "transformer", 7), root / "models/generator")


def unbound_generator(root: Path) -> None:
    """A package whose generator does not name the tokenizers of its training tokens."""
    from thousandwords.inference.config import SamplingConfig
    from thousandwords.inference.package import PARTS, write_package

    other_generator(root)
    parts = {name: root / "models" / name for name in PARTS}
    write_package(root / "models/package", parts, SamplingConfig(), {})


def other_samples(root: Path) -> None:
    """A dvc.lock of metrics that come from the samples of another generator."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    deps = lock["stages"]["sample_images"]["deps"]
    next(dep for dep in deps if dep["path"] == "models/generator")["md5"] = "0" * 32
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))


def other_lock(root: Path) -> None:
    (root / "dvc.lock").write_text("stages: {other: {}}")


def other_setting(root: Path) -> None:
    (root / "params.yaml").write_text("seed: 0\nsampling: {candidates: 5}\n")


def other_metrics(root: Path) -> None:
    write_json(root / "results/metrics.json", {**METRICS, "reconstruction": {"psnr_hard": 99.0}})


RUN_AGAIN = "Run: dvc repro, then register it again"


PROBLEMS = [
    (write_other_tokens, "data/tokens was written by another image tokenizer (3f9c3f9c) than the package holds ("),
    (lambda root: shutil.rmtree(root / "data/tokens"), "data/tokens has no sound manifest, so the tokenizer of the"),
    (other_generator, "models/generator is not the part that models/package was made with. Run: dvc repro package_"),
    (other_generator, "models/generator is not what dvc.lock names. Run: dvc checkout, or dvc repro; then register"),
    (unbound_generator, "the generator was trained on tokens of another image_tokenizer (unknown) than the package"),
    (unbound_generator, "the generator was trained on tokens of another text_tokenizer (unknown) than the package"),
    (other_samples, "sample_images ran on another models/generator than train_generator wrote, by dvc.lock. " + RUN_AGAIN),
    (other_metrics, "results/metrics.json is not what dvc.lock names. Run: dvc checkout"),
    (lambda root: (root / "dvc.lock").unlink(), f"there is no dvc.lock, so it is unknown what made the package. {RUN_AGAIN}"),
    (other_lock, f"dvc.lock names no stage that made models/package. {RUN_AGAIN}"),
    (other_setting, f"params.yaml: sampling is not what sample_images ran with. {RUN_AGAIN}"),
    (other_setting, "the git tree has uncommitted changes. Commit them (dvc.lock too), then register it again"),
    (lambda root: shutil.rmtree(root / ".git"), "this is not a git repository, so it is unknown which code"),
]  # fmt: skip


@pytest.mark.parametrize("change, message", PROBLEMS)
def test_parts_that_do_not_belong_together_are_a_problem(project, change, message):
    assert evidence.gather_evidence(project)["problems"] == []
    change(project)
    assert any(problem.startswith(message) for problem in evidence.gather_evidence(project)["problems"])


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("results/metrics.json", '{"n"', r"/results/metrics.json is damaged \(.*\). Run: make repair$"),
        ("dvc.lock", "<<<<<<< HEAD\nstages: [", r"^dvc.lock is not valid \(.*git checkout --theirs dvc.lock"),
    ],
)
def test_a_damaged_file_of_the_run_is_one_sentence(project, path, text, message):
    (project / path).write_text(text)
    with pytest.raises(UserError, match=message):
        evidence.gather_evidence(project)


def test_a_small_number_is_the_same_in_params_yaml_and_as_dvc_writes_it():
    """dvc.lock has 1e-05 where params.yaml has 0.00001."""
    lock = yaml.safe_load(
        "train: {params: {params.yaml: {scorer: {steps: [1, 2], learning_rate: 1e-05, kind: clip}}}}"
    )
    params = {"steps": [1, 2], "learning_rate": 0.00001, "kind": "clip"}
    assert list(evidence.params_problems(lock, {"scorer": params})) == []
    assert len(list(evidence.params_problems(lock, {"scorer": {**params, "learning_rate": 0.00002}}))) == 1
