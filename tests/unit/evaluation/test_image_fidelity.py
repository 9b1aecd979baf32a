"""The figures of likeness and overlap, on a scorer whose embedding is a picture's mean colour: answers one can count."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.tiny import rng, tiny
from thousandwords import fidelity, images, likeness, sides
from thousandwords.config import ConfigError, section
from thousandwords.evaluation import Config
from thousandwords.features import OF_INCEPTION, Extractor, own_clip
from thousandwords.samples import Samples, read_samples, sample_table, write_samples

SMALL = Config(frechet_pictures=6, overlap_threshold=0.99999)


class MeanColour(nn.Module):
    """A picture as the direction of its mean colour: no blur changes that of a plain picture."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.batches: list[int] = []

    def embed_images(self, pictures: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(pictures))
        return functional.normalize(pictures.mean(dim=(2, 3)), dim=1)

    def embed_captions(self, captions: list[str]) -> torch.Tensor:
        """"caption 0" is red, "caption 1" green, "caption 2" blue, and so on in turns."""
        return torch.eye(3)[[int(caption.split()[1]) % 3 for caption in captions]]


def plain(colours: torch.Tensor) -> torch.Tensor:
    """Plain pictures (N, 3, 4, 4) of colours (N, 3)."""
    return colours[:, :, None, None].expand(-1, -1, 4, 4).contiguous()


def colours(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, generator=rng(seed)) * 0.8 + 0.1


def samples(folder, drawn: torch.Tensor, splits: list[str], candidates: int) -> Samples:
    """drawn (P * candidates, 3, 4, 4) of prompts "caption 0", "caption 1", …"""
    rows = [{"prompt_id": prompt, "split": split, "prompt": f"caption {prompt}", "candidate": one, "seed": 0}
            for prompt, split in enumerate(splits) for one in range(candidates)]    # fmt: skip
    table = sample_table(rows, torch.zeros(len(rows), 1, dtype=torch.int64), images.to_uint8(drawn))
    write_samples(folder, [table], {"candidates": candidates, "prompts": len(splits)})
    return read_samples(folder)


def held_out(colour: torch.Tensor) -> likeness.HeldOut:
    names = [f"caption {row}" for row in range(len(colour))]
    return likeness.HeldOut(plain(colour), names, psnr=torch.arange(20.0, 20 + len(colour)))


def silent(batches, total):
    """A bar that nobody sees, and that is told the truth."""
    batches = list(batches)
    assert len(batches) == total
    return batches


def measure(real, trained, drawn, config=SMALL, scorer=None):
    return likeness.measure(scorer or MeanColour(), real, plain(trained).__getitem__, min(config.overlap_pictures, len(trained)),
                            drawn, config, silent)[:2]    # fmt: skip


def vectors_of(colour: torch.Tensor) -> torch.Tensor:
    return likeness.embed(own_clip(MeanColour()), plain(colour).__getitem__, len(colour), [0], silent)[0][0]


@pytest.fixture
def drawn(tmp_path) -> Samples:
    """Three prompts of held-out captions and one of another split, with four candidates each."""
    return samples(tmp_path, plain(colours(16, seed=3)), ["validation", "unseen", "validation", "validation"], candidates=4)


def test_as_few_candidates_of_each_held_out_caption_are_taken_as_make_the_number(drawn):
    assert sides.first_draws(drawn, 3) == [(0, 0), (2, 0), (3, 0)]
    assert sides.first_draws(drawn, 4) == [(0, 0), (2, 0), (3, 0), (0, 1), (2, 1), (3, 1)]
    assert len(sides.first_draws(drawn, 1000)) == 12
    assert sides.first_draws(dataclasses.replace(drawn, splits=["own"] * 4), 3) == []


def test_the_distance_is_that_of_the_embeddings_of_both_sides(drawn):
    real, trained = colours(9, seed=1), colours(7, seed=2)

    figures, _ = measure(held_out(real), trained, drawn)

    found = figures["clip_frechet"]
    ours = functional.normalize(images.to_float(images.to_uint8(plain(colours(16, 3))))[[0, 8, 12, 1, 9, 13], :, 0, 0], dim=1)
    assert (found["real"], found["drawn"], found["captions"]) == (6, 6, 3)
    assert found["radius"] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    wanted = fidelity.frechet_distance(functional.normalize(real[:6], dim=1), ours)
    assert found["distance"] == pytest.approx([wanted] * 9, rel=1e-4)    # plain pictures have no detail to lose
    both = [functional.normalize(side[:6], dim=1) for side in (real, trained)]
    assert found["training"] == pytest.approx(fidelity.frechet_distance(*both), rel=1e-4)


