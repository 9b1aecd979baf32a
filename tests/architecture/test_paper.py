"""The numbers of arXiv 2102.12092, checked in the `paper` preset and its models (on the meta device).

Numbers that belong to one module are checked in that module's tests; tests/architecture/conformance.py lists
them all.
"""

import dataclasses
import math
from functools import cache

import pytest
import torch
from torch import nn

from tests.helpers import tiny_models
from tests.helpers.paths import ROOT
from thousandwords import components
from thousandwords.core.config import model_block, section
from thousandwords.data.loader import CaptionConfig, ImageConfig
from thousandwords.data.token_shards import TokensConfig
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.fid import RADII
from thousandwords.generators.transformer.masks import layer_kinds
from thousandwords.image_tokenizers.dvae.logit_laplace import log_likelihood
from thousandwords.inference.config import PromptsConfig
from thousandwords.ingest.caption_filter import caption_problem
from thousandwords.ingest.config import DataConfig
from thousandwords.nn.conv_blocks import Block
from thousandwords.nn.gumbel_softmax import gumbel_softmax, kl_and_usage
from thousandwords.nn.schedules import cosine
from thousandwords.planning.presets import read_preset
from thousandwords.preflight import build_models, check_params
from thousandwords.text.bpe import TextTokenizerConfig, train
from thousandwords.text.normalize import normalize
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import SINGLE_PROCESS
from thousandwords.training.train_state import TrainState

PRESETS = ROOT / "presets"


@cache
def preset(name: str = "paper") -> dict:
    return read_preset(name, PRESETS)


def build_on_meta(name: str, preset_name: str = "paper") -> nn.Module:
    return models_of(preset_name)[name]


@cache
def models_of(preset_name: str) -> dict[str, nn.Module]:
    return build_models(preset(preset_name))


def training_config(name: str) -> TrainingConfig:
    return section(preset()[name]["training"], f"{name}.training", TrainingConfig)


def assert_settings(config: object, **expected: object) -> None:
    assert {name: getattr(config, name) for name in expected} == expected


def shape_of(convolution: nn.Conv2d) -> tuple:
    return convolution.kernel_size, convolution.in_channels, convolution.out_channels


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_is_valid_and_its_models_fit_together(name):
    # its images may not be here
    params = {**preset(name), "data": {**preset(name)["data"], "source": "scenes", "path": "data/own"}}
    check_params(params, params["seed"])

    tokenizer, generator = build_on_meta("image_tokenizer", name), build_on_meta("generator", name)
    with torch.device("meta"):
        image_tokens = tokenizer.encode(torch.rand(2, 3, tokenizer.image_size, tokenizer.image_size))
        text = torch.zeros(2, generator.text_length, dtype=torch.int64)
        logits = generator.logits(text, image_tokens)
    text_logits, image_logits = logits if generator.models_text else (None, logits)
    assert image_tokens.shape == (2, tokenizer.num_tokens)
    if generator.models_text:
        assert text_logits.shape == (2, generator.text_length, generator.text_vocab_size)
    assert image_logits.shape == (2, tokenizer.num_tokens, tokenizer.vocab_size)


def test_the_gpu_preset_has_about_1_3_billion_weights_for_1024_tokens_of_8192():
    generator = build_on_meta("generator", "gpu")
    assert count(generator) == pytest.approx(1.3e9, rel=0.03)
    assert (generator.image_length, generator.image_vocab_size) == (1024, 8192)
    assert build_on_meta("image_tokenizer", "gpu").image_size == 256


@pytest.mark.paper("tokenizer: input, latent", "tokenizer: size")
def test_256_pixels_are_32_by_32_tokens_of_8192_with_a_uniform_prior_in_networks_of_the_released_sizes():
    tokenizer = build_on_meta("image_tokenizer")
    assert (tokenizer.image_size, tokenizer.scales, tokenizer.vocab_size) == (256, (32,), 8192)
    assert (count(tokenizer.encoder), count(tokenizer.decoder)) == (53_786_240, 43_829_766)
    kl, _ = kl_and_usage(torch.zeros(1, 8192))
    assert kl.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.paper("tokenizer: encoder")
def test_the_encoder_is_a_stem_of_7_four_groups_of_two_blocks_with_max_pooling_and_a_1x1_to_the_logits():
    encoder = build_on_meta("image_tokenizer").encoder
    blocks = [module for module in encoder if isinstance(module, Block)]

    assert shape_of(encoder.input) == ((7, 7), 3, 256)
    assert [each.path.conv_4.out_channels for each in blocks] == [256, 256, 512, 512, 1024, 1024, 2048, 2048]
    assert [module.kernel_size for module in encoder if isinstance(module, nn.MaxPool2d)] == [2, 2, 2]
    assert isinstance(encoder[-2], nn.ReLU)
    assert shape_of(encoder.output) == ((1, 1), 2048, 8192)


