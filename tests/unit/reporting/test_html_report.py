"""The report and its plots: complete, safe, self-contained, the same every time."""

import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from thousandwords.evaluation.metrics import match_rates
from thousandwords.reporting import plots
from thousandwords.reporting.html_report import number, rate, render_report
from thousandwords.reporting.page import image_element, thumbnail
from thousandwords.scenes.render import scene_pairs


def both_ends(n1: float, best: float, margin: float = 0.05) -> dict:
    intervals = {"n1_interval": [n1 - margin, n1 + margin], "best_interval": [best - margin, best + margin]}
    return {"n1": n1, "best": best, **intervals}


# fmt: off
RATES = {
    "prompts": 80,
    "scene": both_ends(0.52, 0.87),
    "colour": {"n1": 0.61, "best": 0.95},
    "all": both_ends(0.41, 0.78),
    "curve": {"n": [1, 2, 4], "all": [0.41, 0.6, 0.78], "scene": [0.52, 0.7, 0.87]},
}
UNSEEN = RATES | {"all": both_ends(0.23, 0.57, 0.04)}
RECALL = {"r1": 0.31, "r1_interval": [0.28, 0.34], "r5": 0.77, "r10": 0.9}
FIDELITY = {
    "clip_frechet": {
        "radius": [0, 1], "distance": [0.0409, 0.0365], "interval": [0.0333, 0.0488], "without_overlap": [0.0445, None],
        "training": 0.0202, "real": 1512, "drawn": 576, "captions": 96,
    },
    "best_of": {
        "n": [1, 4, 16], "captions": 96, "real": 1512, "clip_frechet": [0.081, 0.062, 0.055],
        "clip_frechet_interval": [[0.07, 0.09], [0.05, 0.07], [0.0481, 0.0622]],
    },
    "clip_kernel": {"mean": 0.00123, "deviation": 0.0004, "subsets": 100, "size": 288},
    "clip_precision": {"precision": 0.81, "precision_interval": [0.77, 0.85], "recall": 0.64, "neighbours": 3},
    "true_or_nearest": {
        "prompts": 80, "closer_to_true": 0.625, "closer_to_true_interval": [0.5, 0.75], "psnr_true": 17.3, "psnr_nearest": 15.0,
        "closer_than_neighbor": 0.7, "closer_than_neighbor_interval": [0.6, 0.8],
    },
    "retrieval": {"pictures": 1000, "captions_of_pictures": RECALL, "pictures_of_captions": RECALL},
    "memorisation": {
        "threshold": 0.98, "drawn": 576, "captions": 96, "training": 2048, "share": {"drawn": 0.031, "held_out": 0.096},
        "median_similarity": {"drawn": 0.93, "held_out": 0.94},
    },
    "overlap": {
        "threshold": 0.98, "held_out": 1000, "training": 2048, "share": 0.096, "share_within_training": 0.18,
        "by_chance": 0.9912, "caption_match": {"with": 0.91, "without": 0.905},
        "psnr_hard": {"with": 30.1, "without": 29.92}, "clip_frechet": {"with": 0.0409, "without": None},
    },
}
METRICS = {
    "reconstruction": {"psnr_hard": 27.43, "psnr_kmeans": 22.12, "psnr_hard_interval": [27.12, 27.75]},
    "codebook": {"perplexity": 231.4, "perplexity_kmeans": 180.2, "used": 0.86, "used_kmeans": 0.97, "vocab_size": 512},
    "generator": {"val_loss_text": 1.253, "val_loss_image": 2.402},
    "clip_score": {"n1": 0.201, "best": 0.287, "scaled": {"n1": 20.1, "n1_interval": [19.04, 21.2], "best": 28.7}},
    "n": 16,
    "caption_match": {"seen": RATES, "unseen": UNSEEN},
    "fidelity": FIDELITY,
    "protocol": {
        "features": "models/scorer <own>", "features_sha256": None, "counts": {"real": 1512}, "seed": 7,
        "versions": {"torch": "2"},
    },
    "held_out_pairs": 16,
    "verdicts": {
        "image_tokenizer": "learning: held-out PSNR 29.16 dB at step 4000",
        "generator": "fine: held-out image loss 0.724 at step 2400",
    },
}
INCEPTION = {
    "fid": {
        "radius": [0, 1], "distance": [31.4159, 20.0], "interval": [28.0, 34.9], "real": 384, "drawn": 384, "captions": 96,
    },
    "kid": {"mean": 0.0123, "deviation": 0.002, "subsets": 100, "size": 192},
    "precision": {"precision": 0.5, "recall": 0.25, "neighbours": 3},
    "inception_score": {
        "mean": 5.432, "deviation": 0.21, "splits": 10, "drawn": 384, "radius": [0, 1], "score": [5.432, 4.0],
    },
    "best_of": {
        "n": [1, 32], "captions": 96, "real": 384, "fid": [60.0, 55.0], "fid_interval": [[55.0, 65.0], [50.0, 60.0]],
        "inception_score": [4.0, 4.5],
    },
    "retrieval": FIDELITY["retrieval"],
    "overlap": FIDELITY["overlap"] | {"share_within_training": None, "fid": {"with": 31.4159, "without": 32.5}},
}
# fmt: on


