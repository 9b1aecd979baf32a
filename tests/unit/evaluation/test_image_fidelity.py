"""Image fidelity and overlap, with a scorer whose features are an image's mean color: the answers can be counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.helpers.tiny_models import rng, tiny
from thousandwords.core.config import ConfigError, section
from thousandwords.data.images import to_float, to_uint8
from thousandwords.evaluation import feature_sets, fid, image_fidelity
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.features import INCEPTION_FIGURES, Extractor, scorer_extractor
from thousandwords.inference.sample_shards import Samples, read_samples, sample_table, write_samples

SMALL = EvaluationConfig(fid_images=6, overlap_threshold=0.99999)


class MeanColor(nn.Module):
    """Features are the direction of the mean color: a blur does not change those of a plain image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.batches: list[int] = []

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return functional.normalize(images.mean(dim=(2, 3)), dim=1)

    def embed_captions(self, captions: list[str]) -> torch.Tensor:
        """ "caption 0" is red, "caption 1" green, "caption 2" blue, and so on in turns."""
        return torch.eye(3)[[int(caption.split()[1]) % 3 for caption in captions]]


def plain(colors: torch.Tensor) -> torch.Tensor:
    """Plain images (N, 3, 4, 4) of colors (N, 3)."""
    return colors[:, :, None, None].expand(-1, -1, 4, 4).contiguous()


def colors(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, generator=rng(seed)) * 0.8 + 0.1


def write_and_read_samples(folder, images: torch.Tensor, splits: list[str], candidates: int) -> Samples:
    """Images (P * candidates, 3, 4, 4) of prompts "caption 0", "caption 1", …"""
    rows = [
        {
            "prompt_id": prompt,
            "split": split,
            "prompt": f"caption {prompt}",
            "candidate": candidate,
            "seed": 0,
        }
        for prompt, split in enumerate(splits)
        for candidate in range(candidates)
    ]
    table = sample_table(rows, torch.zeros(len(rows), 1, dtype=torch.int64), to_uint8(images))
    write_samples(folder, [table], {"candidates": candidates, "prompts": len(splits)})
    return read_samples(folder)


def held_out(color: torch.Tensor) -> image_fidelity.HeldOut:
    names = [f"caption {row}" for row in range(len(color))]
    return image_fidelity.HeldOut(plain(color), names, psnr=torch.arange(20.0, 20 + len(color)))


def silent(batches, total):
    """A progress bar without output, which checks its total."""
    batches = list(batches)
    assert len(batches) == total
    return batches


def measure(real, training, samples, config=SMALL, scorer=None):
    return image_fidelity.measure(
        scorer or MeanColor(),
        real,
        plain(training).__getitem__,
        min(config.overlap_images, len(training)),
        samples,
        config,
        silent,
    )[:2]


def vectors_of(color: torch.Tensor) -> torch.Tensor:
    return feature_sets.embed(
        scorer_extractor(MeanColor()), plain(color).__getitem__, len(color), [0], silent
    )[0][0]


@pytest.fixture
def samples(tmp_path) -> Samples:
    """Three prompts of held-out captions and one of another split, with four candidates each."""
    return write_and_read_samples(
        tmp_path,
        plain(colors(16, seed=3)),
        ["validation", "unseen", "validation", "validation"],
        candidates=4,
    )


def test_first_samples_takes_equally_few_candidates_of_each_held_out_caption(samples):
    assert feature_sets.first_samples(samples, 3) == [(0, 0), (2, 0), (3, 0)]
    assert feature_sets.first_samples(samples, 4) == [(0, 0), (2, 0), (3, 0), (0, 1), (2, 1), (3, 1)]
    assert len(feature_sets.first_samples(samples, 1000)) == 12
    assert feature_sets.first_samples(dataclasses.replace(samples, splits=["own"] * 4), 3) == []


def test_the_distance_is_that_of_the_features_of_both_sets(samples):
    real, training = colors(9, seed=1), colors(7, seed=2)

    figures, _ = measure(held_out(real), training, samples)

    frechet = figures["clip_frechet"]
    sample_features = functional.normalize(
        to_float(to_uint8(plain(colors(16, 3))))[[0, 8, 12, 1, 9, 13], :, 0, 0], dim=1
    )
    assert (frechet["real"], frechet["drawn"], frechet["captions"]) == (6, 6, 3)
    assert frechet["radius"] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    expected = fid.frechet_distance(functional.normalize(real[:6], dim=1), sample_features)
    assert frechet["distance"] == pytest.approx(
        [expected] * 9, rel=1e-4
    )  # plain images have no detail to lose
    sets = [functional.normalize(vectors[:6], dim=1) for vectors in (real, training)]
    assert frechet["training"] == pytest.approx(fid.frechet_distance(*sets), rel=1e-4)


