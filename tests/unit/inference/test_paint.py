"""With `decoder: {paint: kept}` candidates are ranked by the tokenizer's images, and the decoder makes the kept ones."""

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.rank_images import MAX_CANDIDATES, rank_images
from studio.worker import handlers
from tests.helpers.tiny_models import tiny, write_parts
from tests.unit.inference.test_inpainted_samples import stage_context
from thousandwords import components
from thousandwords.core.manifest import read_manifest
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.package import load_package, write_package
from thousandwords.inference.provenance import Provenance, encode_png_with_provenance
from thousandwords.inference.sample_batches import Models, SampleTask, make_sampler
from thousandwords.inference.sample_shards import PAINTED, read_samples, write_samples

PROMPT = "a small green star on sand"
SETTINGS = SamplingConfig(candidates=MAX_CANDIDATES + 2, batch_size=7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{paint: a folder with a package and its parts}, whose decoder changes every image; none has no decoder."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("all", "kept", "none")}
    for name, folder in folders.items():
        parts = write_parts(folder)
        fingerprint = read_manifest(parts["image_tokenizer"])["sha256"]
        decoder = tiny("decoders", "none" if name == "none" else "unet")
        if name != "none":
            rng = torch.Generator().manual_seed(0)
            torch.nn.init.normal_(decoder.output[-1].weight, generator=rng, std=0.2)
        paint = {"paint": "kept"} if name == "kept" else {}
        components.save(decoder, parts["decoder"], image_tokenizer=fingerprint, **paint)
        write_package(folder / "package", parts, SETTINGS, {})
    return folders


@pytest.fixture(scope="module")
def packages(folders):
    return {name: load_package(folder / "package") for name, folder in folders.items()}


def difference(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two bytes: another batch may change the last bit."""
    return np.abs(a.astype(int) - b).max()


def test_candidates_are_ranked_by_the_tokenizers_images_and_only_the_kept_ones_are_the_decoders(
    packages, monkeypatch
):
    package, plain, decoded = packages["kept"], packages["none"].generate(PROMPT), []
    decoder = package.image_tokenizer.decoder
    decode = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda *inputs: decoded.append(len(inputs[0])) or decode(*inputs))

    kept = package.generate(PROMPT, keep=3)

    ranks = [(each.candidate, each.score) for each in plain]
    assert [(each.candidate, each.score) for each in kept] == ranks[:3]
    assert decoded == [1, 1, 1]
    by_decoder = {each.candidate: each.image for each in packages["all"].generate(PROMPT)}
    for each, without in zip(kept, plain, strict=False):
        assert difference(each.image, by_decoder[each.candidate]) <= 1 < difference(each.image, without.image)


def test_by_default_candidates_are_ranked_by_the_decoders_images(packages):
    every = {each.candidate: each.score for each in packages["all"].generate(PROMPT)}
    plain = {each.candidate: each.score for each in packages["none"].generate(PROMPT)}
    assert max(abs(every[number] - plain[number]) for number in every) > 1e-4
    best = packages["all"].generate(PROMPT, keep=2)
    assert [each.candidate for each in best] == sorted(every, key=lambda number: -every[number])[:2]


@pytest.mark.parametrize("paint", ["all", "kept"])
def test_a_kept_image_is_reproduced_from_its_file_whatever_was_kept_with_it(packages, paint):
    package = packages[paint]
    for each in package.generate(PROMPT, seed=5, keep=4):
        provenance = Provenance(PROMPT, 5, each.candidate, package.fingerprint, SETTINGS)
        data = encode_png_with_provenance(each.image, provenance)
        answer = handlers.reproduce(package, data)
        assert answer["same"] and base64.b64decode(answer["png"]) == data
        assert answer["score"] == pytest.approx(each.score, abs=1e-6)


def test_the_studio_shows_every_candidate_so_the_decoder_makes_all(packages):
    package = packages["kept"]
    *events, ranked = list(handlers.generate(package, PROMPT, 4, 0, None, {}))[1:]
    images = {each.candidate: each.image for each in package.generate(PROMPT, 4)}
    for event in events:
        settings = dataclasses.replace(SETTINGS, candidates=4, batch_size=8)
        provenance = Provenance(PROMPT, 0, event["candidate"], package.fingerprint, settings)
        expected = encode_png_with_provenance(images[event["candidate"]], provenance)
        assert base64.b64decode(event["png"]) == expected
    assert len(events) == len(ranked["order"]) == 4


def sample_and_rank(folder: Path) -> None:
    """The samples of a prompt, ranked, by the stages' functions."""
    package = load_package(folder / "package")
    models = Models(package.text_tokenizer, package.image_tokenizer, package.generator, ("",))
    sample = make_sampler(models, SampleTask((), ("",), [("own", PROMPT)], SETTINGS, 0, None), "cpu")
    tables = [sample(number) for number in range(3)]
    write_samples(folder / "samples", tables, {"candidates": SETTINGS.candidates, "prompts": 1, "seed": 0})
    parts = (folder / part for part in ("image_tokenizer", "decoder", "scorer"))
    rank_images(folder / "samples", *parts, folder / "ranked", stage_context({}))


def test_the_stages_decode_the_best_of_each_prompt_and_show_these_everywhere(folders, packages):
    for folder in folders.values():
        sample_and_rank(folder)

    read = {name: read_samples(folder / "samples", folder / "ranked") for name, folder in folders.items()}
    assert (read_samples(folders["kept"] / "samples").images(0) == read["none"].images(0)).all()
    best = [each.candidate for each in packages["kept"].generate(PROMPT, keep=MAX_CANDIDATES)]
    assert {candidate for _, candidate in read["kept"].painted} == set(best) and not read["all"].painted
    for candidate in range(SETTINGS.candidates):
        expected = read["all" if candidate in best else "none"].image(0, candidate)
        assert difference(read["kept"].image(0, candidate), expected) <= 1
    generated = packages["kept"].generate(PROMPT, keep=1)[0].image
    assert (read["kept"].images(0)[best[0]] == generated).all()
    scores = {name: (folder / "ranked/scores.parquet").read_bytes() for name, folder in folders.items()}
    assert scores["kept"] == scores["none"] != scores["all"]
    sheets = {(folder / "ranked/overview.png").read_bytes() for folder in folders.values()}
    assert len(sheets) == 3
    assert not (folders["all"] / "ranked" / PAINTED).exists()
    assert json.loads((folders["kept"] / "decoder/config.json").read_bytes())["paint"] == "kept"
