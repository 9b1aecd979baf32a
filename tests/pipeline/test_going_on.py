"""Going on from a model (`init`, `tune`), and from the last checkpoint with more `steps`: the stages, in this process."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages import train_generator, train_image_tokenizer, train_scorer, train_text_tokenizer
from tests.helpers.images import encoded, noise, write
from tests.helpers.sources import folder_config
from tests.helpers.tiny_models import CAPTIONS, SIDE, TINY, tiny, tiny_text, write_shards
from tests.pipeline.test_data_stages import stage
from thousandwords import components
from thousandwords.core import init_models
from thousandwords.core.manifest import read_manifest
from thousandwords.data.images import to_float
from thousandwords.data.pair_shards import open_pairs
from thousandwords.data.token_shards import TokenHeader
from thousandwords.ingest.ingest import write_pairs
from thousandwords.nn.metrics import mean_psnr
from thousandwords.text import bpe

EVERY = {"evaluate_every": 30, "log_every": 30, "checkpoint_every": 30}
TRAINING = {"steps": 30, "batch_size": 4, "learning_rate": 0.01, "final_learning_rate": 0.01, **EVERY}
TRAINING |= {"weight_decay": 0.1, "muon_lr_scale": 2.0, "ema_decay": 0.5}
GENERATOR = {"kind": "transformer", "transformer": TINY["generators"]["transformer"]}


def write_tokenizers(folder: Path, kind: str) -> torch.nn.Module:
    """Both tokenizers, and token shards of 16 rows."""
    tokenizer = tiny("image_tokenizers", kind)
    tokenizer.fingerprint = components.save(tokenizer, folder / "image_tokenizer")
    bpe.save(tiny_text(), folder / "text_tokenizer")
    header = TokenHeader(kind, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.scales, SIDE)
    write_shards(folder / "tokens", {"train": 16, "validation": 4}, header)
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Token shards of 16 rows, the tokenizers, and a generator that was trained on them for 30 steps."""
    folder = tmp_path_factory.mktemp("first")
    write_tokenizers(folder, "dvae")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(folder, folder / "generator", GENERATOR | {"training": TRAINING})
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Resumable state goes where the test is."""
    monkeypatch.chdir(tmp_path)


def train(folder: Path, out: Path, block: dict) -> list[dict]:
    """Train a generator on the shards of `folder`; its curves."""
    context = stage("train_generator", generator=block)
    parts = (folder / name for name in ("tokens", "text_tokenizer", "image_tokenizer"))
    train_generator.train_generator(*parts, out, out.with_suffix(".json"), context)
    return json.loads(out.with_suffix(".json").read_bytes())


def going_on(folder: Path, tune: object = "all", **training: object) -> dict:
    return {
        "kind": "transformer",
        "init": str(folder / "generator"),
        "tune": tune,
        "training": TRAINING | {"steps": 3} | training,
    }


def weights(path: Path) -> dict[str, torch.Tensor]:
    return components.load("generators", path).state_dict()


def changed(before: Path, after: Path) -> set[str]:
    old, new = weights(before), weights(after)
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_the_first_loss_after_init_is_the_last_loss_before_it(folder, tmp_path):
    last = json.loads((folder / "generator.json").read_bytes())[-1]
    block = going_on(folder, steps=1, learning_rate=1e-9, final_learning_rate=0.0, ema_decay=None)
    first = train(folder, tmp_path / "generator", block)[0]
    assert first["validation/loss"] == pytest.approx(last["validation/loss"], rel=1e-4)
    header = components.load("generators", tmp_path / "generator").header
    assert header["init"] == read_manifest(folder / "generator")["sha256"]
    assert header["config"]["width"] == GENERATOR["transformer"]["width"]


def test_tune_all_changes_every_matrix_and_image_head_only_the_rows_of_image_tokens(folder, tmp_path):
    train(folder, tmp_path / "all", going_on(folder))
    everything = changed(folder / "generator", tmp_path / "all")
    assert {"image_embedding.weight", "layers.0.mlp.output.weight", "image_output.weight"} < everything

    Path(".ckpt").rename("elsewhere")
    train(folder, tmp_path / "head", going_on(folder, "image_head"))
    assert changed(folder / "generator", tmp_path / "head") == {"image_output.weight", "image_output.bias"}
    assert weights(tmp_path / "head")["image_output.weight"].shape == (12, GENERATOR["transformer"]["width"])
    (tensors,) = Path(".ckpt/train_generator").glob("*/step-00000003/tensors.safetensors")
    moments = [name for name in load_file(tensors) if name.endswith(("exp_avg", "momentum_buffer"))]
    assert len(moments) == 2  # none of the frozen parameters


def test_tune_takes_patterns_also_such_that_only_muon_has_parameters(folder, tmp_path):
    train(folder, tmp_path / "layer", going_on(folder, ["layers.1.mlp.*.weight"]))
    names = changed(folder / "generator", tmp_path / "layer")
    assert names and all(name.startswith("layers.1.mlp.") for name in names)


@pytest.fixture
def tokenizer(tmp_path) -> torch.nn.Module:
    """A multi_scale tokenizer, with token shards of it and a text tokenizer in the test's folder."""
    return write_tokenizers(tmp_path, "multi_scale")


