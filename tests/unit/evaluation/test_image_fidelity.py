"""Image fidelity and overlap, with a scorer whose features are an image's mean color: the answers can be counted."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.helpers.tiny_models import rng
from thousandwords.core.config import ConfigError, section
from thousandwords.data.images import to_float, to_uint8
from thousandwords.evaluation import fid, image_fidelity
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.evaluate_run import match_without_overlap
from thousandwords.evaluation.features import INCEPTION_FIGURES, Extractor, scorer_extractor
from thousandwords.evaluation.image_fidelity import HeldOut, best_of_n, embed_feature_sets, first_samples
from thousandwords.inference.sample_shards import COLUMNS, Samples, read_samples, sample_table, write_samples

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
        """Caption 0 is red, caption 1 green, caption 2 blue, and so on in turns."""
        return torch.eye(3)[[int(caption.split()[1]) % 3 for caption in captions]]


def classes(_: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean colors as they are, and as logits of three classes."""
    mean = images.mean(dim=(2, 3))
    return mean, 10 * mean


WITH_CLASSES = Extractor(MeanColor(), classes, INCEPTION_FIGURES, "a stand-in", "none")


def plain(colors: torch.Tensor) -> torch.Tensor:
    """Plain images (N, 3, 4, 4) of colors (N, 3)."""
    return colors[:, :, None, None].expand(-1, -1, 4, 4).contiguous()


def colors(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, generator=rng(seed)) * 0.8 + 0.1


def write_and_read_samples(folder, images: torch.Tensor, splits: list[str], candidates: int) -> Samples:
    """Images (P * candidates, 3, 4, 4) of prompts "caption 0", "caption 1", …"""
    rows = [
        dict(zip(COLUMNS, (prompt, split, f"caption {prompt}", candidate, 0), strict=True))
        for prompt, split in enumerate(splits)
        for candidate in range(candidates)
    ]
    table = sample_table(rows, torch.zeros(len(rows), 1, dtype=torch.int64), to_uint8(images))
    write_samples(folder, [table], {"candidates": candidates, "prompts": len(splits)})
    return read_samples(folder)


def stored(color: torch.Tensor) -> torch.Tensor:
    """Colors as they come back from an image of bytes."""
    return to_float(to_uint8(plain(color)))[:, :, 0, 0]


def unit(color: torch.Tensor) -> torch.Tensor:
    return functional.normalize(color, dim=1)


def held_out(color: torch.Tensor) -> HeldOut:
    names = [f"caption {row}" for row in range(len(color))]
    return HeldOut(plain(color), names, psnr=torch.arange(20.0, 20 + len(color)))


REAL, TRAINING = colors(9, seed=1), colors(7, seed=2)


