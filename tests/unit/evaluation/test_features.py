"""What pictures are compared by: FID's Inception and open_clip checkpoints, read from files that may be damaged or hostile."""
from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch_fidelity
import yaml
from torch import nn
from torch.nn import functional
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from stages.check_params import check_params
from tests.payloads import PICKLES, saved_by_torch, touching
from tests.test_clip import pretrained_folder  # noqa: F401 - a fixture
from tests.tiny import rng
from thousandwords import components, fidelity
from thousandwords import features as features_module
from thousandwords.config import ConfigError
from thousandwords.features import OF_CLIP, OF_INCEPTION, _bare_inception, extractor, own_clip
from thousandwords.scorers.clip import Config

PICTURES = 5  # of either side


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights of Inception under which pictures stay apart up to its last layer."""
    network = _bare_inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=rng(len(module.weight)))
    return network.state_dict()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(weights, path)
    return path


def written(tmp_path, data: bytes, name: str = "weights.pth"):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def refused(file) -> str:
    with pytest.raises(ConfigError) as caught:
        extractor(str(file))
    sentence = str(caught.value)
    assert sentence.startswith("params.yaml: evaluation.features") and "\n" not in sentence and len(sentence) < 900
    return sentence


# --- Inception -------------------------------------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    """uint8 (N, 3, H, W) as torch-fidelity takes them."""

    def __init__(self, pictures: torch.Tensor) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.pictures[row]


def drawn_and_real() -> tuple[torch.Tensor, torch.Tensor]:
    drawn, real = (torch.randint(0, 256, (PICTURES, 3, 20, 24), generator=rng(side), dtype=torch.uint8) for side in (1, 2))
    return torch.cat([drawn[:3], drawn[3:] // 2]), real


def reference(file, drawn: torch.Tensor, real: torch.Tensor, **wanted: object) -> dict[str, float]:
    """What torch-fidelity says of the same pictures; its own loader reads the same file."""
    return torch_fidelity.calculate_metrics(
        input1=Pictures(drawn), input2=Pictures(real), cuda=False, verbose=False, cache=False, save_cpu_ram=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(file), batch_size=PICTURES, **wanted,
    )  # fmt: skip


@pytest.fixture
def smaller(monkeypatch):
    """Pictures are enlarged to 139 pixels instead of 299, on both sides of a comparison: a fifth of the time."""
    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 139)


def test_kid_inception_score_precision_and_recall_are_those_of_torch_fidelity_on_the_same_pictures(file, smaller):
    drawn, real = drawn_and_real()

    by = extractor(str(file))
    (features, logits), (others, _) = by(drawn / 255), by(real / 255)

    wanted = reference(file, drawn, real, kid=True, isc=True, prc=True, kid_subset_size=2, rng_seed=2020, isc_splits=2)
    assert (features.shape, logits.shape) == ((PICTURES, 2048), (PICTURES, 1008))
    kernel, score = fidelity.kernel_distance(features, others, seed=2020), fidelity.inception_score(logits, splits=2)
    assert kernel["mean"] == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-6)
    assert kernel["deviation"] == pytest.approx(wanted["kernel_inception_distance_std"], rel=1e-6)
    assert score["mean"] == pytest.approx(wanted["inception_score_mean"], rel=1e-6) and score["mean"] > 1
    among = [float(side.double().mean()) for side in fidelity.precision_recall(features, others)]
    assert among == pytest.approx([wanted["precision"], wanted["recall"]])


def test_fid_is_that_of_torch_fidelity_on_the_same_pictures(file, smaller, monkeypatch):
    """By the features of an earlier layer, since the reference takes ten seconds for the roots of 2,048."""
    drawn, real = drawn_and_real()
    monkeypatch.setattr(features_module, "LAYERS", ["768", "logits_unbiased"])

    by = extractor(str(file))
    distance = fidelity.frechet_distance(by(drawn / 255)[0], by(real / 255)[0])

    wanted = reference(file, drawn, real, fid=True, feature_layer_fid="768")["frechet_inception_distance"]
    assert distance == pytest.approx(wanted, rel=1e-6) and wanted > 0.01


def test_it_says_what_it_is_and_its_figures_are_called_fid(file):
    by = extractor(str(file))

    told = by.protocol()

    assert by.names is OF_INCEPTION and (by.names.frechet, by.names.kernel, by.names.score) == ("fid", "kid", "inception_score")
    assert told["features"].startswith("Inception v3 of 2015-12-05 from pt_inception.pth, by torch-fidelity")
    assert told["features"].endswith("not the bytes of the published pt_inception-2015-12-05-6726825d.pth")
    assert re.fullmatch("[0-9a-f]{64}", told["features_sha256"])
    assert told["features_preprocessing"] == "uint8, resized to 299 x 299 as TensorFlow 1 did (bilinear, no antialiasing)"


@pytest.mark.parametrize("write", [
    lambda state, path: torch.save(state, path),
    lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    lambda state, path: safetensors.torch.save_file({name: one.clone() for name, one in state.items()}, path),
], ids=["zip", "legacy", "safetensors"])    # fmt: skip
def test_either_kind_of_file_holds_it_with_or_without_what_no_figure_needs(write, weights, tmp_path):
    path = tmp_path / ("w.safetensors" if "save_file" in write.__code__.co_names else "w.pth")
    write({name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}, path)

    found = extractor(str(path)).network.state_dict()

    assert torch.equal(found["Mixed_7c.branch_pool.conv.weight"], weights["Mixed_7c.branch_pool.conv.weight"])
    assert not any(one.requires_grad for one in extractor(str(path)).network.parameters())


def test_weights_that_do_not_fit_are_refused_by_name(weights, tmp_path):
    def changed(**changes):
        path = tmp_path / "changed.pth"
        torch.save({name: one for name, one in (weights | changes).items() if one is not None}, path)
        return refused(path)

    assert "does not hold FID's Inception: it lacks fc.bias. Give a file such as" in changed(**{"fc.bias": None})
    assert "fc.weight is (1000, 2048) and should be (1008, 2048)" in changed(**{"fc.weight": torch.zeros(1000, 2048)})
    assert "it has 'AuxLogits.fc.bias'" in changed(**{"AuxLogits.fc.bias": torch.zeros(3)})
    assert "fc.bias holds no floating-point numbers" in changed(**{"fc.bias": torch.zeros(1008, dtype=torch.int64)})
    assert "fc.bias holds no floating-point numbers" in changed(**{"fc.bias": torch.zeros(1008).to_sparse()})
    assert "fc.bias has numbers that are not finite" in changed(**{"fc.bias": torch.full((1008,), torch.nan)})
    assert "(and 470 more). Give" in refused(written(tmp_path, saved_by_torch({"visual.proj": torch.zeros(2)})))


@pytest.mark.parametrize("payload", PICKLES)
def test_nothing_that_a_file_carries_is_run(payload, weights, tmp_path):
    marker = tmp_path / "marker"

    sentence = refused(written(tmp_path, PICKLES[payload](marker)))

    assert not marker.exists() and ("would run code as it loads" in sentence or "does not hold" in sentence)


def test_a_call_hidden_in_a_true_state_dict_is_not_run(weights, tmp_path):
    marker, buffer = tmp_path / "marker", io.BytesIO()
    torch.save({**weights, "more": touching(marker)}, buffer)

    assert "would run code as it loads, which nothing here does" in refused(written(tmp_path, buffer.getvalue()))
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.3, 0.99999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_was_cut_short_is_refused(share, suffix, file, weights, tmp_path):
    whole = file.read_bytes() if suffix == ".pth" else safetensors.torch.save({"fc.bias": weights["fc.bias"]})

    assert "is no file of weights, or is damaged" in refused(written(tmp_path, whole[: int(share * len(whole))], f"cut{suffix}"))


def test_a_file_of_something_else_is_refused(tmp_path):
    assert "holds no state dict but a list" in refused(written(tmp_path, saved_by_torch([1, 2])))
    assert "is no file of weights" in refused(written(tmp_path, np.random.default_rng(0).bytes(3000)))
    assert "is no file of weights" in refused(written(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(50), "picture.png"))


# --- CLIP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "words"), [
    ("models/none.pth", "is 'models/none.pth', but there is no such file. Give a file such as pt_inception-2015-12-05"),
    ("ViT-B-32:laion2b_s34b_b79k", "there is no file 'laion2b_s34b_b79k' (nothing is downloaded)"),
    ("local-dir:nowhere", "there is no folder 'nowhere' (nothing is downloaded)"),
    ("hf-hub:owner/name", "is 'hf-hub:owner/name', but there is no such file"),
    (".", "is '.', but there is no such file"),
])    # fmt: skip
def test_what_is_not_on_this_machine_is_refused_and_never_fetched(setting, words):
    assert words in refused(setting)


def test_a_model_that_open_clip_does_not_know_and_weights_that_it_cannot_read_are_refused(tmp_path):
    junk = written(tmp_path, b"no weights", "junk.pt")

    assert "Did you mean 'ViT-B-32'?" in refused(f"ViT-B-3:{junk}")
    assert "could not be loaded" in refused(f"RN50:{junk}") and "clip.pretrained" not in refused(f"RN50:{junk}")


def test_a_wrong_file_is_told_before_any_long_work(tmp_path):
    params = yaml.safe_load((Path(__file__).parent.parent / "presets/smoke.yaml").read_text())
    params["evaluation"]["features"] = str(written(tmp_path, b"no weights"))

    with pytest.raises(ConfigError, match="params.yaml: evaluation.features, .*weights.pth, is no file of weights"):
        check_params(params, 0)


def test_an_open_clip_folder_gives_its_own_unit_vectors_and_names_what_it_holds(pretrained_folder):  # noqa: F811
    setting = f"local-dir:{pretrained_folder}"
    by, scorer = extractor(setting), components.build("scorers", "clip", Config(pretrained=setting), image_size=24)

    pictures = torch.rand(2, 3, 40, 40, generator=rng(0))

    features, logits = by(pictures)

    torch.testing.assert_close(features, scorer.eval().embed_images(pictures).detach())
    told = by.protocol()
    assert logits.shape == (2, 0) and not features.requires_grad
    assert by.names is OF_CLIP and told["features"].startswith("the image tower of local-dir from ")
    assert told["features_preprocessing"].startswith("resized to 24 x 24 by bicubic")
    (pretrained_folder / "README").write_text("another")
    assert extractor(setting).sha256 != by.sha256


class MeanColour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def embed_images(self, pictures: torch.Tensor) -> torch.Tensor:
        return functional.normalize(pictures.mean(dim=(2, 3)), dim=1)


def test_the_own_clip_has_no_classes_and_is_never_called_inception():
    by = own_clip(MeanColour())

    features, logits = by(torch.full((2, 3, 4, 4), 0.5))

    assert features.flatten().tolist() == pytest.approx([3**-0.5] * 6) and logits.shape == (2, 0)
    assert by.names is OF_CLIP and by.names.score == "" and "no FID, no KID" in by.what
    assert by.protocol()["features_sha256"] is None
