"""The report and its plots: complete, safe, self-contained, the same every time."""

from __future__ import annotations

import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from thousandwords.data.images import encode_png
from thousandwords.evaluation import metrics
from thousandwords.reporting import plots
from thousandwords.reporting.html_report import image, render_report
from thousandwords.reporting.report_model import ReportData
from thousandwords.reporting.report_tables import flatten, number, rate
from thousandwords.reporting.thumbnails import thumbnail
from thousandwords.scenes.render import scene_pairs

RATES = {
    "prompts": 80,
    "scene": {"n1": 0.52, "best": 0.87},
    "colour": {"n1": 0.61, "best": 0.95},
    "all": {"n1": 0.41, "best": 0.78, "n1_interval": [0.36, 0.46], "best_interval": [0.73, 0.83]},
    "curve": {"n": [1, 2, 4], "all": [0.41, 0.6, 0.78], "scene": [0.52, 0.7, 0.87]},
}
UNSEEN = RATES | {
    "all": {"n1": 0.23, "best": 0.57, "n1_interval": [0.19, 0.27], "best_interval": [0.51, 0.63]}
}
METRICS = {
    "reconstruction": {"psnr_hard": 27.43, "psnr_kmeans": 22.12, "psnr_hard_interval": [27.12, 27.75]},
    "codebook": {
        "perplexity": 231.4,
        "perplexity_kmeans": 180.2,
        "used": 0.86,
        "used_kmeans": 0.97,
        "vocab_size": 512,
    },
    "generator": {"val_loss_text": 1.253, "val_loss_image": 2.402},
    "clip_score": {
        "n1": 0.201,
        "best": 0.287,
        "scaled": {"n1": 20.1, "n1_interval": [19.04, 21.2], "best": 28.7},
    },
    "n": 16,
    "caption_match": {"seen": RATES, "unseen": UNSEEN},
    "fidelity": {
        "clip_frechet": {
            "radius": [0, 1],
            "distance": [0.0409, 0.0365],
            "training": 0.0202,
            "real": 1512,
            "drawn": 576,
            "captions": 96,
            "interval": [0.0333, 0.0488],
            "without_overlap": [0.0445, None],
        },
        "best_of": {
            "n": [1, 4, 16],
            "captions": 96,
            "real": 1512,
            "clip_frechet": [0.081, 0.062, 0.055],
            "clip_frechet_interval": [[0.07, 0.09], [0.05, 0.07], [0.0481, 0.0622]],
        },
        "clip_kernel": {"mean": 0.00123, "deviation": 0.0004, "subsets": 100, "size": 288},
        "clip_precision": {
            "precision": 0.81,
            "precision_interval": [0.77, 0.85],
            "recall": 0.64,
            "neighbours": 3,
        },
        "retrieval": {
            "pictures": 1000,
            "captions_of_pictures": {"r1": 0.31, "r1_interval": [0.28, 0.34], "r5": 0.77, "r10": 0.9},
            "pictures_of_captions": {"r1": 0.3, "r5": 0.75, "r10": 0.89},
        },
        "memorisation": {
            "threshold": 0.98,
            "drawn": 576,
            "captions": 96,
            "training": 2048,
            "share": {"drawn": 0.031, "held_out": 0.096},
            "median_similarity": {"drawn": 0.93, "held_out": 0.94},
        },
        "overlap": {
            "threshold": 0.98,
            "held_out": 1000,
            "training": 2048,
            "share": 0.096,
            "share_within_training": 0.18,
            "by_chance": 0.9912,
            "caption_match": {"with": 0.91, "without": 0.905},
            "psnr_hard": {"with": 30.1, "without": 29.92},
            "clip_frechet": {"with": 0.0409, "without": None},
        },
    },
    "protocol": {
        "features": "models/scorer <own>",
        "features_sha256": None,
        "counts": {"real": 1512},
        "seed": 7,
        "versions": {"torch": "2"},
    },
    "seconds": {"prepare_pairs": 12.4, "train_generator": 1530.0},
}


