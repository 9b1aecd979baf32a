"""The data stages on whole images and on many or long captions: views, crops, BPE-dropout, counts of cut captions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import (
    tokenize_pairs,
    train_decoder,
    train_generator,
    train_image_tokenizer,
    train_scorer,
    train_text_tokenizer,
)
from stages.runtime.stage import Stage
from tests.helpers import published_vqgan
from tests.helpers.images import encoded, noise, write
from tests.helpers.sources import folder_config
from tests.helpers.tiny_models import CAPTIONS, SIDE, TEXT_LENGTH, TEXT_VOCAB_SIZE, TINY, tiny
from thousandwords import components
from thousandwords.data import prefetch
from thousandwords.data.augmentation import generator_crop, view_rng
from thousandwords.data.images import decode_png, to_float
from thousandwords.data.loader import ImageLoader
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.token_shards import TokenRows, read_token_rows
from thousandwords.ingest.ingest import write_pairs
from thousandwords.pretrained import vqgan_weights

TRAINING = {"steps": 2, "batch_size": 4, "learning_rate": 0.01}
TRAINING |= {"evaluate_every": 2, "log_every": 1, "checkpoint_every": 2}
DVAE = {"kind": "dvae", "dvae": TINY["image_tokenizers"]["dvae"], "training": TRAINING}
TRANSFORMER = {"kind": "transformer", "transformer": TINY["generators"]["transformer"], "training": TRAINING}
CLIP = {"kind": "clip", "clip": TINY["scorers"]["clip"], "training": TRAINING}


class FakeTracker:
    """A tracker that only stores metrics."""

    run_id = "run"

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.figures |= values

    def files(self, paths: tuple[Path, ...], folder: str | None = None) -> None:
        pass

    def resume(self, run_id: str) -> None:
        pass


def stage(name: str, **sections: object) -> Stage:
    return Stage(name, {"seed": 0, "device": "cpu", **sections}, FakeTracker())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Resumable state goes where the test is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Whole images of 24 × 40 and two captions each, prepared for squares of SIDE; and a tiny image tokenizer."""
    folder = tmp_path_factory.mktemp("whole")
    for number in range(24):
        caption = f"{CAPTIONS[number % 4]}\nImage {number}"
        write(folder / "own", {f"{number}.png": encoded(noise(24, 40, number)), f"{number}.txt": caption})
    config = folder_config(folder / "own", image_size=SIDE, min_side=8, keep="whole")
    write_pairs(config, 0, folder / "pairs")
    components.save(tiny("image_tokenizers", "dvae"), folder / "image_tokenizer")
    return folder


# --- views -----------------------------------------------------------------------------------------------------------


def tokenized(folder: Path, out: Path, **tokens: object) -> tuple[TokenRows, TokenRows]:
    """(train, validation)"""
    context = stage("tokenize_pairs", tokens=tokens)
    tokenize_pairs.tokenize_pairs(folder / "pairs", folder / "image_tokenizer", out, context)
    return read_token_rows(out, "train"), read_token_rows(out, "validation")


def tokens_of(images: np.ndarray) -> np.ndarray:
    """Tokens of images (B, H, W, 3) by the tiny image tokenizer."""
    return tiny("image_tokenizers", "dvae").encode(to_float(images)).numpy()


def test_by_default_the_tokens_are_those_of_the_plain_squares(folder, tmp_path):
    for rows, split in zip(tokenized(folder, tmp_path / "tokens"), ("train", "validation"), strict=True):
        reader = PairReader(folder / "pairs", split)
        assert rows.header.views == 1 and rows.tokens.shape == (len(reader), 1, 16)
        assert (rows.tokens[:, 0] == tokens_of(reader.images(range(len(reader))))).all()


def test_training_images_have_a_random_crop_in_each_view_and_held_out_ones_the_plain_square(folder, tmp_path):
    rows, held_out = tokenized(folder, tmp_path / "tokens", augmentation="paper", views_per_image=3)
    reader = PairReader(folder / "pairs", "train")

    assert rows.header.views == 3 and rows.tokens.shape == (len(reader), 3, 16)
    for row in (0, 7):
        for view in range(3):
            crop = generator_crop(reader.whole_images([row])[0], SIDE, view_rng(0, reader.key(row), view))
            assert (rows.tokens[row, view] == tokens_of(crop[None])[0]).all()
    assert len(np.unique(rows.tokens.reshape(-1, 16), axis=0)) > 2 * len(reader)
    plain = PairReader(folder / "pairs", "validation")
    assert (held_out.tokens == tokens_of(plain.images(range(len(plain))))[:, None]).all()


