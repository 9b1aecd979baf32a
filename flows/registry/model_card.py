"""The model card of a version: what it is, what it learned from, what it can do, how to draw with it. Facts in, Markdown out."""
from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROWS = {  # a figure's dotted name -> (what to call it, how to write it)
    "reconstruction.psnr_hard": ("reconstruction of held-out pictures, PSNR", "{:.2f} dB"),
    "reconstruction.psnr_kmeans": ("the same by k-means with as many words", "{:.2f} dB"),
    "codebook.perplexity": ("codebook perplexity on held-out pictures", "{:.1f}"),
    "codebook.used": ("share of the codebook in use", "{:.1%}"),
    "generator.val_loss_image": ("validation loss per image word", "{:.3f} nats"),
    "generator.val_loss_text": ("validation loss per text word", "{:.3f} nats"),
    "caption_match.seen.all.n1": ("every attribute right, one draw", "{:.1%}"),
    "caption_match.seen.all.best": ("every attribute right, best of all candidates", "{:.1%}"),
    "caption_match.unseen.all.n1": ("the same for pairs training never showed, one draw", "{:.1%}"),
    "caption_match.unseen.all.best": ("the same, best of all candidates", "{:.1%}"),
    "clip_score.n1": ("score of one draw, by its own scorer", "{:.3f}"),
    "clip_score.best": ("score of the best candidate", "{:.3f}"),
    "fidelity.overlap.share": ("held-out pictures with a near twin in training", "{:.1%}"),
}


def model_card(name: str, known: dict, settings: dict[str, dict]) -> str:
    """The card as Markdown; `known` is what `flows._evidence.gather` gives, `settings` {part: what it was built with}.

    It holds no clock and no path, so the same facts give the same card.
    """
    card = layout().get_template("model_card.md.j2")
    return card.render(name=name, known=known, settings=settings, rows=rows(known["metrics"] or {}), plain=plain)


def layout() -> Environment:
    """What fills the cards; what stands in them is Markdown, so `plain` guards it, and no escape of html."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip


def rows(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """(what it is, its value) for the figures that there are."""
    return [(label, form.format(metrics[name])) for name, (label, form) in ROWS.items() if name in metrics]


def plain(value: object) -> str:
    """Text of a stranger (a licence, an origin) as one cell of a Markdown table: no line, bar or mark-up of its own."""
    return "".join(f"\\{one}" if one in "\\|<>[]`*_#" else one for one in " ".join(str(value).split()))