def measure(samples, real=REAL, training=TRAINING, config=SMALL, scorer=None, extractor=None):
    """(figures, nearest neighbors, counts)"""
    return image_fidelity.measure(
        scorer or MeanColor(),
        real if isinstance(real, HeldOut) else held_out(real),
        plain(training).__getitem__,
        min(config.overlap_images, len(training)),
        samples,
        np.random.default_rng(0).random((len(samples.prompts), samples.candidates)),
        config,
        extractor=extractor,
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Samples:
    """Three prompts of held-out captions and one of another split, with four candidates each."""
    splits = ["validation", "unseen", "validation", "validation"]
    return write_and_read_samples(tmp_path_factory.mktemp("samples"), plain(colors(16, seed=3)), splits, 4)


FIRST_SIX = [0, 8, 12, 1, 9, 13]  # rows of the samples that are compared: two candidates of three captions


def test_the_distance_is_that_of_the_features_of_both_sets(samples):
    figures, _, counts = measure(samples)

    frechet, sample_features = figures["clip_frechet"], unit(stored(colors(16, 3))[FIRST_SIX])
    assert (frechet["real"], frechet["drawn"], frechet["captions"]) == (6, 6, 3)
    assert counts == {"held_out": 9, "training": 7, "real": 6, "drawn": 6, "captions": 3}
    assert len(first_samples(samples, 1000)) == 12  # all that there are of held-out captions
    expected = fid.frechet_distance(unit(REAL[:6]), sample_features)
    # plain images have no detail to lose
    assert frechet["radius"] == [*range(9)] and frechet["distance"] == pytest.approx([expected] * 9, rel=1e-4)
    baseline = fid.frechet_distance(unit(REAL[:6]), unit(TRAINING[:6]))
    assert frechet["training"] == pytest.approx(baseline, rel=1e-4)
    assert (figures["clip_kernel"]["size"], figures["clip_kernel"]["subsets"]) == (3, 100)


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
    real = dataclasses.replace(held_out(REAL), images=board.expand(9, 3, 4, 4).contiguous())
    distance = measure(samples, real, scorer=Edges())[0]["clip_frechet"]["distance"]
    assert distance[0] > 0.1 and distance[2] < 0.01 * distance[0]


@pytest.mark.paper("evaluation: overlap")
def test_images_with_a_near_duplicate_in_training_are_counted_and_left_out_of_both_sets(samples):
    training = torch.cat([TRAINING[:5], REAL[[2]], REAL[[7]] * 0.9])  # darker has the same direction
    figures, neighbors, _ = measure(samples, training=training)
    overlap = figures["overlap"]
    assert neighbors.held_out.is_overlapping.nonzero().flatten().tolist() == [2, 7]
    assert neighbors.held_out.index[[2, 7]].tolist() == [5, 6]
    assert (overlap["held_out"], overlap["training"], overlap["threshold"]) == (9, 7, 0.99999)
    assert overlap["share"] == pytest.approx(2 / 9)
    assert overlap["psnr_hard"] == pytest.approx({"with": 24.0, "without": (9 * 24 - 22 - 27) / 7})
    # "caption 2" is gone as well
    rest = unit(stored(colors(16, 3))[[0, 12, 1, 13]])
    without = fid.frechet_distance(unit(REAL[[0, 1, 3, 4, 5]]), rest)
    assert overlap["clip_frechet"]["with"] == figures["clip_frechet"]["distance"][0]
    assert overlap["clip_frechet"]["without"] == pytest.approx(without, rel=1e-4)
    assert figures["clip_frechet"]["without_overlap"] == pytest.approx([without] * 9, rel=1e-3)


def test_where_every_image_overlaps_the_figures_without_overlap_are_none(samples):
    overlap = measure(samples, training=REAL)[0]["overlap"]
    assert overlap["share"] == 1.0 and overlap["psnr_hard"] == {"with": 24.0, "without": None}
    assert overlap["clip_frechet"]["without"] is None


DISTANCES = {"clip_frechet", "clip_kernel", "clip_precision", "best_of", "retrieval", "caption_found"}


@pytest.mark.parametrize(
    ("settings", "splits", "blocks"),
    [
        ({"fid_images": 0, "overlap_images": 0}, None, {"retrieval", "caption_found"}),
        ({"overlap_images": 0}, None, DISTANCES),
        (
            {"fid_images": 3},
            None,
            DISTANCES - {"clip_kernel", "clip_precision"} | {"overlap", "memorisation"},
        ),
        ({}, ["own"] * 4, {"retrieval", "overlap"}),
    ],
)
def test_a_figure_that_is_turned_off_or_has_too_few_images_is_absent(samples, settings, splits, blocks):
    samples = dataclasses.replace(samples, splits=splits or samples.splits)
    figures, neighbors, _ = measure(samples, config=dataclasses.replace(SMALL, **settings))
    assert set(figures) == blocks and (neighbors is None) == ("overlap" not in blocks)


def test_memorization_is_the_share_of_near_duplicates_among_samples_and_held_out_images(samples):
    """Of the first samples, (0, 0) (2, 0) (3, 0) (0, 1) (2, 1) (3, 1), two are training images, darker."""
    first = colors(16, seed=3)
    training = torch.cat([TRAINING[:5], first[[8]] * 0.9, REAL[[4]], first[[13]] * 0.8])
    config = dataclasses.replace(SMALL, overlap_threshold=0.9999)
    figures, neighbors, _ = measure(samples, training=training, config=config)

    assert neighbors.sample_ids == [(0, 0), (2, 0), (3, 0), (0, 1), (2, 1), (3, 1)]
    assert neighbors.samples.is_overlapping.tolist() == [False, True, False, False, False, True]
    assert neighbors.samples.index[[1, 5]].tolist() == [5, 7]
    medians = [float(np.median(each.similarity)) for each in (neighbors.samples, neighbors.held_out)]
    assert figures["memorisation"] == {
        **{"threshold": 0.9999, "drawn": 6, "captions": 3, "training": 8},
        "share": {"drawn": pytest.approx(2 / 6), "held_out": pytest.approx(1 / 9)},
        "median_similarity": {"drawn": pytest.approx(medians[0]), "held_out": pytest.approx(medians[1])},
    }


def test_near_duplicates_within_the_training_set_are_counted(samples):
    training = torch.cat([TRAINING[:6], TRAINING[[3]] * 0.9])
    figures, neighbors, _ = measure(samples, training=training)
    assert neighbors.within_training.is_overlapping.nonzero().flatten().tolist() == [3, 6]
    assert figures["overlap"]["share_within_training"] == pytest.approx(2 / 7)
    alone = measure(samples, training=training[:1])[0]
    assert alone["overlap"]["share_within_training"] is None


def test_without_a_threshold_in_the_settings_the_chance_threshold_is_used(samples):
    config = section({"fid_images": 6, "overlap_threshold": None}, "evaluation", EvaluationConfig)
    fixed, picked = (measure(samples, config=each)[0]["overlap"] for each in (SMALL, config))
    assert fixed["threshold"] == 0.99999 != fixed["by_chance"]
    assert picked["by_chance"] == picked["threshold"] == fixed["by_chance"]


def test_caption_match_with_and_without_overlapping_images(samples):
    """Prompts 0, 2 and 3 are held-out captions; that of prompt 2 has an overlapping image. Prompt 1 is of another split."""
    _, neighbors, _ = measure(samples, training=torch.cat([TRAINING[:5], REAL[[2]]]))
    good, bad = {"colour": True, "shape": True}, {"colour": True, "shape": False}
    matches = {0: [good, bad, bad, bad], 1: [bad] * 4, 2: [good] * 4, 3: [good, good, good, bad]}

    def rates(matches: dict) -> dict:
        return match_without_overlap(neighbors, held_out(REAL).captions, samples, matches)

    assert rates(matches) == {"with": pytest.approx(2 / 3), "without": pytest.approx(0.5)}
    assert rates({2: matches[2]}) == {"with": 1.0, "without": None} and rates({}) == {}


def test_with_another_extractor_the_figures_have_its_names_and_neighbors_still_use_the_scorer(samples):
    real, training = colors(20, seed=1), torch.cat([colors(12, seed=2), colors(20, seed=1)[[2]] * 0.9])
    config = dataclasses.replace(SMALL, fid_images=12)

    figures, neighbors, _ = measure(samples, real, training, config, extractor=WITH_CLASSES)
    scorer_figures, other, _ = measure(samples, real, training, config)

    rows = [prompt * 4 + candidate for prompt, candidate in first_samples(samples, 12)]
    sample_features = stored(colors(16, 3))[rows]
    added = {"fid", "kid", "precision", "inception_score", "overlap", "memorisation"}
    assert set(figures) == DISTANCES - {"clip_frechet", "clip_kernel", "clip_precision"} | added
    distance = fid.frechet_distance(sample_features, real[:12])
    assert figures["fid"]["distance"][0] == pytest.approx(distance, rel=1e-4)
    baseline = fid.frechet_distance(real[:12], training[:12])
    assert figures["fid"]["training"] == pytest.approx(baseline, rel=1e-4)
    assert figures["kid"] == pytest.approx(fid.kernel_distance(sample_features, real[:12], 2020), rel=1e-3)
    assert figures["inception_score"]["score"][0] == figures["inception_score"]["mean"]
    assert figures["overlap"]["fid"]["without"] == figures["fid"]["without_overlap"][0]
    for name in ("retrieval", "memorisation"):
        assert figures[name] == scorer_figures[name]
    assert torch.equal(neighbors.samples.similarity, other.samples.similarity)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fid_images": -1}, "evaluation.fid_images is -1; it is a count, and 0 turns it off"),
        ({"overlap_images": -5}, "evaluation.overlap_images is -5; it is a count, and 0 turns it off"),
        ({"overlap_threshold": 98}, "evaluation.overlap_threshold is 98.0; it is a cosine, from -1 to 1"),
        ({"num_images": 0}, "evaluation.num_images is 0; it needs to be 1 or more"),
    ],
)
def test_a_setting_out_of_range_is_rejected_by_name(settings, sentence):
    with pytest.raises(ConfigError, match=f"^params.yaml: {sentence}$"):
        section(settings, "evaluation", EvaluationConfig)


