"""The networks that images are compared by: FID's Inception and open_clip checkpoints, in files that may be damaged or hostile."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch_fidelity
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from tests.helpers.malicious_files import PICKLES, saved_by_torch, touching
from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import rng
from tests.unit.scorers.test_clip import pretrained_folder  # noqa: F401 - a fixture
from thousandwords import components
from thousandwords.core.config import ConfigError
from thousandwords.evaluation import features as features_module
from thousandwords.evaluation import fid
from thousandwords.evaluation.features import CLIP_FIGURES, _empty_inception, build_inception, load_extractor
from thousandwords.planning.presets import read_preset
from thousandwords.preflight import check_params
from thousandwords.scorers.clip.model import CLIPConfig

IMAGES = 5  # of each set


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights of Inception for which features of different images differ up to the last layer."""
    network = _empty_inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=rng(len(module.weight)))
    return network.state_dict()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(weights, path)
    return path


def write_file(tmp_path, data: bytes, name: str = "weights.pth"):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def rejection(file) -> str:
    with pytest.raises(ConfigError) as caught:
        load_extractor(str(file))
    sentence = str(caught.value)
    assert sentence.startswith("params.yaml: evaluation.features") and "\n" not in sentence
    assert len(sentence) < 900
    return sentence


class Images(list, torch.utils.data.Dataset):
    """uint8 (N, 3, H, W) as torch-fidelity takes them."""