def test_how_far_both_sets_spread_is_told_beside_the_distance_and_left_out_where_pictures_are_too_few(drawn):
    figures, _ = measure(held_out(colours(9, seed=1)), colours(7, seed=2), drawn)

    assert (figures["clip_kernel"]["size"], figures["clip_kernel"]["subsets"]) == (3, 100)
    spread = figures["clip_precision"]
    assert set(spread) == {"precision", "precision_interval", "recall", "recall_interval", "neighbours"}
    assert spread["precision_interval"][0] <= spread["precision"] <= spread["precision_interval"][1]
    few, _ = measure(held_out(colours(9, seed=1)), colours(7, seed=2), drawn, Config(frechet_pictures=3))
    assert "clip_frechet" in few and not {"clip_kernel", "clip_precision"} & set(few)


def test_both_sides_are_blurred(drawn):
    """Checkerboards against plain greys: apart for a scorer that sees edges, alike once the edges are gone."""
    class Edges(MeanColour):
        def embed_images(self, pictures):
            edges = pictures.diff(dim=3).abs().mean(dim=(1, 2, 3))
            return functional.normalize(torch.stack([torch.ones_like(edges), edges], dim=1), dim=1)

        def embed_captions(self, captions):
            return torch.eye(2)[[0] * len(captions)]

    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * torch.linspace(0.5, 1, 9).view(9, 1, 1, 1)
    real = dataclasses.replace(held_out(colours(9, 1)), images=board.expand(9, 3, 4, 4).contiguous())

    distance = measure(real, colours(7, 2), drawn, scorer=Edges())[0]["clip_frechet"]["distance"]

    assert distance[0] > 0.1 and distance[2] < 0.01 * distance[0]


def test_what_training_has_a_twin_of_is_counted_and_left_out_of_both_sides(drawn):
    real = colours(9, seed=1)
    trained = torch.cat([colours(5, seed=2), real[[2]], real[[7]] * 0.9])    # a darker picture has the same direction

    figures, found = measure(held_out(real), trained, drawn)

    overlap = figures["overlap"]
    twins = found.held_out
    assert twins.is_overlapping.nonzero().flatten().tolist() == [2, 7] and twins.index[[2, 7]].tolist() == [5, 6]
    assert (overlap["held_out"], overlap["training"], overlap["threshold"]) == (9, 7, 0.99999)
    assert overlap["share"] == pytest.approx(2 / 9)
    assert overlap["psnr_hard"] == pytest.approx({"with": 24.0, "without": (9 * 24 - 22 - 27) / 7})
    vectors, ours = vectors_of(real), vectors_of(images.to_float(images.to_uint8(plain(colours(16, 3))))[:, :, 0, 0])
    without = fidelity.frechet_distance(vectors[[0, 1, 3, 4, 5]], ours[[0, 12, 1, 13]])    # "caption 2" is gone as well
    assert overlap["clip_frechet"]["with"] == figures["clip_frechet"]["distance"][0]
    assert overlap["clip_frechet"]["without"] == pytest.approx(without, rel=1e-4)
    assert figures["clip_frechet"]["without_overlap"] == pytest.approx([without] * 9, rel=1e-3)    # at every radius


def test_where_everything_overlaps_nothing_is_left_to_tell(drawn):
    real = colours(9, seed=1)

    overlap = measure(held_out(real), real, drawn)[0]["overlap"]

    assert overlap["share"] == 1.0
    assert overlap["psnr_hard"] == {"with": 24.0, "without": None} and overlap["clip_frechet"]["without"] is None


def test_what_is_turned_off_or_has_too_few_pictures_is_absent(drawn):
    real, trained = held_out(colours(9, 1)), colours(7, 2)
    no_captions = dataclasses.replace(drawn, splits=["own"] * 4)

    assert measure(real, trained, drawn, Config(frechet_pictures=0, overlap_pictures=0))[1] is None
    assert list(measure(real, trained, drawn, Config(frechet_pictures=0, overlap_pictures=0))[0]) == ["retrieval"]
    without_overlap = measure(real, trained, drawn, dataclasses.replace(SMALL, overlap_pictures=0))[0]
    assert set(without_overlap) == {"clip_frechet", "clip_kernel", "clip_precision", "retrieval"}
    assert "training" not in without_overlap["clip_frechet"]
    without_distance = measure(real, trained, no_captions)[0]
    assert set(without_distance) == {"retrieval", "overlap"} and "clip_frechet" not in without_distance["overlap"]


