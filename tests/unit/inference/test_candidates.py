"""A picture depends on (seed, prompt, candidate) and on the models: not on the batch, nor on its neighbours."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given as given_any
from hypothesis import strategies as st

from tests.tiny import pictures, tiny, tiny_text
from thousandwords import images
from thousandwords.config import ConfigError, section
from thousandwords.drawing import (
    EmptyPrompt,
    Prompts,
    Settings,
    candidate_seed,
    changed,
    check_prompt,
    decode_in_parts,
    draw_candidates,
    in_precision,
    score_in_parts,
)
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact
from thousandwords.naming import distinct_slugs, slug
from thousandwords.samples import read_samples, sample_table, write_samples

PROMPTS = ["a red square", "a blue circle", "ein roter stern"]
WORDS, GENERATOR = tiny_text(), tiny("generators", "transformer")


def drawn(prompts=tuple(PROMPTS), seed=0, given=None, **settings) -> torch.Tensor:
    """All tokens (prompts * candidates, L)."""
    settings = Settings(**{"candidates": 3, **settings})
    return torch.cat([part.tokens for part in draw_candidates(GENERATOR, WORDS, prompts, settings, seed, given)])


# --- precision -------------------------------------------------------------------------------------------------------


def test_a_copy_in_bfloat16_draws_and_the_generator_stays_as_it_was():
    generator = tiny("generators", "transformer")
    before = {name: weight.clone() for name, weight in generator.state_dict().items()}

    halved = in_precision(generator, "bfloat16")

    assert {weight.dtype for weight in halved.parameters()} == {torch.bfloat16}
    assert in_precision(generator, "bfloat16") is halved and halved.config == generator.config
    assert all(weight.equal(before[name]) for name, weight in generator.state_dict().items())
    assert not {one.data_ptr() for one in halved.parameters()} & {one.data_ptr() for one in generator.parameters()}


def test_on_a_cpu_the_generator_itself_draws_unless_bfloat16_is_asked_for():
    assert in_precision(GENERATOR, "auto") is GENERATOR and in_precision(GENERATOR, "float32") is GENERATOR
    found = drawn(precision="bfloat16")
    assert found.equal(drawn(precision="bfloat16")) and found.shape == drawn().shape and found.min() >= 0


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_the_seed_of_a_candidate_is_a_fixed_number():
    assert candidate_seed(0, "a red star", 0) == 8785432157480973085
    assert candidate_seed(0, "a red star", 1) == 2990327299369865602
    assert candidate_seed(1, "a red star", 0) == 6768904379675081734
    assert candidate_seed(0, "a red stars", 0) == 8747816678103077628


@given_any(st.integers(), st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 10**6))
def test_a_seed_is_one_that_torch_takes(seed, prompt, candidate):
    assert 0 <= candidate_seed(seed, prompt, candidate) < 2**63


def test_a_thousand_candidates_have_a_thousand_seeds():
    seeds = {candidate_seed(s, prompt, c) for s in range(5) for prompt in ("a", "b", "a1", "1a") for c in range(50)}
    assert len(seeds) == 1000


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_candidates_come_prompt_after_prompt_each_with_its_seed():
    parts = list(draw_candidates(GENERATOR, WORDS, PROMPTS, Settings(candidates=2, batch_size=4), seed=7))

    assert [len(part.tokens) for part in parts] == [4, 2]
    assert [prompt for part in parts for prompt in part.prompt_ids] == [0, 0, 1, 1, 2, 2]
    assert [candidate for part in parts for candidate in part.candidates] == [0, 1, 0, 1, 0, 1]
    assert parts[1].seeds == [candidate_seed(7, PROMPTS[2], 0), candidate_seed(7, PROMPTS[2], 1)]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_the_batch_size_changes_no_picture(batch_size, settings):
    assert drawn(batch_size=batch_size, **settings).equal(drawn(batch_size=256, **settings))


def test_the_other_prompts_change_no_picture():
    together = drawn()
    for row, prompt in enumerate(PROMPTS):
        assert drawn([prompt]).equal(together[3 * row : 3 * row + 3])
    assert drawn(PROMPTS[::-1])[:3].equal(together[6:])


def test_more_candidates_leave_the_first_ones_as_they_were():
    assert drawn(PROMPTS[:1], candidates=5)[:3].equal(drawn(PROMPTS[:1]))


def test_the_same_seed_draws_the_same_pictures_and_another_seed_others():
    assert drawn(seed=1).equal(drawn(seed=1))
    assert not any(first.equal(other) for first, other in zip(drawn(seed=1), drawn(seed=2), strict=True))


def test_candidates_of_one_prompt_are_not_alike():
    assert len(drawn().unique(dim=0)) == 9


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_given_words_are_in_every_candidate_of_their_prompt_and_of_no_other(batch_size):
    given = torch.full((3, 16), -1)
    given[1, :8], given[2, 5] = torch.arange(8), 3

    found = drawn(given=given, batch_size=batch_size).unflatten(0, (3, 3))

    assert found[0].equal(drawn()[:3])  # nothing was given: drawn as ever
    assert found[1, :, :8].equal(torch.arange(8).expand(3, -1)) and len(found[1].unique(dim=0)) == 3
    assert found[2, :, 5].eq(3).all() and found[2, :, :5].equal(drawn()[6:, :5])


def test_a_picture_given_its_own_words_is_drawn_again():
    whole = drawn(candidates=1)
    assert drawn(candidates=1, given=whole.where(torch.arange(16) < 8, -1)).equal(whole)


def test_given_words_of_another_number_of_prompts_are_refused():
    with pytest.raises(ValueError, match=r"given is torch.int64 of shape \(2, 16\), wanted torch.int64 \(3, 16\)"):
        drawn(given=torch.full((2, 16), -1))


def test_words_become_pictures_a_few_at_a_time():
    tokenizer = tiny("tokenizers", "dvae")
    tokens = torch.randint(12, (5, 16), generator=torch.Generator().manual_seed(0))

    found = decode_in_parts(tokenizer, tokens, batch_size=2)

    assert found.shape == (5, 3, 16, 16)
    torch.testing.assert_close(found, tokenizer.decode(tokens))


def test_pictures_are_scored_a_few_at_a_time():
    scorer = tiny("scorers", "clip")

    found = score_in_parts(scorer, pictures(5), "a red square", batch_size=2)

    torch.testing.assert_close(found, scorer.score(pictures(5), ["a red square"] * 5))


def test_words_and_pictures_are_sent_to_the_device_of_their_model():
    class Elsewhere(torch.nn.Module):
        """A model on a device that computes nothing, in the place of one on a GPU."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(1, device="meta"))

        def decode(self, tokens):
            assert tokens.device == self.weight.device
            return torch.zeros(len(tokens), 3, 16, 16)

        def score(self, images, captions):
            assert images.device == self.weight.device
            return torch.zeros(len(captions))

    assert decode_in_parts(Elsewhere(), torch.zeros(3, 16, dtype=torch.int64), batch_size=2).shape == (3, 3, 16, 16)
    assert score_in_parts(Elsewhere(), pictures(3), "a star").shape == (3,)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_a_prompt_is_read_in_the_form_of_the_captions():
    assert check_prompt("  A red\nStar ") == "a red star"


