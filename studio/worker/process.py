"""The process that holds the models and does one request after the other, so that the web server never waits for a tensor.

A process of its own, and not a thread: it can be stopped in the middle of a picture (a signal becomes an exception between two
lines of Python), it may die of a lack of memory without taking the server with it, and it never holds the server's interpreter.
What it hears and says goes through one pipe: (number, name, arguments) in, (number, event) out, and (number, None) at the end.
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

from studio import easel
from studio.dataset import DataSet
from studio.easel import Asked, Event
from studio.gallery import Gallery
from studio.recall import Recall
from thousandwords.drawing import decode_in_parts
from thousandwords.errors import UserError
from thousandwords.files import MANIFEST, DamagedArtefact, sha256_of
from thousandwords.memory import keep_freed_memory
from thousandwords.package import Package, load_package
from thousandwords.provenance import provenance_of

STOP = signal.SIGUSR1
KEPT = 2  # packages in memory: two versions side by side
NO_DATA = {"state": "none", "done": 0, "total": 0, "splits": [], "pictures": [], "next": None}
BROKEN = 70  # the exit code of a process whose GPU cannot be used any more


class Stopped(BaseException):
    """Nobody waits for this request any more. No Exception, so that nothing on the way catches it."""


@dataclass(frozen=True)
class Places:
    """Where things are."""

    pairs: Path = Path("data/pairs")
    gallery: Path = Path("drawn/gallery")
    store: Path = Path(".store/studio")
    device: str = "cpu"


class Painter:
    """The packages in use, and what can be asked of them by name; each request yields events."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.data = DataSet(places.pairs, places.store)
        self.recall = Recall(Gallery(places.gallery))
        self._packages: dict[str, Package] = {}  # by folder and the hash of its manifest, the last used at the end

    def package(self, folder: str) -> Package:
        """The package of a folder, as it is now. Raises DamagedArtefact or UserError."""
        manifest = Path(folder) / MANIFEST
        key = f"{folder} {sha256_of(manifest) if manifest.is_file() else 'nothing'}"
        package = self._packages.pop(key, None) or load_package(Path(folder), self.places.device)
        self._packages[key] = package
        for old in list(self._packages)[:-KEPT]:
            del self._packages[old]
        return package

    def describe(self, folder: str) -> Iterator[Event]:
        yield easel.describe(self.package(folder)) | {"examples": self.data.examples()}

    def warm(self, folder: str) -> Iterator[Event]:
        """Draws one picture for nobody: the first is slow, and it should be no user's."""
        package = self.package(folder)
        for _ in easel.draw(package, "a picture", 1, 0, None, {}):
            pass
        yield from self.describe(folder)

    def draw(self, folder: str, **asked: object) -> Iterator[Event]:
        yield from easel.draw(self.package(folder), **asked)

    def redraw(self, folder: str, data: bytes) -> Iterator[Event]:
        """The picture of a file that this package drew."""
        yield easel.redraw(self.package(folder), provenance_of(data), data)

    def picture(self, folder: str, data: bytes) -> Iterator[Event]:
        yield easel.picture(self.package(folder), data)

    def words(self, folder: str, **asked: object) -> Iterator[Event]:
        yield easel.words(self.package(folder), **asked)

    def likelihood(self, folder: str, prompt: str, grid: easel.Grid) -> Iterator[Event]:
        yield easel.likelihood(self.package(folder), prompt, grid)

    def look(self, folder: str, query: str | None, split: str | None, offset: int, limit: int) -> Iterator[Event]:
        """The data set, page by page or by what a text says."""
        if not self.data.is_there():
            yield NO_DATA
            return
        if split is not None and split not in self.data.splits():
            raise Asked("split", f"there is no split {split!r}, only {', '.join(self.data.splits())}")
        scorer = self.package(folder).scorer if query else None
        found = self.data.search(scorer, query, split, limit) if query else self.data.page(split, offset, limit)
        yield self.data.state(scorer) | found

    def nearest(self, folder: str, grid: easel.Grid, limit: int) -> Iterator[Event]:
        """The training pictures nearest to the picture of a grid of words."""
        if not self.data.is_there():
            yield NO_DATA
            return
        package = self.package(folder)
        tokens = easel.words_of(package, grid, "words").reshape(1, -1)
        found = self.data.nearest(package.scorer, decode_in_parts(package.image_tokenizer, tokens), limit)
        yield self.data.state(package.scorer) | found

    def remember(self, folder: str, query: str, limit: int) -> Iterator[Event]:
        """Past draws by what their pictures show."""
        yield {"names": self.recall.search(self.package(folder).scorer, query, limit)}


