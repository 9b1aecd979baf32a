"""What the stages make of whole pictures, many captions and long ones: views, crops, spellings, and a count of what was cut."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import tokenize_pairs, train_generator, train_image_tokenizer, train_scorer, train_text_tokenizer
from stages._stage import Stage
from tests.tiny import CAPTIONS, SIDE, TEXT_LENGTH, TEXT_WORDS, TINY, tiny
from thousandwords import components, pairs
from thousandwords.augmentation import generator_crop, view_rng
from thousandwords.images import encode_png, to_float
from thousandwords.loader import ImageLoader
from thousandwords.pair_shards import PairReader
from thousandwords.shards import TokenRows, read_token_rows

TRAINING = {"steps": 2, "batch_size": 4, "learning_rate": 0.01, "evaluate_every": 2, "log_every": 1, "checkpoint_every": 2}
DVAE = {"kind": "dvae", "dvae": TINY["tokenizers"]["dvae"], "training": TRAINING}
TRANSFORMER = {"kind": "transformer", "transformer": TINY["generators"]["transformer"], "training": TRAINING}
CLIP = {"kind": "clip", "clip": TINY["scorers"]["clip"], "training": TRAINING}


class Notes:
    """A tracker that only remembers figures."""

    run_id = "run"

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.figures |= values

    def files(self, paths: tuple[Path, ...]) -> None:
        pass

    def take_up(self, run_id: str) -> None:
        pass


def stage(name: str, **sections: object) -> Stage:
    return Stage(name, {"seed": 0, "device": "cpu", **sections}, Notes())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Resumable state goes where the test is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Whole pictures of 24 × 40 and two captions each, prepared for squares of SIDE; and a tiny image tokenizer."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "own").mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 40, 3), np.uint8)
        (folder / "own" / f"{number}.png").write_bytes(encode_png(pixels))
        (folder / "own" / f"{number}.txt").write_text(f"{CAPTIONS[number % 4]}\nPicture {number}")
    settings = {"image_size": SIDE, "min_side": 8, "validation_share": 0.3, "keep": "whole"}
    pairs.write_pairs(pairs.Config(source="folder", path=str(folder / "own"), **settings), 0, folder / "pairs")
    components.save(tiny("tokenizers", "dvae"), folder / "image_tokenizer")
    return folder


# --- views -----------------------------------------------------------------------------------------------------------


def tokenized(folder: Path, out: Path, **tokens: object) -> tuple[TokenRows, TokenRows]:
    """(train, validation)"""
    run = stage("tokenize_pairs", tokens=tokens)
    tokenize_pairs.tokenize_pairs(folder / "pairs", folder / "image_tokenizer", out, run)
    return read_token_rows(out, "train"), read_token_rows(out, "validation")


def words_of(pictures: np.ndarray) -> np.ndarray:
    """What the tiny image tokenizer says of pictures (B, H, W, 3)."""
    return tiny("tokenizers", "dvae").encode(to_float(pictures)).numpy()


def test_where_nothing_is_said_the_words_are_those_of_the_plain_squares(folder, tmp_path):
    for rows, split in zip(tokenized(folder, tmp_path / "tokens"), ("train", "validation"), strict=True):
        reader = PairReader(folder / "pairs", split)
        assert rows.header.views == 1 and rows.tokens.shape == (len(reader), 1, 16)
        assert (rows.tokens[:, 0] == words_of(reader.images(range(len(reader))))).all()


def test_training_pictures_have_a_random_crop_in_each_view(folder, tmp_path):
    rows, _ = tokenized(folder, tmp_path / "tokens", augmentation="paper", views_per_image=3)
    reader = PairReader(folder / "pairs", "train")

    assert rows.header.views == 3 and rows.tokens.shape == (len(reader), 3, 16)
    for row in (0, 7):
        for view in range(3):
            crop = generator_crop(reader.pictures([row])[0], SIDE, view_rng(0, reader.key(row), view))
            assert (rows.tokens[row, view] == words_of(crop[None])[0]).all()
    assert len(np.unique(rows.tokens.reshape(-1, 16), axis=0)) > 2 * len(reader)


def test_held_out_pictures_are_the_plain_square_in_every_view(folder, tmp_path):
    _, rows = tokenized(folder, tmp_path / "tokens", augmentation="paper", views_per_image=3)
    reader = PairReader(folder / "pairs", "validation")
    plain = words_of(reader.images(range(len(reader))))
    assert all((rows.tokens[:, view] == plain).all() for view in range(3))


def test_views_do_not_hang_on_the_batch_that_they_were_made_in(folder, tmp_path):
    first, _ = tokenized(folder, tmp_path / "first", augmentation="paper", views_per_image=2, batch_size=3)
    again, _ = tokenized(folder, tmp_path / "again", augmentation="paper", views_per_image=2, batch_size=50)
    assert (first.tokens == again.tokens).all()


# --- captions --------------------------------------------------------------------------------------------------------


def words_trained(folder: Path, out: Path, text_length: int) -> dict[str, float]:
    """Trains the text tokenizer; the figures that the stage noted."""
    run = stage("train_text_tokenizer", text_tokenizer={"vocab_size": TEXT_WORDS, "text_length": text_length})
    train_text_tokenizer.train_text_tokenizer(folder / "pairs", out, run)
    return run.tracker.figures


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_pictures_made_ahead_come_in_order_and_an_error_comes_in_its_place(threads):
    begun = []

    def make(number: int) -> int:
        begun.append(number)
        if number == 7:
            raise ValueError("picture 7")
        return -number

    made, taken = tokenize_pairs.ahead(make, range(20), threads), []
    with pytest.raises(ValueError, match="picture 7"):
        for one in made:
            taken.append(one)
            assert len(begun) <= len(taken) + threads  # memory holds a few batches, not all

    assert taken == [0, -1, -2, -3, -4, -5, -6]


def test_captions_that_are_cut_are_counted_and_told(folder, tmp_path, capsys):
    figures = words_trained(folder, tmp_path / "words", text_length=14)

    count = 2 * len(PairReader(folder / "pairs", "train"))
    assert figures["captions"] == count and 0 < figures["captions_cut"] < count
    assert capsys.readouterr().err == (
        f"train_text_tokenizer: {figures['captions_cut']} of {count} captions have more than 14 tokens; the rest of each is "
        "not read. To read more, raise text_tokenizer.text_length or vocab_size\n"
    )


def test_where_no_caption_is_cut_nothing_is_told(folder, tmp_path, capsys):
    assert words_trained(folder, tmp_path / "words", text_length=200)["captions_cut"] == 0
    assert capsys.readouterr().err == ""


# --- training --------------------------------------------------------------------------------------------------------


def generator_trained(folder: Path, out: Path, **beside: object) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(weights, figures) after two steps on three views."""
    words_trained(folder, out / "words", TEXT_LENGTH)
    tokenized(folder, out / "tokens", augmentation="paper", views_per_image=3)
    run = stage("train_generator", generator={**TRANSFORMER, **beside})
    train_generator.train_generator(
        out / "tokens", out / "words", folder / "image_tokenizer", out / "generator", out / "curves.json", run
    )
    return components.load("generators", out / "generator").state_dict(), run.tracker.figures


