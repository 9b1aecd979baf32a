"""The model card of a version, as Markdown: its use, training data, metrics, and parts."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

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


def model_card(name: str, evidence: dict, settings: dict[str, dict]) -> str:
    """The card as Markdown.

    `evidence` is from `flows.registry.evidence.gather_evidence`, `settings` is {part: its config}. It holds
    no time and no path, so the same evidence gives the same card.
    """
    card = template_environment().get_template("model_card.md.j2")
    return card.render(
        name=name,
        evidence=evidence,
        settings=settings,
        rows=rows(evidence["metrics"] or {}),
        escape=escape_markdown,
    )


def template_environment() -> Environment:
    """Jinja's environment for the cards.

    They are Markdown, so `escape_markdown` is used in place of HTML escapes.
    """
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def rows(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """(label, formatted value) of the metrics that are present."""
    return [
        (label, number_format.format(metrics[name]))
        for name, (label, number_format) in METRICS.items()
        if name in metrics
    ]


def escape_markdown(value: object) -> str:
    """Untrusted text (a licence, an origin) as a Markdown table cell, without line breaks, bars or markup."""
    text = " ".join(str(value).split())
    return "".join(f"\\{character}" if character in "\\|<>[]`*_#" else character for character in text)
