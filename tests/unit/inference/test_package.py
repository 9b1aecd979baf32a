"""One folder takes a prompt and gives ranked images; a part that was swapped or damaged is rejected."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.tiny_models import flips, tiny
from thousandwords import components
from thousandwords.core.config import ConfigError
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_json
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest
from thousandwords.data.images import to_uint8
from thousandwords.inference.candidates import sample_batch
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.package import PARTS, load_package, write_package

PROMPT = "a small green star on sand"


@pytest.fixture
def own_folder(package_folder, tmp_path):
    """A package that a test may damage."""
    return shutil.copytree(package_folder, tmp_path / "package")


def test_a_prompt_becomes_the_images_of_the_stages_tokens_with_the_scorers_scores_best_first(package):
    settings = SamplingConfig(candidates=6, batch_size=256)
    batch = sample_batch(package.generator, package.text_tokenizer, [PROMPT], settings, seed=3, number=0)

    candidates = package.generate(f"  {PROMPT.upper()}", candidates=6, seed=3)

    assert sorted(candidate.candidate for candidate in candidates) == list(range(6))
    scores = [candidate.score for candidate in candidates]
    assert scores == sorted(scores, reverse=True)
    for candidate in candidates:
        assert candidate.seed == 3 and candidate.tokens.equal(batch.tokens[candidate.candidate])
        decoded = package.image_tokenizer.decode(candidate.tokens[None])
        assert package.scorer.score(decoded, [PROMPT]).item() == pytest.approx(candidate.score, abs=1e-6)
        assert candidate.image.shape == (16, 16, 3) and candidate.image.dtype == np.uint8
        assert np.abs(to_uint8(decoded)[0].astype(int) - candidate.image).max() <= 1


def test_settings_are_the_packages_own_unless_others_are_given(package):
    assert package.settings == SamplingConfig(candidates=4, batch_size=3)
    assert len(package.generate(PROMPT)) == 4
    likeliest = {tuple(candidate.tokens.tolist()) for candidate in package.generate(PROMPT, top_k=1)}
    assert len(likeliest) == 1
    with pytest.raises(ConfigError, match="guidance is 3.0, but the generator was trained without caption"):
        package.generate(PROMPT, guidance=3.0)


def test_a_package_records_its_parts(package_folder, parts, package):
    metadata = json.loads((package_folder / "package.json").read_bytes())
    assert metadata["parts"] == {name: read_manifest(parts[name])["sha256"] for name in PARTS}
    assert metadata["seed"] == 0 and metadata["sampling"]["candidates"] == 4
    assert package.generator.fingerprint == metadata["parts"]["generator"]


def test_the_same_parts_make_the_same_package(package_folder, parts, tmp_path):
    fingerprint = write_package(tmp_path, parts, SamplingConfig(candidates=4, batch_size=3), {"seed": 0})
    assert fingerprint == load_package(package_folder).fingerprint
    assert write_package(tmp_path, parts, SamplingConfig(candidates=5), {"seed": 0}) != fingerprint


def test_a_folder_that_is_not_a_part_is_removed_when_the_package_is_written_again(own_folder, parts):
    (own_folder / "upscaler").mkdir()
    write_package(own_folder, parts, SamplingConfig(), {})
    assert sorted(path.name for path in own_folder.iterdir() if path.is_dir()) == sorted(PARTS)


def test_a_decoder_makes_the_images_of_a_package_and_tokens_stay_the_tokenizers(package, parts):
    decoder = package.image_tokenizer.decoder
    torch.nn.init.normal_(decoder.output[-1].weight, generator=torch.Generator().manual_seed(0))
    tokenizer = components.load("image_tokenizers", parts["image_tokenizer"])
    tokens = package.generate(PROMPT)[0].tokens[None]

    images = package.image_tokenizer.decode(tokens)

    plain = tokenizer.decode(tokens)
    assert images.equal(decoder.decode(tokens, plain)) and not images.equal(plain)
    assert package.image_tokenizer.encode(images).equal(tokenizer.encode(images))
    assert package.image_tokenizer.fingerprint == tokenizer.fingerprint
    torch.nn.init.zeros_(decoder.output[-1].weight)


def test_a_package_of_an_earlier_version_has_no_decoder(own_folder):
    metadata = json.loads((own_folder / "package.json").read_bytes())
    del metadata["parts"]["decoder"]
    shutil.rmtree(own_folder / "decoder")
    write_json(own_folder / "package.json", metadata)
    write_manifest(own_folder, {"package.json": None}, {"parts": metadata["parts"]})

    package = load_package(own_folder)

    assert len(package.generate(PROMPT)) == 4 and package.image_tokenizer.built_as["kind"] == "dvae"


def replace_generator(folder: Path, _: dict) -> None:
    components.save(tiny("generators", "transformer", seed=1), folder / "generator")


def remove_scorer(folder: Path, _: dict) -> None:
    shutil.rmtree(folder / "scorer")


def use_other_tokenizer(folder: Path, parts: dict[str, Path]) -> None:
    components.save(tiny("image_tokenizers", "dvae", seed=1), folder.parent / "other")
    write_package(folder, {**parts, "image_tokenizer": folder.parent / "other"}, SamplingConfig(), {})


def use_earlier_version(folder: Path, parts: dict[str, Path]) -> None:
    part = shutil.copytree(parts["image_tokenizer"], folder.parent / "earlier")
    header = json.loads((part / "config.json").read_bytes())
    write_json(part / "config.json", header | {"family": "tokenizers"})
    write_manifest(part, {"config.json": None, "weights.safetensors": None}, {})
    write_package(folder, {**parts, "image_tokenizer": part}, SamplingConfig(), {})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (replace_generator, UserError, "generator is not the part this package was made with."),
        (use_other_tokenizer, UserError, "the decoder was trained with image_tokenizer .*, but "),
        (remove_scorer, DamagedArtefact, "scorer/manifest.json is missing"),
        (use_earlier_version, ConfigError, "image_tokenizer was written by an earlier version"),
    ],
)
def test_a_part_that_is_missing_or_does_not_fit_is_rejected_with_the_fix(
    own_folder, parts, change, error, message
):
    change(own_folder, parts)
    with pytest.raises(error, match=rf"{message}.* Run: dvc repro package_model$"):
        load_package(own_folder)


def test_a_flipped_bit_in_any_file_is_rejected(own_folder):
    for path in sorted(path for path in own_folder.rglob("*") if path.is_file()):
        for _ in flips(path, 2):
            with pytest.raises(DamagedArtefact, match=re.escape(str(path))):
                load_package(own_folder)
    load_package(own_folder)


def test_damaged_parts_are_not_packed(own_folder, parts, tmp_path):
    (own_folder / "scorer/config.json").write_bytes(b"{}")
    with pytest.raises(DamagedArtefact, match="scorer/config.json should be"):
        write_package(tmp_path / "again", {**parts, "scorer": own_folder / "scorer"}, SamplingConfig(), {})


def test_a_folder_that_is_no_package_and_a_device_that_is_not_there_are_rejected(package_folder, parts):
    message = "is not a package: its manifest describes something else. Give the folder that `dvc repro"
    with pytest.raises(UserError, match=message):
        load_package(parts["scorer"])
    message = "there is no device 'tpu' here. Give cpu, or cuda on a machine that has it"
    with pytest.raises(UserError, match=message):
        load_package(package_folder, device="tpu")
