"""What speaks against a version: parts, words, figures and settings that do not belong together."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from flows import _evidence
from tests.registering import FIGURES
from tests.tiny import HEADER, tiny, write_shards
from thousandwords import components
from thousandwords.files import write_json


def other_words(root: Path) -> None:
    write_shards(root / "data/tokens", {"train": 4}, HEADER)


def other_generator(root: Path) -> None:
    components.save(tiny("generators", "transformer", 7), root / "models/generator")


def unbound_generator(root: Path) -> None:
    """A package whose generator says nothing of the words it learned."""
    from thousandwords.drawing import Settings
    from thousandwords.package import PARTS, write_package

    other_generator(root)
    write_package(root / "models/package", {name: root / "models" / name for name in PARTS}, Settings(), {})


def other_samples(root: Path) -> None:
    """dvc.lock of figures that were made from the samples of another generator."""
    named = yaml.safe_load((root / "dvc.lock").read_text())
    next(dep for dep in named["stages"]["sample_images"]["deps"] if dep["path"] == "models/generator")["md5"] = "0" * 32
    (root / "dvc.lock").write_text(yaml.safe_dump(named))


def other_lock(root: Path) -> None:
    (root / "dvc.lock").write_text("stages: {other: {}}")


def other_knob(root: Path) -> None:
    (root / "params.yaml").write_text("seed: 0\nsampling: {candidates: 5}\n")


def other_figures(root: Path) -> None:
    write_json(root / "results/metrics.json", {**FIGURES, "reconstruction": {"psnr_hard": 99.0}})


AGAIN = "Run: dvc repro, then register it again"


@pytest.mark.parametrize(
    "change, said",
    [
        (other_words, "data/tokens was written by another image tokenizer (3f9c3f9c) than the package holds ("),
        (lambda root: shutil.rmtree(root / "data/tokens"), "data/tokens has no sound manifest, so nobody knows whose words"),
        (other_generator, "models/generator is not the part that models/package was made with. Run: dvc repro package_model"),
        (other_generator, "models/generator is not what dvc.lock names. Run: dvc checkout, or dvc repro; then register it again"),
        (unbound_generator, "the generator was trained on words of another image_tokenizer (unknown) than the package holds ("),
        (unbound_generator, "the generator was trained on words of another text_tokenizer (unknown) than the package holds ("),
        (other_samples, f"sample_images ran on another models/generator than train_generator wrote, by dvc.lock. {AGAIN}"),
        (other_figures, "results/metrics.json is not what dvc.lock names. Run: dvc checkout"),
        (lambda root: (root / "dvc.lock").unlink(), f"there is no dvc.lock, so nobody knows what made the package. {AGAIN}"),
        (other_lock, f"dvc.lock names no stage that made models/package. {AGAIN}"),
        (other_knob, f"params.yaml: sampling is not what sample_images ran with. {AGAIN}"),
        (other_knob, "the git tree has changes that no commit holds. Commit them (dvc.lock too), then register it again"),
        (lambda root: shutil.rmtree(root / ".git"), "this is no git repository, so nobody can tell which code"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_speaks_against_a_version(project, change, said):
    assert _evidence.gather(project)["problems"] == []
    change(project)
    assert [problem for problem in _evidence.gather(project)["problems"] if problem.startswith(said)]


def test_a_small_number_is_the_same_in_params_yaml_and_as_dvc_writes_it():
    """dvc.lock has 1e-05 where params.yaml has 0.00001."""
    ran = yaml.safe_load("train: {params: {params.yaml: {scorer: {steps: [1, 2], learning_rate: 1e-05, kind: clip}}}}")
    assert list(_evidence.params_problems(ran, {"scorer": {"steps": [1, 2], "learning_rate": 0.00001, "kind": "clip"}})) == []
    assert len(list(_evidence.params_problems(ran, {"scorer": {"steps": [1, 2], "learning_rate": 0.00002, "kind": "clip"}}))) == 1