def samples_and_real() -> tuple[torch.Tensor, torch.Tensor]:
    samples, real = (
        torch.randint(0, 256, (IMAGES, 3, 20, 24), generator=rng(seed), dtype=torch.uint8) for seed in (1, 2)
    )
    return torch.cat([samples[:3], samples[3:] // 2]), real


def reference(file, samples: torch.Tensor, real: torch.Tensor, **settings: object) -> dict[str, float]:
    """The figures of torch-fidelity for the same images; its own loader reads the same file."""
    return torch_fidelity.calculate_metrics(
        input1=Images(samples),
        input2=Images(real),
        cuda=False,
        verbose=False,
        cache=False,
        save_cpu_ram=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(file),
        batch_size=IMAGES,
        **settings,
    )


@pytest.fixture
def smaller(monkeypatch):
    """Images are enlarged to 139 pixels instead of 299, in both implementations, which takes a fifth of the time."""
    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 139)


def test_kid_inception_score_precision_and_recall_equal_those_of_torch_fidelity(file, smaller):
    samples, real = samples_and_real()

    extractor = load_extractor(str(file))
    (features, logits), (others, _) = extractor(samples / 255), extractor(real / 255)

    expected = reference(
        file, samples, real, kid=True, isc=True, prc=True, kid_subset_size=2, rng_seed=2020, isc_splits=2
    )
    assert (features.shape, logits.shape) == ((IMAGES, 2048), (IMAGES, 1008))
    kernel, score = fid.kernel_distance(features, others, seed=2020), fid.inception_score(logits, splits=2)
    assert kernel["mean"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert kernel["deviation"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)
    assert score["mean"] == pytest.approx(expected["inception_score_mean"], rel=1e-6) and score["mean"] > 1
    means = [float(mask.double().mean()) for mask in fid.precision_recall(features, others)]
    assert means == pytest.approx([expected["precision"], expected["recall"]])


def test_fid_equals_that_of_torch_fidelity(file, smaller, monkeypatch):
    """With the features of an earlier layer, since the reference takes ten seconds for the matrix root of 2,048."""
    samples, real = samples_and_real()
    monkeypatch.setattr(features_module, "LAYERS", ["768", "logits_unbiased"])

    extractor = load_extractor(str(file))
    distance = fid.frechet_distance(extractor(samples / 255)[0], extractor(real / 255)[0])

    expected = reference(file, samples, real, fid=True, feature_layer_fid="768")["frechet_inception_distance"]
    assert distance == pytest.approx(expected, rel=1e-6) and expected > 0.01


def test_inception_is_described_in_the_protocol_and_its_figures_are_called_fid(file):
    extractor = load_extractor(str(file))

    protocol = extractor.protocol()

    names = extractor.names
    assert (names.frechet, names.kernel, names.inception_score) == ("fid", "kid", "inception_score")
    assert protocol["features"] == (
        "Inception v3 of 2015-12-05 from pt_inception.pth, by torch-fidelity: 2048 pool features, logits without "
        "bias; not the bytes of the published pt_inception-2015-12-05-6726825d.pth"
    )
    assert re.fullmatch("[0-9a-f]{64}", protocol["features_sha256"])
    assert "resized to 299 x 299 as TensorFlow 1 did" in protocol["features_preprocessing"]


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
def test_every_file_format_is_read_without_tensors_that_no_figure_needs(kind, weights, tmp_path):
    state = {name: tensor.clone() for name, tensor in weights.items() if "num_batches_tracked" not in name}
    if kind == "safetensors":
        safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    else:
        torch.save(state, tmp_path / "w.legacy", _use_new_zipfile_serialization=False)

    network = load_extractor(str(tmp_path / f"w.{kind}")).network

    name = "Mixed_7c.branch_pool.conv.weight"
    assert torch.equal(network.state_dict()[name], weights[name])
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("fc.bias", None, "does not hold FID's Inception: it lacks fc.bias. Give a file such as"),
        ("fc.weight", torch.zeros(1000, 2048), "fc.weight is (1000, 2048) and should be (1008, 2048)"),
        ("AuxLogits.fc.bias", torch.zeros(3), "it has 'AuxLogits.fc.bias'"),
        ("fc.bias", torch.zeros(1008, dtype=torch.int64), "fc.bias holds no floating-point numbers"),
        ("fc.bias", torch.zeros(1008).to_sparse(), "fc.bias holds no floating-point numbers"),
        ("fc.bias", torch.full((1008,), torch.nan), "fc.bias has numbers that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_rejected_by_name(weights, name, tensor, sentence):
    changed = {key: value for key, value in {**weights, name: tensor}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        build_inception(changed, Path("weights.pth"))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("payload", [*PICKLES, "in a real state dict"])
def test_no_code_in_a_file_is_run(payload, weights, tmp_path):
    marker, buffer = tmp_path / "marker", io.BytesIO()
    if payload in PICKLES:
        buffer.write(PICKLES[payload](marker))
    else:
        torch.save({**weights, "more": touching(marker)}, buffer)

    path = write_file(tmp_path, buffer.getvalue())
    if payload in PICKLES:
        assert "not a file of weights" in rejection(path)
    else:  # only the tensors are read
        load_extractor(str(path))

    assert not marker.exists()


def test_a_file_that_would_hold_torchs_own_reader_for_ever_is_rejected_at_once(tmp_path):
    program = b"\x80\x02)" + b"\x86q\x00h\x00" * 40 + b"}q\x01h\x00K\x01s."  # a nested tuple as a key
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", program)
    assert "not a file of weights" in rejection(write_file(tmp_path, buffer.getvalue()))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_rejected(share, suffix, file, weights, tmp_path):
    whole = file.read_bytes() if suffix == ".pth" else safetensors.torch.save({"fc.bias": weights["fc.bias"]})
    cut = write_file(tmp_path, whole[: int(share * len(whole))], f"cut{suffix}")

    sentence = rejection(cut)
    assert "not a file of weights" in sentence or "is truncated" in sentence or "no safetensors" in sentence


def test_a_file_of_something_else_is_rejected(tmp_path):
    for data, words in (
        (saved_by_torch([1, 2]), "holds no state dict"),
        (saved_by_torch({"visual.proj": torch.zeros(2)}), "(and 470 more). Give"),
        (np.random.default_rng(0).bytes(3000), "not a file of weights"),
    ):
        assert words in rejection(write_file(tmp_path, data))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("models/none.pth", "but there is no such file. Give a file such as pt_inception-2015-12-05"),
        ("ViT-B-32:laion2b_s34b_b79k", "there is no file 'laion2b_s34b_b79k' (nothing is downloaded)"),
        ("local-dir:nowhere", "there is no folder 'nowhere' (nothing is downloaded)"),
        ("hf-hub:owner/name", "is 'hf-hub:owner/name', but there is no such file"),
    ],
)
def test_a_checkpoint_that_is_not_on_this_machine_is_rejected_and_never_downloaded(setting, words):
    assert words in rejection(setting)


def test_a_model_unknown_to_open_clip_and_unreadable_weights_are_rejected(tmp_path):
    junk = write_file(tmp_path, b"no weights", "junk.pt")

    assert "Did you mean 'ViT-B-32'?" in rejection(f"ViT-B-3:{junk}")
    sentence = rejection(f"RN50:{junk}")
    assert "junk.pt is a text, not a file of weights" in sentence and "clip.pretrained" not in sentence


def test_a_wrong_file_is_reported_before_any_long_work(tmp_path):
    params = read_preset("smoke", ROOT / "presets")
    params["evaluation"]["features"] = str(write_file(tmp_path, b"no weights"))

    with pytest.raises(
        ConfigError, match="evaluation.features, .*weights.pth, is a text, not a file of weights"
    ):
        check_params(params, 0)


def test_an_open_clip_folder_gives_its_unit_vectors_and_is_described_in_the_protocol(pretrained_folder):  # noqa: F811
    setting, images = f"local-dir:{pretrained_folder}", torch.rand(2, 3, 40, 40, generator=rng(0))
    extractor = load_extractor(setting)
    scorer = components.build("scorers", "clip", CLIPConfig(pretrained=setting), image_size=24)

    features, logits = extractor(images)

    torch.testing.assert_close(features, scorer.eval().embed_images(images).detach())
    assert logits.shape == (2, 0) and not features.requires_grad and extractor.names is CLIP_FIGURES
    protocol = extractor.protocol()
    assert protocol["features"].startswith("the image tower of local-dir from ")
    assert protocol["features_preprocessing"].startswith("resized to 24 x 24 by bicubic")
    (pretrained_folder / "README").write_text("another")
    assert load_extractor(setting).sha256 != extractor.sha256
