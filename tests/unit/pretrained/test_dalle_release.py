"""The released weights become a tokenizer of ours: the same numbers, the same logits, and no pickle from then on."""
from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.published import FULL, SMALL, Conv2d, Decoder, Encoder, save, write_published
from tests.tiny import pictures, rng
from thousandwords import __main__ as command
from thousandwords import components, released
from thousandwords.commands import convert as convert_command
from thousandwords.errors import UserError
from thousandwords.files import sha256_of
from thousandwords.tokenizers import dvae
from thousandwords.torch_files import read_tensors

SIDE = 16
CONTAINERS = ("zip", "legacy")


def config_of(sizes: dict[str, int]) -> dvae.Config:
    return dvae.Config(**{"blocks_per_group" if name == "blocks" else name: size for name, size in sizes.items()})


def pickles_in(folder: Path) -> dict[str, Path]:
    return {"encoder": folder / "encoder.pkl", "decoder": folder / "decoder.pkl"}


def convert(folder: Path, out: Path | None = None, **more: object) -> Path:
    out = out or folder / "released"
    released.convert(pickles_in(folder), out, config=config_of(SMALL), image_size=SIDE, **more)
    return out


def refusal(folder: Path, **more: object) -> str:
    with pytest.raises(UserError) as caught:
        convert(folder, **more)
    assert not (folder / "released").exists()
    return str(caught.value)


@pytest.fixture(params=CONTAINERS)
def container(request) -> str:
    return request.param


# --- the same numbers ------------------------------------------------------------------------------------------------