CANDIDATES, PROMPTS = 6, [row for row in range(13) if row != 5]
COLORS = colors(13 * CANDIDATES, seed=3)
VECTORS = stored(COLORS).view(13, CANDIDATES, 3)
SCORES = np.random.default_rng(0).random((13, CANDIDATES))


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Samples:
    """Twelve prompts of held-out captions with six candidates each, and one of another split between them."""
    splits = ["validation"] * 5 + ["unseen"] + ["validation"] * 7
    return write_and_read_samples(tmp_path_factory.mktemp("many"), plain(COLORS), splits, CANDIDATES)


def curve_of(samples, seed=0, extractor=WITH_CLASSES):
    sets = embed_feature_sets(extractor, plain(colors(20, seed=1)), samples)  # two candidates of each caption
    extractor.network.batches.clear()
    return best_of_n(extractor, sets, samples, SCORES, seed)


def test_each_caption_is_represented_by_the_best_scored_of_its_first_n_candidates(many):
    curve, real = curve_of(many), colors(20, seed=1)

    assert (curve["n"], curve["captions"], curve["real"]) == ([1, 2, 4, 6], 12, 20)
    for n, distance, (low, high) in zip(curve["n"], curve["fid"], curve["fid_interval"], strict=True):
        best = torch.stack([VECTORS[row, SCORES[row, :n].argmax()] for row in PROMPTS])
        assert distance == pytest.approx(fid.frechet_distance(best, real), rel=1e-4)
        assert low <= distance <= high
    score = fid.inception_score(10 * VECTORS[PROMPTS, 0])["mean"]
    assert curve["inception_score"][0] == pytest.approx(score, rel=1e-4)
    assert curve_of(many) == curve != curve_of(many, seed=1)


