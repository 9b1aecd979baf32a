"""Published weights of taming-transformers, LlamaGen and VAR become models of ours: the same tokens, images, logits."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from tests.helpers import published_var, published_var_transformer, published_vqgan
from tests.helpers.malicious_files import PICKLES, touching, with_new
from tests.helpers.paths import ROOT
from tests.helpers.published_var import SMALL_SCALES
from tests.helpers.published_vqgan import LAYOUTS, PUBLISHED, ModelCheckpoint, Sizes, checkpoint
from tests.helpers.tiny_models import SIDE, random_images, rng, rngs, tiny
from thousandwords import __main__ as command
from thousandwords import components, preflight
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.image_tokenizers.vqgan.model import VQGANConfig
from thousandwords.planning.presets import read_preset
from thousandwords.pretrained import var_transformer_weights, var_weights, vqgan_weights
from thousandwords.text import bpe

SOURCES = (*LAYOUTS, "var", "var_transformer")
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_source = pytest.mark.parametrize("source", SOURCES)
VAR = published_var.random_weights()
VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def weights_of(source: str) -> dict[str, torch.Tensor]:
    if source == "var_transformer":
        return published_var_transformer.random_weights()
    return dict(VAR) if source == "var" else published_vqgan.random_weights(source)


def save(path: Path, source: str, weights: dict, container: str = "zip") -> Path:
    value = checkpoint(source, weights) if source in LAYOUTS else weights
    torch.save(value, path, _use_new_zipfile_serialization=container == "zip")
    return path


@pytest.fixture(scope="module")
def var_tokenizer(tmp_path_factory) -> Path:
    """The folder of the imported tokenizer of VAR, which its transformer needs."""
    folder = tmp_path_factory.mktemp("tokenizer")
    var_weights.import_weights(
        save(folder / "vae.pth", "var", VAR), folder / "tokenizer", scales=SMALL_SCALES
    )
    return folder / "tokenizer"


@pytest.fixture
def import_to(var_tokenizer):
    def run(out: Path, path: Path, source: str, sha256: str | None = None) -> None:
        if source == "var":
            var_weights.import_weights(path, out, sha256, SMALL_SCALES)
        elif source == "var_transformer":
            var_transformer_weights.import_weights(path, var_tokenizer, out, sha256)
        else:
            vqgan_weights.import_weights(path, source, out, sha256, SIDE)

    return run


@pytest.fixture
def imported(import_to, tmp_path):
    """Import a file; the model."""

    def run(path: Path, source: str, *sha256: str) -> torch.nn.Module:
        out = tmp_path / "imported"
        import_to(out, path, source, *sha256)
        if source == "var_transformer":
            return components.load("generators", out / "generator")
        return components.load("image_tokenizers", out)

    return run


@pytest.fixture
def error_of(imported, tmp_path):
    """The error of importing a file: one sentence, and nothing is written."""

    def run(path: Path, source: str, *sha256: str) -> str:
        with pytest.raises(UserError) as caught:
            imported(path, source, *sha256)
        assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)
        assert not (tmp_path / "imported").exists()
        return str(caught.value)

    return run


# --- the same numbers -------------------------------------------------------------------------------------------------

TOKENIZERS = {layout: (layout, Sizes()) for layout in LAYOUTS}
TOKENIZERS["taming Gumbel"] = ("taming", Sizes(is_gumbel=True))


@pytest.mark.paper("vqgan: trunk", "vqgan: attention", "vqgan: down, up", "vqgan: tokens", "vqgan: f8")
@pytest.mark.paper("vqgan: key layout")
@pytest.mark.parametrize(("layout", "sizes"), TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_tokens_and_images_of_a_vqgan_are_those_of_the_published_architecture(
    tmp_path, imported, layout, sizes, container
):
    weights, images = published_vqgan.random_weights(layout, sizes), random_images(8)

    model = imported(save(tmp_path / "weights.pt", layout, weights, container), layout)

    tokens = published_vqgan.encode(images, weights, layout, sizes)
    assert model.encode(images).equal(tokens) and tokens.unique().numel() >= 8
    difference = model.decode(tokens) - published_vqgan.decode(tokens, weights, layout, sizes)
    assert difference.abs().max() <= 1e-5


@pytest.mark.paper("multi_scale: trunk", "multi_scale: one scale", "multi_scale: keys")
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_tokens_and_images_of_var_are_those_of_the_published_architecture(tmp_path, imported, container):
    images = random_images(8)

    model = imported(save(tmp_path / "weights.pt", "var", VAR, container), "var")

    tokens, sums = published_var.encode(images, VAR)
    assert model.encode(images).equal(tokens) and tokens.unique().numel() >= 8
    differences = [found - after for found, after in zip(model.latents_so_far(tokens), sums, strict=True)]
    differences.append(model.decode(tokens) - published_var.decode(sums[-1], VAR))
    assert max(each.abs().max() for each in differences) <= 1e-5


@pytest.mark.paper("next_scale: VAR's keys", "next_scale: VAR's classes", "next_scale: condition")
def test_logits_of_a_class_are_those_of_the_published_transformer(tmp_path, imported):
    weights = weights_of("var_transformer")
    tokens = torch.randint(24, (4, published_var_transformer.LENGTH), generator=rng())
    saved = {"trainer": {"var_wo_ddp": weights, "vae_local": VAR}}

    model = imported(save(tmp_path / "var.pth", "var_transformer", saved), "var_transformer")

    text = bpe.load(tmp_path / "imported" / "text_tokenizer").encode(["0", "11", "4", ""])
    classes = torch.tensor([0, 11, 4, published_var_transformer.NUM_CLASSES])
    codebook, kernels = VAR["quantize.embedding.weight"], published_var.kernels(VAR)
    expected = published_var_transformer.logits(weights, classes, tokens, codebook, kernels)
    assert text.tolist() == [[0], [11], [4], [-1]]
    assert (model.logits(text, tokens).double() - expected).abs().max() <= 1e-5
    assert expected.std() > 0.3 and model.sample(text, rngs(4), guidance=2.0).shape == tokens.shape
    assert model.header["pickle_part"] == "trainer.var_wo_ddp"


@pytest.mark.paper("next_scale: VAR's classes")
def test_a_caption_is_the_number_of_a_class_and_any_other_means_none():
    text_tokenizer = var_transformer_weights.class_tokenizer(1000)

    numbers = torch.arange(1000)[:, None]
    assert text_tokenizer.encode([str(number) for number in range(1000)]).equal(numbers)
    assert text_tokenizer.vocab_size == 1256
    assert text_tokenizer.encode(["a goldfish", "goldfish"]).min() >= 1000
    assert text_tokenizer.unseen_words("goldfish 7") == ["goldfish"]


@pytest.mark.paper("vqgan: key layout")
@pytest.mark.parametrize("part", ["ema", ""])
def test_the_averaged_weights_of_llamagen_come_first_and_a_bare_state_dict_is_read_too(
    tmp_path, imported, part
):
    averaged, last = (published_vqgan.random_weights("llamagen", seed=seed) for seed in (1, 0))
    torch.save(
        {**checkpoint("llamagen", last), "ema": averaged} if part else averaged, tmp_path / "weights.pt"
    )
    model = imported(tmp_path / "weights.pt", "llamagen")
    assert model.quantizer.vectors.equal(averaged["quantize.embedding.weight"])
    assert model.header["pickle_part"] == part and model.header["layout"] == "llamagen"


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_checkpoint_as_long_as_taming_published_it_is_within_the_bounds(tmp_path, imported, container):
    """Five levels, as in f16, and the states of two optimizers; all narrow, because only names count."""
    weights = published_vqgan.random_weights("taming", Sizes(multipliers=(1, 1, 1, 1, 1), blocks=2))
    weights |= {f"loss.perceptual_loss.net.slice{n}.{n}.weight": torch.zeros(1) for n in range(60)}
    moments = ("step", "exp_avg", "exp_avg_sq")
    state = {number: {moment: torch.zeros(1) for moment in moments} for number in range(len(weights))}
    saved = {**checkpoint("taming", weights), "optimizer_states": [{"state": state}]}
    torch.save(saved, tmp_path / "weights.pt", _use_new_zipfile_serialization=container == "zip")
    assert imported(tmp_path / "weights.pt", "taming").config.blocks == 2


@every_source
def test_importing_again_writes_the_same_bytes(tmp_path, import_to, source):
    path, contents = save(tmp_path / "weights.pt", source, weights_of(source)), []
    for folder in (tmp_path / "one", tmp_path / "two"):
        import_to(folder, path, source)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        contents.append({file.relative_to(folder): file.read_bytes() for file in files})
    assert contents[0] == contents[1] and {path.suffix for path in contents[0]} == {".json", ".safetensors"}


# --- the published sizes ----------------------------------------------------------------------------------------------


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


@pytest.mark.paper("vqgan: size", "vqgan: f8", "vqgan: latent", "vqgan: tokens", "vqgan: trunk")
@pytest.mark.parametrize(("layout", "sizes", "tensors", "numbers"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_published_sizes_of_a_vqgan_follow_from_the_shapes(layout, sizes, tensors, numbers):
    shapes = published_vqgan.shapes(layout, sizes)
    assert (len(shapes), count(shapes)) == (tensors, numbers)
    shapes.pop("quantize.codebook_used", None)

    vqgan_weights._check(shapes, layout, image_size=256)

    model = vqgan_weights._model(shapes, layout, image_size=256)
    assert model.scales == (256 // 2 ** (len(sizes.multipliers) - 1),)
    if sizes == PUBLISHED["LlamaGen VQ-16"][1]:
        assert model.config == VQGANConfig()


@pytest.mark.paper("multi_scale: size", "multi_scale: keys")
def test_the_published_sizes_of_vars_tokenizer_follow_from_the_shapes():
    shapes = published_var.shapes(published_var.PUBLISHED, num_scales=10)
    assert (len(shapes), count(shapes)) == (324, 108_989_315)
    shapes.pop("quantize.ema_vocab_hit_SV")

    var_weights._check(shapes, var_weights.SCALES)

    model = var_weights._model(shapes, var_weights.SCALES)
    assert (model.image_size, model.num_tokens, model.vocab_size) == (256, 680, 4096)


@pytest.mark.paper("next_scale: VAR's sizes", "next_scale: VAR's keys")
@pytest.mark.parametrize(
    ("depth", "number"), [(16, 310_299_904), (20, 600_942_736), (24, 1_033_436_224), (30, 2_010_077_956)]
)
def test_the_published_sizes_of_vars_transformer_follow_from_the_shapes(depth, number):
    """The published counts have the biases of keys, which are 0 and which ours has among its weights."""
    with torch.device("meta"):
        _, config = components.component("image_tokenizers", "multi_scale")
        settings = config(vocab_size=4096, latent_width=32, scales=VAR_SCALES)
        tokenizer = components.build("image_tokenizers", "multi_scale", settings, image_size=128)
    shapes = published_var_transformer.shapes(depth, depth, 64 * depth, 1000, (4096, 32), VAR_SCALES)
    for buffer in ("lvl_1L", "attn_bias_for_masking"):
        shapes.pop(buffer)
    assert count(shapes) == number

    ignored = var_transformer_weights.IGNORED
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(ignored)}
    var_transformer_weights._check(shapes, tokenizer)

    model = var_transformer_weights.build(shapes, tokenizer)
    # each of the 256 bytes is a caption that means no class, and the start is part of the first position
    assert sum(weight.numel() for weight in model.parameters()) == number + 255 * 64 * depth


# --- what does not fit ------------------------------------------------------------------------------------------------

NO_PHI = {name: None for name in VAR if "quant_resi" in name}
OTHER_CODES = {"head.weight": torch.zeros(25, 24), "head.bias": torch.zeros(25)}
NAN = torch.nan
UNFIT = [  # the sources, what is changed in the weights (None: it is missing), the message
    (SOURCES, {"encoder.extra.bias": torch.zeros(3)}, "1 tensors differ, the first is encoder.extra.bias: expected none, found (3,)"),
    (LAYOUTS, {"decoder.conv_out.bias": None}, "does not fit the tokenizer of {}: 1 tensors differ, the first is "
     "decoder.conv_out.bias: expected (3,), found none. Download it again"),
    (LAYOUTS, {"post_quant_conv.weight": torch.zeros(12, 7, 1, 1)}, "expected (12, 6, 1, 1), found (12, 7, 1, 1)"),
    (LAYOUTS, {"encoder.conv_in.weight": None}, "holds no tokenizer of {}: it has no encoder.conv_in.weight with 4 axes"),
    (LAYOUTS, {"quantize.embedding.weight": torch.zeros(())}, "it has no quantize.embedding.weight with 2 axes"),
    (LAYOUTS, {"encoder.conv_in.weight": torch.zeros(16, 3, 3, 3)}, "tokenizer of {}: vqgan.width is 16, no multiple of vqgan.norm"),
    (LAYOUTS, {"quant_conv.bias": torch.full((6,), NAN)}, "has numbers that are not finite, the first in quant_conv.bias"),
    (LAYOUTS, {"quant_conv.bias": torch.zeros(6).double()}, "asks for torch.DoubleStorage, which a state dict does not use"),
    (LAYOUTS, {"quantize.embed.weight": torch.zeros(24, 6)}, "3 tensors differ, the first is quantize.embedding.weight: expected none"),
    (LAYOUTS, {"quantize.quant_resi.qresi_ls.0.weight": torch.zeros(6, 6, 3, 3)}, "holds VAR's tokenizer of several scales. Give --from var"),
    (["var"], {"decoder.mid.attn_1.qkv.bias": None}, "does not fit the tokenizer of VAR: 1 tensors differ, the first is "
     "decoder.mid.attn_1.qkv.bias: expected (192,), found none. Download it again"),
    (["var"], {"quant_conv.weight": torch.zeros(8, 8, 1, 1)}, "quant_conv.weight: expected (8, 8, 3, 3), found (8, 8, 1, 1)"),
    (["var"], NO_PHI, "holds no tokenizer of VAR: multi_scale.num_phi is 0; it needs to be 1 or more"),
    (["var"], {"encoder.conv_in.weight": None}, "holds no tokenizer of VAR: it has no encoder.conv_in.weight with 4 axes"),
    (["var"], {"quant_conv.bias": torch.full((8,), NAN)}, "has numbers that are not finite, the first in quant_conv.bias"),
    (["var_transformer"], {"blocks.1.attn.q_bias": None}, "does not fit the transformer of VAR: 1 tensors differ, the first is "
     "blocks.1.attn.q_bias: expected (24,), found none. Download it again"),
    (["var_transformer"], {"shared_ada_lin.1.weight": torch.zeros(144, 24)}, "shared_ada_lin.1.weight: expected none, found (144, 24)"),
    (["var_transformer"], OTHER_CODES, "2 tensors differ, the first is head.bias: expected (24,), found (25,)"),
    (["var_transformer"], {"class_emb.weight": None}, "holds no transformer of VAR: it has no class_emb.weight with 2 axes"),
    (["var_transformer"], {"head.bias": torch.full((24,), NAN)}, "has numbers that are not finite, the first in head.bias"),
]  # fmt: skip
UNFIT = [(source, *case) for sources, *case in UNFIT for source in sources]


@pytest.mark.parametrize(("source", "change", "message"), UNFIT)
def test_what_does_not_fit_is_rejected_by_name(tmp_path, error_of, source, change, message):
    weights = weights_of(source) | change
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    assert message.format(source) in error_of(save(tmp_path / "weights.pt", source, weights), source)


@pytest.mark.parametrize(("layout", "other"), [LAYOUTS, LAYOUTS[::-1]])
def test_a_file_of_the_other_codebase_is_rejected_with_its_name(tmp_path, error_of, layout, other):
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": weights_of(layout)}, path)
    assert error_of(path, other) == f"{path} has the names of another codebase. Give --from {layout}"


def test_an_image_tokenizer_of_another_kind_is_rejected_with_the_fix(tmp_path):
    components.save(tiny("image_tokenizers", "dvae"), tmp_path / "dvae")
    message = "of the kind dvae, but VAR's transformer was trained with .* --from var"
    with pytest.raises(UserError, match=message):
        var_transformer_weights.import_weights(tmp_path / "var.pth", tmp_path / "dvae", tmp_path / "imported")


@every_source
def test_the_expected_sha256_is_compared_before_the_file_is_read(tmp_path, imported, error_of, source):
    unreadable = tmp_path / "unreadable.pt"
    unreadable.write_bytes(b"")
    assert "is not the expected file: its sha256 should be 000" in error_of(unreadable, source, "0" * 64)

    path = save(tmp_path / "weights.pt", source, weights_of(source))
    model = imported(path, source, sha256_of(path).upper())
    assert model.header["pickle_sha256"] == {"weights": sha256_of(path)} and model.header["layout"] == source


# --- hostile files ----------------------------------------------------------------------------------------------------


@every_source
@pytest.mark.parametrize("payload", PICKLES.values(), ids=PICKLES)
def test_a_hostile_file_is_rejected_and_not_run(tmp_path, error_of, source, payload):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    path.write_bytes(payload(marker))
    error_of(path, source)
    assert not marker.exists()


HOSTILE_PARTS = {
    "a call": touching,
    "an object with its own __new__": with_new,
    "a namespace that holds a call": lambda marker: argparse.Namespace(lr=touching(marker)),
    "a callback's state that holds a call": lambda marker: {ModelCheckpoint: touching(marker)},
}
every_hostile_part = pytest.mark.parametrize("part", HOSTILE_PARTS.values(), ids=HOSTILE_PARTS)


@pytest.mark.paper("vqgan: to ignore")
@every_layout
@every_hostile_part
def test_what_stands_beside_the_weights_is_never_run(tmp_path, imported, layout, part):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    torch.save({"args": part(marker), **checkpoint(layout, weights_of(layout))}, path)
    assert imported(path, layout).encode(random_images(1)).shape == (1, 16)
    assert not marker.exists()


@every_layout
@every_hostile_part
def test_a_weight_that_is_a_call_is_missing_and_not_run(tmp_path, error_of, layout, part):
    marker = tmp_path / "marker"
    weights = weights_of(layout) | {"quant_conv.bias": part(marker)}
    message = error_of(save(tmp_path / "weights.pt", layout, weights), layout)
    assert "the first is quant_conv.bias: expected (6,), found none" in message
    assert not marker.exists()


# --- where it is used -------------------------------------------------------------------------------------------------


def test_the_check_accepts_it_as_the_tokenizer_to_start_from(tmp_path, imported):
    imported(save(tmp_path / "weights.pt", "taming", weights_of("taming")), "taming")
    params = read_preset("smoke", ROOT / "presets")
    training = params["image_tokenizer"]["training"]
    for more in ({}, {"tune": "decoder", "training": training}):
        params["image_tokenizer"] = {"kind": "vqgan", "init": str(tmp_path / "imported"), **more}
        preflight.check_params(params, 0)


USE = {
    "taming": "image_tokenizer: {kind: vqgan, init: models/taming_release}",
    "llamagen": "image_tokenizer: {kind: vqgan, init: models/llamagen_release}",
    "var": "image_tokenizer: {kind: multi_scale, init: models/var_release}",
    "var_transformer": "text_tokenizer: {init: models/var_transformer_release/text_tokenizer}, image_tokenizer: "
    "{kind: multi_scale, init: tokenizer}, generator: {kind: next_scale, init: models/var_transformer_release/generator}",
}


@pytest.mark.parametrize(("source", "use"), USE.items())
def test_the_command_writes_a_model_and_prints_how_to_use_it(
    tmp_path, var_tokenizer, source, use, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("tokenizer").symlink_to(var_tokenizer)
    path, out = (
        save(Path("weights.pt"), source, weights_of(source), "legacy"),
        Path(f"models/{source}_release"),
    )
    part = {"taming": ["state_dict"], "llamagen": ["model"]}.get(source, [])

    command.main(
        ["import-weights", "--from", source, "--weights", "weights.pt", "--image-tokenizer", "tokenizer"]
    )

    family = ("generators", out / "generator") if source == "var_transformer" else ("image_tokenizers", out)
    model = components.load(*family)
    assert capsys.readouterr().out.splitlines() == [
        f"weights: weights.pt, sha256 {sha256_of(path)}",
        "weights: torch's legacy container has no checksum; only --weights-sha256 sees a damaged number in it",
        *(f"weights: those under {name!r} in the checkpoint" for name in part),
        f"{out}: fingerprint {model.fingerprint}. Use it by {use}",
    ]
    if source in LAYOUTS:
        header = json.loads((out / "config.json").read_bytes())
        assert header["arguments"] == {"image_size": 256}


@pytest.mark.parametrize("options", [["--from", "taming"], ["--weights", "weights.pt"]])
def test_a_checkpoint_without_its_codebase_or_the_other_way_round_is_an_error(options, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["import-weights", *options])
    assert caught.value.code == 2
    expected = "--weights names the checkpoint of --from taming, llamagen, var or var_transformer"
    assert expected in capsys.readouterr().err