def test_drawn_pictures_beside_held_out_ones_say_what_was_learned_by_heart(drawn):
    """Of the pictures drawn first, (0, 0) (2, 0) (3, 0) (0, 1) (2, 1) (3, 1), two are training pictures, darker."""
    real, first = colours(9, seed=1), colours(16, seed=3)
    trained = torch.cat([colours(5, seed=2), first[[8]] * 0.9, real[[4]], first[[13]] * 0.8])

    figures, found = measure(held_out(real), trained, drawn, dataclasses.replace(SMALL, overlap_threshold=0.9999))

    assert found.draws == [(0, 0), (2, 0), (3, 0), (0, 1), (2, 1), (3, 1)]
    assert found.drawn.is_overlapping.tolist() == [False, True, False, False, False, True]
    assert found.drawn.index[[1, 5]].tolist() == [5, 7]
    assert figures["memorisation"] == {
        "threshold": 0.9999, "drawn": 6, "captions": 3, "training": 8,
        "share": {"drawn": pytest.approx(2 / 6), "held_out": pytest.approx(1 / 9)},
        "median_similarity": {"drawn": pytest.approx(np.median(found.drawn.similarity)),
                              "held_out": pytest.approx(np.median(found.held_out.similarity))},
    }    # fmt: skip


def test_twins_within_the_training_set_are_counted(drawn):
    trained = torch.cat([colours(6, seed=2), colours(6, seed=2)[[3]] * 0.9])
    figures, found = measure(held_out(colours(9, 1)), trained, drawn)
    assert found.within.is_overlapping.tolist() == [False, False, False, True, False, False, True]
    assert figures["overlap"]["share_within_training"] == pytest.approx(2 / 7)
    alone, found = measure(held_out(colours(9, 1)), trained[:1], drawn)
    assert alone["overlap"]["share_within_training"] is None and found.within is None


def wide(count: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(count, 24, generator=rng(seed)), dim=1)


def test_the_threshold_that_the_data_pick_finds_planted_twins_and_hardly_a_chance():
    trained = wide(2000, 1)
    new, twins = wide(500, 2), functional.normalize(trained[:100] + 0.02 * wide(100, 3), dim=1)

    threshold = likeness.threshold_by_chance(torch.cat([new, twins]), trained)

    assert 0.7 < threshold < 0.98
    assert fidelity.overlap(twins, trained, threshold).share == 1.0
    assert fidelity.overlap(new, trained, threshold).share <= 0.02
    assert threshold == pytest.approx(likeness.threshold_by_chance(new, trained), abs=0.03)    # twins do not set it


@pytest.mark.parametrize("alike", [0.1, 0.01])
def test_where_an_embedding_tells_nothing_apart_hardly_anything_is_a_twin(alike):
    same = torch.ones(300, 8) + alike * wide(300, 1)[:, :8]
    threshold = likeness.threshold_by_chance(same[:100], same[100:])
    assert 0.99 < threshold <= 1 and fidelity.overlap(same[:100], same[100:], threshold).share <= 0.05


def test_no_threshold_in_the_settings_lets_the_data_pick(drawn):
    real, trained = held_out(colours(9, 1)), colours(7, 2)
    fixed, _ = measure(real, trained, drawn)
    picked, found = measure(real, trained, drawn, dataclasses.replace(SMALL, overlap_threshold=None))
    assert fixed["overlap"]["threshold"] == 0.99999 and fixed["overlap"]["by_chance"] == picked["overlap"]["by_chance"]
    assert picked["overlap"]["threshold"] == found.held_out.threshold == found.drawn.threshold == picked["overlap"]["by_chance"]
    assert section({"overlap_threshold": None}, "evaluation", Config).overlap_threshold is None
    assert Config().overlap_threshold == 0.98


