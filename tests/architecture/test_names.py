"""Names and prose use the field's words: no retired name stands in code, page, messages or docs."""

import io
import re
import tokenize

from tests.helpers.paths import ROOT
from tests.helpers.tracked_files import tracked

# parts of identifiers, and what is said instead
RETIRED_PARTS = {
    "picture": "image", "pictures": "images", "drawn": "samples", "draw": "generate, sample, render or decode",
    "draws": "samples", "drawing": "sampling", "redraw": "reproduce", "mend": "fix", "told": "message", "knob": "setting",
    "knobs": "settings", "diary": "tracking", "likeness": "image fidelity", "yardstick": "baseline",
    "twin": "near duplicate", "twins": "near duplicates", "easel": "handlers", "painter": "worker process",
    "courier": "request queue", "doors": "middleware", "desk": "worker slot", "desks": "worker slots",
    "crew": "worker pool", "hire": "start", "keeper": "supervisor", "lifeline": "parent watch", "workbench": "token editing",
    "colour": "color", "colours": "colors", "neighbour": "neighbor", "neighbours": "neighbors", "facts": "metadata",
    "nursery": "registry process", "orchestra": "prefect server",
}  # fmt: skip
# whole identifiers
RETIRED_NAMES = {
    "text_words", "image_words", "TEXT_WORDS", "IMAGE_WORDS", "TO_DRAW", "take_up", "hidden_matrices", "given_words",
    "words_with_dropout", "normalise", "initialise", "serialise", "telling", "whoever", "theirs",
}  # fmt: skip
# words of prose; the motto keeps its picture, and captions are the user's
RETIRED_PROSE = re.compile(
    r"\b(whoever|whomever|nobody|none but|all but|on wish|of theirs|tells? of|told|mend(s|ed|ing)?|knobs?|diary|easel|painter|"
    r"courier|desks?|crew|keeper|lifeline|twins?|likeness|yardstick|pictures?(?! (is worth|\(256))|lest|thereof)\b",
    re.IGNORECASE,
)
# of Pillow, hypothesis and torch: `draw` is theirs in a file that uses one of them
FOREIGN_NAMES, FOREIGN_OWNERS = {"ImageDraw", "Draw", "draw"}, re.compile("ImageDraw|hypothesis|SobolEngine")
# of metrics.json, MLflow and Parquet: they keep their names
STORED_KEYS = re.compile(r"""["'](pictures|twin|twin_split)["']""")
# captions of other people: data, not prose
CAPTIONS = {
    "presets/paper.yaml", "presets/gpu.yaml", "presets/photos.yaml", "thousandwords/ingest/caption_filter.py",
    "thousandwords/scenes/render.py", "tests/unit/ingest/test_caption_filter.py", "tests/unit/scenes/test_scenes.py",
}  # fmt: skip
THIS_FILE, RENAMED_KEYS = "tests/architecture/test_names.py", "thousandwords/core/config.py"
PROSE = (".py", ".md", ".js", ".html", ".css", ".j2", ".yaml", ".toml", "Makefile", ".example")


def parts(identifier: str) -> list[str]:
    """drawn_pictures -> ["drawn", "pictures"], DrawnPicture -> ["drawn", "picture"]"""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def identifiers(name: str) -> set[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".js"):
        return set(re.findall(r"\b[A-Za-z_$][\w$]*\b", re.sub(r"//.*|/\*.*?\*/|(['\"`]).*?\1", "", text)))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    return names - FOREIGN_NAMES if FOREIGN_OWNERS.search(text) else names


def test_no_identifier_holds_a_retired_name():
    found = [
        f"{name}: {identifier}: say {RETIRED_PARTS.get(part, 'what it is')}"
        for name in tracked("*.py", "*.js")
        for identifier in sorted(identifiers(name))
        for part in parts(identifier)
        if name != THIS_FILE and (part in RETIRED_PARTS or identifier in RETIRED_NAMES)
    ]
    assert not found, "retired names:\n" + "\n".join(found)


def test_no_line_of_code_docs_or_page_holds_a_retired_word():
    found = []
    for name in tracked():
        if name.endswith(PROSE) and name not in CAPTIONS | {THIS_FILE, RENAMED_KEYS}:
            for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
                if match := RETIRED_PROSE.search(STORED_KEYS.sub("", line)):
                    found.append(f"{name}:{number}: {match[0]!r} in {line.strip()[:100]}")
    assert not found, "retired words:\n" + "\n".join(found)
