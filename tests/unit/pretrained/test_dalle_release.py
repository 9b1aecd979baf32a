"""The released weights become a tokenizer of ours: the same numbers, the same logits, no pickle from then on."""

import argparse
import collections
import enum
import json
import os
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.dalle_release import (
    FULL,
    SMALL,
    Conv2d,
    Decoder,
    Encoder,
    import_small,
    pickles_in,
    save,
    write_release,
)
from tests.helpers.tiny_models import random_images, rng
from thousandwords import __main__ as command
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.image_tokenizers.dvae.model import DiscreteVAE, DVAEConfig
from thousandwords.pretrained import dalle_release, torch_container
from thousandwords.pretrained.torch_container import read_state_dict

CONTAINERS = ("zip", "legacy")


def error_of(folder: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        import_small(folder, **settings)
    assert not (folder / "imported").exists()
    return str(caught.value)


@pytest.fixture(params=CONTAINERS)
def container(request) -> str:
    return request.param


# --- the same numbers ------------------------------------------------------------------------------------------------


def test_every_number_of_both_files_arrives_under_our_names(tmp_path, container):
    encoder, decoder = write_release(tmp_path, container)

    weights = components.load("image_tokenizers", import_small(tmp_path)).state_dict()

    originals = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    originals |= {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    assert len(weights) == len(originals)
    for name, value in weights.items():
        half, _, rest = name.partition(".")
        assert torch.equal(value, originals[f"{half}.{dalle_release.release_name(rest)}"]), name


def test_halves_of_half_precision_are_read_exactly(tmp_path, container):
    encoder, _ = write_release(tmp_path, container)
    save(encoder.half(), tmp_path / "encoder.pkl", container)

    model = components.load("image_tokenizers", import_small(tmp_path))

    assert model.encoder.input.weight.equal(encoder.blocks.input.w.float())


def map_pixels(images: Tensor) -> Tensor:
    """map_pixels of the published package: [0, 1] -> the range of its encoder."""
    return 0.8 * images + 0.1


def test_logits_tokens_and_images_are_those_of_the_original_architecture(tmp_path, container):
    encoder, decoder = write_release(tmp_path, container)
    model = components.load("image_tokenizers", import_small(tmp_path))
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
    folders = [import_small(tmp_path, tmp_path / name) for name in ("one", "two")]
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second and set(first) == {"config.json", "weights.safetensors", "manifest.json"}


def test_the_sizes_of_the_release_are_those_of_the_paper():
    with torch.device("meta"):
        halves, model = {"encoder": Encoder(FULL), "decoder": Decoder(FULL)}, DiscreteVAE(DVAEConfig(), 256)
    for half, original in halves.items():
        ours = {dalle_release.release_name(n): w.shape for n, w in getattr(model, half).state_dict().items()}
        assert ours == {name: weight.shape for name, weight in original.state_dict().items()}
    assert model.config.path_gain == 1 / 64


# --- what does not fit -----------------------------------------------------------------------------------------------


def changed(half: str, change: Callable[[nn.Module], object]) -> Callable[[Path, str], None]:
    """Writes the release with a change in one of its two networks."""

    def write(folder: Path, container: str) -> None:
        network = write_release(folder, container)[half == "decoder"]
        change(network)
        save(network, folder / f"{half}.pkl", container)

    return write


def set_part(name: str, value: object) -> Callable[[nn.Module], None]:
    """set_part("group_1.block_1.id_path", part) sets that part of the blocks of a network."""
    path, _, name = name.rpartition(".")
    return lambda network: setattr(network.blocks.get_submodule(path), name, value)


UNFIT = {
    "other sizes": (
        lambda folder, container: write_release(folder, container, {**SMALL, "vocab_size": 13}),
        "encoder.pkl does not fit the encoder: 2 tensors differ, the first is blocks.output.conv.b: "
        "expected (12,), found (13,). Download it again",
    ),
    "fewer layers": (
        lambda folder, container: write_release(folder, container, {**SMALL, "groups": 2}),
        "encoder.pkl does not fit the encoder: ",
    ),
    "more layers": (
        changed("encoder", set_part("extra", Conv2d(3, 8, 1))),
        "2 tensors differ, the first is blocks.extra.b: expected none, found (8,)",
    ),
    "another gain": (
        changed("decoder", set_part("group_2.block_1.post_gain", 0.5)),
        "decoder.pkl has a gain at blocks.group_2.block_1 that is not 0.02777",
    ),
    "float64": (changed("encoder", nn.Module.double), "asks for torch.DoubleStorage, which the DALL-E"),
    "not finite": (
        changed("encoder", lambda network: network.blocks.input.b.data[3].fill_(torch.nan)),
        "encoder.pkl has numbers that are not finite, the first in blocks.input.b",
    ),
    "another class": (
        changed("encoder", set_part("group_1.block_1.id_path", nn.Dropout())),
        "asks for torch.nn.modules.dropout.Dropout, which the DALL-E release does not use",
    ),
}


@pytest.mark.parametrize(("write", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_rejected_by_name(tmp_path, write, message):
    write(tmp_path, "zip")
    assert message in error_of(tmp_path)


def test_swapped_files_are_reported(tmp_path, container):
    write_release(tmp_path, container)
    encoder, decoder = pickles_in(tmp_path).values()
    message = error_of(tmp_path, pickles={"encoder": decoder, "decoder": encoder})
    assert "decoder.pkl holds dall_e.decoder.Decoder, but dall_e.encoder.Encoder was expected" in message
    assert "are the two files swapped" in message


def test_a_file_longer_than_any_of_the_release_is_rejected_before_it_is_hashed(tmp_path, monkeypatch):
    write_release(tmp_path, "zip")
    os.truncate(tmp_path / "decoder.pkl", 2**30 + 1)
    monkeypatch.setattr(
        torch_container, "sha256_of", lambda path: "" if path.name == "encoder.pkl" else 1 / 0
    )
    assert error_of(tmp_path) == (
        f"{tmp_path}/decoder.pkl has more than 1,073,741,824 bytes, the maximum for a file of published weights"
    )


def test_the_expected_sha256_is_compared_before_a_file_is_read(tmp_path, monkeypatch):
    write_release(tmp_path, "zip")
    sha256 = {half: sha256_of(path) for half, path in pickles_in(tmp_path).items()}
    expected = {"encoder": sha256["encoder"].upper(), "decoder": sha256["decoder"]}
    import_small(tmp_path, tmp_path / "checked", expected_sha256=expected)

    monkeypatch.setattr(dalle_release, "read_tensors", lambda *_: pytest.fail("read before it was compared"))
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
    part, read = read_state_dict(path)
    assert part == {"bare": "", "taming": "state_dict"}.get(name, "model")
    assert list(read) == list(weights)
    assert all(torch.equal(torch.from_numpy(read[name]), value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("parts", "part"),
    [(("trainer.model", "model"), "trainer.model"), (("model.weights", "model"), "model"), ((), "model")],
)
def test_the_state_dict_is_looked_for_along_paths_in_the_order_given(tmp_path, container, parts, part):
    path = tmp_path / "weights.pt"
    first, second = torch.tensor([1.0]), torch.tensor([2.0])
    saved = {"steps": 3, "model": {"weight": first}, "trainer": {"step": 1, "model": {"weight": second}}}
    torch.save(saved, path, _use_new_zipfile_serialization=container == "zip")
    found, read = read_state_dict(path, parts)
    assert found == part and read == {"weight": 2.0 if part == "trainer.model" else 1.0}


class Settings(list):
    """In place of a list of a settings library."""


class Stage(enum.Enum):
    FIT = "fit"


def test_what_trainers_save_beside_the_weights_is_left_out(tmp_path, container):
    numbers = {"loss": np.float64(0.5), "steps": np.int64(7), "betas": np.arange(2), "dtype": torch.float16}
    saved = {
        "loops": {Stage.FIT: {"is_last": True}, "best": Stage.FIT},
        "hyper_parameters": [Settings([1, Settings()]), collections.defaultdict(list, {"a": [1]})],
        "numbers": numbers | {"files": {Path("a")}, "queue": collections.deque([1, 2])},
        "optimizer": {"state": {0: {"step": torch.tensor(4)}, 1: {}}, "args": argparse.Namespace(lr=0.1)},
        "model": {"weight": torch.tensor([1.0])},
    }
    path = tmp_path / "weights.pt"
    torch.save(saved, path, _use_new_zipfile_serialization=container == "zip")
    assert read_state_dict(path, ["model"]) == ("model", {"weight": 1.0})


def test_what_is_not_wanted_takes_no_memory(tmp_path, container):
    path = tmp_path / "weights.pt"
    saved = {"model": {"weight": torch.ones(1000)}, "optimizer": {0: torch.zeros(4_000_000)}}
    torch.save(saved, path, _use_new_zipfile_serialization=container == "zip")
    assert path.stat().st_size > 16e6
    tracemalloc.start()
    try:
        read_state_dict(path, ["model"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e6


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

    small = partial(dalle_release.import_weights, config=DVAEConfig(**SMALL), image_size=16)
    monkeypatch.setattr(dalle_release, "import_weights", small)


def test_the_command_writes_a_tokenizer_and_prints_both_sha256(
    tmp_path, container, small_command, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_release(tmp_path, container)

    command.main(["import-weights", "--out", "models/imported"])

    header = json.loads(Path("models/imported/config.json").read_bytes())
    digests = {half: sha256_of(path) for half, path in pickles_in(Path()).items()}
    assert header["pickle_sha256"] == digests and header["arguments"] == {"image_size": 16}
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
        f"models/imported: fingerprint {model.fingerprint}. Use it by image_tokenizer: "
        "{kind: dvae, init: models/imported}",
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
