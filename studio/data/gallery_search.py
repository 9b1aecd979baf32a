"""Search the gallery by what the images show: by the scorer's embedding of each entry's best image.

The embeddings are computed when a search first needs them and live in memory only: they are few compared with
the data set's.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from studio.data.dataset_index import device_of
from studio.data.gallery import Gallery, NoSuchEntry
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.data.images import to_float

MAX_SEARCHED = 2000  # entries, the newest


class GallerySearch:
    """The entries of a gallery, and an embedding of the best image of each by each scorer."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._embeddings: dict[tuple[str, str], Tensor] = {}  # (scorer's fingerprint, entry) -> (D,)

    def search(self, scorer: nn.Module, query: str, limit: int) -> list[str]:
        """Names of the entries whose best images match a text best, the best match first."""
        names = [name for name in self.gallery.names()[:MAX_SEARCHED] if self._embed(scorer, name)]
        if not names:
            return []
        with torch.no_grad():
            target = scorer.embed_captions([query])[0].cpu().float()
        table = torch.stack([self._embeddings[scorer.fingerprint, name] for name in names])
        ranking = (table @ target).argsort(descending=True, stable=True)
        return [names[place] for place in ranking[:limit].tolist()]

    def _embed(self, scorer: nn.Module, name: str) -> bool:
        """Embed an entry's best image if that is not done yet; False if the entry is damaged or deleted."""
        key = scorer.fingerprint, name
        if key not in self._embeddings:
            with contextlib.suppress(DamagedArtefact, NoSuchEntry), torch.no_grad():
                pixels = to_float(self.gallery.best_image(name)[None])
                embedding = scorer.embed_images(pixels.to(device_of(scorer)))[0].cpu().float()
                self._embeddings[key] = embedding
        return key in self._embeddings
