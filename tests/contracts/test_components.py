"""A kind is a folder with a model.py, built from its own settings, and loaded by its saved header."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.tiny_models import ARGUMENTS, CAPTIONS, SIDE, TINY, random_images, tiny
from thousandwords import components
from thousandwords.core.config import ConfigError
from thousandwords.core.files import write_json
from thousandwords.core.manifest import DamagedArtefact, write_manifest
from thousandwords.image_tokenizers.dvae.model import DVAEConfig
from thousandwords.scorers.clip.model import CLIPConfig, architecture_from_config


def test_the_kinds_of_a_family_are_its_folders_with_a_model():
    for family, kind in (("image_tokenizers", "dvae"), ("generators", "transformer"), ("scorers", "clip")):
        assert kind in components.kinds(family)
        assert not any(name.startswith("_") for name in components.kinds(family))


@pytest.mark.parametrize(
    ("family", "kind", "sentence"),
    [
        ("image_tokenizers", "dva", "image_tokenizers has no kind 'dva'. Did you mean 'dvae'?"),
        ("generators", "zzz", "generators has no kind 'zzz'."),
        ("scorers", "base", "scorers has no kind 'base'."),
        ("scorers", None, "scorers has no kind None."),
    ],
)
def test_an_unknown_kind_is_rejected_with_a_list_of_kinds(family, kind, sentence):
    with pytest.raises(ConfigError) as caught:
        components.component(family, kind)
    assert str(caught.value) == f"params.yaml: {sentence} There is: {', '.join(components.kinds(family))}"


def test_only_the_settings_of_the_chosen_kind_are_read():
    block = {"kind": "dvae", "dvae": {"vocab_size": 5}, "training": {}}
    assert components.model_config("image_tokenizers", block, "image_tokenizer") == DVAEConfig(vocab_size=5)
    assert components.model_config("image_tokenizers", {"kind": "dvae"}, "image_tokenizer") == DVAEConfig()


SECTIONS = {
    "image_tokenizers": "image_tokenizer",
    "generators": "generator",
    "decoders": "decoder",
    "scorers": "scorer",
    "captioners": "captioner",
}
COUNTS = "needs to be 1 or more"
WRONG = {
    ("image_tokenizers", "dvae"): [
        ({"vocabsize": 5}, "dvae has no key 'vocabsize'. Did you mean 'vocab_size'?"),
        ({"vocab_size": 1}, "dvae.vocab_size is 1; it needs to be 2 or more"),
        ({"width": 10}, "dvae.width is 10; a bottleneck is a quarter"),
        ({"stem_kernel": 4}, "dvae.stem_kernel is 4; an odd side"),
        ({"temperature_end": 0.0}, "dvae.temperature_end is 0.0"),
        ({"usage_entropy_weight": -1.0}, "dvae.usage_entropy_weight is -1.0"),
        ({"residual_gain": 0.0}, "dvae.residual_gain is 0.0; it needs to be above 0"),
        ({"width": 8, "codebook_init_dims": 9}, "dvae.codebook_init_dims is 9; give 1 to dvae.width, 8"),
        ({"patch": 3}, "image_size is 16, no multiple of the 6 pixels of a token's cell"),
    ],
    ("image_tokenizers", "vqvae"): [
        ({"vocab_size": 1}, "vqvae.vocab_size is 1; it needs to be 2 or more"),
        ({"latent_width": 0}, f"vqvae.latent_width is 0; it {COUNTS}"),
        ({"restart_every": 0}, f"vqvae.restart_every is 0; it {COUNTS}"),
        ({"commitment_weight": -1.0}, "vqvae.commitment_weight is -1.0; it needs to be 0 or more"),
        ({"squared_error_weight": 0.0}, "vqvae.squared_error_weight is 0.0; it needs to be above 0"),
        ({"codebook_decay": 1.0}, "vqvae.codebook_decay is 1.0; it needs to be in [0, 1)"),
        ({"width": 10}, "vqvae.width is 10; a bottleneck is a quarter"),
        ({"stem_kernel": 4}, "vqvae.stem_kernel is 4; an odd side"),
        ({"quantizer": "fsq", "levels": [8, 1]}, "vqvae.levels is [8, 1]; give each dimension 2 levels or more"),
        ({"quantizer": "fsq", "levels": [8, 8]}, "vocab_size is 12, but vqvae.levels, [8, 8], make 64 tokens. Set vqvae.vocab_size: 64"),
        ({"patch": 3}, "image_size is 16, no multiple of the 6 pixels of a token's cell"),
        ({"scales": [1, 4]}, "vqvae.scales is [1, 4], but images of 16 pixels have 4 cells of 4 pixels a side. Set vqvae.scales: [2, 4], or null"),
        ({"scales": [8]}, "vqvae.scales is [8], but"),
    ],
    ("image_tokenizers", "vqgan"): [
        ({"blocks": 0}, f"vqgan.blocks is 0; it {COUNTS}"),
        ({"vocab_size": 1}, "vqgan.vocab_size is 1; it needs to be 2 or more"),
        ({"codebook_weight": -1.0}, "vqgan.codebook_weight is -1.0; it needs to be 0 or more"),
        ({"kl_weight": -1.0}, "vqgan.kl_weight is -1.0; it needs to be 0 or more"),
        ({"temperature_end": 0.0}, "vqgan.temperature_end is 0.0; it needs to be above 0"),
        ({"first_steps_without_codes": -1}, "vqgan.first_steps_without_codes is -1; it needs to be 0 or more"),
        ({"restart_every": 0}, f"vqgan.restart_every is 0; it {COUNTS}"),
        ({"codebook_decay": 1.0}, "vqgan.codebook_decay is 1.0; it needs to be in [0, 1)"),
        ({"quantizer": "gumbel", "codebook": "ema"}, "vqgan.codebook is ema, but the codes of vqgan.quantizer gumbel are learned. Set vqgan.codebook: gradient"),
        ({"multipliers": []}, "vqgan.multipliers is []; give each level 1 or more, as in [1, 2, 4]"),
        ({"multipliers": [1, 0]}, "vqgan.multipliers is [1, 0]"),
        ({"norm_groups": 3}, "vqgan.width is 8, no multiple of vqgan.norm_groups, 3"),
        ({"multipliers": [1] * 6}, "image_size is 16, no multiple of the 32 pixels of a token's cell"),
    ],
    ("image_tokenizers", "multi_scale"): [
        ({"vocab_size": 1}, "multi_scale.vocab_size is 1; it needs to be 2 or more"),
        ({"num_phi": 0}, f"multi_scale.num_phi is 0; it {COUNTS}"),
        ({"restart_every": 0}, f"multi_scale.restart_every is 0; it {COUNTS}"),
        ({"stop_share": 1.5}, "multi_scale.stop_share is 1.5; it needs to be in [0, 1]"),
        ({"codebook_decay": 1.0}, "multi_scale.codebook_decay is 1.0; it needs to be in [0, 1)"),
        ({"squared_error_weight": 0.0}, "multi_scale.squared_error_weight is 0.0; it needs to be above 0"),
        ({"scales": []}, "multi_scale.scales is []; give sides that grow"),
        ({"scales": [1, 4, 2]}, "multi_scale.scales is [1, 4, 2]; give sides that grow"),
        ({"scales": [1, 3]}, "image_size is 16, but multi_scale.scales end at 3, which with 4 pixels a cell (multi_scale.dvae) makes 12"),
        ({"dvae": {"width": 10}}, "multi_scale.dvae.width is 10; a bottleneck is a quarter"),
        ({"dvae": {"stem_kernel": 4}}, "multi_scale.dvae.stem_kernel is 4; an odd side"),
        ({"dvae": {"patch": 0}}, f"multi_scale.dvae.patch is 0; it {COUNTS}"),
        ({"dvae": {"init_gain": 0.0}}, "multi_scale.dvae.init_gain is 0.0; it needs to be above 0"),
        ({"vqgan": {"blocks": 0}}, f"multi_scale.vqgan.blocks is 0; it {COUNTS}"),
        ({"vqgan": {"norm_groups": 3}}, "multi_scale.vqgan.width is 160, no multiple of multi_scale.vqgan.norm_gr"),
        ({"vqgan": {"multipliers": [1, 0]}}, "multi_scale.vqgan.multipliers is [1, 0]; give each level 1"),
    ],
    ("decoders", "unet"): [
        ({"widths": []}, "unet.widths is []; give one multiple of 8 for each level"),
        ({"widths": [8, 12]}, "unet.widths is [8, 12]; give one multiple of 8 for each level"),
        ({"blocks": 0}, f"unet.blocks is 0; it {COUNTS}"),
        ({"absolute_error_weight": -1.0}, "unet.absolute_error_weight is -1.0; it needs to be 0 or more"),
        ({"widths": [8] * 5}, "image_size is 16, no multiple of the 32 pixels of a position of the coarsest"),
    ],
    ("decoders", "flow"): [
        ({"widths": []}, "flow.widths is []; give one multiple of 8 for each level"),
        ({"token_width": 0}, f"flow.token_width is 0; it {COUNTS}"),
        ({"sigma": -0.1}, "flow.sigma is -0.1; it needs to be 0 or more"),
        ({"steps": 0}, f"flow.steps is 0; it {COUNTS}"),
        ({"widths": [8] * 5}, "(flow.patch 2 * 2 ** (5 flow.widths - 1))"),
    ],
    ("decoders", "consistency"): [
        ({"widths": []}, "consistency.widths is []; give one multiple of 8 for each level"),
        ({"sigma": -0.1}, "consistency.sigma is -0.1; it needs to be 0 or more"),
        ({"teacher_steps": 0}, f"consistency.teacher_steps is 0; it {COUNTS}"),
        ({"distill_from": -1}, "consistency.distill_from is -1; it needs to be 0 or more"),
        ({"steps": 3}, "consistency.steps is 3, but the student learns to jump from the 4 times of"),
    ],
    ("generators", "transformer"): [
        ({"num_layers": 0}, f"transformer.num_layers is 0; it {COUNTS}"),
        ({"width": 100, "num_heads": 3}, "transformer.width is 100, which 3 heads cannot share evenly"),
        ({"kernel": 4}, "transformer.kernel is 4; a neighborhood has an odd side"),
        ({"image_loss_weight": -1.0}, "transformer.image_loss_weight is -1.0; it needs to be 0 or more"),
        ({"init_std": 0.0}, "transformer.init_std is 0.0; it needs to be above 0"),
        ({"random_order_steps": [20, 10]}, "random_order_steps is [20, 10]; give two updates, the second not"),
        ({"rotary_extent": 0.0}, "transformer.rotary_extent is 0.0; it needs to be above 0"),
        ({"width": 60, "num_heads": 10, "rotary_extent": 8.0}, "transformer.width 60 over 10 heads makes heads of 6 channels; rotary"),
    ],
    ("generators", "next_scale"): [
        ({"width": 10, "num_heads": 4}, "next_scale.width is 10, which 4 heads cannot share evenly; make it"),
        ({"width": 12, "num_heads": 2}, "makes heads of 6 channels; "),
        ({"flip_share": 1.0}, "next_scale.flip_share is 1.0; it needs to be in [0, 1)"),
        ({"rotary_extent": 0.0}, "next_scale.rotary_extent is 0.0; it needs to be above 0"),
        ({"text_layers": -1}, "next_scale.text_layers is -1; it needs to be 0 or more"),
        ({"text_layers": 0}, "next_scale.text_layers is 0, but "),
    ],
    ("scorers", "clip"): [
        ({"vision_heads": 5}, "clip.vision_heads is 5; it must divide the width it splits, 16"),
        ({"text_heads": 3}, "clip.text_heads is 3; it must divide the width it splits, 16"),
        ({"vision_layers": [1] * 4, "vision_patch_size": 8}, "clip.vision_patch_size is 8; the cells of a"),
        ({"vision_position_std": 0.0}, "clip.vision_position_std is 0.0; it needs to be above 0, or null"),
        ({"hard_captions": -1}, "clip.hard_captions is -1; it is a count, 0 or more"),
        ({"context_length": 2}, "clip.context_length is 2; it needs 3 or more tokens"),
        ({"vocab_size": 512}, "clip.vocab_size is 512; CLIP's vocabulary can be cut to 514 tokens or more"),
        ({"vocab_size": 50_000}, "50000; CLIP's vocabulary can be cut to 514 tokens or more, and has 49408"),
        ({"vision_patch_size": 5}, "image_size is 16; it must be a multiple of clip.vision_patch_size, 5"),
    ],
    ("captioners", "cross_attention"): [
        ({"num_layers": 0}, f"cross_attention.num_layers is 0; it {COUNTS}"),
        ({"trunk_width": 10}, "cross_attention.trunk_width is 10; a bottleneck is a quarter of it"),
        ({"width": 10, "num_heads": 4}, "cross_attention.width is 10, which 4 heads cannot share evenly"),
        ({"image_dropout": 0.0}, "cross_attention.image_dropout is 0.0; it needs to be above 0 and below 1"),
        ({"init_std": 0.0}, "cross_attention.init_std is 0.0; it needs to be above 0"),
        ({"patch": 3}, "image_size is 16, no multiple of the 3 pixels of a feature's cell; set captioner.cross"),
    ],
}  # fmt: skip
WRONG_SETTINGS = [(*model, *case) for model, cases in WRONG.items() for case in cases]


@pytest.mark.parametrize(("family", "kind", "settings", "message"), WRONG_SETTINGS)
def test_a_wrong_setting_of_a_kind_is_rejected_by_its_full_name(family, kind, settings, message):
    block = {"kind": kind, kind: TINY[family][kind] | settings}
    with torch.device("meta"), pytest.raises(ValueError) as caught:
        config = components.model_config(family, block, SECTIONS[family])
        components.build(family, kind, config, **ARGUMENTS[family])
    assert message in str(caught.value)
    is_nested = any(
        isinstance(value, dict) for value in settings.values()
    )  # then the section is not named yet
    if (
        isinstance(caught.value, ConfigError) and not is_nested
    ):  # else the check of all settings adds the file
        assert str(caught.value).startswith(f"params.yaml: {SECTIONS[family]}.{kind}")


# --- saved models -------------------------------------------------------------------------------------------


def test_the_header_of_a_saved_model_is_json_that_says_how_it_was_built(tmp_path):
    components.save(tiny("generators", "transformer"), tmp_path, image_tokenizer="3f9c")

    header = json.loads((tmp_path / "config.json").read_bytes())

    expected = {"family": "generators", "kind": "transformer", "image_tokenizer": "3f9c"}
    assert header | expected == header
    assert header["arguments"]["scales"] == [4] and header["config"]["width"] == 16


def test_a_model_can_be_saved_with_other_weights(tmp_path):
    model = tiny("image_tokenizers", "dvae")
    average = {name: tensor * 0 for name, tensor in model.state_dict().items()}

    components.save(model, tmp_path, average)

    assert all(weight.eq(0).all() for weight in components.load("image_tokenizers", tmp_path).parameters())
    assert not all(weight.eq(0).all() for weight in model.parameters())


def test_a_model_of_another_family_is_rejected(tmp_path):
    components.save(tiny("scorers", "clip"), tmp_path)
    with pytest.raises(ConfigError) as caught:
        components.load("generators", tmp_path)
    assert str(caught.value) == f"{tmp_path} holds one of the scorers, not one of the generators"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"colors": 3}}, "dvae has no key 'colors'"),
        ({"kind": "maskgit"}, "image_tokenizers has no kind 'maskgit'"),
    ],
)
def test_a_model_written_by_another_version_of_the_code_is_rejected_with_the_fix(tmp_path, change, reason):
    model = tiny("image_tokenizers", "dvae")
    model.built_as |= change
    components.save(model, tmp_path)
    with pytest.raises(ConfigError) as caught:
        components.load("image_tokenizers", tmp_path, fix="dvc repro train_image_tokenizer")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} was written by another version of this code: {reason}.")
    assert message.endswith(" Run: dvc repro train_image_tokenizer")


def test_a_tampered_config_is_rejected(tmp_path):
    components.save(tiny("image_tokenizers", "dvae"), tmp_path)
    header = json.loads((tmp_path / "config.json").read_bytes())
    write_json(tmp_path / "config.json", header | {"kind": "dvaf"})

    with pytest.raises(DamagedArtefact, match="config.json is damaged"):
        components.load("image_tokenizers", tmp_path)
    write_manifest(tmp_path, {"config.json": None, "weights.safetensors": None}, {})
    with pytest.raises(ConfigError, match="image_tokenizers has no kind 'dvaf'. Did you mean 'dvae'?"):
        components.load("image_tokenizers", tmp_path)


def test_a_pretrained_scorer_loads_where_its_pretrained_file_is_missing(tmp_path):
    pretrained = tmp_path / "pretrained"
    settings = architecture_from_config(CLIPConfig(**TINY["scorers"]["clip"]), image_size=SIDE)
    source = components.build("scorers", "clip", CLIPConfig(**TINY["scorers"]["clip"]), image_size=SIDE)
    write_json(pretrained / "open_clip_config.json", settings)
    weights = {name: tensor.contiguous() for name, tensor in source.clip.state_dict().items()}
    save_file(weights, pretrained / "open_clip_model.safetensors")
    config = CLIPConfig(pretrained=f"local-dir:{pretrained}")
    scorer = components.build("scorers", "clip", config, image_size=SIDE).eval()
    components.save(scorer, tmp_path / "scorer")

    shutil.rmtree(pretrained)
    loaded = components.load("scorers", tmp_path / "scorer")

    assert torch.equal(loaded.score(random_images(4), CAPTIONS), scorer.score(random_images(4), CAPTIONS))