def test_the_transformer_learns_multi_scale_tokens_in_flat_order(tmp_path, tokenizer):
    rows = train(tmp_path, tmp_path / "generator", GENERATOR | {"training": TRAINING})

    generator = components.load("generators", tmp_path / "generator")
    text = tiny_text().encode(CAPTIONS[:2])
    tokens = generator.sample(text, [torch.Generator().manual_seed(row) for row in range(2)])
    assert rows[-1]["validation/image_loss"] < 5 and "validation/text_loss" in rows[-1]
    assert tokens.shape == (2, sum(side * side for side in tokenizer.scales)) and len(tokenizer.scales) > 1
    assert tokenizer.decode(tokens).shape == (2, 3, SIDE, SIDE)
    assert generator.log_probabilities(text, tokens)[1].sum(dim=1).isfinite().all()


def test_a_next_scale_generator_gets_the_codes_of_its_tokenizer_and_keeps_them(tmp_path, tokenizer):
    settings = TINY["generators"]["next_scale"]
    block = {"kind": "next_scale", "next_scale": settings, "training": TRAINING | {"steps": 3}}

    rows = train(tmp_path, tmp_path / "generator", block)
    going = {"kind": "next_scale", "init": str(tmp_path / "generator"), "training": TRAINING | {"steps": 3}}
    train(tmp_path, tmp_path / "further", going)

    assert "validation/image_loss" in rows[-1] and not any("text_loss" in row for row in rows)
    names = changed(tmp_path / "generator", tmp_path / "further")
    assert "image_output.weight" in names and not any(name.startswith("latents.") for name in names)
    loaded = components.load("generators", tmp_path / "further")
    assert loaded.header["image_tokenizer"] == tokenizer.fingerprint
    assert loaded.latents.codebook.equal(tokenizer.codebook)


def test_more_steps_go_on_from_the_last_checkpoint_and_the_message_tells_the_rates(folder, tmp_path, capfd):
    block = GENERATOR | {"training": TRAINING | {"steps": 6, "final_learning_rate": 0.0, "log_every": 1}}
    short = train(folder, tmp_path / "short", block)
    longer = GENERATOR | {"training": block["training"] | {"steps": 9}}
    rows = train(folder, tmp_path / "long", longer)

    message = capfd.readouterr().out
    assert (
        "train_generator: goes on from step 6 of the run with training.steps 6, up to step 9; the cosine now ends "
        "there, so the learning rate goes from 0.00067 to 0.0025."
    ) in message
    assert "For one schedule from step 0, delete .ckpt/train_generator and run again" in message
    assert rows[: len(short)] == short and [row["step"] for row in rows] == list(range(1, 10))

    train(folder, tmp_path / "again", longer)  # its own checkpoints now: the same, without a word
    assert "goes on" not in capfd.readouterr().out and not changed(tmp_path / "long", tmp_path / "again")


def test_with_decay_steps_a_continued_run_is_the_run_that_had_more_steps_from_the_start(
    folder, tmp_path, capfd
):
    training = TRAINING | {"steps": 4, "decay_steps": 8, "final_learning_rate": 0.0}
    for steps, name in ((4, "short"), (8, "continued")):
        train(folder, tmp_path / name, GENERATOR | {"training": training | {"steps": steps}})
    assert "up to step 8; the learning rate goes on as planned" in capfd.readouterr().out
    Path(".ckpt").rename("elsewhere")
    train(folder, tmp_path / "whole", GENERATOR | {"training": training | {"steps": 8}})
    assert not changed(tmp_path / "continued", tmp_path / "whole")


def test_fewer_steps_or_another_setting_start_anew(folder, tmp_path, capfd):
    training = TRAINING | {"steps": 4, "log_every": 1}
    train(folder, tmp_path / "first", GENERATOR | {"training": training})
    for other in ({"steps": 3}, {"steps": 6, "learning_rate": 0.02}):
        rows = train(folder, tmp_path / "other", GENERATOR | {"training": training | other})
        assert rows[0]["step"] == 1
    assert "goes on" not in capfd.readouterr().out


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(24):
        files = {f"{number}.png": encoded(noise(SIDE, SIDE, number)), f"{number}.txt": CAPTIONS[number % 4]}
        write(folder / "own", files)
    write_pairs(folder_config(folder / "own", image_size=SIDE, min_side=8), 0, folder / "pairs")
    return folder / "pairs"