def test_kernel_distance_and_precision_are_left_out_where_images_are_too_few(samples):
    figures, _ = measure(held_out(colors(9, seed=1)), colors(7, seed=2), samples)

    assert (figures["clip_kernel"]["size"], figures["clip_kernel"]["subsets"]) == (3, 100)
    precision = figures["clip_precision"]
    assert set(precision) == {"precision", "precision_interval", "recall", "recall_interval", "neighbours"}
    assert precision["precision_interval"][0] <= precision["precision"] <= precision["precision_interval"][1]
    few, _ = measure(held_out(colors(9, seed=1)), colors(7, seed=2), samples, EvaluationConfig(fid_images=3))
    assert "clip_frechet" in few and not {"clip_kernel", "clip_precision"} & set(few)


@pytest.mark.paper("evaluation: evaluation")
def test_both_sets_are_blurred(samples):
    """Checkerboards against plain greys: apart for a scorer that sees edges, alike once the edges are gone."""

    class Edges(MeanColor):
        def embed_images(self, images):
            edges = images.diff(dim=3).abs().mean(dim=(1, 2, 3))
            return functional.normalize(torch.stack([torch.ones_like(edges), edges], dim=1), dim=1)

        def embed_captions(self, captions):
            return torch.eye(2)[[0] * len(captions)]

    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * torch.linspace(0.5, 1, 9).view(9, 1, 1, 1)
    real = dataclasses.replace(held_out(colors(9, 1)), images=board.expand(9, 3, 4, 4).contiguous())

    distance = measure(real, colors(7, 2), samples, scorer=Edges())[0]["clip_frechet"]["distance"]

    assert distance[0] > 0.1 and distance[2] < 0.01 * distance[0]


@pytest.mark.paper("evaluation: overlap")
def test_images_with_a_near_duplicate_in_training_are_counted_and_left_out_of_both_sets(samples):
    real = colors(9, seed=1)
    training = torch.cat(
        [colors(5, seed=2), real[[2]], real[[7]] * 0.9]
    )  # a darker image has the same direction

    figures, neighbors = measure(held_out(real), training, samples)

    overlap = figures["overlap"]
    overlap_of_held_out = neighbors.held_out
    assert overlap_of_held_out.is_overlapping.nonzero().flatten().tolist() == [
        2,
        7,
    ] and overlap_of_held_out.index[[2, 7]].tolist() == [5, 6]
    assert (overlap["held_out"], overlap["training"], overlap["threshold"]) == (9, 7, 0.99999)
    assert overlap["share"] == pytest.approx(2 / 9)
    assert overlap["psnr_hard"] == pytest.approx({"with": 24.0, "without": (9 * 24 - 22 - 27) / 7})
    vectors, sample_features = (
        vectors_of(real),
        vectors_of(to_float(to_uint8(plain(colors(16, 3))))[:, :, 0, 0]),
    )
    without = fid.frechet_distance(
        vectors[[0, 1, 3, 4, 5]], sample_features[[0, 12, 1, 13]]
    )  # "caption 2" is gone as well
    assert overlap["clip_frechet"]["with"] == figures["clip_frechet"]["distance"][0]
    assert overlap["clip_frechet"]["without"] == pytest.approx(without, rel=1e-4)
    assert figures["clip_frechet"]["without_overlap"] == pytest.approx(
        [without] * 9, rel=1e-3
    )  # at every radius


def test_where_every_image_overlaps_the_figures_without_overlap_are_none(samples):
    real = colors(9, seed=1)

    overlap = measure(held_out(real), real, samples)[0]["overlap"]

    assert overlap["share"] == 1.0
    assert (
        overlap["psnr_hard"] == {"with": 24.0, "without": None} and overlap["clip_frechet"]["without"] is None
    )


def test_a_figure_that_is_turned_off_or_has_too_few_images_is_absent(samples):
    real, training = held_out(colors(9, 1)), colors(7, 2)
    no_captions = dataclasses.replace(samples, splits=["own"] * 4)

    assert measure(real, training, samples, EvaluationConfig(fid_images=0, overlap_images=0))[1] is None
    assert list(measure(real, training, samples, EvaluationConfig(fid_images=0, overlap_images=0))[0]) == [
        "retrieval"
    ]
    without_overlap = measure(real, training, samples, dataclasses.replace(SMALL, overlap_images=0))[0]
    assert set(without_overlap) == {"clip_frechet", "clip_kernel", "clip_precision", "retrieval"}
    assert "training" not in without_overlap["clip_frechet"]
    without_distance = measure(real, training, no_captions)[0]
    assert (
        set(without_distance) == {"retrieval", "overlap"}
        and "clip_frechet" not in without_distance["overlap"]
    )