def test_no_sample_is_embedded_twice(many):
    counting = scorer_extractor(MeanColor())
    curve = curve_of(many, extractor=counting)
    picked = {(row, int(SCORES[row, :n].argmax())) for row in PROMPTS for n in curve["n"]}
    assert sum(counting.network.batches) == len([candidate for _, candidate in picked if candidate >= 2]) > 0


def test_for_one_caption_there_is_no_curve(many):
    assert curve_of(dataclasses.replace(many, splits=["validation"] + ["own"] * 12)) == {}


def test_the_best_sample_of_a_held_out_caption_is_closer_to_its_true_image_or_to_a_training_image(tmp_path):
    """Two candidates each: caption 0 is like its true image, caption 1 a copy of a training image."""
    shades = torch.tensor([[0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1], [1, 0, 0]])
    black, gray, white, red = plain(shades).split(1)
    images = torch.cat([black, gray * 1.02, red, white, gray, gray])
    samples = write_and_read_samples(tmp_path, images, ["validation", "validation", "own"], candidates=2)
    held_out = HeldOut(torch.cat([red, gray, black]), ["caption 0", "caption 0", "caption 1"], torch.ones(3))
    training = torch.cat([black * 1.0, red, white])
    scores = np.array([[0.1, 0.9], [0.3, 0.8], [0.0, 0.0]])

    found = image_fidelity.true_or_nearest(samples, scores, held_out, training.__getitem__, 3)

    assert [*found] == [0, 1]  # prompt 2 is no held-out caption
    assert [(each.true_row, each.is_closer_to_true) for each in found.values()] == [(1, True), (2, False)]
    assert found[1].training_row == 2
    assert found[1].psnr_nearest == pytest.approx(100) and found[1].psnr_true == pytest.approx(0)
    figures = image_fidelity.closeness_figures(found, 0)["true_or_nearest"]
    assert (figures["prompts"], figures["closer_to_true"]) == (2, 0.5)
    # the true images are gray and black, and black is the training image nearest to both
    assert (found[0].psnr_neighbor, found[1].psnr_neighbor) == pytest.approx((5.9, 0), abs=0.1)
    assert figures["closer_than_neighbor"] == 0.5
    assert image_fidelity.true_or_nearest(samples, scores, held_out, training.__getitem__, 0) == {}
    assert image_fidelity.closeness_figures({}, 0) == {}


def test_a_caption_is_found_from_its_best_scored_sample(tmp_path):
    """Of three held-out captions, whose vectors are red, green and blue, the last one's best sample is green."""
    red, green, blue = torch.eye(3)
    images = plain(torch.stack([blue, red, green, red, blue, green, red, red]))
    samples = write_and_read_samples(tmp_path, images, ["validation"] * 3 + ["own"], candidates=2)
    scores = np.array([[0.1, 0.9], [0.8, 0.1], [0.0, 0.9], [0.0, 0.0]])

    found = image_fidelity.caption_found(MeanColor(), samples, scores, 0)

    assert (found["captions"], found["among"]) == (3, 3)
    assert found["found"] == pytest.approx(2 / 3) and found["chance"] == pytest.approx(1 / 3)
    alone = dataclasses.replace(samples, splits=["validation", "own", "own", "own"])
    assert image_fidelity.caption_found(MeanColor(), alone, scores, 0) == {}
