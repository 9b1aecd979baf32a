"""The published weights of VAR's transformer become a next_scale generator of ours: the same logits for a class."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers import published_var, published_var_transformer
from tests.helpers.malicious_files import PICKLES
from tests.helpers.published_var import SMALL_SCALES
from tests.helpers.published_var_transformer import LENGTH, NUM_CLASSES, random_weights, shapes
from tests.helpers.tiny_models import rng, rngs, tiny
from thousandwords import __main__ as command
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.pretrained import var_transformer_weights, var_weights
from thousandwords.text import bpe

VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
TOKENIZER = published_var.random_weights()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """The folder of an imported image tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.save(TOKENIZER, folder / "vae.pth")
    var_weights.import_weights(folder / "vae.pth", folder / "tokenizer", scales=SMALL_SCALES)
    return folder / "tokenizer"


def imported(folder: Path, weights: dict, tokenizer: Path) -> torch.nn.Module:
    torch.save(weights, folder / "var.pth")
    var_transformer_weights.import_weights(folder / "var.pth", tokenizer, folder / "imported")
    return components.load("generators", folder / "imported" / "generator")


@pytest.mark.paper("next_scale: VAR's keys", "next_scale: VAR's classes", "next_scale: condition")
def test_logits_of_a_class_are_those_of_the_published_architecture(tmp_path, tokenizer):
    weights, tokens = random_weights(), torch.randint(24, (4, LENGTH), generator=rng())

    model = imported(tmp_path, {"trainer": {"var_wo_ddp": weights, "vae_local": TOKENIZER}}, tokenizer)

    text = bpe.load(tmp_path / "imported" / "text_tokenizer").encode(["0", "11", "4", ""])
    classes = torch.tensor([0, 11, 4, NUM_CLASSES])
    codebook, kernels = TOKENIZER["quantize.embedding.weight"], published_var.kernels(TOKENIZER)
    expected = published_var_transformer.logits(weights, classes, tokens, codebook, kernels)
    assert text.tolist() == [[0], [11], [4], [-1]]
    assert (model.logits(text, tokens).double() - expected).abs().max() <= 1e-5
    assert expected.std() > 0.3 and model.sample(text, rngs(4), guidance=2.0).shape == (4, LENGTH)
    assert model.header["pickle_part"] == "trainer.var_wo_ddp"


@pytest.mark.paper("next_scale: VAR's classes")
def test_a_caption_is_the_number_of_a_class_and_any_other_means_none():
    text_tokenizer = var_transformer_weights.class_tokenizer(1000)

    numbers = torch.arange(1000)[:, None]
    assert text_tokenizer.encode([str(number) for number in range(1000)]).equal(numbers)
    assert text_tokenizer.vocab_size == 1256
    assert text_tokenizer.encode(["a goldfish", "goldfish"]).min() >= 1000
    assert text_tokenizer.unseen_words("goldfish 7") == ["goldfish"]


@pytest.mark.paper("next_scale: VAR's sizes", "next_scale: VAR's keys")
@pytest.mark.parametrize(
    ("depth", "count"), [(16, 310_299_904), (20, 600_942_736), (24, 1_033_436_224), (30, 2_010_077_956)]
)
def test_the_published_sizes_follow_from_the_shapes(depth, count):
    """The published counts have the biases of keys, which are 0 and which ours has among its weights."""
    settings = {"vocab_size": 4096, "latent_width": 32, "scales": VAR_SCALES}
    with torch.device("meta"):
        _, config = components.component("image_tokenizers", "multi_scale")
        image_tokenizer = components.build(
            "image_tokenizers", "multi_scale", config(**settings), image_size=128
        )
    sizes = shapes(depth, depth, 64 * depth, 1000, (4096, 32), VAR_SCALES)
    buffers = {"lvl_1L", "attn_bias_for_masking"}
    assert sum(torch.Size(shape).numel() for name, shape in sizes.items() if name not in buffers) == count

    sizes = {
        name: shape for name, shape in sizes.items() if not name.startswith(var_transformer_weights.IGNORED)
    }
    var_transformer_weights._check(sizes, image_tokenizer)

    model = var_transformer_weights.build(sizes, image_tokenizer)
    # each of the 256 bytes is a caption that means no class, and the start is part of the first position
    assert sum(weight.numel() for weight in model.parameters()) == count + 255 * 64 * depth


UNFIT = {
    "a missing tensor": (
        lambda weights: {name: value for name, value in weights.items() if name != "blocks.1.attn.q_bias"},
        "does not fit the transformer of VAR: 1 tensors differ, the first is blocks.1.attn.q_bias: expected (24,), found "
        "none. Download it again",
    ),
    "one AdaLN for all blocks": (
        lambda weights: weights | {"shared_ada_lin.1.weight": torch.zeros(144, 24)},
        "1 tensors differ, the first is shared_ada_lin.1.weight: expected none, found (144, 24)",
    ),
    "another image tokenizer's tokens": (
        lambda weights: weights | {"head.weight": torch.zeros(25, 24), "head.bias": torch.zeros(25)},
        "2 tensors differ, the first is head.bias: expected (24,), found (25,)",
    ),
    "another model": (
        lambda _: TOKENIZER,
        "holds no transformer of VAR: it has no class_emb.weight with 2 axes",
    ),
    "numbers that are not finite": (
        lambda weights: weights | {"head.bias": weights["head.bias"] / 0},
        "has numbers that are not finite, the first in head.bias",
    ),
}


@pytest.mark.parametrize(("change", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_rejected_by_name(tmp_path, tokenizer, change, message):
    with pytest.raises(UserError) as caught:
        imported(tmp_path, change(random_weights()), tokenizer)
    assert str(caught.value).startswith(f"{tmp_path / 'var.pth'} ") and message in str(caught.value)
    assert not (tmp_path / "imported").exists()


def test_an_image_tokenizer_of_another_kind_is_rejected_with_the_fix(tmp_path):
    components.save(tiny("image_tokenizers", "dvae"), tmp_path / "dvae")
    with pytest.raises(
        UserError, match="of the kind dvae, but VAR's transformer was trained with .* --from var"
    ):
        imported(tmp_path, random_weights(), tmp_path / "dvae")


@pytest.mark.parametrize("payload", PICKLES.values(), ids=PICKLES)
def test_a_hostile_file_is_rejected_and_not_run(tmp_path, tokenizer, payload):
    path, marker = tmp_path / "var.pth", tmp_path / "marker"
    path.write_bytes(payload(marker))
    with pytest.raises(UserError):
        var_transformer_weights.import_weights(path, tokenizer, tmp_path / "imported")
    assert not marker.exists()


def test_the_command_writes_a_generator_and_prints_how_to_use_it(tmp_path, tokenizer, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(random_weights(), "var.pth")
    source = ["--from", "var_transformer", "--weights", "var.pth", "--image-tokenizer", str(tokenizer)]

    command.main(["import-weights", *source])

    header = json.loads(Path("models/var_transformer_release/generator/config.json").read_bytes())
    assert (
        header["pickle_sha256"] == {"weights": sha256_of(Path("var.pth"))} and header["kind"] == "next_scale"
    )
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith(
            f"Use it by text_tokenizer: {{init: models/var_transformer_release/text_tokenizer}}, image_tokenizer: "
            f"{{kind: multi_scale, init: {tokenizer}}}, generator: {{kind: next_scale, init: "
            "models/var_transformer_release/generator}"
        )
    )