def test_memorization_is_the_share_of_near_duplicates_among_samples_and_held_out_images(samples):
    """Of the images samples first, (0, 0) (2, 0) (3, 0) (0, 1) (2, 1) (3, 1), two are training images, darker."""
    real, first = colors(9, seed=1), colors(16, seed=3)
    training = torch.cat([colors(5, seed=2), first[[8]] * 0.9, real[[4]], first[[13]] * 0.8])

    figures, neighbors = measure(
        held_out(real), training, samples, dataclasses.replace(SMALL, overlap_threshold=0.9999)
    )

    assert neighbors.sample_ids == [(0, 0), (2, 0), (3, 0), (0, 1), (2, 1), (3, 1)]
    assert neighbors.samples.is_overlapping.tolist() == [False, True, False, False, False, True]
    assert neighbors.samples.index[[1, 5]].tolist() == [5, 7]
    assert figures["memorisation"] == {
        "threshold": 0.9999,
        "drawn": 6,
        "captions": 3,
        "training": 8,
        "share": {"drawn": pytest.approx(2 / 6), "held_out": pytest.approx(1 / 9)},
        "median_similarity": {
            "drawn": pytest.approx(np.median(neighbors.samples.similarity)),
            "held_out": pytest.approx(np.median(neighbors.held_out.similarity)),
        },
    }


def test_near_duplicates_within_the_training_set_are_counted(samples):
    training = torch.cat([colors(6, seed=2), colors(6, seed=2)[[3]] * 0.9])
    figures, neighbors = measure(held_out(colors(9, 1)), training, samples)
    assert neighbors.within_training.is_overlapping.tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    assert figures["overlap"]["share_within_training"] == pytest.approx(2 / 7)
    alone, neighbors = measure(held_out(colors(9, 1)), training[:1], samples)
    assert alone["overlap"]["share_within_training"] is None and neighbors.within_training is None


def wide(count: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(count, 24, generator=rng(seed)), dim=1)


def test_the_chance_threshold_finds_planted_near_duplicates_and_hardly_any_other_image():
    training = wide(2000, 1)
    new, near_duplicates = wide(500, 2), functional.normalize(training[:100] + 0.02 * wide(100, 3), dim=1)

    threshold = image_fidelity.chance_threshold(torch.cat([new, near_duplicates]), training)

    assert 0.7 < threshold < 0.98
    assert fid.find_overlap(near_duplicates, training, threshold).share == 1.0
    assert fid.find_overlap(new, training, threshold).share <= 0.02
    assert threshold == pytest.approx(
        image_fidelity.chance_threshold(new, training), abs=0.03
    )  # near duplicates do not change it


@pytest.mark.parametrize("alike", [0.1, 0.01])
def test_where_all_features_are_similar_hardly_any_image_is_a_near_duplicate(alike):
    same = torch.ones(300, 8) + alike * wide(300, 1)[:, :8]
    threshold = image_fidelity.chance_threshold(same[:100], same[100:])
    assert 0.99 < threshold <= 1 and fid.find_overlap(same[:100], same[100:], threshold).share <= 0.05


def test_without_a_threshold_in_the_settings_the_chance_threshold_is_used(samples):
    real, training = held_out(colors(9, 1)), colors(7, 2)
    fixed, _ = measure(real, training, samples)
    picked, neighbors = measure(real, training, samples, dataclasses.replace(SMALL, overlap_threshold=None))
    assert (
        fixed["overlap"]["threshold"] == 0.99999
        and fixed["overlap"]["by_chance"] == picked["overlap"]["by_chance"]
    )
    assert (
        picked["overlap"]["threshold"]
        == neighbors.held_out.threshold
        == neighbors.samples.threshold
        == picked["overlap"]["by_chance"]
    )
    assert section({"overlap_threshold": None}, "evaluation", EvaluationConfig).overlap_threshold is None
    assert EvaluationConfig().overlap_threshold == 0.98


def test_caption_match_with_and_without_overlapping_images(samples):
    """Prompts 0, 2 and 3 are held-out captions; that of prompt 2 has an overlapping image. Prompt 1 is of another split."""
    real = colors(9, seed=1)
    training = torch.cat([colors(5, seed=2), real[[2]]])
    _, neighbors = measure(held_out(real), training, samples)
    good, bad = {"colour": True, "shape": True}, {"colour": True, "shape": False}
    matches = {0: [good, bad, bad, bad], 1: [bad] * 4, 2: [good] * 4, 3: [good, good, good, bad]}
    captions = [f"caption {row}" for row in range(9)]

    assert image_fidelity.caption_match_figures(neighbors, captions, samples, matches) == {
        "with": pytest.approx(2 / 3),
        "without": pytest.approx(0.5),
    }
    assert image_fidelity.caption_match_figures(neighbors, captions, samples, {2: matches[2]}) == {
        "with": 1.0,
        "without": None,
    }
    assert image_fidelity.caption_match_figures(neighbors, captions, samples, {}) == {}