@pytest.mark.paper("tokenizer: decoder")
def test_the_decoder_begins_with_the_codebook_and_ends_in_six_maps():
    tokenizer = build_on_meta("image_tokenizer")
    decoder = tokenizer.decoder
    blocks = [module for module in decoder if isinstance(module, Block)]
    upsamples = [module for module in decoder if isinstance(module, nn.Upsample)]

    assert tokenizer.codebook.shape == (8192, 128) and decoder.codebook.kernel_size == (1, 1)
    assert [each.path.conv_4.out_channels for each in blocks] == [2048, 2048, 1024, 1024, 512, 512, 256, 256]
    assert [(upsample.scale_factor, upsample.mode) for upsample in upsamples] == [(2.0, "nearest")] * 3
    assert isinstance(decoder[-3], nn.ReLU) and shape_of(decoder.output)[::2] == ((1, 1), 6)


@pytest.mark.paper("tokenizer: block")
@pytest.mark.parametrize(("part", "kernels"), [("encoder", [3, 3, 3, 1]), ("decoder", [1, 3, 3, 3])])
def test_a_block_adds_a_64th_of_a_bottleneck_of_four_convolutions_to_its_identity(part, kernels):
    for each in getattr(build_on_meta("image_tokenizer"), part):
        if not isinstance(each, Block):
            continue
        convolutions = [layer for layer in each.path if isinstance(layer, nn.Conv2d)]
        width = convolutions[-1].out_channels
        assert [layer.kernel_size[0] for layer in convolutions] == kernels
        assert [layer.out_channels for layer in convolutions] == [width // 4] * 3 + [width]
        assert [type(layer) for layer in each.path][::2] == [nn.ReLU] * 4
        assert each.gain == 1 / 64
        changes_width = convolutions[0].in_channels != width
        assert isinstance(each.identity, nn.Conv2d if changes_width else nn.Identity)


@pytest.mark.paper("tokenizer: output")
def test_the_likelihood_is_the_logit_laplace_of_the_paper():
    pixel, mu, log_width = (torch.tensor(value, dtype=torch.float64) for value in (0.3, -0.2, -1.1))
    x, b = 0.8 * pixel + 0.1, log_width.exp()  # the pixel map has a margin of a tenth
    expected = torch.exp(-(torch.log(x / (1 - x)) - mu).abs() / b) / (2 * b * x * (1 - x))
    assert log_likelihood(pixel, mu, log_width).exp().item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.paper("tokenizer: relaxation")
def test_the_kl_is_that_of_an_ordinary_categorical_whatever_the_temperature():
    model = tiny_models.tiny("image_tokenizers", "dvae").train()
    images, steps = tiny_models.random_images(2), (0, 75_000, 150_000)
    losses = [model.loss(images, step, tiny_models.rng())[1] for step in steps]
    assert losses[0]["temperature"] > losses[2]["temperature"]
    assert all(loss["kl_loss"].equal(losses[0]["kl_loss"]) for loss in losses)


@pytest.mark.paper("tokenizer: loss")
def test_the_loss_is_likelihood_and_weighted_kl_summed_over_the_image_per_channel_of_a_pixel():
    model, images = tiny_models.tiny("image_tokenizers", "dvae").train(), tiny_models.random_images(2)
    loss, logged = model.loss(images, 2500, tiny_models.rng(7))

    logits = model._logits(images)
    relaxed_tokens = gumbel_softmax(logits, cosine(2500, 1.0, 1 / 16, 150_000), tiny_models.rng(7))
    likelihood = log_likelihood(images, *model._decode(relaxed_tokens))
    log_p = logits.log_softmax(dim=-1)
    kl = (log_p.exp() * (log_p + math.log(model.vocab_size))).sum()
    expected = (-likelihood.sum() + 3.3 * kl) / (2 * 3 * tiny_models.SIDE**2)
    torch.testing.assert_close(loss, expected)
    assert logged["kl_weight"] == pytest.approx(3.3)


@pytest.mark.paper("tokenizer: β", "tokenizer: τ")
@pytest.mark.parametrize(
    ("step", "kl_weight", "temperature"),
    [
        (0, 0.0, 1.0),
        (1250, 0.9665, 0.9998),
        (2500, 3.3, 0.9994),
        (5000, 6.6, 0.9974),
        (75_000, 6.6, 0.53125),
        (150_000, 6.6, 0.0625),
        (3_000_000, 6.6, 0.0625),
    ],
)
def test_kl_weight_and_temperature_follow_cosines_of_5000_and_150_000_updates(step, kl_weight, temperature):
    config = build_on_meta("image_tokenizer").config
    assert cosine(step, 0.0, config.kl_weight, config.kl_steps) == pytest.approx(kl_weight, abs=1e-4)
    actual = cosine(step, config.temperature_start, config.temperature_end, config.temperature_steps)
    assert actual == pytest.approx(temperature, abs=1e-4)


def rate(name: str, step: int, losses: tuple[float, ...] = ()) -> float:
    """The learning rate of an update in training."""
    config = dataclasses.replace(training_config(name), precision="float32")
    state = TrainState(nn.Linear(1, 1), config, SINGLE_PROCESS)
    state.validation_losses = list(losses)
    return state.learning_rate(step)


@pytest.mark.paper("tokenizer: learning rate")
@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 1e-4), (300_000, 8.5538e-5), (600_000, 5.0625e-5), (1_200_000, 1.25e-6), (2_999_999, 1.25e-6)],
)
def test_the_tokenizers_rate_falls_along_a_cosine_for_1_200_000_updates(step, value):
    assert rate("image_tokenizer", step) == pytest.approx(value, rel=1e-4)


