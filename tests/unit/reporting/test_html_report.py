"""The report page and its curves: whole, safe, self-contained, the same every time."""

from __future__ import annotations

import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from thousandwords import metrics, plots
from thousandwords.images import encode_png
from thousandwords.report import Facts, flatten, image, number, rate, render_report
from thousandwords.scenes import scene_pairs
from thousandwords.thumbnails import thumbnail

RATES = {
    "prompts": 80, "scene": {"n1": 0.52, "best": 0.87}, "colour": {"n1": 0.61, "best": 0.95},
    "all": {"n1": 0.41, "best": 0.78, "n1_interval": [0.36, 0.46], "best_interval": [0.73, 0.83]},
    "curve": {"n": [1, 2, 4], "all": [0.41, 0.6, 0.78], "scene": [0.52, 0.7, 0.87]},
}
UNSEEN = RATES | {
    "all": {"n1": 0.23, "best": 0.57, "n1_interval": [0.19, 0.27], "best_interval": [0.51, 0.63]},
}
METRICS = {
    "reconstruction": {"psnr_hard": 27.43, "psnr_kmeans": 22.12, "psnr_hard_interval": [27.12, 27.75]},
    "codebook": {"perplexity": 231.4, "perplexity_kmeans": 180.2, "used": 0.86, "used_kmeans": 0.97,
                 "vocab_size": 512},
    "generator": {"val_loss_text": 1.253, "val_loss_image": 2.402},
    "clip_score": {"n1": 0.201, "best": 0.287, "scaled": {"n1": 20.1, "n1_interval": [19.04, 21.2], "best": 28.7}}, "n": 16,
    "caption_match": {"seen": RATES, "unseen": UNSEEN},
    "fidelity": {
        "clip_frechet": {"radius": [0, 1], "distance": [0.0409, 0.0365], "training": 0.0202, "real": 1512, "drawn": 576,
                         "captions": 96, "interval": [0.0333, 0.0488], "without_overlap": [0.0445, None]},
        "best_of": {"n": [1, 4, 16], "captions": 96, "real": 1512, "clip_frechet": [0.081, 0.062, 0.055],
                    "clip_frechet_interval": [[0.07, 0.09], [0.05, 0.07], [0.0481, 0.0622]]},
        "clip_kernel": {"mean": 0.00123, "deviation": 0.0004, "subsets": 100, "size": 288},
        "clip_precision": {"precision": 0.81, "precision_interval": [0.77, 0.85], "recall": 0.64, "neighbours": 3},
        "retrieval": {"pictures": 1000, "captions_of_pictures": {"r1": 0.31, "r1_interval": [0.28, 0.34], "r5": 0.77, "r10": 0.9},
                      "pictures_of_captions": {"r1": 0.3, "r5": 0.75, "r10": 0.89}},
        "memorisation": {"threshold": 0.98, "drawn": 576, "captions": 96, "training": 2048,
                         "share": {"drawn": 0.031, "held_out": 0.096}, "median_similarity": {"drawn": 0.93, "held_out": 0.94}},
        "overlap": {"threshold": 0.98, "held_out": 1000, "training": 2048, "share": 0.096, "share_within_training": 0.18,
                    "by_chance": 0.9912, "caption_match": {"with": 0.91, "without": 0.905},
                    "psnr_hard": {"with": 30.1, "without": 29.92}, "clip_frechet": {"with": 0.0409, "without": None}}},
    "protocol": {"features": "models/scorer <own>", "features_sha256": None, "counts": {"real": 1512}, "seed": 7,
                 "versions": {"torch": "2"}},
    "seconds": {"prepare_pairs": 12.4, "train_generator": 1530.0},
}