def test_features_do_not_depend_on_the_batch_size(monkeypatch):
    scorer, images = tiny("scorers", "clip"), plain(colors(9, 1))
    whole, none = feature_sets.embed(scorer_extractor(scorer), images.__getitem__, 9, [0, 2], silent)

    monkeypatch.setattr(feature_sets, "BATCH_SIZE", 2)
    parts, _ = feature_sets.embed(scorer_extractor(scorer), images.__getitem__, 9, [0, 2], silent)

    assert (
        whole.shape == (2, 9, scorer.config.embed_dim) and none.shape == (2, 9, 0) and not whole.requires_grad
    )
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def classes(_: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean colors as they are, and as logits of three classes."""
    mean = images.mean(dim=(2, 3))
    return mean, 10 * mean


def test_with_another_extractor_the_figures_have_its_names_and_neighbors_still_use_the_scorer(samples):
    extractor = Extractor(MeanColor(), classes, INCEPTION_FIGURES, "a stand-in", "none")
    real, training = colors(20, seed=1), torch.cat([colors(12, seed=2), colors(20, seed=1)[[2]] * 0.9])
    config = dataclasses.replace(SMALL, fid_images=12)

    figures, neighbors, sets = image_fidelity.measure(
        MeanColor(),
        held_out(real),
        plain(training).__getitem__,
        13,
        samples,
        config,
        silent,
        extractor=extractor,
    )
    scorer_figures, other, _ = image_fidelity.measure(
        MeanColor(), held_out(real), plain(training).__getitem__, 13, samples, config, silent
    )

    sample_features = to_float(to_uint8(plain(colors(16, 3))))[
        [0, 8, 12, 1, 9, 13, 2, 10, 14, 3, 11, 15], :, 0, 0
    ]
    assert set(figures) == {
        "fid",
        "kid",
        "precision",
        "inception_score",
        "retrieval",
        "overlap",
        "memorisation",
    }
    assert figures["fid"]["distance"][0] == pytest.approx(
        fid.frechet_distance(sample_features, real[:12]), rel=1e-4
    )
    assert figures["fid"]["training"] == pytest.approx(
        fid.frechet_distance(real[:12], training[:12]), rel=1e-4
    )
    assert figures["kid"] == pytest.approx(fid.kernel_distance(sample_features, real[:12], 2020), rel=1e-3)
    score = figures["inception_score"]
    assert (len(score["score"]), score["score"][0], score["drawn"], score["splits"]) == (
        9,
        score["mean"],
        12,
        10,
    )
    assert figures["overlap"]["fid"] == {
        "with": figures["fid"]["distance"][0],
        "without": figures["fid"]["without_overlap"][0],
    }
    for name in ("retrieval", "memorisation"):
        assert figures[name] == scorer_figures[name]
    assert (
        torch.equal(neighbors.samples.similarity, other.samples.similarity)
        and sets.names is INCEPTION_FIGURES
    )


def test_no_image_is_embedded_twice_for_one_figure(samples):
    """9 held-out ones and 7 training ones once; 6 real ones at 8 blurs, 6 samples ones at 9, the first without any."""
    scorer = MeanColor()

    measure(held_out(colors(9, 1)), colors(7, 2), samples, scorer=scorer)

    assert sum(scorer.batches) == 9 + 7 + 6 * 8 + 6 * 9


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fid_images": -1}, "evaluation.fid_images is -1; it is a count, and 0 turns it off"),
        ({"overlap_images": -5}, "evaluation.overlap_images is -5; it is a count, and 0 turns it off"),
        ({"overlap_threshold": 98}, "evaluation.overlap_threshold is 98.0; it is a cosine, from -1 to 1"),
        ({"overlap_threshold": -1.5}, "evaluation.overlap_threshold is -1.5; it is a cosine, from -1 to 1"),
        ({"num_images": 0}, "evaluation.num_images is 0; it needs to be 1 or more"),
    ],
)
def test_a_setting_out_of_range_is_rejected_by_name(settings, sentence):
    with pytest.raises(ConfigError, match=f"^params.yaml: {sentence}$"):
        section(settings, "evaluation", EvaluationConfig)
