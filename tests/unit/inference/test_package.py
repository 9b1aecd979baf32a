"""One folder takes a prompt and gives ranked pictures; a part that was swapped or damaged is refused."""
from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from tests.tiny import flips, tiny, write_parts
from thousandwords import components, images
from thousandwords.config import ConfigError
from thousandwords.drawing import EmptyPrompt, Settings, draw_candidates
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact, read_manifest
from thousandwords.package import PARTS, load_package, write_package

PROMPT = "a small green star on sand"


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


@pytest.fixture
def own_folder(package_folder, tmp_path):
    """A package that a test may damage."""
    return shutil.copytree(package_folder, tmp_path / "package")


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_a_prompt_becomes_pictures_best_first(package):
    drawn = package.draw(PROMPT, candidates=6)

    assert len(drawn) == 6
    assert sorted(one.candidate for one in drawn) == list(range(6))
    assert [one.score for one in drawn] == sorted((one.score for one in drawn), reverse=True)
    for one in drawn:
        assert one.picture.shape == (16, 16, 3) and one.picture.dtype == np.uint8
        assert -1 <= one.score <= 1 and one.tokens.shape == (16,) and one.seed == 0


def test_a_score_is_the_scorers_opinion_of_that_very_picture(package):
    for one in package.draw(PROMPT, candidates=3):
        decoded = package.image_tokenizer.decode(one.tokens[None])
        assert package.scorer.score(decoded, [PROMPT]).item() == pytest.approx(one.score, abs=1e-6)
        assert np.abs(images.to_uint8(decoded)[0].astype(int) - one.picture).max() <= 1


def test_the_package_draws_what_the_bulk_stage_draws(package):
    settings = Settings(candidates=4, batch_size=256)
    (bulk,) = draw_candidates(package.generator, package.text_tokenizer, [PROMPT], settings, seed=3)
    for one in package.draw(PROMPT, seed=3):
        assert one.tokens.equal(bulk.tokens[one.candidate])


def test_the_same_seed_draws_the_same_pictures_and_another_seed_others(package):
    first, again, other = (package.draw(PROMPT, seed=seed) for seed in (5, 5, 6))
    assert all(np.array_equal(one.picture, two.picture) for one, two in zip(first, again, strict=True))
    assert not {tuple(one.tokens.tolist()) for one in first} & {tuple(one.tokens.tolist()) for one in other}


def test_given_words_are_in_every_candidate(package):
    whole = package.draw(PROMPT, candidates=3)
    given = whole[0].tokens.where(torch.arange(16) < 12, -1)

    completed = package.draw(PROMPT, candidates=3, given=given)

    assert all(one.tokens[:12].equal(given[:12]) for one in completed)
    same = next(one for one in completed if one.candidate == whole[0].candidate)
    assert same.tokens.equal(whole[0].tokens) and np.array_equal(same.picture, whole[0].picture)


def test_a_prompt_is_the_same_prompt_in_upper_case(package):
    first, shouted = package.draw(PROMPT), package.draw(f"  {PROMPT.upper()}")
    assert [one.score for one in first] == [one.score for one in shouted]


def test_settings_are_the_packages_own_unless_others_are_given(package):
    assert package.settings == Settings(candidates=4, batch_size=3)
    assert len(package.draw(PROMPT)) == 4
    surest = {tuple(one.tokens.tolist()) for one in package.draw(PROMPT, top_k=1)}
    assert len(surest) == 1


def test_a_setting_out_of_range_is_refused(package):
    with pytest.raises(ConfigError, match="sampling.temperature is 0; it needs to be above 0"):
        package.draw(PROMPT, temperature=0)


def test_an_empty_prompt_is_refused(package):
    with pytest.raises(EmptyPrompt, match="the prompt is empty. Say what to draw"):
        package.draw(" ")


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_a_package_holds_nothing_but_safetensors_and_json(package_folder):
    files = [path for path in package_folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert {path.parent.name for path in files} == {*PARTS, "package"}


def test_a_package_says_what_it_is_made_of(package_folder, parts, package):
    facts = json.loads((package_folder / "package.json").read_bytes())
    assert facts["parts"] == {name: read_manifest(parts[name])["sha256"] for name in PARTS}
    assert facts["seed"] == 0 and facts["sampling"]["candidates"] == 4
    assert package.generator.fingerprint == facts["parts"]["generator"]


def test_the_same_parts_make_the_same_package(package_folder, parts, tmp_path):
    fingerprint = write_package(tmp_path, parts, Settings(candidates=4, batch_size=3), {"seed": 0})
    assert fingerprint == load_package(package_folder).fingerprint
    assert write_package(tmp_path, parts, Settings(candidates=5), {"seed": 0}) != fingerprint


def test_a_package_needs_none_of_the_folders_it_was_made_from(tmp_path):
    parts = write_parts(tmp_path / "models", seed=1)
    write_package(tmp_path / "package", parts, Settings(), {})
    shutil.rmtree(tmp_path / "models")
    assert len(load_package(tmp_path / "package").draw(PROMPT, candidates=2)) == 2


def test_a_folder_that_is_no_part_goes_when_the_package_is_written_again(own_folder, parts):
    (own_folder / "decoder").mkdir()
    write_package(own_folder, parts, Settings(), {})
    assert sorted(path.name for path in own_folder.iterdir() if path.is_dir()) == sorted(PARTS)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_where_there_is_no_package_the_mend_is_to_train_one(tmp_path):
    with pytest.raises(UserError) as caught:
        load_package(tmp_path / "package")
    assert str(caught.value) == (
        f"there is no package at {tmp_path}/package: nothing has been trained here yet. Run: make run"
    )


def test_a_part_that_was_replaced_is_refused(own_folder):
    components.save(tiny("generators", "transformer", seed=1), own_folder / "generator")
    with pytest.raises(UserError) as caught:
        load_package(own_folder)
    assert str(caught.value) == (
        f"{own_folder}/generator is not the part this package was made with. Run: dvc repro package_model"
    )


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part_is_refused(own_folder, name):
    shutil.rmtree(own_folder / name)
    with pytest.raises(DamagedArtefact, match=f"{name}/manifest.json is missing.* Run: dvc repro package_model"):
        load_package(own_folder)


def test_a_flipped_bit_in_any_file_is_refused(own_folder):
    for path in sorted(path for path in own_folder.rglob("*") if path.is_file()):
        for _ in flips(path, 3):
            with pytest.raises(DamagedArtefact, match=re.escape(str(path))):
                load_package(own_folder)
    load_package(own_folder)


def test_damaged_parts_are_not_packed(tmp_path):
    parts = write_parts(tmp_path / "models")
    (parts["scorer"] / "config.json").write_bytes(b"{}")
    with pytest.raises(DamagedArtefact, match="scorer/config.json should be"):
        write_package(tmp_path / "package", parts, Settings(), {})


def test_a_device_that_is_not_there_is_refused(package_folder):
    with pytest.raises(UserError, match="there is no device 'tpu' here. Give cpu, or cuda on a machine that has it"):
        load_package(package_folder, device="tpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: drawing on one was not tried")
def test_a_package_draws_on_a_gpu(package_folder):
    assert len(load_package(package_folder, device="cuda").draw(PROMPT, candidates=3)) == 3


def test_another_folder_with_a_manifest_is_no_package(parts):
    with pytest.raises(UserError, match="is no package: its manifest tells of something else. Give the folder that `dvc repro"):
        load_package(parts["scorer"])
