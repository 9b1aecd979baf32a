"""The headline numbers: which of metrics.json, and how many."""

from thousandwords.evaluation.headline import NAMES, figure, headline

OWN_IMAGES = {
    "clip_score": {"n1": 0.25, "best": 0.3, "n1_interval": [0.2, 0.3], "curve": {"n": [1, 2]}},
    "codebook": {"perplexity": 88.5, "used": 0.37, "vocab_size": 512},
    "fidelity": {"clip_frechet": {"distance": [0.04, 0.03], "real": 100}},
    "generator": {"val_loss_image": 0.42},
    "reconstruction": {"psnr_hard": 30.1, "psnr_kmeans": 26.4},
    "seconds": {"evaluate": 3.0},
    "verdicts": {"generator": "fine"},
}


def test_a_run_has_the_numbers_that_its_data_and_models_give_in_a_fixed_order_and_no_time():
    assert list(headline(OWN_IMAGES).items()) == [
        ("clip_score.n1", 0.25),
        ("clip_score.best", 0.3),
        ("fidelity.clip_frechet.distance", 0.04),
        ("reconstruction.psnr_hard", 30.1),
        ("generator.val_loss_image", 0.42),
        ("codebook.perplexity", 88.5),
        ("codebook.used", 0.37),
        ("reconstruction.psnr_kmeans", 26.4),
    ]


def test_there_are_at_most_twelve_and_they_can_be_read_from_their_own_file():
    numbers = headline(dict.fromkeys(NAMES, 1))
    assert len(numbers) == 12 and headline(numbers) == numbers


def test_what_is_no_number_is_left_out():
    metrics = {"clip_score": {"n1": None, "best": "high"}, "codebook": {"used": True, "perplexity": []}}
    assert headline(metrics) == {} and figure(metrics, "clip_score.nothing") is None