@pytest.mark.paper("tokenizer: optimizer", "tokenizer: scale", "tokenizer: init", "tokenizer: augmentation")
def test_the_tokenizer_has_the_papers_settings():
    assert_settings(
        training_config("image_tokenizer"),
        **{"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 1e-4, "muon_lr_scale": None},
        **{"ema_decay": 0.999, "ema_every": 1, "ema_warmup": False},
        **{"steps": 3_000_000, "batch_size": 512, "precision": "auto"},
    )
    assert_settings(
        components.model_config("image_tokenizers", preset()["image_tokenizer"], "image_tokenizer"),
        init_gain=1.0,
        # what the paper does not have is off
        **{"pixel_deviation": None, "noise_end": 1.0, "decoder_only_from": None, "usage_entropy_weight": 0},
    )
    images = model_block(preset()["image_tokenizer"], "image_tokenizer", ImageConfig)
    assert images.augmentation == "paper" and preset()["data"]["keep"] == "whole"


@pytest.mark.paper("generator: optimizer", "generator: batch", "generator: precision", "generator: EMA")
@pytest.mark.paper("generator: gradient compression", "generator: schedule", "generator: loss")
@pytest.mark.paper("generator: text noise", "generator: augmentation")
def test_the_generator_has_the_papers_settings():
    assert_settings(
        training_config("generator"),
        **{"beta1": 0.9, "beta2": 0.96, "epsilon": 1e-8, "weight_decay": 4.5e-2, "muon_lr_scale": None},
        **{"clip_norm": 4.0, "second_moment_clip": 5.0, "schedule": "plateau"},
        **{"ema_every": 25, "ema_decay": 0.99},  # the paper names no decay
        **{"steps": 430_000, "batch_size": 1024, "precision": "float16", "powersgd_rank": 896},
        **{"strategy": "ddp"},
    )
    assert_settings(build_on_meta("generator").config, text_loss_weight=1 / 8, image_loss_weight=7 / 8)
    assert model_block(preset()["generator"], "generator", CaptionConfig).bpe_dropout == 0.1
    tokens = section(preset()["tokens"], "tokens", TokensConfig)
    assert tokens.augmentation == "paper" and tokens.views_per_image > 1


@pytest.mark.paper("generator: sequence")
def test_the_sequence_is_256_text_tokens_of_16384_then_1024_image_tokens_of_8192():
    generator = build_on_meta("generator")
    assert (generator.text_length, generator.text_vocab_size) == (256, 16_384)
    assert (generator.image_length, generator.image_vocab_size) == (1024, 8192)
    assert normalize("Ein ROTER Stern") == "ein roter stern"


@pytest.mark.paper("generator: pads", "generator: positions")
def test_text_positions_and_image_rows_and_columns_have_learned_embeddings():
    generator = build_on_meta("generator")
    shapes = {name: tuple(parameter.shape) for name, parameter in generator.named_parameters()}
    assert shapes["text_position_embedding.weight"] == shapes["pad_embedding.weight"] == (256, 3968)
    assert shapes["row_embedding.weight"] == shapes["column_embedding.weight"] == (32, 3968)
    assert shapes["start_embedding.weight"] == (2, 3968)

    small = tiny_models.tiny("generators", "transformer")
    embedded = small.embed_image(torch.full((1, 16), 3))[0] - small.image_embedding.weight[3]
    expected = small.row_embedding.weight[:, None] + small.column_embedding.weight[None]
    torch.testing.assert_close(embedded, expected.flatten(0, 1))


@pytest.mark.paper("generator: size")
def test_64_layers_of_62_heads_of_64_are_12_billion_weights():
    generator = build_on_meta("generator")
    config = generator.config
    assert (config.num_layers, config.num_heads, config.width) == (64, 62, 3968) and config.width == 62 * 64
    num_weights = sum(weight.numel() for weight in generator.muon_parameters())
    assert num_weights == 64 * 12 * 3968**2 == 12_092_178_432


@pytest.mark.paper("generator: layer rule")
def test_the_papers_layers_have_the_papers_masks():
    generator = build_on_meta("generator")
    assert generator.kinds == layer_kinds(64) and generator.config.kernel == 11


@pytest.mark.paper("generator: result")
def test_the_loss_is_in_the_unit_of_the_papers_3_6_nats():
    """Each kind averaged over its own tokens: an untrained model has ln of each vocabulary size."""
    small = tiny_models.tiny("generators", "transformer")
    with torch.no_grad():
        for output in (small.text_output, small.image_output):
            output.weight.zero_()
            output.bias.zero_()
    batch = tiny_models.captions_as_tokens(3), tiny_models.image_tokens(3)
    loss, parts = small.loss(*batch, 0, tiny_models.rng())
    of_text, of_image = math.log(tiny_models.TEXT_VOCAB_SIZE), math.log(tiny_models.IMAGE_VOCAB_SIZE)
    assert parts["text_loss"].item() == pytest.approx(of_text, rel=1e-6)
    assert loss.item() == pytest.approx(of_text / 8 + of_image * 7 / 8, rel=1e-6)


@pytest.mark.paper("generator: schedule")
@pytest.mark.parametrize(
    ("step", "value"), [(0, 9e-8), (2499, 2.25e-4), (4999, 4.5e-4), (5000, 4.5e-4), (429_999, 4.5e-4)]
)
def test_the_generators_rate_warms_up_for_5000_updates_and_stays(step, value):
    assert rate("generator", step) == pytest.approx(value, rel=1e-6)


@pytest.mark.paper("generator: schedule")
def test_the_generators_rate_halves_on_a_plateau():
    patience = training_config("generator").patience
    assert rate("generator", 100_000, (4.0,) + (4.0,) * patience) == pytest.approx(2.25e-4)
    assert rate("generator", 429_999, (4.0,) + (4.0,) * 5 * patience) == pytest.approx(4.5e-4 / 32)  # 5 times


@pytest.mark.paper("generator: precision")
def test_there_are_128_gradient_scales():
    assert len(build_on_meta("generator").residual_paths()) == 128


@pytest.mark.paper("generator: gradient compression")
def test_gradients_are_compressed_at_rank_896_by_about_86_percent():
    rank, width = training_config("generator").powersgd_rank, build_on_meta("generator").config.width
    assert 1 - 5 * rank / (8 * width) == pytest.approx(0.86, abs=0.005)


@pytest.mark.paper("generator: ?")
def test_what_the_paper_leaves_open_is_a_setting():
    settings = vars(build_on_meta("generator").config)
    assert {"activation", "init_std", "dropout"} <= set(settings)
    tokenizer = train(["ein stern", "a star"], TextTokenizerConfig(vocab_size=258, text_length=4))
    assert tokenizer.bpe.get_added_tokens_decoder() == {}  # the corpus is the captions; no special tokens


@pytest.mark.paper("evaluation: sampling")
def test_by_default_512_candidates_are_sampled_at_temperature_1_without_truncation():
    papers = {"candidates": 512, "temperature": 1, "top_k": None, "top_p": None, "guidance": 1}
    assert_settings(section(preset()["sampling"], "sampling", PromptsConfig), **papers)
    assert_settings(PromptsConfig(), **papers)


@pytest.mark.paper("evaluation: evaluation")
def test_the_evaluation_uses_30_000_held_out_images():
    config = section(preset()["evaluation"], "evaluation", EvaluationConfig)
    assert (config.num_images, config.fid_images) == (30_000, 30_000) and list(RADII) == [*range(9)]


@pytest.mark.paper("evaluation: data filter")
def test_captions_and_aspect_ratios_are_filtered_as_in_the_paper():
    data = section(preset()["data"], "data", DataConfig)
    rules = data.caption_rules
    assert data.max_aspect == 2.0
    assert rules.language == "en" and rules.min_words > 0
    captions = ("photographed on 3 May 1921", "a dog", "a dog beside a red car")
    problems = [caption_problem(caption, dataclasses.replace(rules, language=None)) for caption in captions]
    assert [problem and problem.reason for problem in problems] == ["boilerplate", "caption_too_short", None]
