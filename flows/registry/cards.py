"""The cards of a version, as Markdown: its use, data, metrics and parts; and its training images and captions.

They hold no time and no path, so the same evidence gives the same cards.
"""

from __future__ import annotations

from pathlib import Path

from flows.registry.evidence import data_metadata
from flows.templates import render

METRICS = {  # dotted name of a metric -> (label, format)
    "reconstruction.psnr_hard": ("reconstruction of held-out images, PSNR", "{:.2f} dB"),
    "reconstruction.psnr_kmeans": ("the same by k-means with as many codes", "{:.2f} dB"),
    "codebook.perplexity": ("codebook perplexity on held-out images", "{:.1f}"),
    "codebook.used": ("share of the codebook in use", "{:.1%}"),
    "generator.val_loss_image": ("validation loss per image token", "{:.3f} nats"),
    "generator.val_loss_text": ("validation loss per text token", "{:.3f} nats"),
    "caption_match.seen.all.n1": ("every attribute right, one sample", "{:.1%}"),
    "caption_match.seen.all.best": ("every attribute right, best of all candidates", "{:.1%}"),
    "caption_match.unseen.all.n1": ("the same for combinations not in training, one sample", "{:.1%}"),
    "caption_match.unseen.all.best": ("the same, best of all candidates", "{:.1%}"),
    "clip_score.n1": ("score of one sample, by its own scorer", "{:.3f}"),
    "clip_score.best": ("score of the best candidate", "{:.3f}"),
    "fidelity.overlap.share": ("held-out images with a near duplicate in training", "{:.1%}"),
}
INPUT_LABELS = {
    "n_ok": "kept",
    "n_quarantined": "damaged or incomplete",
    "n_filtered": "outside the settings",
    "n_duplicate": "duplicates",
}
SETTING_LABELS = {  # setting of the section data -> label; a setting that was off is not in the manifest
    "validation_share": "share held out",
    "group_by": "captions equal in this go to the same split",
    "keep": "part of an image that is kept",
    "min_side": "smallest side, pixels",
    "max_aspect": "long side to short side, at most",
    "min_caption_words": "words of a caption, at least",
    "boilerplate": "captions that contain one of these are dropped",
    "language": "language of captions",
    "recaption_column": "second text, from the column",
    "recaption_share": "share of pairs trained on the second text",
    "near_duplicates": "method that finds near duplicates",
}


def model_card(name: str, evidence: dict, settings: dict[str, dict]) -> str:
    """The card from `gather_evidence` and {part: its config}."""
    metrics = evidence["metrics"] or {}
    rows = [
        (label, number_format.format(metrics[metric]))
        for metric, (label, number_format) in METRICS.items()
        if metric in metrics
    ]
    return _render("model_card.md.j2", name=name, evidence=evidence, settings=settings, rows=rows)


def data_card(name: str, manifest: dict | None, captions: dict | None = None) -> str:
    """The card from the pairs' manifest (None: they are not here) and their `caption_counts`."""
    if manifest is None:
        return _render("data_card.md.j2", name=name, data=None)
    metadata = manifest["facts"]
    # no setting filters the built-in scenes
    values = {} if metadata["source"] == "scenes" else metadata.get("settings", {})
    return _render(
        "data_card.md.j2",
        name=name,
        data=data_metadata(manifest),
        counts=metadata["counts"],
        input_labels=INPUT_LABELS,
        settings={
            label: values[key]
            for key, label in SETTING_LABELS.items()
            if values.get(key) not in (None, [], ())
        },
        captions=captions,
        seed=metadata.get("seed"),
        mixtures=metadata.get("mixtures", {}),
    )


def _render(template: str, **values: object) -> str:
    return render(Path(__file__).parent / "templates" / template, escape=escape_markdown, **values)


def escape_markdown(value: object) -> str:
    """Untrusted text (a licence, an origin) as a Markdown table cell, without line breaks, bars or markup."""
    text = " ".join(str(value).split())
    return "".join(f"\\{character}" if character in "\\|<>[]`*_#" else character for character in text)