def test_every_number_of_both_files_arrives_under_our_names(tmp_path, container):
    encoder, decoder = write_published(tmp_path, container)

    ours = components.load("tokenizers", convert(tmp_path)).state_dict()

    theirs = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    theirs |= {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    assert len(ours) == len(theirs)
    for name, value in ours.items():
        half, _, rest = name.partition(".")
        assert torch.equal(value, theirs[f"{half}.{released.released_name(rest)}"]), name


def test_the_names_read_as_paths_in_both():
    for ours, theirs in {
        "input.weight": "blocks.input.w",
        "codebook.bias": "blocks.input.b",
        "group_1_block_2.path.conv_3.weight": "blocks.group_1.block_2.res_path.conv_3.w",
        "group_2_block_1.identity.bias": "blocks.group_2.block_1.id_path.b",
        "output.weight": "blocks.output.conv.w",
    }.items():
        assert released.released_name(ours) == theirs


def map_pixels(images: Tensor) -> Tensor:
    """The published package's way from [0, 1] to what its encoder takes."""
    return 0.8 * images + 0.1


def test_logits_words_and_pictures_are_those_of_the_original_architecture(tmp_path, container):
    encoder, decoder = write_published(tmp_path, container)
    model = components.load("tokenizers", convert(tmp_path))
    tints = torch.rand(100, 3, 1, 1, generator=rng(1))
    images = (pictures(100) + 3 * tints - 1).clamp(0, 1)

    logits = encoder(map_pixels(images))                                     # (B, V, h, w)
    words = logits.argmax(dim=1)
    maps = decoder(functional.one_hot(words, SMALL["vocab_size"]).permute(0, 3, 1, 2).float())
    drawn = ((torch.sigmoid(maps[:, :3]) - 0.1) / 0.8).clamp(0, 1)

    assert (model._logits(images).permute(0, 3, 1, 2) - logits).abs().max() <= 1e-5
    assert torch.equal(model.encode(images), words.flatten(1)) and words.unique().numel() >= 4
    assert (model.decode(words.flatten(1)) - drawn).abs().max() <= 1e-5


def test_both_containers_give_the_same_weights(tmp_path):
    states = []
    for container in CONTAINERS:
        (tmp_path / container).mkdir()
        write_published(tmp_path / container, container)
        states.append((convert(tmp_path / container) / "weights.safetensors").read_bytes())
    assert states[0] == states[1]


def test_converting_again_writes_the_same_bytes(tmp_path, container):
    write_published(tmp_path, container)
    folders = [convert(tmp_path, tmp_path / name) for name in ("one", "two")]
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second and set(first) == {"config.json", "weights.safetensors", "manifest.json"}


def test_the_tensors_may_be_read_by_themselves(tmp_path, container):
    encoder, _ = write_published(tmp_path, container)
    tensors = read_tensors(tmp_path / "encoder.pkl")
    assert set(tensors) == set(encoder.state_dict())
    assert all(array.dtype == np.float32 and array.flags.writeable for array in tensors.values())


def test_the_released_sizes_are_those_of_the_paper():
    with torch.device("meta"):
        halves = Encoder(FULL), Decoder(FULL)
    model = released._architecture(None, released.IMAGE_SIZE)
    for half, network, tensors, parameters in (
        ("encoder", halves[0], 74, 53_786_240),
        ("decoder", halves[1], 76, 43_829_766),
    ):
        wanted = released._wanted(model, half)
        assert wanted == {name: tuple(value.shape) for name, value in network.state_dict().items()}
        assert len(wanted) == tensors and sum(value.numel() for value in network.parameters()) == parameters
    assert (model.vocab_size, model.scales, model.config.path_gain) == (8192, (32,), 1 / 64)


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_a_file_of_other_sizes_is_refused_by_its_first_wrong_tensor(tmp_path, container):
    write_published(tmp_path, container, {**SMALL, "vocab_size": 13})
    assert refusal(tmp_path).startswith(
        f"{tmp_path}/encoder.pkl does not fit the encoder: 2 tensors differ, the first is blocks.output.conv.b: "
        "wanted (12,), found (13,). Fetch it again"
    )


def test_more_or_fewer_layers_are_refused(tmp_path, container):
    write_published(tmp_path, container, {**SMALL, "groups": 2})
    assert "does not fit the encoder: " in refusal(tmp_path)
    encoder, _ = write_published(tmp_path, container)
    encoder.blocks.add_module("extra", Conv2d(3, 8, 1))
    save(encoder, tmp_path / "encoder.pkl", container)
    assert "2 tensors differ, the first is blocks.extra.b: wanted none, found (8,)" in refusal(tmp_path)


def test_another_gain_is_refused(tmp_path, container):
    _, decoder = write_published(tmp_path, container)
    decoder.blocks.group_2.block_1.post_gain = 0.5
    save(decoder, tmp_path / "decoder.pkl", container)
    assert "decoder.pkl has a gain at blocks.group_2.block_1 that is not 0.02777" in refusal(tmp_path)


def test_swapped_files_are_told(tmp_path, container):
    write_published(tmp_path, container)
    swapped = {"encoder": tmp_path / "decoder.pkl", "decoder": tmp_path / "encoder.pkl"}
    with pytest.raises(UserError, match="were the two files swapped") as caught:
        released.convert(swapped, tmp_path / "released", config=config_of(SMALL), image_size=SIDE)
    assert "decoder.pkl holds dall_e.decoder.Decoder, but dall_e.encoder.Encoder was wanted" in str(caught.value)


@pytest.mark.parametrize(("dtype", "named"), [(torch.float16, "HalfStorage"), (torch.float64, "DoubleStorage")])
def test_other_number_types_are_refused_by_name(tmp_path, container, dtype, named):
    encoder, _ = write_published(tmp_path, container)
    save(encoder.to(dtype), tmp_path / "encoder.pkl", container)
    assert f"asks for torch.{named}, which no released tokenizer has" in refusal(tmp_path)


def test_numbers_that_are_not_finite_are_refused(tmp_path, container):
    encoder, _ = write_published(tmp_path, container)
    encoder.blocks.input.b[3] = torch.nan
    save(encoder, tmp_path / "encoder.pkl", container)
    assert "not finite, the first in blocks.input.b" in refusal(tmp_path)


def test_a_weight_that_is_no_released_class_is_refused(tmp_path, container):
    encoder, _ = write_published(tmp_path, container)
    encoder.blocks.group_1.block_1.id_path = torch.nn.Dropout()
    save(encoder, tmp_path / "encoder.pkl", container)
    assert "asks for torch.nn.modules.dropout.Dropout, which no released tokenizer has" in refusal(tmp_path)


def test_a_file_longer_than_any_released_one_is_refused_before_it_is_hashed(tmp_path, container, monkeypatch):
    write_published(tmp_path, container)
    os.truncate(tmp_path / "decoder.pkl", 2**30 + 1)
    monkeypatch.setattr(released, "sha256_of", lambda path: "" if path.name == "encoder.pkl" else 1 / 0)
    assert refusal(tmp_path) == (
        f"{tmp_path}/decoder.pkl has more than 1,073,741,824 bytes, the most that a released tokenizer has"
    )


def test_a_pinned_file_has_to_be_that_file_before_it_is_read(tmp_path, container, monkeypatch):
    write_published(tmp_path, container)
    good = {half: sha256_of(path) for half, path in pickles_in(tmp_path).items()}
    convert(tmp_path, tmp_path / "pinned", pins={"encoder": good["encoder"].upper(), "decoder": good["decoder"]})

    def never(*_):
        raise AssertionError("read before its sha256 was compared")

    monkeypatch.setattr(released, "read_tensors", never)
    sentence = refusal(tmp_path, pins={"encoder": good["encoder"], "decoder": "0" * 64})
    assert sentence == (
        f"{tmp_path}/decoder.pkl is not the file that was pinned: its sha256 should be {'0' * 64}, "
        f"found {good['decoder']}. Fetch it again"
    )


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_command(monkeypatch):
    """The command, for a small architecture instead of the released one."""

    def small(pickles: dict, out: Path, pins: dict) -> str:
        return released.convert(pickles, out, pins, config_of(SMALL), SIDE)

    monkeypatch.setattr(convert_command, "convert", small)


def test_the_command_writes_a_tokenizer_and_tells_both_sha256(tmp_path, container, small_command, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_published(tmp_path, container)

    command.main(["convert", "--out", "models/released"])

    header = json.loads(Path("models/released/config.json").read_bytes())
    digests = {half: sha256_of(path) for half, path in pickles_in(Path()).items()}
    assert header["pickle_sha256"] == digests and header["arguments"] == {"image_size": SIDE}
    model = components.load("tokenizers", Path("models/released"))
    assert capsys.readouterr().out.splitlines() == [
        f"encoder: encoder.pkl, sha256 {digests['encoder']}",
        f"decoder: decoder.pkl, sha256 {digests['decoder']}",
        f"models/released: fingerprint {model.fingerprint}. Use it by image_tokenizer.init: models/released",
    ]


def test_the_command_ends_with_one_sentence_and_code_2(tmp_path, small_command, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as missing:
        command.main(["convert"])
    assert missing.value.code == 2
    assert capsys.readouterr().err == "convert: there is no file encoder.pkl. Fetch it from where it was published\n"

    write_published(tmp_path, "zip")
    with pytest.raises(SystemExit) as pinned:
        command.main(["convert", "--encoder-sha256", "0" * 64])
    assert pinned.value.code == 2
    assert "convert: encoder.pkl is not the file that was pinned" in capsys.readouterr().err
    assert not Path("models").exists()
