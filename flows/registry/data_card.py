"""The data card of a version: which pictures and captions it learned from, and what was left out. Facts in, Markdown out."""
from __future__ import annotations

from flows._evidence import data_facts
from flows._model_card import layout, plain

FATES = {
    "n_ok": "kept",
    "n_quarantined": "damaged or incomplete",
    "n_filtered": "outside the settings",
    "n_duplicate": "duplicates",
}
TAKEN = {  # a setting of the section data -> what it says; those that were off are not in the manifest
    "validation_share": "share held out",
    "group_by": "captions that agree in this share a split",
    "keep": "what is kept of a picture",
    "min_side": "smallest side, pixels",
    "max_aspect": "long side to short side, at most",
    "min_caption_words": "words of a caption, at least",
    "boilerplate": "captions in which one of these is found are dropped",
    "language": "language of captions",
    "recaption_column": "second text, from the column",
    "recaption_share": "share of pairs trained on the second text",
    "near_duplicates": "near duplicates are found by",
}


def data_card(name: str, manifest: dict | None, captions: dict | None = None) -> str:
    """The card as Markdown, from the manifest of the pairs (None: they are not here) and `caption_counts` of them.

    It holds no clock and no path of a machine, so the same pairs give the same card.
    """
    card = layout().get_template("data_card.md.j2")
    if manifest is None:
        return card.render(name=name, known=None)
    facts = manifest["facts"]
    set_to = {} if facts["source"] == "scenes" else facts.get("settings", {})  # of the built-in scenes no setting leaves any out
    settings = {label: set_to[key] for key, label in TAKEN.items() if set_to.get(key) not in (None, [], ())}
    return card.render(
        name=name, known=data_facts(manifest), counts=facts["counts"], fates=FATES, settings=settings, captions=captions,
        seed=facts.get("seed"), mixtures=facts.get("mixtures", {}), plain=plain,
    )  # fmt: skip