def test_a_generator_trains_on_views_and_spellings_and_counts_what_it_cannot_read(folder, tmp_path, capsys):
    plain, figures = generator_trained(folder, tmp_path / "plain")
    spelt, _ = generator_trained(folder, tmp_path / "spelt", bpe_dropout=0.5)
    again, _ = generator_trained(folder, tmp_path / "again", bpe_dropout=0.5)

    count = 2 * len(PairReader(folder / "pairs", "train"))
    assert figures["captions"] == count and figures["captions_cut"] > 0
    assert f"train_generator: {figures['captions_cut']} of {count} captions have more than 8 tokens" in capsys.readouterr().err
    assert all(spelt[name].equal(again[name]) for name in spelt)
    assert any(not spelt[name].equal(plain[name]) for name in spelt)


def test_an_image_tokenizer_trains_on_random_crops_where_it_is_told_to(folder, tmp_path):
    seen = {}
    for augmentation in ("none", "paper"):
        block = DVAE if augmentation == "none" else {**DVAE, "augmentation": "paper"}
        run, out = stage("train_image_tokenizer", image_tokenizer=block), tmp_path / augmentation
        train_image_tokenizer.train_image_tokenizer(folder / "pairs", out, tmp_path / f"{augmentation}.json", run)
        seen[augmentation] = components.load("tokenizers", out).state_dict()
    assert any(not seen["none"][name].equal(seen["paper"][name]) for name in seen["none"])


def test_a_scorer_is_shown_pictures_with_captions_of_their_own_in_turn(folder, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(ImageLoader, "captions", remembering(ImageLoader.captions, shown))
    run = stage("train_scorer", scorer={**CLIP, "training": {**TRAINING, "steps": 12}})
    train_scorer.train_scorer(folder / "pairs", tmp_path / "scorer", tmp_path / "scorer.json", run)

    assert len(shown) == 12 * 4
    assert any(caption.startswith("Picture") for caption in shown) and any(caption in CAPTIONS for caption in shown)


def remembering(captions, shown: list[str]):
    """`captions`, all it gives kept in `shown`."""

    def wrapped(self, positions):
        drawn = captions(self, positions)
        shown.extend(drawn)
        return drawn

    return wrapped


def test_a_batch_in_parts_counts_the_words_of_text_of_the_whole_batch(folder, tmp_path):
    """Captions differ in length: the mean of the parts' own means would be another loss."""
    def losses(name: str, accumulation: int) -> list[float]:
        generator_trained(folder, tmp_path / name, training={**TRAINING, "accumulation": accumulation})
        return [row["loss"] for row in json.loads((tmp_path / name / "curves.json").read_bytes())]

    whole, parts = losses("whole", 1), losses("parts", 2)

    assert parts == pytest.approx(whole, abs=2e-6)