def png(colour: str = "red", side: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {"best": png("red"), "second": png("green"), "original": png("blue"), "rebuilt": png("navy"),
            "curve": png("white", side=900)}


TWIN = {"picture": "original", "training": "rebuilt", "similarity": 0.9871, "is_twin": True, "captions": ["a dog", "a cat"]}


def facts(**changes) -> Facts:
    whole: Facts = {
        "title": "A small run", "summary": "64 words per picture.", "metrics": METRICS,
        "hero": [{"picture": "best", "caption": "a red circle", "score": 0.312}],
        "reconstructions": [{"original": "original", "hard": "rebuilt", "psnr": 26.51}],
        "twins": [TWIN],
        "borderline": [TWIN | {"similarity": 0.9791, "is_twin": False, "captions": ["a kite", "a kite on a line"]}],
        "within": [TWIN | {"similarity": 0.9993}], "memorised": [TWIN | {"similarity": 0.9712, "is_twin": False}],
        "duplicates": [{"picture": "original", "twin": "rebuilt", "distance": 3, "colour": 17, "is_dropped": True,
                        "captions": ["a hill", "a mountain"]},
                       {"picture": "best", "twin": "second", "distance": 5, "colour": 20, "is_dropped": False,
                        "captions": ["a lake", "a lake"]}],
        "prompts": [{"prompt": "a red circle on a grey background", "split": "unseen", "candidates": [
            {"picture": "best", "score": 0.312, "matches": {"colour": True, "shape": True}},
            {"picture": "second", "score": 0.105, "matches": {"colour": False, "shape": True}}]}],
        "plots": {"training": [{"picture": "curve", "title": "Image loss", "note": "It falls."}]},
        "stages": {"train_generator": "6,000 steps"},
        "runs": {"train_generator": {"run_id": "0f5dd1ef776849bc"}},
        "counts": {"n_in": 1011, "n_ok": 1000, "n_quarantined": 8, "n_duplicate": 3, "n_filtered": 0,
                   "reasons": {"truncated_data": 5, "too_small": 3},
                   "near_duplicates": {"distance": 4, "colour": 24, "by_chance": 9, "across_splits": 2, "by_distance": {}},
                   "splits": {"train": 900, "validation": 100}},
        "params": {"image_tokenizer": {"kind": "dvae", "dvae": {"kl_weight": 6.6}}},
        "versions": {"torch": "2.15.0"}, "seeds": {"sampling": 7}, "fingerprints": {"data/pairs": "3f9cabcd"},
    }
    return {**whole, **changes}


def without(name: str) -> dict:
    return {key: value for key, value in METRICS.items() if key != name}


def text_of(html: str) -> str:
    """What a reader sees: the body's text, white space folded."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("<body>")[1]))


@pytest.mark.parametrize("figure", [
    "27.4 dB", "CI 27.1–27.8 dB", "22.1 dB", "5.3 dB better than k-means", "231", "k-means: 180", "86%", "of 512 words",
    "k-means: 97%", "1.253", "2.402", "best of 16", "78%", "CI 73–83%", "41%", "CI 36–46%", "57%",
    "CI 51–63%", "23%", "CI 19–27%", "87% best, 52% one draw", "0.201", "0.287"])
def test_every_headline_figure_stands_on_the_page(figure):
    assert figure in text_of(render_report(facts(), PICTURES)).split("The best pictures")[0]


@pytest.mark.parametrize("words", [
    "a red circle on a grey background", "0.312", "matches", "wrong: colour", "26.5 dB", "61% → 95%",
    "576 drawn pictures, for 96 captions, to 1,512 held-out ones", "As many training pictures are at 0.020",
    "10% of 1,000 held-out pictures have a near twin, of a cosine above 0.98, among 2,048 training pictures",
    "hard PSNR of held-out pictures 30.1 dB 29.9 dB", "Fréchet distance 0.041 –", "0.987", "and no FID",
    "above a cosine of 0.9912 one held-out picture in a hundred", "18% have a near twin among themselves", "0.979",
    "caption match of one draw 91% 90%", "a kite · a kite on a line", "Within the training set", "0.999",
    "3% of 576 drawn pictures are nearer than 0.98 to one of 2,048 training pictures, and so are 10% of the held-out ones",
    "nearer than 0.930, half of the held-out ones nearer than 0.940", "0.971", "2 of the 3 that were dropped would have lain",
    "a neighbour 10 bits away", "3 bits, 17 in colour, dropped a hill · a mountain", "5 bits, 20 in colour, stays a lake",
    "It falls.", "1,011 inputs", "Every one is accounted for", "truncated data", "25 min 30 s", "6,000 steps",
    "image_tokenizer.dvae.kl_weight", "6.6", "2.15.0", "3f9cabcd"])
def test_every_section_shows_its_facts(words):
    assert words in text_of(render_report(facts(), PICTURES)).split("The best pictures")[1]


def test_the_page_loads_nothing_and_runs_nothing():
    html = render_report(facts(), PICTURES)

    assert "http://" not in html and "https://" not in html
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import|url\(|\son\w+=", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', html))
    assert "default-src 'none'" in html


def test_every_link_of_the_page_leads_to_a_section():
    html = render_report(facts(), PICTURES)

    assert set(re.findall(r'href="#([^"]*)"', html)) <= set(re.findall(r'id="([^"]*)"', html))


def test_captions_and_settings_are_escaped():
    evil = '<script>alert("x")</script>'
    changes = {"title": evil, "params": {"note": evil}, "fingerprints": {evil: "1"},
               "hero": [{"picture": "best", "caption": evil}],
               "prompts": [{"prompt": evil, "split": evil, "candidates": [{"picture": "best"}]}]}

    html = render_report(facts(**changes), PICTURES)

    assert "<script" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html


def test_every_picture_has_words_for_those_who_do_not_see_it():
    images = re.findall(r"<img [^>]*>", render_report(facts(), PICTURES))

    assert len(images) == 18
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert any('alt="Generated from: a red circle"' in image for image in images)


def test_small_pictures_keep_their_pixels_sharp_and_all_state_their_size():
    html = render_report(facts(), PICTURES)

    assert len(re.findall(r'width="8" height="8" [^>]*class="pixel-art"', html)) == 17
    assert re.search(r'width="900" height="900" alt="Image loss">', html)


def test_without_caption_match_the_page_says_why():
    real_data = facts(metrics=without("caption_match"))

    page = render_report(real_data, PICTURES)

    assert "These captions are free text." in page
    assert "Caption match, seen" not in page
    assert "No scenes here." in render_report(real_data | {"no_caption_match": "No scenes here."}, PICTURES)


@pytest.mark.parametrize("name", METRICS)
def test_any_part_of_the_metrics_may_be_missing(name):
    assert "A small run" in render_report(facts(metrics=without(name)), PICTURES)


def test_where_looks_tell_no_twins_the_page_says_so():
    counts = facts()["counts"]
    alike = {**counts["near_duplicates"], "by_chance": -3}
    page = text_of(render_report(facts(counts={**counts, "near_duplicates": alike}), PICTURES))
    assert "in these data looks alone tell no twins, and only equal looks should be dropped" in page
    bare = {name: value for name, value in counts.items() if name != "near_duplicates"}
    assert "first stays" not in text_of(render_report(facts(counts=bare), PICTURES))


def test_likeness_is_told_in_figures_with_what_each_is_of_and_how_it_was_measured():
    page = text_of(render_report(facts(), PICTURES))

    assert "Fréchet distance 0.041 0.033–0.049 576 drawn pictures to 1,512 held-out ones; 0 for equal ones" in page
    assert "Fréchet distance, best of n 0.055 0.048–0.062 of the best of 16 for each of 96 captions; a single draw" in page
    assert "kernel distance 0.0012 – ± 0.0004 over 100 random sets of 288; 0 for equal ones" in page
    assert "precision 81% 77–85% drawn pictures among real ones, within the 3 nearest" in page
    assert "the own caption first, in the first 5, in the first 10 31%, 77%, 90% 28–34% of 1,000 held-out ones" in page
    assert "CLIP score, scaled 20.1 → 28.7 19.0–21.2 100 max(cosine, 0); one draw → best of 16" in page


def test_how_it_was_measured_stands_at_the_end_beside_the_lineage():
    page = text_of(render_report(facts(), PICTURES))

    end = page.split("Enough to make it again")[1]
    assert "the protocol of 3 lines what how features models/scorer &lt;own&gt; counts: real 1512 seed 7" in end
    assert "How it was measured" in end and "Lineage" in end and "features_sha256" not in end and "{" not in end


INCEPTION = {
    "fid": {"radius": [0, 1], "distance": [31.4159, 20.0], "interval": [28.0, 34.9], "real": 384, "drawn": 384, "captions": 96},
    "kid": {"mean": 0.0123, "deviation": 0.002, "subsets": 100, "size": 192},
    "precision": {"precision": 0.5, "recall": 0.25, "neighbours": 3},
    "inception_score": {"mean": 5.432, "deviation": 0.21, "splits": 10, "drawn": 384, "radius": [0, 1], "score": [5.432, 4.0]},
    "best_of": {"n": [1, 32], "captions": 96, "real": 384, "fid": [60.0, 55.0], "inception_score": [4.0, 4.5]},
    "overlap": {"threshold": 0.98, "held_out": 1000, "training": 2048, "share": 0.1, "share_within_training": None,
                "psnr_hard": {"with": 30.0, "without": 29.0}, "fid": {"with": 31.4159, "without": 32.5}},
}


def test_only_inceptions_figures_are_called_fid_and_their_number_of_pictures_is_told():
    measured = {"fidelity": INCEPTION, "protocol": {"features": "Inception", "features_sha256": "6726825d"}}
    page, own = (text_of(render_report(facts(metrics=METRICS | more), PICTURES)) for more in (measured, {}))

    assert "The FID of 384 drawn pictures, for 96 captions, to 384 held-out ones. It is measured by Inception" in page
    assert "FID 31.416 28.000–34.900 384 drawn pictures to 384 held-out ones" in page and "KID 0.012" in page
    assert "Inception Score 5.43 – ± 0.21 over 10 parts of 384 drawn pictures" in page
    assert "FID, best of n 55.000 – of the best of 32" in page and "FID 31.416 32.500" in page and "no FID" not in page
    assert "Inception" not in own and "KID" not in own and own.count("FID") == own.count("no FID") == 1


def test_another_clip_is_not_called_the_scorers_own():
    protocol = {"protocol": METRICS["protocol"] | {"features_sha256": "ab12"}}
    page = text_of(render_report(facts(metrics=METRICS | protocol), PICTURES))
    assert "in the embedding of a CLIP that evaluation.features names" in page and "scorer’s own embedding" not in page


def test_each_stage_names_its_run_and_links_to_it_where_a_server_keeps_it():
    runs = {"prepare_pairs": {"run_id": "aa11"}, "evaluate": {"run_id": "bb22", "link": "http://host:5000/#/runs/bb22"}}

    html = render_report(facts(runs=runs), PICTURES)

    assert '<a href="http://host:5000/#/runs/bb22" rel="noopener noreferrer"><code>bb22</code></a>' in html
    assert html.count("http://") == 1 and "make ui" in html and "<td><code>aa11</code></td>" in html
    assert "make ui" not in render_report(facts(runs={"evaluate": runs["evaluate"]}), PICTURES)


@pytest.mark.parametrize(("part", "words"), [
    ("clip_frechet", "held-out ones. It is measured"), ("best_of", "best of n"), ("overlap", "have a near twin"),
    ("memorisation", "Are they learned by heart?")])
def test_what_of_likeness_was_not_measured_is_left_out(part, words):
    rest = {name: block for name, block in METRICS["fidelity"].items() if name != part}
    rest["overlap"] = {name: value for name, value in rest.get("overlap", {}).items() if name != part}

    page = text_of(render_report(facts(metrics=METRICS | {"fidelity": rest}), PICTURES))

    assert words not in page and "Do they look like the real ones?" in page
    assert "Do they look like" not in text_of(render_report(facts(metrics=METRICS | {"fidelity": {}}), PICTURES))


def test_a_title_and_empty_metrics_already_make_a_page():
    html = render_report({"title": "Nothing yet", "metrics": {}}, {})

    assert "Nothing yet" in html and "<img" not in html


def test_the_same_facts_give_the_same_page():
    assert render_report(facts(), PICTURES) == render_report(facts(), PICTURES)


def test_more_than_eight_candidates_are_folded_away():
    many = [{"picture": "best", "score": 0.3 - 0.01 * place} for place in range(11)]

    html = render_report(facts(prompts=[{"prompt": "a red circle", "candidates": many}]), PICTURES)

    assert "3 further candidates" in html and 'alt="Candidate 11 for: a red circle"' in html


def test_a_tokenizer_worse_than_k_means_and_a_collapsing_codebook_are_called_so():
    bad = METRICS | {"reconstruction": {"psnr_hard": 20.0, "psnr_kmeans": 22.0},
                     "codebook": {"perplexity": 2.1, "used": 0.01, "vocab_size": 512}}

    page = text_of(render_report(facts(metrics=bad), PICTURES))

    assert "2.0 dB behind k-means" in page
    assert "the codebook is collapsing" in page


def test_captions_that_pairs_have_lost_are_shown_where_captions_were_filtered():
    counts = facts()["counts"]
    page = text_of(render_report(facts(counts={**counts, "captions_dropped": {"caption_too_short": 1234}}), PICTURES))
    assert "captions dropped from pairs that stay: caption too short 1,234" in page
    assert "captions dropped" not in text_of(render_report(facts(), PICTURES))


def test_inputs_that_are_not_accounted_for_are_pointed_out():
    page = text_of(render_report(facts(counts={"n_in": 1011, "n_ok": 1000}), PICTURES))

    assert "11 of them are missing from the rows below" in page


def test_a_picture_that_was_not_given_or_is_no_png_is_refused_by_name():
    with pytest.raises(ValueError, match="name picture 'best', which is not among the 0 given"):
        render_report(facts(), {})
    with pytest.raises(ValueError, match=r"picture 'best' begins with b'GIF89a.*encode it as PNG"):
        render_report(facts(), PICTURES | {"best": b"GIF89a" + bytes(40)})


NOISE = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
SCENE = next(iter(scene_pairs(1, 0, "validation")))[1]


@pytest.mark.parametrize(("pixels", "width", "height"), [(SCENE, 64, 64), (NOISE, 85, 128)])
def test_a_thumbnail_stands_on_the_page_in_its_own_size_and_is_the_same_every_time(pixels, width, height):
    small = thumbnail(pixels, 128)

    found = image("one", {"one": small})

    assert found["src"].startswith("data:image/webp;base64,") and (found["width"], found["height"]) == (width, height)
    with Image.open(BytesIO(small)) as again:
        assert again.format == "WEBP" and again.size == (width, height)
    assert thumbnail(pixels, 128) == small


def test_a_thumbnail_of_a_scene_takes_a_quarter_of_its_png_at_most_and_looks_the_same():
    small = thumbnail(SCENE, 128)
    with Image.open(BytesIO(small)) as again:
        apart = np.abs(np.array(again.convert("RGB"), np.float32) - SCENE)
    assert len(small) < len(encode_png(SCENE)) / 4 and apart.mean() < 6


def test_shares_and_figures_are_written_as_one_says_them():
    assert [rate(share) for share in (0.413, 0, 1, 0.004, 0.0001, 0.99996, None)] == [
        "41%", "0%", "100%", "0.4%", "<0.1%", ">99.9%", "–"]
    assert [number(value) for value in (-1.5, 1234.5, None)] == ["−1.50", "1,234.50", "–"]
    assert flatten({"a": {"b": 1}, "c": {}}) == [("a.b", 1), ("c", {})]
    assert [plots.duration(seconds) for seconds in (0.42, 9.99, 59.7, 75, 7260)] == [
        "0.4 s", "10 s", "1 min 0 s", "1 min 15 s", "2 h 1 min"]


LOSSES = {"train": [(0, 5.0), (10, 3.0)], "validation": [(10, 3.2)], "not yet": []}
CURVES = {
    "loss": lambda: plots.loss_curve(LOSSES, "Image loss"),
    "match": lambda: plots.match_curve({"seen": RATES, "unseen": UNSEEN}),
    "score": lambda: plots.score_curve({"n": [1, 2, 4], "score": [0.2, 0.24, 0.26]}),
    "blur": lambda: plots.blur_curve(METRICS["fidelity"]["clip_frechet"]),
    "similarity": lambda: plots.similarity_histogram({"held out": [0.9, 0.95, 1.0], "drawn": [0.2]}, 0.98),
    "similarity of copies": lambda: plots.similarity_histogram({"held out": [1.0, 1.0]}, 1.0),
    "best of n": lambda: plots.best_of_curve(METRICS["fidelity"]["best_of"], "clip_frechet", "distance"),
    "scores": lambda: plots.blurred_scores({"radius": [0, 1], "score": [5.0, 4.0]}),
    "blur alone": lambda: plots.blur_curve({"radius": [0, 1], "distance": [0.2, 0.1]}),
    "codebook": lambda: plots.codebook_curve({"dvae": np.array([5, 0, 3, 1]), "k-means": [3, 2, 2, 2]}),
    "stages": lambda: plots.stage_bars(METRICS["seconds"]),
    "one point": lambda: plots.match_curve({"seen": metrics.match_rates(
        [[0.5]], {"colour": [[1]], "relation": [[1]], "background": [[0]]}, np.random.default_rng(0))}),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_a_curve_is_a_png_of_nine_hundred_pixels_with_the_same_bytes_every_time(curve):
    first, second = curve(), curve()

    image = Image.open(BytesIO(first))
    assert (image.format, image.width) == ("PNG", 900)
    assert set(image.info) <= {"dpi"}    # no date, no version
    assert first == second


def test_drawing_leaves_the_callers_matplotlib_as_it_was():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31}):
        CURVES["score"]()
        assert matplotlib.rcParams["font.size"] == 31


@pytest.mark.parametrize(("given", "folded"), [({}, 2), ({"given": "original"}, 3)])
def test_what_was_given_takes_a_place_in_the_first_line_of_candidates(given, folded):
    row = {"prompt": "a red circle", "split": "completed", "candidates": [{"picture": "best"}] * 10, **given}

    page = render_report(facts(prompts=[row]), PICTURES)

    assert f"{folded} further candidates" in page
    assert page.count("What was given of a picture for: a red circle") == len(given)
    assert [f"Candidate {place} for" in page for place in (1, 10, 11)] == [True, True, False]