@pytest.mark.parametrize("prompt", ["", "  \n\t", "\u3000"])
def test_an_empty_prompt_is_refused_with_an_example(prompt):
    with pytest.raises(EmptyPrompt) as caught:
        check_prompt(prompt, "sampling.prompts[2]")
    assert str(caught.value) == (
        'sampling.prompts[2] is empty. Say what to draw, for example "a small red star on sand"'
    )


def test_a_prompt_that_is_no_text_is_refused():
    with pytest.raises(UserError, match="the prompt is not text in UTF-8: 'a st.*'. Type it again, or save"):
        check_prompt(b"a st\xe9r".decode("utf-8", "surrogateescape"))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("candidates", 0, "it needs to be 1 or more"),
        ("batch_size", 0, "it needs to be 1 or more"),
        ("temperature", 0.0, "it needs to be above 0"),
        ("temperature", float("nan"), "it needs to be above 0"),
        ("temperature", 1e-300, "the least is 1e-06. For the likeliest word set top_k to 1"),
        ("guidance", -1.0, "it needs to be 0 or more; 1 changes nothing"),
        ("guidance", float("inf"), "it needs to be 0 or more; 1 changes nothing"),
        ("top_k", 0, "it needs to be 1 or more, or null for all words"),
        ("top_p", 0.0, "it needs to be in (0, 1], or null for all words"),
        ("top_p", 1.5, "it needs to be in (0, 1], or null for all words"),
    ],
)
def test_a_setting_out_of_range_is_refused_wherever_it_is_given(key, value, sentence):
    with pytest.raises(ConfigError) as caught:
        section({key: value}, "sampling", Prompts)
    assert str(caught.value) == f"params.yaml: sampling.{key} is {value}; {sentence}"
    with pytest.raises(ConfigError) as caught:
        changed(Settings(), **{key: value})
    assert str(caught.value) == f"sampling.{key} is {value}; {sentence}"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_of_rows_that_leaves_nothing_to_draw_or_to_keep_is_refused(share):
    with pytest.raises(ConfigError) as caught:
        section({"complete_share": share}, "sampling", Prompts)
    assert str(caught.value) == (
        f"params.yaml: sampling.complete_share is {share}; it needs to be between 0 and 1, to leave rows to draw"
    )


