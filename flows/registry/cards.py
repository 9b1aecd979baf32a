"""The cards of a version, as Markdown: its use, data, metrics and parts; and its training images and captions.

They hold no time and no path, so the same evidence gives the same cards.
"""

from pathlib import Path

from flows.templates import render
from stages.runtime.tracking import data_metadata


def model_card(name: str, evidence: dict, settings: dict[str, dict]) -> str:
    """The card from `gather_evidence` and {part: its config}."""
    return _render("model_card.md.j2", name=name, evidence=evidence, settings=settings)


def data_card(name: str, manifest: dict | None, captions: dict | None = None) -> str:
    """The card from the pairs' manifest (None: they are not here) and their `caption_counts`."""
    if manifest is None:
        return _render("data_card.md.j2", name=name, data=None)
    metadata = manifest["facts"]
    # no setting filters the built-in scenes
    settings = {} if metadata["source"] == "scenes" else metadata.get("settings", {})
    return _render(
        "data_card.md.j2",
        name=name,
        data=data_metadata(manifest),
        counts=metadata["counts"],
        settings={key: value for key, value in settings.items() if value not in (None, [], ())},
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
