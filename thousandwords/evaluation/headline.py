"""The 8 to 12 numbers of results/metrics.json that say how good a run is, under the same dotted names.

`dvc exp show`, `dvc metrics diff`, MLflow and Prefect show these. There is no time among them: the same outputs give the
same numbers.
"""

from collections.abc import Mapping

from thousandwords.core.params import flatten

MAX_NUMBERS = 12
# the most telling first; which of them a run has depends on its data and models
NAMES = (
    "caption_match.seen.all.n1",
    "caption_match.seen.all.best",
    "caption_match.unseen.all.n1",
    "caption_match.unseen.all.best",
    "clip_score.n1",
    "clip_score.best",
    "fidelity.caption_found.found",
    "fidelity.fid.distance",
    "fidelity.clip_frechet.distance",
    "reconstruction.psnr_hard",
    "decoder.psnr_hard",
    "generator.val_loss_image",
    "codebook.perplexity",
    "generator.val_loss_text",
    "codebook.used",
    "reconstruction.psnr_kmeans",
)


def headline(metrics: Mapping) -> dict[str, float]:
    """The first of NAMES that the run has, at most 12: {"generator": {"val_loss_image": 0.4}} ->
    {"generator.val_loss_image": 0.4}"""
    values = {name: figure(metrics, name) for name in NAMES}
    numbers = [(name, value) for name, value in values.items() if value is not None]
    return dict(numbers[:MAX_NUMBERS])


def figure(metrics: Mapping, name: str) -> float | None:
    """A number by its dotted name, of a curve its first point; None if the run has no such number."""
    value = flatten(metrics).get(name)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
