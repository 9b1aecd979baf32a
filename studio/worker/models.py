"""The models and the data set in the worker process, and what a request does with them."""

import functools
import math
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from studio.data.dataset_index import DatasetIndex
from studio.data.gallery import Gallery, GallerySearch
from studio.worker import handlers
from studio.worker.process import Event, FieldError, Grid, StudioPaths
from thousandwords.core.files import sha256_of
from thousandwords.core.manifest import MANIFEST
from thousandwords.inference.batched import decode_in_batches
from thousandwords.inference.package import Package, load_package
from thousandwords.nn.malloc import keep_freed_memory

MAX_PACKAGES = 2  # in memory: enough to compare two versions
NO_DATASET = {"state": "none", "done": 0, "total": 0, "splits": [], "images": [], "next": None}


class ModelWorker:
    """What is in memory. A request is a method here that yields its events, or a function of `handlers`."""

    def __init__(self, paths: StudioPaths) -> None:
        keep_freed_memory()
        self.paths = paths
        self.dataset = DatasetIndex(paths.pairs, paths.store)
        self.gallery_search = GallerySearch(Gallery(paths.gallery))
        self._load = functools.lru_cache(MAX_PACKAGES)(lambda folder, _: load_package(folder, paths.device))

    def events(self, name: str, folder: str, **fields: object) -> Iterator[Event]:
        """The events of a request for the package in a folder."""
        if hasattr(self, name):
            yield from getattr(self, name)(folder, **fields)
        else:
            answer = getattr(handlers, name)(self.package(folder), **fields)
            yield from [answer] if isinstance(answer, dict) else answer

    def index_some(self) -> bool:
        """Index a few more images of the data set; False if there is nothing to do."""
        try:
            return self.dataset.index_some()
        except Exception:
            traceback.print_exc()
            self.dataset.clear()  # the next search begins again
            return False

    def free_memory(self) -> None:
        torch.cuda.empty_cache()

    def package(self, folder: str) -> Package:
        """The package that is in a folder now. Raises DamagedArtefact or UserError."""
        manifest = Path(folder) / MANIFEST
        return self._load(folder, sha256_of(manifest) if manifest.is_file() else None)

    def describe(self, folder: str) -> Iterator[Event]:
        yield handlers.describe(self.package(folder)) | {"examples": self.dataset.examples()}

    def generate(self, folder: str, prompt: str, **fields: object) -> Iterator[Event]:
        """As `handlers.generate`; a caption longer than those of the data set comes with the words that these have."""
        for event in handlers.generate(self.package(folder), prompt, **fields):
            if event["event"] == "started" and len(prompt.split()) > (self.dataset.max_words() or math.inf):
                event["max_words"] = self.dataset.max_words()
            yield event

    def warm_up(self, folder: str) -> Iterator[Event]:
        """Generate one image so that no user waits for first-call initialization."""
        for _ in handlers.generate(self.package(folder), "an image", 1, 0, None, {}):
            pass
        yield from self.describe(folder)

    def browse_dataset(
        self, folder: str, query: str | None, split: str | None, offset: int, limit: int
    ) -> Iterator[Event]:
        if not self.dataset.exists():
            yield NO_DATASET
        elif split not in (None, *(splits := self.dataset.splits())):
            raise FieldError("split", f"there is no split {split!r}, only {', '.join(splits)}")
        elif query:
            scorer = self.package(folder).scorer
            page = self.dataset.search(scorer, query, split, limit)  # first: it begins the index
            yield self.dataset.state(scorer) | page
        else:
            yield self.dataset.state(None) | self.dataset.page(split, offset, limit)

    def nearest_images(self, folder: str, grid: Grid, limit: int) -> Iterator[Event]:
        if not self.dataset.exists():
            yield NO_DATASET
            return
        package = self.package(folder)
        tokens = handlers.flat_tokens_of(package, grid, "tokens")
        image = decode_in_batches(package.image_tokenizer, tokens[None])
        page = self.dataset.nearest(package.scorer, image, limit)
        yield self.dataset.state(package.scorer) | page

    def search_gallery(self, folder: str, query: str, limit: int) -> Iterator[Event]:
        """Names of the gallery entries whose images match a text best."""
        yield {"names": self.gallery_search.search(self.package(folder).scorer, query, limit)}