def test_views_do_not_depend_on_the_batch(folder, tmp_path):
    first, _ = tokenized(folder, tmp_path / "first", augmentation="paper", views_per_image=2, batch_size=3)
    again, _ = tokenized(folder, tmp_path / "again", augmentation="paper", views_per_image=2, batch_size=50)
    assert (first.tokens == again.tokens).all()


# --- captions --------------------------------------------------------------------------------------------------------


def train_text(folder: Path, out: Path, text_length: int) -> dict[str, float]:
    """Train the text tokenizer; returns the metrics that the stage logged."""
    block = {"vocab_size": TEXT_VOCAB_SIZE, "text_length": text_length}
    context = stage("train_text_tokenizer", text_tokenizer=block)
    train_text_tokenizer.train_text_tokenizer(folder / "pairs", out, context)
    return context.tracker.figures


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_prefetched_images_come_in_order_and_an_error_at_its_position(threads):
    started, received = [], []

    def make(number: int) -> int:
        started.append(number)
        if number == 7:
            raise ValueError("image 7")
        return -number

    with pytest.raises(ValueError, match="image 7"):
        for output in prefetch.prefetch_map(make, range(20), threads):
            received.append(output)
            assert len(started) <= len(received) + threads  # memory holds a few batches, not all
    assert received == [0, -1, -2, -3, -4, -5, -6]


def test_captions_that_are_truncated_are_counted_and_reported(folder, tmp_path, capsys):
    figures = train_text(folder, tmp_path / "text_tokenizer", text_length=14)
    count = 2 * len(PairReader(folder / "pairs", "train"))
    assert figures["captions"] == count and 0 < figures["captions_cut"] < count
    assert capsys.readouterr().err == (
        f"train_text_tokenizer: {figures['captions_cut']} of {count} captions have more than 14 tokens; the rest of each is "
        "ignored. To read more, raise text_tokenizer.text_length or vocab_size\n"
    )
    assert train_text(folder, tmp_path / "long", text_length=200)["captions_cut"] == 0
    assert capsys.readouterr().err == ""


# --- training --------------------------------------------------------------------------------------------------------


def train_small_generator(folder: Path, out: Path, **beside: object) -> tuple[dict[str, torch.Tensor], dict]:
    """(weights, metrics) after two steps on three views."""
    train_text(folder, out / "text_tokenizer", TEXT_LENGTH)
    tokenized(folder, out / "tokens", augmentation="paper", views_per_image=3)
    context = stage("train_generator", generator={**TRANSFORMER, **beside})
    inputs = out / "tokens", out / "text_tokenizer", folder / "image_tokenizer"
    train_generator.train_generator(*inputs, out / "generator", out / "curves.json", context)
    return components.load("generators", out / "generator").state_dict(), context.tracker.figures


def test_a_generator_trains_on_views_and_bpe_dropout_and_counts_truncated_captions(folder, tmp_path, capsys):
    plain, figures = train_small_generator(folder, tmp_path / "plain")
    dropped, _ = train_small_generator(folder, tmp_path / "dropped", bpe_dropout=0.5)
    again, _ = train_small_generator(folder, tmp_path / "again", bpe_dropout=0.5)

    count = 2 * len(PairReader(folder / "pairs", "train"))
    assert figures["captions"] == count and figures["captions_cut"] > 0
    sentence = f"train_generator: {figures['captions_cut']} of {count} captions have more than 8 tokens"
    assert sentence in capsys.readouterr().err
    assert all(dropped[name].equal(again[name]) for name in dropped)
    assert any(not dropped[name].equal(plain[name]) for name in dropped)


def test_an_image_tokenizer_trains_on_random_crops_if_set(folder, tmp_path):
    weights = {}
    for augmentation in ("none", "paper"):
        context = stage("train_image_tokenizer", image_tokenizer={**DVAE, "augmentation": augmentation})
        out = tmp_path / augmentation
        train_image_tokenizer.train_image_tokenizer(folder / "pairs", out, tmp_path / "curves.json", context)
        weights[augmentation] = components.load("image_tokenizers", out).state_dict()
    assert any(not weights["none"][name].equal(weights["paper"][name]) for name in weights["none"])