def test_both_tokenizers_are_copied_byte_for_byte_so_that_tokens_stay_valid(folder, pairs, tmp_path, capfd):
    """And so the store of encoded shards, which is named by the tokenizer's fingerprint, serves old images."""
    text = stage("train_text_tokenizer", text_tokenizer={"init": str(folder / "text_tokenizer")})
    train_text_tokenizer.train_text_tokenizer(pairs, tmp_path / "text_tokenizer", text)
    block = {"kind": "dvae", "init": str(folder / "image_tokenizer")}
    image = stage("train_image_tokenizer", image_tokenizer=block)
    train_image_tokenizer.train_image_tokenizer(
        pairs, tmp_path / "image_tokenizer", tmp_path / "curves.json", image
    )
    for name in ("text_tokenizer", "image_tokenizer"):
        assert read_manifest(tmp_path / name)["sha256"] == read_manifest(folder / name)["sha256"]
    assert f"copied {folder}/text_tokenizer (fingerprint" in capfd.readouterr().out


@pytest.mark.parametrize("has_parts", [False, True], ids=["pixels", "adversary and perceptual"])
def test_a_tuned_decoder_shows_the_same_tokens_otherwise(folder, pairs, tmp_path, has_parts):
    training = {"steps": 5, "batch_size": 8, "learning_rate": 0.01, "evaluate_every": 5}
    block = {"kind": "dvae", "init": str(folder / "image_tokenizer"), "tune": "decoder", "training": training}
    if has_parts:
        components.save(tiny("scorers", "clip"), tmp_path / "scorer")
        block["adversary"] = {"start": 2, "width": 16, "layers": 1, "weight": 0.01}
        block["perceptual"] = {"network": str(tmp_path / "scorer"), "weight": 0.01}
    context, out = stage("train_image_tokenizer", image_tokenizer=block), tmp_path / "image_tokenizer"
    train_image_tokenizer.train_image_tokenizer(pairs, out, tmp_path / "curves.json", context)

    before, after = (components.load("image_tokenizers", path) for path in (folder / "image_tokenizer", out))
    old, new = before.state_dict(), after.state_dict()
    assert all(name.startswith("decoder.") for name in old if not torch.equal(old[name], new[name]))
    assert not torch.equal(old["decoder.codebook.weight"], new["decoder.codebook.weight"])
    assert after.header["init"] == read_manifest(folder / "image_tokenizer")["sha256"]
    (row,) = json.loads((tmp_path / "curves.json").read_bytes())
    images = to_float(open_pairs(pairs, "validation").images([0]))
    assert row["validation/psnr_hard"] > mean_psnr(images, before.decode(before.encode(images)))
    assert old.keys() == new.keys() and after.built_as == before.built_as
    assert has_parts == ("discriminator_loss" in row) == ("perceptual_loss" in row)


def test_a_scorer_goes_on_from_another(pairs, tmp_path):
    fingerprint = components.save(tiny("scorers", "clip"), tmp_path / "first")
    training = {"steps": 1, "batch_size": 8, "learning_rate": 1e-9, "evaluate_every": 1}
    block = {"kind": "clip", "init": str(tmp_path / "first"), "training": training}
    context = stage("train_scorer", scorer=block)
    train_scorer.train_scorer(pairs, tmp_path / "scorer", tmp_path / "curves.json", context)
    before, after = (components.load("scorers", tmp_path / name) for name in ("first", "scorer"))
    assert after.header["init"] == fingerprint
    for name, weight in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], weight, rtol=0, atol=1e-6)


def test_dvc_watches_a_record_of_the_model_and_the_record_of_another_one_is_discarded(folder, tmp_path):
    from flows.dvc.init_models import discard_outdated_inits

    params = {"generator": {"init": str(folder / "generator")}, "scorer": {"init": None}}
    record = init_models.RECORDS / "generator.json"
    init_models.write_record("generator", params["generator"]["init"], folder / "generator")
    discard_outdated_inits(params)
    assert json.loads(record.read_bytes())["fingerprint"] == read_manifest(folder / "generator")["sha256"]

    (tmp_path / "copy").mkdir()
    components.save(tiny("generators", "transformer"), tmp_path / "copy")
    init_models.write_record("generator", params["generator"]["init"], tmp_path / "copy")
    discard_outdated_inits(params)
    assert not record.exists()
