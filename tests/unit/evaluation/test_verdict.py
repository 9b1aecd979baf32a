"""The verdict on each model, from curves small enough to read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thousandwords.evaluation.verdict import kept_row, verdicts

CODEBOOK = {"perplexity": 231.4, "perplexity_kmeans": 180.2, "used": 0.86, "vocab_size": 512}
FIGURES = {"codebook": CODEBOOK, "reconstruction": {"psnr_hard": 29.2, "psnr_kmeans": 26.4}}


def curve(train: dict[int, float], held_out: dict[int, float]) -> list[dict]:
    """Rows of a curve from {step: training loss} and {step: held-out loss}."""
    columns = {"image_loss": train, "validation/image_loss": held_out}
    return [
        {"step": step} | {key: values[step] for key, values in columns.items() if step in values}
        for step in sorted(train | held_out)
    ]


def verdict(rows: list[dict], stage: str = "generator", num_held_out: int = 100, **figures) -> str:
    found = verdicts({f"train_{stage}": rows}, FIGURES | figures, num_held_out)
    return str(found[stage])


LEVEL = curve({50: 3.5, 500: 1.3, 1000: 0.8, 2000: 0.62}, {500: 1.27, 1000: 0.9, 1500: 0.73, 2000: 0.72})
STEEP = curve({10: 3.1, 20: 2.3, 30: 2.1}, {20: 2.4, 30: 2.16})
FALLING = curve({10: 3.1, 40: 1.35, 80: 0.8}, {20: 2.2, 40: 1.4, 60: 1.03, 80: 0.9})
RISING = curve({10: 3.1, 120: 0.67, 300: 0.2, 500: 0.007}, {60: 1.03, 120: 0.852, 300: 1.386, 500: 2.127})
APART = curve({10: 3.1, 100: 1.0, 200: 0.4, 300: 0.2}, {100: 1.2, 200: 1.1, 300: 1.1})
FLAT = curve({10: 3.1, 100: 3.2, 200: 3.1}, {100: 3.2, 200: 3.3})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (LEVEL, "fine: held-out image loss 0.720 at step 2000, training 0.620, 0.4% of its gain in the last"),
        (FALLING, "learning: held-out image loss 0.900 at step 80, training 0.800, 5.9% of its gain in the"),
        (STEEP, "too short: held-out image loss 2.160 at step 30, training 2.100, 19.1% of its gain in the"),
        (RISING, "memorizing since step 120: held-out image loss 0.852 at step 120, 2.127 at step 500, training"),
        (APART, "memorizing since step 200: held-out image loss 1.100 at step 300, training 0.200: more than 1.5"),
        (FLAT, "collapsed: held-out image loss 3.300 at step 200, training 3.100, at step 10 3.100: it never"),
        (STEEP[:2], "too short: held-out image loss 2.400 at step 20, training 2.300, evaluated once, so"),
    ],
)  # fmt: skip
def test_a_generator_has_one_verdict_with_its_figures(rows, expected):
    assert verdict(rows).startswith(expected)


@pytest.mark.parametrize(("held_out_share", "word"), [(0.03, "memorizing since step 2000"), (0.6, "fine")])
def test_samples_that_are_near_duplicates_of_training_images_are_memorized(held_out_share, word):
    share = {"drawn": 0.62, "held_out": held_out_share}
    text = verdict(LEVEL, fidelity={"memorisation": {"share": share}})
    assert text.startswith(f"{word}: held-out image loss 0.720")
    assert "; 62% of samples are near duplicates of training images (held-out images " in text


def psnr_curve(psnrs: dict[int, float]) -> list[dict]:
    return [{"step": step, "loss": 1.0, "validation/psnr_hard": psnr} for step, psnr in psnrs.items()]


PSNRS = {1000: 25.6, 2000: 27.7, 3000: 29.0, 4000: 29.2}


@pytest.mark.parametrize(
    ("psnrs", "codebook", "expected"),
    [
        (PSNRS, {}, "fine: held-out PSNR 29.20 dB at step 4000, 1.0% of its gain in the last quarter of the steps; "),
        (PSNRS, {"perplexity": 2.1}, "fine: held-out PSNR 29.20 dB at step 4000"),  # codebook use is no goal in itself
        (PSNRS | {4000: 28.5}, {}, "memorizing since step 3000: held-out PSNR 29.00 dB at step 3000, 28.50 dB at"),
    ],
)  # fmt: skip
def test_an_image_tokenizer_is_judged_by_held_out_psnr(psnrs, codebook, expected):
    text = verdict(psnr_curve(psnrs), "image_tokenizer", codebook=CODEBOOK | codebook)
    assert text.startswith(expected)


def test_a_decoder_is_judged_by_what_it_gains_over_the_tokenizer():
    start = {"psnr_hard": 29.2, "psnr_kmeans": 26.4}
    text = verdict(psnr_curve({300: 30.0, 600: 31.0}), "decoder", reconstruction=start)
    assert text.startswith(
        "too short: held-out PSNR 31.00 dB at step 600, 27.8% of its gain in the last quarter"
    )


def test_figures_over_few_held_out_pairs_are_marked():
    rows = [row | {"loss": row.get("image_loss", 1.0)} for row in LEVEL]
    few = " (means little: over 15 held-out pairs only)"
    assert verdict(rows, num_held_out=15).endswith(few) and not verdict(rows, num_held_out=16).endswith(few)


@pytest.mark.parametrize(
    ("psnr_kmeans", "expected"),
    [
        (27.08, "collapsed: held-out PSNR 25.27 dB, k-means of raw patches 27.08 dB; codebook perplexity 5"),
        (24.9, "fine: "),
    ],
)
def test_few_codes_are_a_collapse_only_where_k_means_reconstructs_better(psnr_kmeans, expected):
    rows = psnr_curve({100: 24.0, 200: 25.2, 300: 25.25, 400: 25.27})
    codebook = CODEBOOK | {"perplexity": 5.0, "perplexity_kmeans": 6.0, "used": 0.04}
    reconstruction = {"psnr_hard": 25.27, "psnr_kmeans": psnr_kmeans}
    text = verdict(rows, "image_tokenizer", codebook=codebook, reconstruction=reconstruction)
    assert text.startswith(expected)


@pytest.mark.parametrize(
    ("rows", "word"), [(LEVEL, "collapsed"), (FALLING, "collapsed"), (STEEP, "too short"), (RISING, "memorizing since step 120")]
)  # fmt: skip
def test_a_generator_of_collapsed_tokens_is_not_called_fine(rows, word):
    curves = {"train_image_tokenizer": psnr_curve(PSNRS), "train_generator": rows}
    figures = {
        "codebook": CODEBOOK | {"perplexity": 15.0},
        "reconstruction": {"psnr_hard": 17.7, "psnr_kmeans": 23.7},
    }
    found = verdicts(curves, figures, 100)["generator"]
    assert found.word == word
    reason = "the image tokenizer collapsed, so its few tokens are easy to predict; held-out image loss "
    assert found.because.startswith(reason) == (word == "collapsed")


def test_the_kept_weights_are_named_and_their_figures_used():
    rows = [row | ({"is_kept": 1.0} if row["step"] == 120 else {}) for row in RISING]
    assert verdict(rows).endswith("; the weights of step 120 are kept")
    assert kept_row(rows, "validation/image_loss")["validation/image_loss"] == 0.852
    assert kept_row(RISING, "validation/image_loss")["step"] == 500


def test_a_model_that_was_not_trained_has_no_verdict():
    curves = {"train_image_tokenizer": [{"step": 0, "validation/psnr_hard": 25.0}], "train_scorer": []}
    assert verdicts(curves, FIGURES, 100) == {}


WORDS = ("collapsed", "too short", "learning", "fine", "memorizing since step ")
losses = st.floats(0, 1e6) | st.just(float("nan"))


@given(st.dictionaries(st.integers(1, 50), st.tuples(losses, st.none() | losses), min_size=1))
def test_every_curve_has_a_verdict_of_the_five_words(points):
    train = {step: loss for step, (loss, _) in points.items()}
    rows = curve(train, {step: loss for step, (_, loss) in points.items() if loss is not None})
    found = verdicts({"train_generator": rows}, FIGURES, 3)
    assert all(str(each).startswith(WORDS) for each in found.values())
