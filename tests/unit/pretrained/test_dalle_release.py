"""The released weights become a tokenizer of ours: the same logits, tokens and images, no pickle from then on."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.helpers.dalle_release import SMALL, Conv2d, import_small, pickles_in, save, write_release
from tests.helpers.tiny_models import random_images, rng
from thousandwords import __main__ as command
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.image_tokenizers.dvae.model import DVAEConfig
from thousandwords.pretrained import dalle_release, torch_container

every_container = pytest.mark.parametrize("container", ["zip", "legacy"])


def error_of(folder: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        import_small(folder, **settings)
    assert not (folder / "imported").exists()
    return str(caught.value)


# --- the same numbers ------------------------------------------------------------------------------------------------


@every_container
def test_logits_tokens_and_images_are_those_of_the_original_architecture(tmp_path, container):
    encoder, decoder = write_release(tmp_path, container)
    model = components.load("image_tokenizers", import_small(tmp_path))
    tints = torch.rand(100, 3, 1, 1, generator=rng(1))
    images = (random_images(100) + 3 * tints - 1).clamp(0, 1)

    logits = encoder(0.8 * images + 0.1)  # (B, V, h, w); map_pixels of the published package
    tokens = logits.argmax(dim=1)
    maps = decoder(functional.one_hot(tokens, SMALL["vocab_size"]).permute(0, 3, 1, 2).float())
    decoded = ((torch.sigmoid(maps[:, :3]) - 0.1) / 0.8).clamp(0, 1)

    assert (model._logits(images).permute(0, 3, 1, 2) - logits).abs().max() <= 1e-5
    assert torch.equal(model.encode(images), tokens.flatten(1)) and tokens.unique().numel() >= 4
    assert (model.decode(tokens.flatten(1)) - decoded).abs().max() <= 1e-5


# --- what does not fit -----------------------------------------------------------------------------------------------


def changed(half: str, change: Callable[[nn.Module], object]) -> Callable[[Path], None]:
    """Writes the release with a change in one of its two networks."""

    def write(folder: Path) -> None:
        network = write_release(folder, "zip")[half == "decoder"]
        change(network)
        save(network, folder / f"{half}.pkl", "zip")

    return write


def set_part(name: str, value: object) -> Callable[[nn.Module], None]:
    """set_part("group_1.block_1.id_path", part) sets that part of the blocks of a network."""
    path, _, name = name.rpartition(".")
    return lambda network: setattr(network.blocks.get_submodule(path), name, value)


def with_sizes(**sizes: int) -> Callable[[Path], object]:
    return lambda folder: write_release(folder, "zip", SMALL | sizes)


def with_nan(network: nn.Module) -> None:
    network.blocks.input.b.data[3] = torch.nan


UNFIT = {
    "other sizes": (with_sizes(vocab_size=13), "encoder.pkl does not fit the encoder: 2 tensors differ, the first is "
                    "blocks.output.conv.b: expected (12,), found (13,). Download it again"),
    "fewer layers": (with_sizes(groups=2), "encoder.pkl does not fit the encoder: "),
    "more layers": (changed("encoder", set_part("extra", Conv2d(3, 8, 1))), "blocks.extra.b: expected none, found (8,)"),
    "another gain": (changed("decoder", set_part("group_2.block_1.post_gain", 0.5)),
                     "decoder.pkl has a gain at blocks.group_2.block_1 that is not 0.02777"),
    "float64": (changed("encoder", nn.Module.double), "asks for torch.DoubleStorage, which the DALL-E"),
    "not finite": (changed("encoder", with_nan), "encoder.pkl has numbers that are not finite, the first in blocks.input.b"),
    "another class": (changed("encoder", set_part("group_1.block_1.id_path", nn.Dropout())),
                      "asks for torch.nn.modules.dropout.Dropout, which the DALL-E release does not use"),
}  # fmt: skip


@pytest.mark.parametrize(("write", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_rejected_by_name(tmp_path, write, message):
    write(tmp_path)
    assert message in error_of(tmp_path)


@every_container
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
    import_small(
        tmp_path, tmp_path / "checked", expected_sha256=sha256 | {"encoder": sha256["encoder"].upper()}
    )

    monkeypatch.setattr(dalle_release, "read_tensors", lambda *_: pytest.fail("read before it was compared"))
    assert error_of(tmp_path, expected_sha256=sha256 | {"decoder": "0" * 64}) == (
        f"{tmp_path}/decoder.pkl is not the expected file: its sha256 should be {'0' * 64}, "
        f"found {sha256['decoder']}. Download it again"
    )


STATE_DICT = {"0.weight": torch.rand(8, 3), "0.bias": torch.rand(8)}


@every_container
@pytest.mark.parametrize(
    "saved", [STATE_DICT, {"step": 3, "state_dict": STATE_DICT}], ids=["bare", "checkpoint"]
)
def test_a_state_dict_of_another_model_is_not_called_damaged(tmp_path, container, saved):
    write_release(tmp_path, "zip")
    torch.save(saved, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=container == "zip")
    message = error_of(tmp_path)
    assert message.startswith(
        f"{tmp_path}/encoder.pkl is a plain state dict of weights (tensors: 2, the first is"
    )
    assert message.endswith("encoder.pkl and decoder.pkl as OpenAI published them")
    assert "damaged" not in message and "Download it again" not in message


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_small(tmp_path, monkeypatch):
    """The command, for a small architecture instead of the released one."""
    small = partial(dalle_release.import_weights, config=DVAEConfig(**SMALL), image_size=16)
    monkeypatch.setattr(dalle_release, "import_weights", small)
    monkeypatch.chdir(tmp_path)
    return lambda *options: command.main(["import-weights", *options])


@every_container
def test_the_command_writes_a_tokenizer_and_prints_both_sha256(tmp_path, container, run_small, capsys):
    write_release(tmp_path, container)

    run_small("--out", "models/imported")

    header = json.loads(Path("models/imported/config.json").read_bytes())
    digests = {half: sha256_of(path) for half, path in pickles_in(Path()).items()}
    assert header["pickle_sha256"] == digests and header["arguments"] == {"image_size": 16}
    expected = []
    for half, digest in digests.items():
        expected.append(f"{half}: {half}.pkl, sha256 {digest}")
        if container == "legacy":
            expected.append(
                f"{half}: torch's legacy container has no checksum; only --{half}-sha256 sees a damaged number in it"
            )
    fingerprint = components.load("image_tokenizers", Path("models/imported")).fingerprint
    use = "Use it by image_tokenizer: {kind: dvae, init: models/imported}"
    assert capsys.readouterr().out.splitlines() == [
        *expected,
        f"models/imported: fingerprint {fingerprint}. {use}",
    ]


def test_the_command_ends_with_one_sentence_and_code_2(tmp_path, run_small, capsys):
    with pytest.raises(SystemExit) as missing:
        run_small()
    write_release(tmp_path, "zip")
    with pytest.raises(SystemExit) as unexpected:
        run_small("--encoder-sha256", "0" * 64)

    assert (missing.value.code, unexpected.value.code) == (2, 2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "import-weights: there is no file encoder.pkl. Download it from where it was published"
    assert second.startswith("import-weights: encoder.pkl is not the expected file")
    assert not Path("models").exists()