def test_caption_match_with_and_without_what_overlaps(drawn):
    """Prompts 0, 2 and 3 are held-out captions; that of prompt 2 has an overlapping picture. Prompt 1 is of another split."""
    real = colours(9, seed=1)
    trained = torch.cat([colours(5, seed=2), real[[2]]])
    _, found = measure(held_out(real), trained, drawn)
    good, bad = {"colour": True, "shape": True}, {"colour": True, "shape": False}
    read = {0: [good, bad, bad, bad], 1: [bad] * 4, 2: [good] * 4, 3: [good, good, good, bad]}
    captions = [f"caption {row}" for row in range(9)]

    assert likeness.match_figures(found, captions, drawn, read) == {"with": pytest.approx(2 / 3), "without": pytest.approx(0.5)}
    assert likeness.match_figures(found, captions, drawn, {2: read[2]}) == {"with": 1.0, "without": None}
    assert likeness.match_figures(found, captions, drawn, {}) == {}


def test_an_embedding_does_not_depend_on_the_batches(monkeypatch):
    scorer, pictures = tiny("scorers", "clip"), plain(colours(9, 1))
    whole, none = sides.embed(own_clip(scorer), pictures.__getitem__, 9, [0, 2], silent)

    monkeypatch.setattr(sides, "BATCH_SIZE", 2)
    parts, _ = sides.embed(own_clip(scorer), pictures.__getitem__, 9, [0, 2], silent)

    assert whole.shape == (2, 9, scorer.config.embed_dim) and none.shape == (2, 9, 0) and not whole.requires_grad
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def classes(_: nn.Module, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean colours as they are, and as logits of three classes."""
    mean = pictures.mean(dim=(2, 3))
    return mean, 10 * mean


def test_with_other_features_their_figures_are_called_so_and_neighbours_stay_the_scorers(drawn):
    by = Extractor(MeanColour(), classes, OF_INCEPTION, "a stand-in", "none")
    real, trained = colours(20, seed=1), torch.cat([colours(12, seed=2), colours(20, seed=1)[[2]] * 0.9])
    config = dataclasses.replace(SMALL, frechet_pictures=12)

    figures, found, both = likeness.measure(
        MeanColour(), held_out(real), plain(trained).__getitem__, 13, drawn, config, silent, by=by)    # fmt: skip
    plainly, other, _ = likeness.measure(MeanColour(), held_out(real), plain(trained).__getitem__, 13, drawn, config, silent)

    ours = images.to_float(images.to_uint8(plain(colours(16, 3))))[[0, 8, 12, 1, 9, 13, 2, 10, 14, 3, 11, 15], :, 0, 0]
    assert set(figures) == {"fid", "kid", "precision", "inception_score", "retrieval", "overlap", "memorisation"}
    assert figures["fid"]["distance"][0] == pytest.approx(fidelity.frechet_distance(ours, real[:12]), rel=1e-4)
    assert figures["fid"]["training"] == pytest.approx(fidelity.frechet_distance(real[:12], trained[:12]), rel=1e-4)
    assert figures["kid"] == pytest.approx(fidelity.kernel_distance(ours, real[:12], 2020), rel=1e-3)
    score = figures["inception_score"]
    assert (len(score["score"]), score["score"][0], score["drawn"], score["splits"]) == (9, score["mean"], 12, 10)
    assert figures["overlap"]["fid"] == {"with": figures["fid"]["distance"][0], "without": figures["fid"]["without_overlap"][0]}
    for name in ("retrieval", "memorisation"):
        assert figures[name] == plainly[name]
    assert torch.equal(found.drawn.similarity, other.drawn.similarity) and both.names is OF_INCEPTION


def test_no_picture_is_embedded_twice_for_one_figure(drawn):
    """9 held-out ones and 7 training ones once; 6 real ones at 8 blurs, 6 drawn ones at 9, the first without any."""
    scorer = MeanColour()

    measure(held_out(colours(9, 1)), colours(7, 2), drawn, scorer=scorer)

    assert sum(scorer.batches) == 9 + 7 + 6 * 8 + 6 * 9


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"frechet_pictures": -1}, "evaluation.frechet_pictures is -1; it is a count, and 0 turns it off"),
    ({"overlap_pictures": -5}, "evaluation.overlap_pictures is -5; it is a count, and 0 turns it off"),
    ({"overlap_threshold": 98}, "evaluation.overlap_threshold is 98.0; it is a cosine, from -1 to 1"),
    ({"overlap_threshold": -1.5}, "evaluation.overlap_threshold is -1.5; it is a cosine, from -1 to 1"),
    ({"pictures": 0}, "evaluation.pictures is 0; it needs to be 1 or more"),
])    # fmt: skip
def test_a_setting_out_of_range_is_refused_by_name(settings, sentence):
    with pytest.raises(ConfigError, match=f"^params.yaml: {sentence}$"):
        section(settings, "evaluation", Config)