def test_guidance_is_refused_of_a_generator_that_never_saw_a_hidden_caption():
    with pytest.raises(ConfigError, match="sampling.guidance is 3.0, but the generator never saw a hidden caption"):
        drawn(guidance=3.0)


def test_some_settings_may_be_replaced():
    before = Settings()
    assert changed(before, top_k=5) == dataclasses.replace(Settings(), top_k=5)
    assert before == Settings()


def test_the_default_is_the_papers_512_candidates_at_temperature_1():
    assert Settings() == Settings(candidates=512, temperature=1.0, top_k=None, top_p=None)


# --- what was drawn, on disk -----------------------------------------------------------------------------------------


@pytest.fixture
def samples_folder(tmp_path):
    """3 prompts with 2 candidates each, in two shards that were written in the wrong order."""
    rows = [
        {"prompt_id": prompt, "split": "own", "prompt": PROMPTS[prompt], "candidate": one, "seed": 2**63 - 1 - prompt}
        for prompt in range(3)
        for one in range(2)
    ]
    tokens = drawn(candidates=2)
    shown = images.to_uint8(pictures(6))
    tables = [sample_table(rows[start:stop], tokens[start:stop], shown[start:stop]) for start, stop in ((3, 6), (0, 3))]
    write_samples(tmp_path, tables, {"candidates": 2})
    return tmp_path


def test_samples_come_back_prompt_after_prompt(samples_folder):
    samples = read_samples(samples_folder)

    assert samples.prompts == PROMPTS and samples.splits == ["own"] * 3 and samples.candidates == 2
    assert samples.table["seed"].to_pylist()[::2] == [2**63 - 1, 2**63 - 2, 2**63 - 3]
    assert torch.tensor(samples.table["image_tokens"].to_pylist()).equal(drawn(candidates=2))
    for prompt in range(3):
        wanted = images.to_uint8(pictures(6))[2 * prompt : 2 * prompt + 2]
        assert np.array_equal(samples.pictures(prompt), wanted)


def test_damaged_samples_are_refused(samples_folder):
    path = samples_folder / "samples-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedArtefact, match="samples-00001.parquet .* Run: dvc repro sample_images"):
        read_samples(samples_folder)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red star!", "a-red-star"),
        ("../../etc/passwd", "etc-passwd"),
        ("🦊", "prompt"),
        ("роза", "роза"),
        ("a" * 99, "a" * 60),
    ],
)
def test_a_slug_is_a_file_name_that_reads_like_the_prompt(prompt, name):
    assert slug(prompt) == name


def test_prompts_that_read_alike_get_files_of_their_own():
    prompts = ["a star", "A star!", "🦊", "🐼", "a star 2", "a star?"]
    assert distinct_slugs(prompts) == ["a-star", "a-star-2", "prompt", "prompt-2", "a-star-2-2", "a-star-3"]


@given_any(st.lists(st.text(max_size=4), max_size=8))
def test_no_two_prompts_share_a_name(prompts):
    names = distinct_slugs(prompts)
    assert len(set(names)) == len(prompts) and not any("/" in name or name.startswith(".") for name in names)
