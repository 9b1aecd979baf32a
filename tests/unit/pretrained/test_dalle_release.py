"""The released weights become a tokenizer of ours: the same numbers, the same logits, and no pickle from then
on."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.helpers.dalle_release import FULL, SMALL, Conv2d, Decoder, Encoder, save, write_release
from tests.helpers.tiny_models import random_images, rng
from thousandwords import __main__ as command
from thousandwords import components
from thousandwords.cli import import_weights as import_weights_command
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.image_tokenizers.dvae.model import DVAEConfig
from thousandwords.pretrained import dalle_release
from thousandwords.pretrained.torch_container import read_state_dict

SIDE = 16
CONTAINERS = ("zip", "legacy")


def config_of(sizes: dict[str, int]) -> DVAEConfig:
    return DVAEConfig(
        **{"blocks_per_group" if name == "blocks" else name: size for name, size in sizes.items()}
    )


def pickles_in(folder: Path) -> dict[str, Path]:
    return {"encoder": folder / "encoder.pkl", "decoder": folder / "decoder.pkl"}


def import_weights(folder: Path, out: Path | None = None, **more: object) -> Path:
    out = out or folder / "imported"
    dalle_release.import_weights(pickles_in(folder), out, config=config_of(SMALL), image_size=SIDE, **more)
    return out


def error_of(folder: Path, **more: object) -> str:
    with pytest.raises(UserError) as caught:
        import_weights(folder, **more)
    assert not (folder / "imported").exists()
    return str(caught.value)


@pytest.fixture(params=CONTAINERS)
def container(request) -> str:
    return request.param


# --- the same numbers ------------------------------------------------------------------------------------------------


def test_every_number_of_both_files_arrives_under_our_names(tmp_path, container):
    encoder, decoder = write_release(tmp_path, container)

    weights = components.load("image_tokenizers", import_weights(tmp_path)).state_dict()

    originals = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    originals |= {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    assert len(weights) == len(originals)
    for name, value in weights.items():
        half, _, rest = name.partition(".")
        assert torch.equal(value, originals[f"{half}.{dalle_release.release_name(rest)}"]), name


def map_pixels(images: Tensor) -> Tensor:
    """map_pixels of the published package: [0, 1] -> the range of its encoder."""
    return 0.8 * images + 0.1


def test_logits_tokens_and_images_are_those_of_the_original_architecture(tmp_path, container):
    encoder, decoder = write_release(tmp_path, container)
    model = components.load("image_tokenizers", import_weights(tmp_path))
    tints = torch.rand(100, 3, 1, 1, generator=rng(1))
    images = (random_images(100) + 3 * tints - 1).clamp(0, 1)

    logits = encoder(map_pixels(images))  # (B, V, h, w)
    tokens = logits.argmax(dim=1)
    maps = decoder(functional.one_hot(tokens, SMALL["vocab_size"]).permute(0, 3, 1, 2).float())
    decoded = ((torch.sigmoid(maps[:, :3]) - 0.1) / 0.8).clamp(0, 1)

    assert (model._logits(images).permute(0, 3, 1, 2) - logits).abs().max() <= 1e-5
    assert torch.equal(model.encode(images), tokens.flatten(1)) and tokens.unique().numel() >= 4
    assert (model.decode(tokens.flatten(1)) - decoded).abs().max() <= 1e-5


def test_importing_again_writes_the_same_bytes(tmp_path):
    write_release(tmp_path, "zip")
    folders = [import_weights(tmp_path, tmp_path / name) for name in ("one", "two")]
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second and set(first) == {"config.json", "weights.safetensors", "manifest.json"}


def test_the_sizes_of_the_release_are_those_of_the_paper():
    with torch.device("meta"):
        halves = Encoder(FULL), Decoder(FULL)
    model = dalle_release._architecture(None, dalle_release.IMAGE_SIZE)
    for half, network, tensors, parameters in (
        ("encoder", halves[0], 74, 53_786_240),
        ("decoder", halves[1], 76, 43_829_766),
    ):
        shapes = dalle_release._release_shapes(model, half)
        assert shapes == {name: tuple(value.shape) for name, value in network.state_dict().items()}
        assert len(shapes) == tensors and sum(value.numel() for value in network.parameters()) == parameters
    assert (model.vocab_size, model.scales, model.config.path_gain) == (8192, (32,), 1 / 64)


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_a_file_of_other_sizes_is_rejected_by_its_first_wrong_tensor(tmp_path, container):
    write_release(tmp_path, container, {**SMALL, "vocab_size": 13})
    assert error_of(tmp_path).startswith(
        f"{tmp_path}/encoder.pkl does not fit the encoder: 2 tensors differ, the first is blocks.output.conv.b: "
        "expected (12,), found (13,). Download it again"
    )


def test_more_or_fewer_layers_are_rejected(tmp_path, container):
    write_release(tmp_path, container, {**SMALL, "groups": 2})
    assert "does not fit the encoder: " in error_of(tmp_path)
    encoder, _ = write_release(tmp_path, container)
    encoder.blocks.add_module("extra", Conv2d(3, 8, 1))
    save(encoder, tmp_path / "encoder.pkl", container)
    assert "2 tensors differ, the first is blocks.extra.b: expected none, found (8,)" in error_of(tmp_path)


def test_another_gain_is_rejected(tmp_path, container):
    _, decoder = write_release(tmp_path, container)
    decoder.blocks.group_2.block_1.post_gain = 0.5
    save(decoder, tmp_path / "decoder.pkl", container)
    assert "decoder.pkl has a gain at blocks.group_2.block_1 that is not 0.02777" in error_of(tmp_path)


def test_swapped_files_are_reported(tmp_path, container):
    write_release(tmp_path, container)
    swapped = {"encoder": tmp_path / "decoder.pkl", "decoder": tmp_path / "encoder.pkl"}
    with pytest.raises(UserError, match="are the two files swapped") as caught:
        dalle_release.import_weights(swapped, tmp_path / "imported", config=config_of(SMALL), image_size=SIDE)
    assert "decoder.pkl holds dall_e.decoder.Decoder, but dall_e.encoder.Encoder was expected" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float16, "HalfStorage"), (torch.float64, "DoubleStorage")]
)
def test_other_number_types_are_rejected_by_name(tmp_path, container, dtype, name):
    encoder, _ = write_release(tmp_path, container)
    save(encoder.to(dtype), tmp_path / "encoder.pkl", container)
    assert f"asks for torch.{name}, which the DALL-E release does not use" in error_of(tmp_path)


def test_numbers_that_are_not_finite_are_rejected(tmp_path, container):
    encoder, _ = write_release(tmp_path, container)
    encoder.blocks.input.b[3] = torch.nan
    save(encoder, tmp_path / "encoder.pkl", container)
    assert "not finite, the first in blocks.input.b" in error_of(tmp_path)


def test_a_module_of_a_class_that_is_not_in_the_release_is_rejected(tmp_path, container):
    encoder, _ = write_release(tmp_path, container)
    encoder.blocks.group_1.block_1.id_path = torch.nn.Dropout()
    save(encoder, tmp_path / "encoder.pkl", container)
    assert "asks for torch.nn.modules.dropout.Dropout, which the DALL-E release does not use" in error_of(
        tmp_path
    )


def test_a_file_longer_than_any_of_the_release_is_rejected_before_it_is_hashed(
    tmp_path, container, monkeypatch
):
    write_release(tmp_path, container)
    os.truncate(tmp_path / "decoder.pkl", 2**30 + 1)
    monkeypatch.setattr(dalle_release, "sha256_of", lambda path: "" if path.name == "encoder.pkl" else 1 / 0)
    assert error_of(tmp_path) == (
        f"{tmp_path}/decoder.pkl has more than 1,073,741,824 bytes, the maximum for a file of the DALL-E release"
    )


def test_the_expected_sha256_is_compared_before_a_file_is_read(tmp_path, container, monkeypatch):
    write_release(tmp_path, container)
    sha256 = {half: sha256_of(path) for half, path in pickles_in(tmp_path).items()}
    import_weights(
        tmp_path,
        tmp_path / "checked",
        expected_sha256={"encoder": sha256["encoder"].upper(), "decoder": sha256["decoder"]},
    )

    def never(*_):
        raise AssertionError("read before its sha256 was compared")

    monkeypatch.setattr(dalle_release, "read_tensors", never)
    sentence = error_of(tmp_path, expected_sha256={"encoder": sha256["encoder"], "decoder": "0" * 64})
    assert sentence == (
        f"{tmp_path}/decoder.pkl is not the expected file: its sha256 should be {'0' * 64}, "
        f"found {sha256['decoder']}. Download it again"
    )


# --- what is no file of the release -----------------------------------------------------------------------------------

WEIGHTS = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).state_dict()
STATE_DICTS = {
    "bare": WEIGHTS,
    "taming": {"state_dict": WEIGHTS, "global_step": 3},
    "LlamaGen, with what is not weights": {
        "model": WEIGHTS,
        "optimizer": {"steps": 1, 0: torch.rand(3)},
        "args": argparse.Namespace(lr=0.1),
    },
    "bfloat16": {name: value.bfloat16() for name, value in WEIGHTS.items()},
    "not contiguous": {"0.weight": torch.rand(4, 4).t()},
}


@pytest.mark.parametrize("saved", STATE_DICTS.values(), ids=STATE_DICTS)
def test_a_state_dict_of_another_model_is_not_called_damaged(tmp_path, container, saved):
    write_release(tmp_path, container)
    torch.save(saved, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=container == "zip")
    sentence = error_of(tmp_path)
    assert sentence.startswith(f"{tmp_path}/encoder.pkl is a plain state dict of weights (")
    assert "the first is 0.weight): sound, but of another model" in sentence
    assert sentence.endswith("encoder.pkl and decoder.pkl as OpenAI published them")
    assert "damaged" not in sentence and "Download it again" not in sentence


@pytest.mark.parametrize("name", ["bare", "taming", "LlamaGen, with what is not weights"])
def test_the_weights_of_a_state_dict_are_read_without_what_else_it_holds(tmp_path, container, name):
    path = tmp_path / "weights.pt"
    weights = {name: value for name, value in WEIGHTS.items() if value.is_floating_point()}
    saved = {key: weights if value is WEIGHTS else value for key, value in STATE_DICTS[name].items()}
    saved = weights if name == "bare" else saved
    torch.save(saved, path, _use_new_zipfile_serialization=container == "zip")
    read = read_state_dict(path)
    assert list(read) == list(weights)
    assert all(torch.equal(torch.from_numpy(read[name]), value) for name, value in weights.items())


def test_a_state_dict_that_is_cut_short_is_called_damaged(tmp_path, container):
    write_release(tmp_path, container)
    path = tmp_path / "encoder.pkl"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=container == "zip")
    path.write_bytes(path.read_bytes()[:-40])
    assert "is damaged or cut short" in error_of(tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_command(monkeypatch):
    """The command, for a small architecture instead of the released one."""

    def small(pickles: dict, out: Path, expected_sha256: dict) -> str:
        return dalle_release.import_weights(pickles, out, expected_sha256, config_of(SMALL), SIDE)

    monkeypatch.setattr(import_weights_command, "import_weights", small)


def test_the_command_writes_a_tokenizer_and_prints_both_sha256(
    tmp_path, container, small_command, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_release(tmp_path, container)

    command.main(["import-weights", "--out", "models/imported"])

    header = json.loads(Path("models/imported/config.json").read_bytes())
    digests = {half: sha256_of(path) for half, path in pickles_in(Path()).items()}
    assert header["pickle_sha256"] == digests and header["arguments"] == {"image_size": SIDE}
    model = components.load("image_tokenizers", Path("models/imported"))
    assert capsys.readouterr().out.splitlines() == [
        *[
            line
            for half, digest in digests.items()
            for line in (
                f"{half}: {half}.pkl, sha256 {digest}",
                f"{half}: torch's legacy container has no checksum; only --{half}-sha256 sees a damaged number in it",
            )[: 1 + (container == "legacy")]
        ],
        f"models/imported: fingerprint {model.fingerprint}. Use it by image_tokenizer.init: models/imported",
    ]


def test_the_command_ends_with_one_sentence_and_code_2(tmp_path, small_command, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as missing:
        command.main(["import-weights"])
    assert missing.value.code == 2
    assert (
        capsys.readouterr().err
        == "import-weights: there is no file encoder.pkl. Download it from where it was published\n"
    )

    write_release(tmp_path, "zip")
    with pytest.raises(SystemExit) as unexpected:
        command.main(["import-weights", "--encoder-sha256", "0" * 64])
    assert unexpected.value.code == 2
    assert "import-weights: encoder.pkl is not the expected file" in capsys.readouterr().err
    assert not Path("models").exists()