ASKABLE = ("describe", "warm", "draw", "redraw", "picture", "words", "likelihood", "look", "nearest", "remember")


def paint(pipe: Connection, wanted_stop: ctypes.c_ulonglong, places: Places, make: Callable[[Places], Painter] = Painter) -> None:
    """Does what the pipe asks for until it is closed. `wanted_stop` names the request to be left when the signal comes."""
    at_work = _hear_stops(wanted_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the pipe
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        keep_freed_memory()
        painter = make(places)
        while True:
            while not pipe.poll(0):
                if not _use_the_time(painter):
                    pipe.poll(None)
            number, name, arguments = pipe.recv()
            _do(painter, pipe, at_work, number, name, arguments)


def _use_the_time(painter: Painter) -> bool:
    """A little of what a search waits for; False where there is nothing to do."""
    try:
        return painter.data.idle()
    except Exception:
        traceback.print_exc()
        painter.data.forget()  # whoever searches again begins again
        return False


def _do(painter: Painter, pipe: Connection, at_work: AtWork, number: int, name: str, arguments: dict) -> None:
    """One request to its end, with every kind of end told."""
    try:
        assert name in ASKABLE, name
        events = getattr(painter, name)(**arguments)
        while (event := at_work.next(number, events)) is not None:
            pipe.send((number, event))
    except Stopped:
        pass
    except Asked as error:
        pipe.send((number, {"event": "error", "error": str(error), "field": error.field, "status": 422}))
    except DamagedArtefact as error:  # or it is just being written
        pipe.send((number, unable(str(error))))
    except UserError as error:
        pipe.send((number, {"event": "error", "error": str(error), "field": None, "status": 422}))
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        pipe.send((number, unable("the GPU has no memory left for this. Ask for fewer candidates, or later")))
    except (BrokenPipeError, ConnectionResetError):  # the server has died, and nobody is left to be told
        raise
    except Exception as error:
        traceback.print_exc()
        pipe.send((number, unable("something went wrong while drawing, and the log says what. Try again")))
        if "CUDA" in str(error):  # after such an error nothing works any more in this process; a new one is started
            sys.exit(BROKEN)
    pipe.send((number, None))


def unable(sentence: str) -> Event:
    """The last event of a request that may succeed another time."""
    return {"event": "error", "error": sentence, "field": None, "status": 503}


class AtWork:
    """Takes the next event of a request, and lets a signal end it there and nowhere else."""

    def __init__(self, wanted_stop: ctypes.c_ulonglong) -> None:
        self.wanted_stop, self.number = wanted_stop, 0

    def next(self, number: int, events: Iterator[Event]) -> Event | None:
        """Raises Stopped where this request is to be left."""
        try:
            self.number = number
            self.look()
            return next(events, None)
        finally:
            self.number = 0

    def look(self, *_: object) -> None:
        if self.number and self.wanted_stop.value == self.number:
            self.number = 0
            raise Stopped


def _hear_stops(wanted_stop: ctypes.c_ulonglong) -> AtWork:
    at_work = AtWork(wanted_stop)
    signal.signal(STOP, at_work.look)
    return at_work