def test_a_decoder_is_trained_for_the_tokenizer_that_it_names_and_shown_beside_it(folder, tmp_path):
    adversary = {"start": 1, "width": 16, "layers": 1}
    unet = {"kind": "unet", "unet": TINY["decoders"]["unet"], "adversary": adversary, "training": TRAINING}
    for block in (unet, {"kind": "none"}):
        out, curves = tmp_path / block["kind"], tmp_path / f"{block['kind']}.json"
        context = stage("train_decoder", decoder=block)
        train_decoder.train_decoder(folder / "pairs", folder / "image_tokenizer", out, curves, context)

    tokenizer = components.load("image_tokenizers", folder / "image_tokenizer")
    trained, none = (components.load("decoders", tmp_path / kind) for kind in ("unet", "none"))
    assert trained.header["image_tokenizer"] == none.header["image_tokenizer"] == tokenizer.fingerprint
    last = json.loads((tmp_path / "unet.json").read_bytes())[-1]
    assert {"validation/psnr_hard", "validation/loss", "loss", "discriminator_loss"} <= last.keys()
    height, width = decode_png((tmp_path / "unet.png").read_bytes()).shape[:2]
    assert height / width == pytest.approx(3 / 6, abs=0.05)  # six held-out images: true, tokenizer, decoder
    assert components.with_decoder(tokenizer, none) is tokenizer
    assert json.loads((tmp_path / "none.json").read_bytes()) == [] and not (tmp_path / "none.png").exists()


def test_which_images_a_decoder_makes_is_written_beside_it_and_trains_nothing_again(
    folder, tmp_path, monkeypatch
):
    def train(**paint: str) -> dict:
        context = stage(
            "train_decoder", decoder={"kind": "unet", "unet": unet, "training": TRAINING, **paint}
        )
        inputs = folder / "pairs", folder / "image_tokenizer", tmp_path / "decoder", tmp_path / "curves.json"
        train_decoder.train_decoder(*inputs, context)
        return components.load("decoders", tmp_path / "decoder")

    unet = TINY["decoders"]["unet"]
    every = train()
    monkeypatch.setattr(type(every), "loss", lambda *_: pytest.fail("it was trained again"))
    monkeypatch.setattr(train_decoder, "evaluate", lambda *_: pytest.fail("it was evaluated again"))
    kept = train(paint="kept")

    assert "paint" not in every.header and kept.header["paint"] == "kept"
    assert all(tensor.equal(every.state_dict()[name]) for name, tensor in kept.state_dict().items())


def test_a_scorer_gets_each_caption_of_an_image_in_turn(folder, tmp_path, monkeypatch):
    captions, captions_at = [], ImageLoader.captions

    def recording(loader: ImageLoader, positions: range) -> list[str]:
        captions.extend(batch := captions_at(loader, positions))
        return batch

    monkeypatch.setattr(ImageLoader, "captions", recording)
    context = stage("train_scorer", scorer={**CLIP, "training": {**TRAINING, "steps": 12}})
    train_scorer.train_scorer(folder / "pairs", tmp_path / "scorer", tmp_path / "scorer.json", context)
    assert len(captions) == 12 * 4
    assert any(caption.startswith("Image") for caption in captions) and not set(CAPTIONS).isdisjoint(captions)


def test_micro_batches_use_the_number_of_text_tokens_of_the_whole_batch(folder, tmp_path):
    """Captions differ in length: the mean of the micro-batches' own means would be another loss."""

    def losses(name: str, accumulation: int) -> list[float]:
        training = {**TRAINING, "gradient_accumulation": accumulation}
        train_small_generator(folder, tmp_path / name, training=training)
        return [row["loss"] for row in json.loads((tmp_path / name / "curves.json").read_bytes())]

    assert losses("split", 2) == pytest.approx(losses("whole", 1), abs=2e-6)


@pytest.mark.parametrize("layout", published_vqgan.LAYOUTS)
def test_published_weights_of_a_vqgan_are_copied_and_give_tokens(folder, tmp_path, layout):
    weights = published_vqgan.random_weights(layout)
    path = published_vqgan.write(tmp_path / "weights.pt", layout, weights)
    vqgan_weights.import_weights(path, layout, tmp_path / "imported")  # for images of 256 pixels
    block = {"kind": "vqgan", "init": str(tmp_path / "imported")}
    context, out = stage("train_image_tokenizer", image_tokenizer=block), tmp_path / "image_tokenizer"
    train_image_tokenizer.train_image_tokenizer(folder / "pairs", out, tmp_path / "curves.json", context)

    context = stage("tokenize_pairs", tokens={})
    tokenize_pairs.tokenize_pairs(folder / "pairs", out, tmp_path / "tokens", context)

    reader, rows = PairReader(folder / "pairs", "train"), read_token_rows(tmp_path / "tokens", "train")
    images = to_float(reader.images(range(len(reader))))
    expected = published_vqgan.encode(images, weights, layout)
    assert (rows.header.tokenizer_kind, rows.header.vocab_size, rows.header.scales) == ("vqgan", 24, (4,))
    assert (rows.tokens[:, 0] == expected.numpy()).all()