def png(color: str = "red", side: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {
    "best": png("red"),
    "second": png("green"),
    "original": png("blue"),
    "rebuilt": png("navy"),
    "curve": png("white", side=900),
}


PAIR = {
    "image": "original",
    "training_image": "rebuilt",
    "similarity": 0.9871,
    "is_near_duplicate": True,
    "captions": ["a dog", "a cat"],
}


def report_data(**changes) -> ReportData:
    data: ReportData = {
        "title": "A small run",
        "summary": "64 tokens per image.",
        "metrics": METRICS,
        "best_samples": [{"image": "best", "caption": "a red circle", "score": 0.312}],
        "reconstructions": [{"original": "original", "hard": "rebuilt", "psnr": 26.51}],
        "near_duplicates": [PAIR],
        "borderline": [
            PAIR
            | {"similarity": 0.9791, "is_near_duplicate": False, "captions": ["a kite", "a kite on a line"]}
        ],
        "within_training": [PAIR | {"similarity": 0.9993}],
        "memorized": [PAIR | {"similarity": 0.9712, "is_near_duplicate": False}],
        "duplicates": [
            {
                "image": "original",
                "earlier_image": "rebuilt",
                "distance": 3,
                "color": 17,
                "is_dropped": True,
                "captions": ["a hill", "a mountain"],
            },
            {
                "image": "best",
                "earlier_image": "second",
                "distance": 5,
                "color": 20,
                "is_dropped": False,
                "captions": ["a lake", "a lake"],
            },
        ],
        "prompts": [
            {
                "prompt": "a red circle on a grey background",
                "split": "unseen",
                "candidates": [
                    {"image": "best", "score": 0.312, "matches": {"colour": True, "shape": True}},
                    {"image": "second", "score": 0.105, "matches": {"colour": False, "shape": True}},
                ],
            }
        ],
        "plots": {"training": [{"image": "curve", "title": "Image loss", "note": "It falls."}]},
        "stages": {"train_generator": "6,000 steps"},
        "runs": {"train_generator": {"run_id": "0f5dd1ef776849bc"}},
        "counts": {
            "n_in": 1011,
            "n_ok": 1000,
            "n_quarantined": 8,
            "n_duplicate": 3,
            "n_filtered": 0,
            "reasons": {"truncated_data": 5, "too_small": 3},
            "near_duplicates": {
                "distance": 4,
                "colour": 24,
                "by_chance": 9,
                "across_splits": 2,
                "by_distance": {},
            },
            "splits": {"train": 900, "validation": 100},
        },
        "params": {"image_tokenizer": {"kind": "dvae", "dvae": {"kl_weight": 6.6}}},
        "versions": {"torch": "2.15.0"},
        "seeds": {"sampling": 7},
        "fingerprints": {"data/pairs": "3f9cabcd"},
    }
    return {**data, **changes}


def without(name: str) -> dict:
    return {key: value for key, value in METRICS.items() if key != name}


def text_of(html: str) -> str:
    """The text of the body, with white space folded."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("<body>")[1]))


@pytest.mark.parametrize(
    "figure",
    [
        "27.4 dB",
        "CI 27.1–27.8 dB",
        "22.1 dB",
        "5.3 dB better than k-means",
        "231",
        "k-means: 180",
        "86%",
        "of 512 tokens used",
        "k-means: 97%",
        "1.253",
        "2.402",
        "best of 16",
        "78%",
        "CI 73–83%",
        "41%",
        "CI 36–46%",
        "57%",
        "CI 51–63%",
        "23%",
        "CI 19–27%",
        "87% for the best, 52% for one sample",
        "0.201",
        "0.287",
    ],
)
def test_every_headline_figure_is_on_the_page(figure):
    assert figure in text_of(render_report(report_data(), IMAGES)).split("The best images")[0]


@pytest.mark.parametrize(
    "text",
    [
        "a red circle on a grey background",
        "0.312",
        "matches",
        "wrong: colour",
        "26.5 dB",
        "61% → 95%",
        "compares 576 samples, for 96 captions, with 1,512 held-out images",
        "The same number of training images has a distance of 0.020",
        "10% of 1,000 held-out images have a near duplicate, with a cosine above 0.98, among 2,048 training images",
        "hard PSNR of held-out images 30.1 dB 29.9 dB",
        "Fréchet distance 0.041 –",
        "0.987",
        "but no FID",
        "above a cosine of 0.9912, one held-out image in a hundred",
        "18% of the training images have a near duplicate within the training set",
        "0.979",
        "caption match of one sample 91% 90%",
        "a kite · a kite on a line",
        "Within the training set",
        "0.999",
        "3% of 576 samples have a cosine above 0.98 to one of 2,048 training images, and so have 10% of the held-out images",
        "is 0.930 for samples and 0.940 for held-out images",
        "0.971",
        "2 of the 3 dropped images would have been in another split",
        "has a neighbor at 10 bits",
        "3 bits, 17 in color, dropped a hill · a mountain",
        "5 bits, 20 in color, used a lake",
        "It falls.",
        "1,011 inputs",
        "Every one is accounted for",
        "truncated data",
        "25 min 30 s",
        "6,000 steps",
        "image_tokenizer.dvae.kl_weight",
        "6.6",
        "2.15.0",
        "3f9cabcd",
    ],
)
def test_every_section_shows_its_data(text):
    assert text in text_of(render_report(report_data(), IMAGES)).split("The best images")[1]


def test_the_page_loads_nothing_and_runs_nothing():
    html = render_report(report_data(), IMAGES)

    assert "http://" not in html and "https://" not in html
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import|url\(|\son\w+=", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', html))
    assert "default-src 'none'" in html


def test_every_link_of_the_page_leads_to_a_section():
    html = render_report(report_data(), IMAGES)

    assert set(re.findall(r'href="#([^"]*)"', html)) <= set(re.findall(r'id="([^"]*)"', html))


def test_captions_and_settings_are_escaped():
    evil = '<script>alert("x")</script>'
    changes = {
        "title": evil,
        "params": {"note": evil},
        "fingerprints": {evil: "1"},
        "best_samples": [{"image": "best", "caption": evil}],
        "prompts": [{"prompt": evil, "split": evil, "candidates": [{"image": "best"}]}],
    }

    html = render_report(report_data(**changes), IMAGES)

    assert "<script" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html


def test_every_image_has_an_alt_text():
    images = re.findall(r"<img [^>]*>", render_report(report_data(), IMAGES))

    assert len(images) == 18
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert any('alt="Generated from: a red circle"' in image for image in images)


def test_small_images_have_sharp_pixels_and_all_images_have_a_size():
    html = render_report(report_data(), IMAGES)

    assert len(re.findall(r'width="8" height="8" [^>]*class="pixel-art"', html)) == 17
    assert re.search(r'width="900" height="900" alt="Image loss">', html)


def test_without_caption_match_the_page_says_why():
    real_data = report_data(metrics=without("caption_match"))

    page = render_report(real_data, IMAGES)

    assert "These captions are free text." in page
    assert "Caption match, seen" not in page
    assert "No scenes here." in render_report(real_data | {"no_caption_match": "No scenes here."}, IMAGES)


@pytest.mark.parametrize("name", METRICS)
def test_any_part_of_the_metrics_may_be_missing(name):
    assert "A small run" in render_report(report_data(metrics=without(name)), IMAGES)


def test_where_the_image_hash_cannot_find_near_duplicates_the_page_says_so():
    counts = report_data()["counts"]
    alike = {**counts["near_duplicates"], "by_chance": -3}
    page = text_of(render_report(report_data(counts={**counts, "near_duplicates": alike}), IMAGES))
    assert "the hash cannot find near duplicates, and only images with equal hashes should be dropped" in page
    bare = {name: value for name, value in counts.items() if name != "near_duplicates"}
    assert "only the first is used" not in text_of(render_report(report_data(counts=bare), IMAGES))


def test_image_fidelity_is_a_table_of_figures_with_intervals_and_notes():
    page = text_of(render_report(report_data(), IMAGES))

    assert "Fréchet distance 0.041 0.033–0.049 576 samples to 1,512 held-out images; 0 for equal sets" in page
    assert (
        "Fréchet distance, best of n 0.055 0.048–0.062 of the best of 16 for each of 96 captions; a single sample"
        in page
    )
    assert "kernel distance 0.0012 – ± 0.0004 over 100 random sets of 288; 0 for equal sets" in page
    assert "precision 81% 77–85% samples among real images, within the 3 nearest" in page
    assert (
        "own caption first, in the first 5, in the first 10 31%, 77%, 90% 28–34% of 1,000 held-out images"
        in page
    )
    assert "CLIP score, scaled 20.1 → 28.7 19.0–21.2 100 max(cosine, 0); one sample → best of 16" in page


def test_the_protocol_is_at_the_end_beside_the_lineage():
    page = text_of(render_report(report_data(), IMAGES))

    end = page.split("Everything needed to reproduce the run")[1]
    assert "protocol of 3 lines what how features models/scorer &lt;own&gt; counts: real 1512 seed 7" in end
    assert (
        "How it was measured" in end and "Lineage" in end and "features_sha256" not in end and "{" not in end
    )


INCEPTION = {
    "fid": {
        "radius": [0, 1],
        "distance": [31.4159, 20.0],
        "interval": [28.0, 34.9],
        "real": 384,
        "drawn": 384,
        "captions": 96,
    },
    "kid": {"mean": 0.0123, "deviation": 0.002, "subsets": 100, "size": 192},
    "precision": {"precision": 0.5, "recall": 0.25, "neighbours": 3},
    "inception_score": {
        "mean": 5.432,
        "deviation": 0.21,
        "splits": 10,
        "drawn": 384,
        "radius": [0, 1],
        "score": [5.432, 4.0],
    },
    "best_of": {
        "n": [1, 32],
        "captions": 96,
        "real": 384,
        "fid": [60.0, 55.0],
        "inception_score": [4.0, 4.5],
    },
    "overlap": {
        "threshold": 0.98,
        "held_out": 1000,
        "training": 2048,
        "share": 0.1,
        "share_within_training": None,
        "psnr_hard": {"with": 30.0, "without": 29.0},
        "fid": {"with": 31.4159, "without": 32.5},
    },
}


def test_only_figures_of_inception_are_called_fid_and_they_have_their_number_of_images():
    measured = {"fidelity": INCEPTION, "protocol": {"features": "Inception", "features_sha256": "6726825d"}}
    page, own = (
        text_of(render_report(report_data(metrics=METRICS | more), IMAGES)) for more in (measured, {})
    )

    assert (
        "The FID compares 384 samples, for 96 captions, with 384 held-out images. It uses the features of Inception"
        in page
    )
    assert "FID 31.416 28.000–34.900 384 samples to 384 held-out images" in page and "KID 0.012" in page
    assert "Inception Score 5.43 – ± 0.21 over 10 parts of 384 samples" in page
    assert (
        "FID, best of n 55.000 – of the best of 32" in page
        and "FID 31.416 32.500" in page
        and "no FID" not in page
    )
    assert "Inception" not in own and "KID" not in own and own.count("FID") == own.count("no FID") == 1


def test_another_clip_is_not_called_the_scorers_own():
    protocol = {"protocol": METRICS["protocol"] | {"features_sha256": "ab12"}}
    page = text_of(render_report(report_data(metrics=METRICS | protocol), IMAGES))
    assert "the features of the CLIP in evaluation.features" in page and "scorer’s own features" not in page


def test_each_stage_names_its_run_and_links_to_it_where_it_is_on_a_server():
    runs = {
        "prepare_pairs": {"run_id": "aa11"},
        "evaluate": {"run_id": "bb22", "link": "http://host:5000/#/runs/bb22"},
    }

    html = render_report(report_data(runs=runs), IMAGES)

    assert '<a href="http://host:5000/#/runs/bb22" rel="noopener noreferrer"><code>bb22</code></a>' in html
    assert html.count("http://") == 1 and "make ui" in html and "<td><code>aa11</code></td>" in html
    assert "make ui" not in render_report(report_data(runs={"evaluate": runs["evaluate"]}), IMAGES)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("clip_frechet", "held-out images. It uses"),
        ("best_of", "best of n"),
        ("overlap", "have a near duplicate"),
        ("memorisation", "Are samples copies of training images?"),
    ],
)
def test_figures_of_image_fidelity_that_are_missing_are_left_out(part, text):
    rest = {name: block for name, block in METRICS["fidelity"].items() if name != part}
    rest["overlap"] = {name: value for name, value in rest.get("overlap", {}).items() if name != part}

    page = text_of(render_report(report_data(metrics=METRICS | {"fidelity": rest}), IMAGES))

    assert text not in page and "do samples look like real images?" in page
    assert "do samples look like" not in text_of(
        render_report(report_data(metrics=METRICS | {"fidelity": {}}), IMAGES)
    )


def test_a_title_and_empty_metrics_are_enough_for_a_page():
    html = render_report({"title": "Nothing yet", "metrics": {}}, {})

    assert "Nothing yet" in html and "<img" not in html


def test_the_same_data_give_the_same_page():
    assert render_report(report_data(), IMAGES) == render_report(report_data(), IMAGES)


def test_more_than_eight_candidates_are_folded_away():
    many = [{"image": "best", "score": 0.3 - 0.01 * rank} for rank in range(11)]

    html = render_report(report_data(prompts=[{"prompt": "a red circle", "candidates": many}]), IMAGES)

    assert "3 more candidates" in html and 'alt="Candidate 11 for: a red circle"' in html


def test_a_tokenizer_worse_than_k_means_and_a_collapsing_codebook_are_pointed_out():
    bad = METRICS | {
        "reconstruction": {"psnr_hard": 20.0, "psnr_kmeans": 22.0},
        "codebook": {"perplexity": 2.1, "used": 0.01, "vocab_size": 512},
    }

    page = text_of(render_report(report_data(metrics=bad), IMAGES))

    assert "2.0 dB worse than k-means" in page
    assert "the codebook is collapsing" in page


def test_dropped_captions_are_shown_where_captions_are_filtered():
    counts = report_data()["counts"]
    page = text_of(
        render_report(report_data(counts={**counts, "captions_dropped": {"caption_too_short": 1234}}), IMAGES)
    )
    assert "captions dropped from accepted pairs: caption too short 1,234" in page
    assert "captions dropped" not in text_of(render_report(report_data(), IMAGES))


def test_inputs_that_are_not_accounted_for_are_pointed_out():
    page = text_of(render_report(report_data(counts={"n_in": 1011, "n_ok": 1000}), IMAGES))

    assert "11 of them are missing from the rows below" in page


def test_an_image_that_is_missing_or_is_no_png_is_rejected_by_name():
    with pytest.raises(ValueError, match="name image 'best', which is not among its 0 images"):
        render_report(report_data(), {})
    with pytest.raises(ValueError, match=r"image 'best' begins with b'GIF89a.*encode it as PNG"):
        render_report(report_data(), IMAGES | {"best": b"GIF89a" + bytes(40)})


NOISE = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
SCENE = next(iter(scene_pairs(1, 0, "validation")))[1]


@pytest.mark.parametrize(("pixels", "width", "height"), [(SCENE, 64, 64), (NOISE, 85, 128)])
def test_a_thumbnail_has_its_own_size_on_the_page_and_is_the_same_every_time(pixels, width, height):
    small = thumbnail(pixels, 128)

    element = image("one", {"one": small})

    assert element["src"].startswith("data:image/webp;base64,") and (element["width"], element["height"]) == (
        width,
        height,
    )
    with Image.open(BytesIO(small)) as decoded:
        assert decoded.format == "WEBP" and decoded.size == (width, height)
    assert thumbnail(pixels, 128) == small


def test_a_thumbnail_of_a_scene_takes_a_quarter_of_its_png_at_most_and_looks_the_same():
    small = thumbnail(SCENE, 128)
    with Image.open(BytesIO(small)) as decoded:
        difference = np.abs(np.array(decoded.convert("RGB"), np.float32) - SCENE)
    assert len(small) < len(encode_png(SCENE)) / 4 and difference.mean() < 6


def test_shares_numbers_and_durations_as_text():
    assert [rate(share) for share in (0.413, 0, 1, 0.004, 0.0001, 0.99996, None)] == [
        "41%",
        "0%",
        "100%",
        "0.4%",
        "<0.1%",
        ">99.9%",
        "–",
    ]
    assert [number(value) for value in (-1.5, 1234.5, None)] == ["−1.50", "1,234.50", "–"]
    assert flatten({"a": {"b": 1}, "c": {}}) == [("a.b", 1), ("c", {})]
    assert [plots.duration(seconds) for seconds in (0.42, 9.99, 59.7, 75, 7260)] == [
        "0.4 s",
        "10 s",
        "1 min 0 s",
        "1 min 15 s",
        "2 h 1 min",
    ]


LOSSES = {"train": [(0, 5.0), (10, 3.0)], "validation": [(10, 3.2)], "not yet": []}
CURVES = {
    "loss": lambda: plots.loss_curve(LOSSES, "Image loss"),
    "match": lambda: plots.match_curve({"seen": RATES, "unseen": UNSEEN}),
    "score": lambda: plots.score_curve({"n": [1, 2, 4], "score": [0.2, 0.24, 0.26]}),
    "blur": lambda: plots.blur_curve(METRICS["fidelity"]["clip_frechet"]),
    "similarity": lambda: plots.similarity_histogram({"held out": [0.9, 0.95, 1.0], "samples": [0.2]}, 0.98),
    "similarity of copies": lambda: plots.similarity_histogram({"held out": [1.0, 1.0]}, 1.0),
    "best of n": lambda: plots.best_of_curve(METRICS["fidelity"]["best_of"], "clip_frechet", "distance"),
    "scores": lambda: plots.blurred_scores({"radius": [0, 1], "score": [5.0, 4.0]}),
    "blur alone": lambda: plots.blur_curve({"radius": [0, 1], "distance": [0.2, 0.1]}),
    "codebook": lambda: plots.codebook_curve({"dvae": np.array([5, 0, 3, 1]), "k-means": [3, 2, 2, 2]}),
    "stages": lambda: plots.stage_bars(METRICS["seconds"]),
    "one point": lambda: plots.match_curve(
        {
            "seen": metrics.match_rates(
                [[0.5]], {"colour": [[1]], "relation": [[1]], "background": [[0]]}, np.random.default_rng(0)
            )
        }
    ),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_a_curve_is_a_png_of_nine_hundred_pixels_with_the_same_bytes_every_time(curve):
    first, second = curve(), curve()

    image = Image.open(BytesIO(first))
    assert (image.format, image.width) == ("PNG", 900)
    assert set(image.info) <= {"dpi"}  # no date, no version
    assert first == second


def test_a_plot_does_not_change_the_callers_settings_of_matplotlib():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31}):
        CURVES["score"]()
        assert matplotlib.rcParams["font.size"] == 31


@pytest.mark.parametrize(("kept_part", "num_folded"), [({}, 2), ({"kept_part": "original"}, 3)])
def test_the_kept_part_of_an_inpainted_image_takes_a_place_in_the_first_line_of_candidates(
    kept_part, num_folded
):
    row = {
        "prompt": "a red circle",
        "split": "completed",
        "candidates": [{"image": "best"}] * 10,
        **kept_part,
    }

    page = render_report(report_data(prompts=[row]), IMAGES)

    assert f"{num_folded} more candidates" in page
    assert page.count("Kept part of the image for: a red circle") == len(kept_part)
    assert [f"Candidate {rank} for" in page for rank in (1, 10, 11)] == [True, True, False]
