"""Caption normalization, the same for training, sampling and scoring."""

import unicodedata


def normalize(caption: str) -> str:
    """The normalized form of a caption: lower case, NFC, single spaces."""
    # NFC after lower(), which can undo it
    return " ".join(unicodedata.normalize("NFC", caption.lower()).split())