def png(color: str = "red", side: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN, BLUE, NAVY = map(png, ("red", "green", "blue", "navy"))
PAIR = {"image": BLUE, "training_image": NAVY, "captions": ["a dog", "a cat"], "similarity": 0.9871}
PAIR |= {"is_near_duplicate": True}
DUPLICATE = {"image": BLUE, "earlier_image": NAVY, "captions": ["a hill", "a mountain"], "distance": 3}
DUPLICATE |= {"color": 17, "is_dropped": True}
NOT_DROPPED = DUPLICATE | {"distance": 5, "color": 20, "is_dropped": False, "captions": ["a lake", "a lake"]}
COUNTS = {
    **{"n_in": 1011, "n_ok": 1000, "n_quarantined": 8, "n_duplicate": 3, "n_filtered": 0},
    "reasons": {"truncated_data": 5, "too_small": 3},
    "near_duplicates": {"distance": 4, "colour": 24, "by_chance": 9, "across_splits": 2, "by_distance": {}},
    "splits": {"train": 900, "validation": 100},
}
PROMPT = {
    "prompt": "a red circle on a grey background",
    "split": "unseen",
    "candidates": [
        {"image": RED, "score": 0.312, "matches": {"colour": True, "shape": True}},
        {"image": GREEN, "score": 0.105, "matches": {"colour": False, "shape": True}},
    ],
    "true": {"image": RED, "psnr": 17.25},
    "nearest": {"image": NAVY, "psnr": 14.0, "caption": "a navy circle"},
    "is_closer_to_true": True,
}
NOT_NEAR = PAIR | {"is_near_duplicate": False}
DATA = {
    "title": "A small run",
    "summary": "64 tokens per image.",
    "metrics": METRICS,
    "best_samples": [{"image": RED, "caption": "a red circle", "score": 0.312}],
    "reconstructions": [{"original": BLUE, "hard": NAVY, "psnr": 26.51}],
    "near_duplicates": [PAIR],
    "borderline": [NOT_NEAR | {"similarity": 0.9791, "captions": ["a kite", "a kite on a line"]}],
    "within_training": [PAIR | {"similarity": 0.9993}],
    "memorized": [NOT_NEAR | {"similarity": 0.9712}],
    "duplicates": [DUPLICATE, NOT_DROPPED],
    "prompts": [PROMPT],
    "plots": {"training": [{"image": png("white", side=900), "title": "Image loss"}]},
    "counts": COUNTS,
    "params": {"image_tokenizer": {"kind": "dvae", "dvae": {"kl_weight": 6.6}}},
    "versions": {"torch": "2.15.0"},
    "seeds": {"sampling": 7},
    "fingerprints": {"data/pairs": "3f9cabcd"},
}


def page_of(metrics: dict | None = None, **changes) -> str:
    return render_report({**DATA, **changes, "metrics": METRICS | (metrics or {})})


def text_of(html: str) -> str:
    """The text of the body, with white space folded."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("<body>")[1]))


FIRST_SCREEN = (
    "image tokenizer learning : held-out PSNR 29.16 dB at step 4000",
    "generator fine : held-out image loss 0.724 at step 2400",
    "27.4 dB hard PSNR CI 27.1–27.8 dB 22.1 dB k-means 5.3 dB better than k-means",
    "231 perplexity k-means: 180 86% of 512 tokens used k-means: 97%",
    "2.402 image, nats per token 1.253 text",
    "78% best of 16 CI 73–83% 41% one sample CI 36–46%",
    "57% best of 16 CI 53–61% 23% one sample CI 19–27%",
    "87% for the best, 52% for one sample",
    "0.287 best of 16 0.201 one sample",
)
SECTIONS = (
    "a red circle 0.312",
    "a red circle on a grey background unseen the first is closer to the true image 0.312 matches 0.105 wrong: colour "
    "true image, 17.2 dB nearest training image, 14.0 dB a navy circle",
    "62% (CI 50% to 75%) of the best samples for 80 held-out captions are closer to the true image, 17.3 dB, than",
    "original, reconstruction 26.5 dB",
    "color 61% → 95%",
    "compares 576 samples, for 96 captions, with 1,512 held-out images",
    "but no FID",
    "The same number of training images has a distance of 0.020",
    "Fréchet distance 0.041 0.033–0.049 576 samples to 1,512 held-out images; 0 for equal sets",
    "Fréchet distance, best of n 0.055 0.048–0.062 of the best of 16 for each of 96 captions; a single sample",
    "kernel distance 0.0012 – ± 0.0004 over 100 random sets of 288; 0 for equal sets",
    "precision 81% 77–85% samples among real images, within the 3 nearest",
    "own caption first, in the first 5, in the first 10 31%, 77%, 90% 28–34% of 1,000 held-out images",
    "CLIP score, scaled 20.1 → 28.7 19.0–21.2 100 max(cosine, 0); one sample → best of 16",
    "10% of 1,000 held-out images have a near duplicate, with a cosine above 0.98, among 2,048 training images",
    "hard PSNR of held-out images 30.1 dB 29.9 dB Fréchet distance 0.041 – caption match of one sample 91% 90%",
    "above a cosine of 0.9912, one held-out image in a hundred",
    "18% of the training images have a near duplicate within the training set",
    "The nearest held out, nearest in training 0.987 a dog · a cat",
    "0.979 a kite · a kite on a line",
    "Within the training set training, nearest other 0.999",
    "3% of 576 samples have a cosine above 0.98 to one of 2,048 training images, and so have 10% of the held-out images",
    "is 0.930 for samples and 0.940 for held-out images",
    "sample, nearest in training 0.971",
    "2 of the 3 dropped images would have been in another split",
    "has a neighbor at 10 bits",
    "3 bits, 17 in color, dropped a hill · a mountain",
    "5 bits, 20 in color, used a lake",
    "1,011 inputs were read. Every one is accounted for",
    "rejected: truncated data 5",
    "protocol of 3 lines what how features models/scorer &lt;own&gt; counts: real 1512 seed 7",
    "data/pairs 3f9cabcd",
    "torch 2.15.0",
    "image_tokenizer.dvae.kl_weight 6.6",
)


def test_every_figure_is_on_the_page_once_in_its_section():
    first_screen, sections = text_of(page_of()).split("The best images")
    assert [text for text in FIRST_SCREEN if text not in first_screen] == []
    assert [text for text in SECTIONS if text not in sections] == []
    assert "{" not in sections and "features_sha256" not in sections and "captions dropped" not in sections


def test_the_page_loads_nothing_and_runs_nothing():
    html = page_of()
    assert "http://" not in html and "https://" not in html
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import|url\(|\son\w+=", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    links = set(re.findall(r'href="([^"]*)"', html))
    assert links <= {"runs.html", *(f"#{section}" for section in re.findall(r'id="([^"]*)"', html))}
    assert "default-src 'none'" in html and page_of() == html


def test_captions_and_settings_are_escaped():
    evil = '<script>alert("x")</script>'
    html = page_of(
        title=evil,
        params={"note": evil},
        fingerprints={evil: "1"},
        best_samples=[{"image": RED, "caption": evil}],
        prompts=[{"prompt": evil, "split": evil, "candidates": [{"image": RED}]}],
    )

    assert "<script" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html


def test_every_image_has_an_alt_text_and_a_size_and_small_ones_have_sharp_pixels():
    images = re.findall(r"<img [^>]*>", page_of())
    assert len(images) == 20 and all(re.search(r'alt="[^"]+"', image) for image in images)
    assert any('alt="Generated from: a red circle"' in image for image in images)
    assert sum('width="8" height="8"' in image and "pixel-art" in image for image in images) == 19
    assert sum('width="900" height="900" alt="Image loss">' in image for image in images) == 1


NO_HASH = "the hash cannot find near duplicates, and only images with equal hashes should be dropped"
ANOTHER_CLIP = METRICS["protocol"] | {"features_sha256": "ab12"}
DECODER = {"psnr_hard": 31.54, "sharpness": 1.02, "sharpness_tokenizer": 0.9}


@pytest.mark.parametrize(
    ("block", "change", "added", "gone"),
    [
        ("metrics", {"reconstruction": {"psnr_hard": 20.0, "psnr_kmeans": 22.0}}, "2.0 dB worse than k-means", "better than k-means"),
        ("metrics", {"decoder": DECODER}, "The decoder makes better images of the same tokens: 31.5 dB for", "invented"),
        ("metrics", {"decoder": DECODER | {"sharpness": 1.2}}, "invented texture", None),
        ("metrics", {"protocol": ANOTHER_CLIP}, "the features of the CLIP in evaluation.features", "scorer’s own features"),
        ("metrics", {"generator": {"val_loss_image": 2.4}}, "2.400 image, nats per token A random guess", "text, nats"),
        ("metrics", {"generator": {"val_loss_image": 2.4}}, "gives captions no probability, so text has no loss", "Text and image losses"),
        ("metrics", {"held_out_pairs": 2}, "mean little here: they are over 2 held-out pairs only", None),
        ("counts", {"near_duplicates": COUNTS["near_duplicates"] | {"by_chance": -3}}, NO_HASH, None),
        ("counts", {"captions_dropped": {"caption_too_short": 1234}}, "accepted pairs: caption too short 1,234", None),
        ("counts", {"n_quarantined": 0}, "8 of them are missing from the rows below", None),
    ],
)  # fmt: skip
def test_what_a_figure_means_or_why_it_is_absent_is_explained(block, change, added, gone):
    page, usual = text_of(page_of(**{block: DATA[block] | change})), text_of(page_of())
    assert added in page and added not in usual
    assert gone is None or gone not in page


def test_without_caption_match_the_page_says_why():
    bare = {name: block for name, block in METRICS.items() if name != "caption_match"}
    page = render_report({**DATA, "metrics": bare})
    assert page.count("These captions are free text.") == 2 and "Caption match, seen" not in page


def test_only_figures_of_inception_are_called_fid_and_they_have_their_number_of_images():
    protocol = {"features": "Inception", "features_sha256": "6726825d"}
    page, own = text_of(page_of({"fidelity": INCEPTION, "protocol": protocol})), text_of(page_of())

    for text in (
        "The FID compares 384 samples, for 96 captions, with 384 held-out images. It uses the features of Inception",
        "FID 31.416 28.000–34.900 384 samples to 384 held-out images",
        "KID 0.012",
        "Inception Score 5.43 – ± 0.21 over 10 parts of 384 samples",
        "FID, best of n 55.000 50.000–60.000 of the best of 32",
        "FID 31.416 32.500",
    ):
        assert text in page
    assert "no FID" not in page
    assert "Inception" not in own and "KID" not in own and own.count("FID") == own.count("no FID") == 1


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("clip_frechet", "held-out images. It uses"),
        ("best_of", "best of n"),
        ("overlap", "have a near duplicate"),
        ("memorisation", "The median cosine"),
        ("true_or_nearest", "than to the nearest training image"),
    ],
)
def test_figures_of_image_fidelity_that_are_missing_are_left_out(part, text):
    rest = {name: block for name, block in FIDELITY.items() if name != part}
    if "overlap" in rest:
        rest["overlap"] = {name: value for name, value in rest["overlap"].items() if name != part}
    page = text_of(page_of({"fidelity": rest}, within_training=[]))
    assert text not in page and "do samples look like real images?" in page


def test_images_and_figures_of_several_scales_are_shown_coarse_to_fine():
    scales = {
        "1": {"psnr": 16.62, "used": 0.5, "used_words": 9, "perplexity": 20.4},
        "8": {"psnr": 28.71, "used": 0.5, "used_words": 500, "perplexity": 20.4},
    }
    labels = {"1 × 1": RED, "8 × 8": BLUE, "original": NAVY}
    cells = [{"image": image, "label": label} for label, image in labels.items()]

    html = page_of({"scales": scales}, scale_rows=[cells, cells])

    assert "1 × 1 16.6 dB 9 20 8 × 8 28.7 dB 500 20" in text_of(html)
    assert text_of(html).count("1 × 1 8 × 8 original") == 2 and 'alt="Held-out image 2, 8 × 8"' in html
    assert "Grid by grid" not in page_of()


@pytest.mark.parametrize(("kept_part", "num_folded"), [({}, 3), ({"kept_part": BLUE}, 4)])
def test_more_than_eight_candidates_are_folded_away_and_a_kept_part_takes_a_place(kept_part, num_folded):
    row = {"prompt": "a red circle", "split": "completed", "candidates": [{"image": RED}] * 11, **kept_part}
    page = page_of(prompts=[row])
    assert f"{num_folded} more candidates" in page
    assert page.count("Kept part of the image for: a red circle") == len(kept_part)
    assert [f"Candidate {rank} for" in page for rank in (1, 11, 12)] == [True, True, False]


def test_the_tick_of_the_loss_is_that_of_the_verdict_and_few_held_out_pairs_have_none():
    memorizing = "memorizing since step 120: held-out image loss 0.852 at step 120, 2.127 at step 500"
    page = page_of({"verdicts": {"generator": memorizing}})
    assert '<li class="bad"><b>generator</b>' in page and "2.127 at step 500" in page
    assert '<a class="card bad" href="#training">' in page
    few = page_of({"held_out_pairs": 2})
    assert '<a class="card good"' in page_of() and 'class="card good"' not in few
    assert '<li class="good">' not in few


NOISE = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
SCENE = next(iter(scene_pairs(1, 0, "validation")))[1]


@pytest.mark.parametrize(("pixels", "width", "height"), [(SCENE, 64, 64), (NOISE, 85, 128)])
def test_a_thumbnail_has_its_own_size_on_the_page_and_is_the_same_every_time(pixels, width, height):
    small = thumbnail(pixels, 128)
    element = image_element(small)
    assert element["src"].startswith("data:image/webp;base64,")
    assert (element["width"], element["height"]) == (width, height) and thumbnail(pixels, 128) == small


def test_shares_numbers_and_durations_as_text():
    shares = {0.413: "41%", 0: "0%", 1: "100%", 0.004: "0.4%", 0.0001: "<0.1%", 0.99996: ">99.9%", None: "–"}
    assert {share: rate(share) for share in shares} == shares
    assert [number(value) for value in (-1.5, 1234.5, None)] == ["−1.50", "1,234.50", "–"]
    durations = {0.42: "0.4 s", 9.99: "10 s", 59.7: "1 min 0 s", 75: "1 min 15 s", 7260: "2 h 1 min"}
    assert {seconds: plots.duration(seconds) for seconds in durations} == durations


LOSSES = {"train": [(0, 5.0), (10, 3.0)], "validation": [(10, 3.2)], "not yet": []}
ONE_PROMPT = match_rates([[0.5]], dict.fromkeys(("colour", "relation", "background"), [[1]]), 0)
CURVES = {
    "loss": lambda: plots.loss_curve(LOSSES, title="Image loss"),
    "match": lambda: plots.match_curve({"seen": RATES, "unseen": UNSEEN}),
    "score": lambda: plots.score_curve({"n": [1, 2, 4], "score": [0.2, 0.24, 0.26]}),
    "blur": lambda: plots.blur_curve(FIDELITY["clip_frechet"], "distance"),
    "similarity": lambda: plots.similarity_histogram({"held out": [0.9, 0.95, 1.0], "samples": [0.2]}, 0.98),
    "similarity of copies": lambda: plots.similarity_histogram({"held out": [1.0, 1.0]}, 1.0),
    "best of n": lambda: plots.best_of_curve(FIDELITY["best_of"], "clip_frechet", "distance"),
    "scores": lambda: plots.blurred_scores({"radius": [0, 1], "score": [5.0, 4.0]}),
    "blur alone": lambda: plots.blur_curve({"radius": [0, 1], "distance": [0.2, 0.1]}, "distance"),
    "codebook": lambda: plots.codebook_curve({"dvae": np.array([5, 0, 3, 1]), "k-means": [3, 2, 2, 2]}),
    "stages": lambda: plots.stage_bars({"prepare_pairs": 12.4, "train_generator": 1530.0}),
    "one point": lambda: plots.match_curve({"seen": ONE_PROMPT}),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_a_curve_is_a_png_of_nine_hundred_pixels_with_the_same_bytes_every_time(curve):
    first, second = curve(), curve()
    image = Image.open(BytesIO(first))
    assert (image.format, image.width) == ("PNG", 900)
    assert set(image.info) <= {"dpi"}  # no date, no version
    assert first == second
