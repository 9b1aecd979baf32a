"""An image depends on (seed, prompt, candidate) and on the models: not on the batch, nor on its neighbors."""

import numpy as np
import pytest
import torch

from tests.helpers.tiny_models import random_images, tiny, tiny_text
from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.core.filenames import distinct_slugs, slug
from thousandwords.data import images
from thousandwords.inference.batched import decode_in_batches, score_in_batches
from thousandwords.inference.candidates import candidate_seed, count_batches, sample_batch, to_precision
from thousandwords.inference.config import PromptsConfig, SamplingConfig, check_prompt, replace_settings
from thousandwords.inference.sample_shards import COLUMNS, read_samples, sample_table, write_samples

PROMPTS = ["a red square", "a blue circle", "ein roter stern"]
TEXT_TOKENIZER, GENERATOR = tiny_text(), tiny("generators", "transformer")


def sample(prompts=tuple(PROMPTS), seed=0, fixed_tokens=None, **settings) -> torch.Tensor:
    """All tokens (prompts * candidates, L)."""
    settings = SamplingConfig(**{"candidates": 3, **settings})
    batches = [
        sample_batch(GENERATOR, TEXT_TOKENIZER, prompts, settings, seed, number, fixed_tokens)
        for number in range(count_batches(len(prompts), settings))
    ]
    seeds = [
        candidate_seed(seed, prompt, number) for prompt in prompts for number in range(settings.candidates)
    ]
    assert [row_seed for batch in batches for row_seed in batch.seeds] == seeds
    return torch.cat([batch.tokens for batch in batches])


def test_on_a_cpu_the_generator_itself_samples_unless_a_copy_in_bfloat16_is_requested():
    generator = tiny("generators", "transformer")
    before = {name: weight.clone() for name, weight in generator.state_dict().items()}

    copy = to_precision(generator, "bfloat16")

    assert {weight.dtype for weight in copy.parameters()} == {torch.bfloat16}
    assert to_precision(generator, "bfloat16") is copy and copy.config == generator.config
    assert all(weight.equal(before[name]) for name, weight in generator.state_dict().items())
    assert to_precision(generator, "auto") is generator and to_precision(generator, "float32") is generator
    tokens = sample(precision="bfloat16")
    assert tokens.equal(sample(precision="bfloat16")) and tokens.shape == sample().shape and tokens.min() >= 0


def test_the_seed_of_a_candidate_is_a_fixed_number():
    assert candidate_seed(0, "a red star", 0) == 8785432157480973085
    assert candidate_seed(0, "a red star", 1) == 2990327299369865602
    assert candidate_seed(1, "a red star", 0) == 6768904379675081734


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_the_batch_size_changes_no_image(batch_size, settings):
    assert sample(batch_size=batch_size, **settings).equal(sample(batch_size=256, **settings))


def test_the_other_prompts_change_no_image():
    together = sample()
    for row, prompt in enumerate(PROMPTS):
        assert sample([prompt]).equal(together[3 * row : 3 * row + 3])
    assert sample(PROMPTS[::-1])[:3].equal(together[6:])


def test_more_candidates_leave_the_first_ones_as_they_were():
    assert sample(PROMPTS[:1], candidates=5)[:3].equal(sample(PROMPTS[:1]))


def test_fixed_tokens_are_in_every_candidate_of_their_prompt_and_of_no_other():
    fixed_tokens = torch.full((3, 16), -1)
    fixed_tokens[1, :8], fixed_tokens[2, 5] = torch.arange(8), 3

    tokens = sample(fixed_tokens=fixed_tokens, batch_size=4).unflatten(0, (3, 3))

    assert tokens[0].equal(sample()[:3])  # no token is fixed
    assert tokens[1, :, :8].equal(torch.arange(8).expand(3, -1)) and len(tokens[1].unique(dim=0)) == 3
    assert tokens[2, :, 5].eq(3).all() and tokens[2, :, :5].equal(sample()[6:, :5])


