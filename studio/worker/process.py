"""The worker process holds the models and handles the requests one by one: the web server touches no tensor.

It is a process, not a thread: a signal can interrupt it in the middle of an image, it can run out of memory
without ending the server, and it never holds the server's interpreter lock. It exchanges messages over one
pipe: it receives (number, name, arguments) and sends (number, event), at last (number, None).
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from studio.data.dataset_index import DatasetIndex
from studio.data.gallery import Gallery
from studio.data.gallery_search import GallerySearch
from studio.events import Event, FieldError, Grid
from studio.worker import handlers
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.core.manifest import MANIFEST, DamagedArtefact
from thousandwords.inference.batched import decode_in_batches
from thousandwords.inference.package import Package, load_package
from thousandwords.inference.provenance import read_provenance
from thousandwords.nn.malloc import keep_freed_memory

STOP_SIGNAL = signal.SIGUSR1
MAX_PACKAGES = 2  # in memory: enough to compare two versions
NO_DATASET = {"state": "none", "done": 0, "total": 0, "splits": [], "images": [], "next": None}
GPU_FAILED = 70  # exit code: the process cannot use its GPU any more


class Stopped(BaseException):
    """The client of this request has gone. Not an Exception, so that no handler on the way catches it."""


@dataclass(frozen=True)
class StudioPaths:
    """Folders that the studio uses, and the device of its models."""

    pairs: Path = Path("data/pairs")
    gallery: Path = Path("generated/gallery")
    store: Path = Path(".store/studio")
    device: str = "cpu"


class ModelWorker:
    """The packages in memory, and a method per kind of request that yields its events."""

    def __init__(self, paths: StudioPaths) -> None:
        self.paths = paths
        self.dataset = DatasetIndex(paths.pairs, paths.store)
        self.gallery_search = GallerySearch(Gallery(paths.gallery))
        # by folder and hash of the manifest, the last used at the end
        self._packages: dict[str, Package] = {}

    def package(self, folder: str) -> Package:
        """The package that is in a folder now. Raises DamagedArtefact or UserError."""
        manifest = Path(folder) / MANIFEST
        key = f"{folder} {sha256_of(manifest) if manifest.is_file() else 'nothing'}"
        package = self._packages.pop(key, None) or load_package(Path(folder), self.paths.device)
        self._packages[key] = package
        for old_key in list(self._packages)[:-MAX_PACKAGES]:
            del self._packages[old_key]
        return package

    def describe(self, folder: str) -> Iterator[Event]:
        yield handlers.describe(self.package(folder)) | {"examples": self.dataset.examples()}

    def warm_up(self, folder: str) -> Iterator[Event]:
        """Generate one image so that no user waits for first-call initialization."""
        for _ in handlers.generate(self.package(folder), "an image", 1, 0, None, {}):
            pass
        yield from self.describe(folder)

    def generate(self, folder: str, **fields: object) -> Iterator[Event]:
        yield from handlers.generate(self.package(folder), **fields)

    def reproduce(self, folder: str, data: bytes) -> Iterator[Event]:
        """Generate the image of a PNG of this package again."""
        yield handlers.reproduce(self.package(folder), read_provenance(data), data)

    def encode_image(self, folder: str, data: bytes) -> Iterator[Event]:
        yield handlers.encode_image(self.package(folder), data)

    def edit_tokens(self, folder: str, **fields: object) -> Iterator[Event]:
        yield handlers.edit_tokens(self.package(folder), **fields)

    def likelihood(self, folder: str, prompt: str, grid: Grid) -> Iterator[Event]:
        yield handlers.likelihood(self.package(folder), prompt, grid)

    def browse_dataset(
        self, folder: str, query: str | None, split: str | None, offset: int, limit: int
    ) -> Iterator[Event]:
        """A page of the data set, or the images that match a text best."""
        if not self.dataset.exists():
            yield NO_DATASET
            return
        if split is not None and split not in self.dataset.splits():
            message = f"there is no split {split!r}, only {', '.join(self.dataset.splits())}"
            raise FieldError("split", message)
        scorer = self.package(folder).scorer if query else None
        page = (
            self.dataset.search(scorer, query, split, limit)
            if query
            else self.dataset.page(split, offset, limit)
        )
        yield self.dataset.state(scorer) | page

    def nearest_images(self, folder: str, grid: Grid, limit: int) -> Iterator[Event]:
        """The training images nearest to the image of a token grid."""
        if not self.dataset.exists():
            yield NO_DATASET
            return
        package = self.package(folder)
        tokens = handlers.tokens_of(package, grid, "tokens").reshape(1, -1)
        image = decode_in_batches(package.image_tokenizer, tokens)
        page = self.dataset.nearest(package.scorer, image, limit)
        yield self.dataset.state(package.scorer) | page

    def search_gallery(self, folder: str, query: str, limit: int) -> Iterator[Event]:
        """Names of the gallery entries whose images match a text best."""
        yield {"names": self.gallery_search.search(self.package(folder).scorer, query, limit)}


REQUESTS = (
    "describe",
    "warm_up",
    "generate",
    "reproduce",
    "encode_image",
    "edit_tokens",
    "likelihood",
    "browse_dataset",
    "nearest_images",
    "search_gallery",
)


def run_worker(
    pipe: Connection,
    stop_number: ctypes.c_ulonglong,
    paths: StudioPaths,
    make_worker: Callable[[StudioPaths], ModelWorker] = ModelWorker,
) -> None:
    """Handle the requests of a pipe until it is closed. The stop signal is for request `stop_number`."""
    current = CurrentRequest(stop_number)
    signal.signal(STOP_SIGNAL, current.check_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the pipe
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        keep_freed_memory()
        worker = make_worker(paths)
        while True:
            while not pipe.poll(0):
                if not _index_some(worker):
                    pipe.poll(None)
            number, name, arguments = pipe.recv()
            _handle(worker, pipe, current, number, name, arguments)


def _index_some(worker: ModelWorker) -> bool:
    """Index a few more images of the data set; False if there is nothing to do."""
    try:
        return worker.dataset.index_some()
    except Exception:
        traceback.print_exc()
        worker.dataset.clear()  # the next search begins again
        return False


def _handle(
    worker: ModelWorker, pipe: Connection, current: CurrentRequest, number: int, name: str, arguments: dict
) -> None:
    """Send the events of one request, whatever ends it."""
    try:
        assert name in REQUESTS, name
        events = getattr(worker, name)(**arguments)
        while (event := current.next_event(number, events)) is not None:
            pipe.send((number, event))
    except Stopped:
        pass
    except FieldError as error:
        pipe.send((number, {"event": "error", "error": str(error), "field": error.field, "status": 422}))
    except DamagedArtefact as error:  # or another process is writing it
        pipe.send((number, unavailable(str(error))))
    except UserError as error:
        pipe.send((number, {"event": "error", "error": str(error), "field": None, "status": 422}))
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        message = "the GPU has not enough free memory. Request fewer candidates, or try again later"
        pipe.send((number, unavailable(message)))
    except (BrokenPipeError, ConnectionResetError):  # the server has died
        raise
    except Exception as error:
        traceback.print_exc()
        pipe.send((number, unavailable("the request failed; the studio's log has the reason. Try again")))
        if "CUDA" in str(error):  # after such an error CUDA does not work in this process any more
            sys.exit(GPU_FAILED)
    pipe.send((number, None))


def unavailable(message: str) -> Event:
    """The last event of a request that may succeed at another time (status 503)."""
    return {"event": "error", "error": message, "field": None, "status": 503}


class CurrentRequest:
    """Takes the next event of a request; the stop signal raises Stopped there and nowhere else."""

    def __init__(self, stop_number: ctypes.c_ulonglong) -> None:
        self.stop_number, self.number = stop_number, 0

    def next_event(self, number: int, events: Iterator[Event]) -> Event | None:
        """The next event, None at the end. Raises Stopped if the request is to be stopped."""
        try:
            self.number = number
            self.check_stop()
            return next(events, None)
        finally:
            self.number = 0

    def check_stop(self, *_: object) -> None:
        """Raise Stopped if the current request is the one to stop; also the handler of the signal."""
        if self.number and self.stop_number.value == self.number:
            self.number = 0
            raise Stopped
