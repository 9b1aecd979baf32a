"""Past draws found by what their pictures show: the scorer's vector of each draw's best one, made when a search first needs it.

They are few and cheap beside the data set's, so they live as long as the process and no longer.
"""
from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from studio.dataset import device_of
from studio.gallery import Gallery, NoDraw
from thousandwords import images
from thousandwords.files import DamagedArtefact

MOST = 2000  # draws that are searched, the newest


class Recall:
    """The draws of a gallery, and the vector of the best picture of each by each scorer."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._vectors: dict[tuple[str, str], Tensor] = {}  # (scorer's fingerprint, draw) -> (D,)

    def search(self, scorer: nn.Module, query: str, limit: int) -> list[str]:
        """Names of the draws whose best pictures fit a text best, the best fit first."""
        names = [name for name in self.gallery.names()[:MOST] if self._has_vector(scorer, name)]
        if not names:
            return []
        with torch.no_grad():
            asked = scorer.embed_captions([query])[0].cpu().float()
        table = torch.stack([self._vectors[scorer.fingerprint, name] for name in names])
        return [names[place] for place in (table @ asked).argsort(descending=True, stable=True)[:limit].tolist()]

    def _has_vector(self, scorer: nn.Module, name: str) -> bool:
        """Makes the vector of a draw where there is none yet; False where the draw is damaged or gone."""
        key = scorer.fingerprint, name
        if key not in self._vectors:
            with contextlib.suppress(DamagedArtefact, NoDraw), torch.no_grad():
                pixels = images.to_float(self.gallery.best(name)[None])
                self._vectors[key] = scorer.embed_images(pixels.to(device_of(scorer)))[0].cpu().float()
        return key in self._vectors