def test_tokens_and_images_are_sent_to_the_device_of_their_model():
    class OtherDevice(torch.nn.Module):
        """A model on the meta device, which stands for a GPU."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(1, device="meta"))

        def decode(self, tokens):
            assert tokens.device == self.weight.device
            return torch.zeros(len(tokens), 3, 16, 16)

        def score(self, images, captions):
            assert images.device == self.weight.device
            return torch.zeros(len(captions))

    tokens = torch.zeros(3, 16, dtype=torch.int64)
    assert decode_in_batches(OtherDevice(), tokens, batch_size=2).shape == (3, 3, 16, 16)
    assert score_in_batches(OtherDevice(), random_images(3), "a star").shape == (3,)


def test_a_prompt_is_read_in_the_form_of_the_captions():
    assert check_prompt("  A red\nStar ") == "a red star"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("  \n\u3000", 'is empty. Say what to generate, for example "a small red star on sand"'),
        (
            b"a st\xe9r".decode("utf-8", "surrogateescape"),
            "is not text in UTF-8: 'a st\\udce9r'. Type it again",
        ),
    ],
)
def test_a_prompt_that_is_empty_or_no_text_is_rejected_by_its_place(prompt, message):
    with pytest.raises(UserError) as caught:
        check_prompt(prompt, "sampling.prompts[2]")
    assert str(caught.value).startswith(f"sampling.prompts[2] {message}")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("candidates", 0, "it needs to be 1 or more"),
        ("batch_size", 0, "it needs to be 1 or more"),
        ("temperature", float("nan"), "it needs to be above 0"),
        ("temperature", 1e-300, "the minimum is 1e-06. For the likeliest token set top_k to 1"),
        ("guidance", -1.0, "it needs to be 0 or more; 1 changes nothing"),
        ("top_k", 0, "it needs to be 1 or more, or null for all tokens"),
        ("top_p", 1.5, "it needs to be in (0, 1], or null for all tokens"),
        ("inpaint_keep_share", float("nan"), "it needs to be between 0 and 1, to leave rows to sample"),
    ],
)
def test_a_setting_out_of_range_is_rejected_wherever_it_is_given(key, value, sentence):
    with pytest.raises(ConfigError) as caught:
        section({key: value}, "sampling", PromptsConfig)
    assert str(caught.value) == f"params.yaml: sampling.{key} is {value}; {sentence}"
    if hasattr(SamplingConfig, key):
        with pytest.raises(ConfigError) as caught:
            replace_settings(SamplingConfig(), **{key: value})
        assert str(caught.value) == f"sampling.{key} is {value}; {sentence}"


def test_samples_come_back_prompt_after_prompt_whatever_the_order_of_their_shards(tmp_path):
    rows = [
        dict(zip(COLUMNS, (prompt, "own", PROMPTS[prompt], candidate, 2**63 - 1 - prompt), strict=True))
        for prompt in range(3)
        for candidate in range(2)
    ]
    tokens, pixels = sample(candidates=2), images.to_uint8(random_images(6))
    tables = [sample_table(rows[part], tokens[part], pixels[part]) for part in (slice(3, 6), slice(0, 3))]
    write_samples(tmp_path, tables, {"candidates": 2})

    samples = read_samples(tmp_path)

    assert samples.prompts == PROMPTS and samples.splits == ["own"] * 3 and samples.candidates == 2
    assert samples.table["seed"].to_pylist()[::2] == [2**63 - 1, 2**63 - 2, 2**63 - 3]
    assert torch.tensor(samples.table["image_tokens"].to_pylist()).equal(tokens)
    for prompt in range(3):
        assert np.array_equal(samples.images(prompt), pixels[2 * prompt : 2 * prompt + 2])


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red star!", "a-red-star"),
        ("../../etc/passwd", "etc-passwd"),
        ("🦊!", "🦊"),
        ("?!", "prompt"),
        ("红" * 99, "红" * 60),
        ("\U00020000" * 99, "\U00020000" * 45),  # 180 bytes: file systems allow 255
        ("हिन्दी में", "हिन्दी-में"),
    ],
)
def test_a_slug_is_a_file_name_that_reads_like_the_prompt(prompt, name):
    assert slug(prompt) == name


def test_prompts_that_read_alike_get_files_of_their_own():
    prompts = ["a star", "A star!", "?", "!", "a star 2", "a star?"]
    assert distinct_slugs(prompts) == ["a-star", "a-star-2", "prompt", "prompt-2", "a-star-2-2", "a-star-3"]
