"""The data of the report as typed dicts: the page shows exactly this."""

from __future__ import annotations

from typing import Any, TypedDict


class Sample(TypedDict, total=False):
    """One generated image."""

    image: str  # key into `images`
    caption: str  # the prompt; may be left out within a Prompt
    score: float  # the scorer's cosine
    matches: dict[str, bool]  # attribute -> whether the image shows it; scenes only


class Reconstruction(TypedDict, total=False):
    """An original beside its reconstruction from tokens."""

    original: str  # keys into `images`
    hard: str
    psnr: float  # dB, of this image


class NearestPair(TypedDict):
    """An image beside the training image nearest to it."""

    image: str  # keys into `images`
    training_image: str
    similarity: float  # the scorer's cosine of both
    is_near_duplicate: bool  # above the threshold
    captions: list[str]  # of both; a sample's is its prompt


class Duplicate(TypedDict):
    """An image beside the earlier one that it looks like."""

    image: str  # keys into `images`
    earlier_image: str
    distance: int  # bits of 64
    color: int  # largest difference of a cell, of 255
    is_dropped: bool
    captions: list[str]  # of both


class Prompt(TypedDict, total=False):
    """A prompt with its candidates."""

    prompt: str
    split: str  # "seen", "unseen", "completed", ...; shown as a tag
    kept_part: str  # key into `images`: the kept part of the image that this prompt inpaints
    candidates: list[Sample]  # best first


class Plot(TypedDict, total=False):
    """A plot of the page."""

    image: str  # key into `images`
    title: str  # becomes the alt text
    note: str  # what it shows; printed below


class MLflowRun(TypedDict, total=False):
    """The MLflow run of a stage."""

    run_id: str
    link: str  # to its page, where it is on a server


class Counts(TypedDict, total=False):
    """What became of the inputs: n_in = n_ok + n_quarantined + n_duplicate + n_filtered."""

    n_in: int
    n_ok: int
    n_quarantined: int
    n_duplicate: int
    n_filtered: int
    reasons: dict[str, int]  # why inputs were quarantined or filtered
    splits: dict[str, int]  # pairs per split
    near_duplicates: dict[str, Any]  # summary of `ingest.near_duplicates`, where near duplicates are dropped
    captions_dropped: dict[str, int]  # why accepted pairs lost captions, where captions are filtered


class ReportData(TypedDict, total=False):
    """Everything on the page. Only `title` and `metrics` are required.

    `metrics` is metrics.json as it is; any part of it may be missing:
      reconstruction  {psnr_hard, psnr_kmeans} in dB
      codebook        {used, used_kmeans (shares 0..1), perplexity, perplexity_kmeans, vocab_size}
      generator       {val_loss_text, val_loss_image} in nats per token
      n               candidates per prompt
      clip_score      from `evaluation.clip_score`
      caption_match   {"seen", "unseen"} from `metrics.match_rates`; absent for real data
      fidelity        {clip_frechet or fid, clip_kernel or kid, clip_precision or precision, inception_score,
                      best_of, retrieval, overlap, memorisation} from `image_fidelity.measure` and `best_of_n`;
                      each absent where not measured
      protocol        {what: how}: what must be equal for equal digits
      seconds         {stage: seconds}
    """

    title: str
    summary: str  # one or two sentences under the title
    metrics: dict[str, Any]
    no_caption_match: str  # why caption_match is absent, as sentences; default FREE_CAPTIONS
    best_samples: list[Sample]  # each with a caption
    reconstructions: list[Reconstruction]
    near_duplicates: list[NearestPair]  # the held-out images nearest to training, nearest first
    borderline: list[NearestPair]  # the held-out images just above and just below the threshold
    memorized: list[NearestPair]  # the samples nearest to training
    within_training: list[NearestPair]  # training images beside the nearest other one
    duplicates: list[Duplicate]  # dropped while pairs were prepared, and the nearest that were not dropped
    prompts: list[Prompt]
    plots: dict[
        str, list[Plot]
    ]  # by section: "match", "fidelity", "memorization", "tokens", "training", "stages"
    stages: dict[str, str]  # stage -> what it used, in words; times are metrics.seconds
    runs: dict[str, MLflowRun]  # by stage
    counts: Counts
    params: dict[str, Any]  # params.yaml, nested
    versions: dict[str, str]
    seeds: dict[str, int]
    fingerprints: dict[str, str]  # artefact -> sha256 or fingerprint
