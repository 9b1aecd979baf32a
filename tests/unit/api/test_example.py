"""The example model that ships with the library: its size, one figure of its card, and when it answers."""

import re

import pytest
import torch

import thousandwords
from scripts.make_example import reconstruction_psnr, write_half
from tests.helpers.tiny_models import fitting_package
from thousandwords.api import EXAMPLE, read_package
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.core.model_files import read_model
from thousandwords.inference.package import FAMILIES

ANSWERS = "there is no models/package here, so the example model answers: scenes of two shapes"


def test_the_example_takes_at_most_6_mb_and_has_the_reconstruction_that_its_card_states():
    assert sum(path.stat().st_size for path in EXAMPLE.rglob("*") if path.is_file()) <= 6_000_000
    stated = re.search(r"200 held-out scenes \| ([\d.]+) dB", (EXAMPLE / "README.md").read_text())
    # other processors round differently
    assert reconstruction_psnr(read_package(EXAMPLE, "cpu")) == pytest.approx(float(stated[1]), abs=0.02)


def test_before_a_first_run_the_example_answers_and_says_so_and_after_a_run_its_package_answers(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=ANSWERS):
        assert thousandwords.load().folder == EXAMPLE
    fitting_package(tmp_path / "models")
    assert thousandwords.load().folder.as_posix() == "models/package"


@pytest.mark.filterwarnings("ignore:there is no models/package")
def test_a_damaged_example_is_not_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thousandwords.api.EXAMPLE", tmp_path / "example")
    (tmp_path / "example").mkdir()
    (tmp_path / "example/package.json").write_text("{}")
    with pytest.raises(DamagedArtefact, match="Install thousandwords again"):
        thousandwords.load()


def test_half_precision_takes_half_and_keeps_the_models_bound_together(tmp_path):
    whole = fitting_package(tmp_path)
    write_half(whole, tmp_path / "half")
    for name in [family for family in FAMILIES if (whole / family).is_dir()]:
        before, after = read_model(whole / name).state, read_model(tmp_path / "half" / name).state
        for key, tensor in before.items():
            torch.testing.assert_close(after[key].float(), tensor.float(), atol=1e-3, rtol=1e-3)
            assert after[key].dtype != torch.float32
    tokens = torch.zeros(1, 16, dtype=torch.long)
    before, after = (read_package(folder, "cpu") for folder in (whole, tmp_path / "half"))
    images = [package.image_tokenizer.decode(tokens) for package in (before, after)]
    torch.testing.assert_close(*images, atol=0.02, rtol=0)
