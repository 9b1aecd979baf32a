"""The data card of a version, as Markdown: its training images and captions, and what was left out."""

from __future__ import annotations

from flows.registry.evidence import data_metadata
from flows.registry.model_card import escape_markdown, template_environment

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


def data_card(name: str, manifest: dict | None, captions: dict | None = None) -> str:
    """The card as Markdown, from the pairs' manifest (None: they are not here) and their `caption_counts`.

    It holds no time and no path, so the same pairs give the same card.
    """
    card = template_environment().get_template("data_card.md.j2")
    if manifest is None:
        return card.render(name=name, data=None)
    metadata = manifest["facts"]
    # no setting filters the built-in scenes
    values = {} if metadata["source"] == "scenes" else metadata.get("settings", {})
    settings = {
        label: values[key] for key, label in SETTING_LABELS.items() if values.get(key) not in (None, [], ())
    }
    return card.render(
        name=name,
        data=data_metadata(manifest),
        counts=metadata["counts"],
        input_labels=INPUT_LABELS,
        settings=settings,
        captions=captions,
        seed=metadata.get("seed"),
        mixtures=metadata.get("mixtures", {}),
        escape=escape_markdown,
    )
