"""The stage `recaption`: a captioner trained on the pairs, and its captions in place of those of a share of them."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages import package_model, recaption, tokenize_pairs, train_scorer, train_text_tokenizer
from tests.helpers.paths import ROOT
from tests.helpers.sources import files_of, scenes_config
from tests.helpers.tiny_models import TINY, tiny, write_parts
from tests.pipeline.test_data_stages import CLIP, TRAINING, stage
from tests.pipeline.test_stages import smoke
from thousandwords import components, preflight
from thousandwords.core.config import ConfigError
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import read_manifest
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.recaptions import is_recaptioned, open_recaptions
from thousandwords.data.token_shards import read_token_rows
from thousandwords.ingest.ingest import write_pairs
from thousandwords.text.normalize import normalize

SHARE = 0.6
CAPTIONER = {
    "kind": "cross_attention", "recaption_share": SHARE, "candidates": 2, "training": TRAINING,
    "cross_attention": TINY["captioners"]["cross_attention"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Forty scenes of 24 pixels in two shards, four held-out ones, and a text tokenizer."""
    folder = tmp_path_factory.mktemp("recaption")
    write_pairs(scenes_config(40, image_size=24, rows_per_shard=20), 0, folder / "pairs")
    context = stage("train_text_tokenizer", text_tokenizer={"vocab_size": 300, "text_length": 12})
    train_text_tokenizer.train_text_tokenizer(folder / "pairs", folder / "text_tokenizer", context)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Resumable state goes where the test is."""
    monkeypatch.chdir(tmp_path)


def recaptioned(folder: Path, out: Path, **changes: object) -> dict:
    """Run the stage; the metrics that it recorded."""
    context = stage("recaption", captioner=CAPTIONER | changes)
    outs = out / "captioner", out / "recaptions", out / "curves.json"
    recaption.recaption(folder / "pairs", folder / "text_tokenizer", *outs, context)
    return context.tracker.figures


def chosen_keys(reader: PairReader, share: float = SHARE) -> set[str]:
    return {key for key in map(reader.key, range(len(reader))) if is_recaptioned(key, 0, share)}


def test_the_chosen_training_pairs_have_a_second_caption_with_its_origin_and_no_other_pair_has_one(
    folder, tmp_path
):
    figures = recaptioned(folder, tmp_path)

    reader = PairReader(folder / "pairs", "train")
    tables = [pq.read_table(path) for path in sorted((tmp_path / "recaptions").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    model = components.load("captioners", tmp_path / "captioner")
    assert {row["key"] for row in rows} == chosen_keys(reader) and 15 < len(rows) < 33
    assert all(row["caption"] for row in rows)
    assert {row["provenance"] for row in rows} == {f"captioner {model.fingerprint[:12]}, seed 0"}
    metadata = read_manifest(tmp_path / "recaptions")["facts"]
    assert metadata["captioner"] == model.fingerprint and metadata["pairs"] == reader.fingerprint
    assert model.header["text_tokenizer"] == read_manifest(folder / "text_tokenizer")["sha256"]
    assert model.header["captions"] == {"candidates": 2, "top_p": 0.95}
    held_out = metadata["figures"]
    assert held_out["images"] == 4 and held_out["scenes"].keys() >= {"all", "shape", "readable"}
    assert 0 < held_out["captions"]["distinct_2"] <= 1 and held_out["originals"]["words"] > 5
    assert figures["scenes.all"] == held_out["scenes"]["all"]


def test_the_same_seed_gives_the_same_bytes_and_another_share_trains_nothing_again(folder, tmp_path):
    recaptioned(folder, tmp_path / "first")
    shutil.rmtree(".ckpt")
    shutil.rmtree(".store")
    recaptioned(folder, tmp_path / "again")
    for name in ("captioner", "recaptions"):
        assert files_of(tmp_path / "first" / name) == files_of(tmp_path / "again" / name)

    recaptioned(folder, tmp_path / "every", recaption_share=1.0)

    assert files_of(tmp_path / "every" / "captioner") == files_of(tmp_path / "first" / "captioner")
    first, every = (
        open_recaptions(tmp_path / name / "recaptions", folder / "pairs") for name in ("first", "every")
    )
    for shard in ("train-00000.parquet", "train-00001.parquet"):
        assert len(every.of_shard(shard)) == 20
        assert first.of_shard(shard).items() <= every.of_shard(shard).items()


def test_a_shard_that_was_captioned_before_the_run_was_killed_is_not_captioned_again(
    folder, tmp_path, monkeypatch
):
    recaptioned(folder, tmp_path / "whole")
    shutil.rmtree(".store")
    captioned, caption_rows = [], recaption.caption_rows

    def killed_at_the_second(model, tokenizer, reader, rows, *others):
        if reader.key(0).startswith("scene-train"):
            captioned.append(reader.key(0))
            if len(captioned) == 2:
                raise KeyboardInterrupt
        return caption_rows(model, tokenizer, reader, rows, *others)

    monkeypatch.setattr(recaption, "caption_rows", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        recaptioned(folder, tmp_path / "killed")
    recaptioned(folder, tmp_path / "killed")

    assert captioned == ["scene-train-000000", "scene-train-000020", "scene-train-000020"]
    assert files_of(tmp_path / "killed" / "recaptions") == files_of(tmp_path / "whole" / "recaptions")


def test_a_pair_whose_second_caption_is_empty_keeps_its_own(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(recaption, "caption_images", lambda *others: ["", *["a star"] * (len(others[3]) - 1)])
    recaptioned(folder, tmp_path)
    second = open_recaptions(tmp_path / "recaptions", folder / "pairs").of_shard("train-00000.parquet")
    first = min(chosen_keys(PairReader(folder / "pairs", "train")))
    assert set(second.values()) == {"a star"} and first not in second


def test_without_a_captioner_the_stage_writes_the_same_bytes_for_any_pairs_and_reads_no_image(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(PairReader, "__init__", lambda *_: pytest.fail("it read the pairs"))
    write_pairs(scenes_config(7, image_size=24), 1, tmp_path / "other" / "pairs")
    shutil.copytree(folder / "text_tokenizer", tmp_path / "other" / "text_tokenizer")
    for name, source in (("one", folder), ("two", tmp_path / "other")):
        context = stage("recaption", captioner={"kind": "none"})
        outs = tmp_path / name / "captioner", tmp_path / name / "recaptions", tmp_path / name / "curves.json"
        recaption.recaption(source / "pairs", source / "text_tokenizer", *outs, context)
    for name in ("captioner", "recaptions"):
        assert files_of(tmp_path / "one" / name) == files_of(tmp_path / "two" / name)
    assert read_manifest(tmp_path / "one" / "recaptions")["files"] == {}
    assert not components.load("captioners", tmp_path / "one" / "captioner").is_trainable


def test_generator_and_scorer_are_trained_on_the_second_captions_and_held_out_pairs_keep_theirs(
    folder, tmp_path, monkeypatch
):
    recaptioned(folder, tmp_path)
    components.save(tiny("image_tokenizers", "dvae", image_size=24), tmp_path / "image_tokenizer")
    context, recaptions = stage("tokenize_pairs", tokens={}), tmp_path / "recaptions"
    paths = folder / "pairs", tmp_path / "image_tokenizer", tmp_path / "tokens"
    tokenize_pairs.tokenize_pairs(*paths, context, recaptions=recaptions)

    opened = open_recaptions(recaptions, folder / "pairs")
    second = opened.of_shard("train-00000.parquet") | opened.of_shard("train-00001.parquet")
    for split in ("train", "validation", "unseen"):
        rows, reader = read_token_rows(tmp_path / "tokens", split), PairReader(folder / "pairs", split)
        own = {key: reader.captions(row) for row, key in enumerate(rows.keys)}
        assert rows.captions == [[second[key]] if key in second else own[key] for key in rows.keys]
    read = []

    def read_an_epoch(*_, batch_of, **__):
        read.extend(batch_of(range(40))[1])
        return {}, []

    monkeypatch.setattr(train_scorer, "train", read_an_epoch)
    monkeypatch.setattr(components, "save", lambda *_, **__: "")
    context = stage("train_scorer", scorer={**CLIP, "clip": CLIP["clip"] | {"vision_patch_size": 8}})
    outs = tmp_path / "scorer", tmp_path / "scorer.json"
    train_scorer.train_scorer(folder / "pairs", *outs, context, recaptions=recaptions)
    captions = read_token_rows(tmp_path / "tokens", "train").captions
    assert sorted(read) == sorted(normalize(texts[0]) for texts in captions)


def test_a_package_has_the_captioner_only_if_one_was_trained(tmp_path):
    parts, fingerprints = write_parts(tmp_path), {}
    context = stage("package_model", sampling={"candidates": 2})
    for kind in ("none", "cross_attention"):
        components.save(tiny("captioners", kind), tmp_path / kind, captions={"candidates": 2, "top_p": None})
        out = tmp_path / f"with {kind}"
        package_model.package_model(**parts, out=out, context=context, captioner=tmp_path / kind)
        fingerprints[kind] = read_manifest(out)["sha256"]
    package_model.package_model(**parts, out=tmp_path / "without", context=context)
    assert fingerprints["none"] == read_manifest(tmp_path / "without")["sha256"]
    assert fingerprints["none"] != fingerprints["cross_attention"]
    assert (tmp_path / "with cross_attention" / "captioner" / "weights.safetensors").is_file()


WRONG = [
    ({"kind": "cross_atention"}, "captioners has no kind 'cross_atention'. Did you mean 'cross_attention'?"),
    ({"kind": "none", "recaption_share": 0.5}, "captioner has no key 'recaption_share'. Its keys are: kind"),
    (CAPTIONER | {"recaption_share": 2.0}, "captioner.recaption_share is 2.0; it lies between 0 and 1"),
    (CAPTIONER | {"cross_attention": {"patch": 5}}, "the 10 pixels of a feature's cell; set captioner.cross_attention.patch"),
    (CAPTIONER | {"training": TRAINING | {"precision": "float16"}}, "this model has no residual_paths"),
]  # fmt: skip


@pytest.mark.parametrize(("block", "message"), WRONG)
def test_a_wrong_setting_is_rejected_before_any_work(block, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as caught:
        preflight.check_params(smoke() | {"captioner": block}, 0)
    assert message in str(caught.value)


def test_two_kinds_of_second_captions_are_rejected():
    params = smoke()
    params["data"] |= {"source": "csv", "recaption_column": "long", "recaption_share": 0.5}
    with pytest.raises(ConfigError) as caught:
        preflight.check_captioner(CAPTIONER, params)
    assert str(caught.value) == (
        "params.yaml: data.recaption_share is 0.5 and captioner.recaption_share is 0.6, but a pair has one second caption: a "
        "column of your data, or a captioner's. Set one of them to 0"
    )
