"""The studio's HTTP API: what comes in is looked at, put in line, and answered; no tensor is touched here.

Documented by itself at /openapi.json. Who may come in, and with how much, is `studio.doors`' matter.
"""
from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from studio import schema
from studio.courier import Courier, Full, NotReady, events_of
from studio.easel import Event
from studio.gallery import Gallery
from studio.refusals import RETRY, Refusal, refused
from studio.streaming import lines
from studio.versions import Version, Versions
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact
from thousandwords.provenance import provenance_of

ANY_PICTURE = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}
A_DRAW = {200: {"description": "a line of JSON per event", "model": schema.Event}}


class Lines(StreamingResponse):
    """JSON, a line per event."""

    media_type = "application/x-ndjson"


@dataclasses.dataclass(frozen=True)
class Studio:
    """What the routes share."""

    courier: Courier
    versions: Versions
    gallery: Gallery
    deadline: float = 120.0  # seconds for one request

    async def version(self, wanted: str | None) -> tuple[Version, str]:
        """A version and the folder of its package. Raises Refusal."""
        with _about("version"):
            version = await run_in_threadpool(self.versions.find, wanted)
            return version, await run_in_threadpool(self.versions.folder, version)

    def events(self, request: Request, name: str, **arguments: object) -> AsyncIterator[Event]:
        """What the painter says to one request, which is stopped when the asker has gone. Raises Refusal."""
        try:
            asked = self.courier.ask(name, **arguments)
        except Full as error:
            told = f"{self.courier.capacity} requests wait already, and no more may. Try again in a moment"
            raise Refusal(429, told, headers=RETRY) from error
        except NotReady as error:
            raise Refusal(503, str(error) or "the models are being loaded. Try again in a moment", headers=RETRY) from error
        return events_of(self.courier, asked, self.deadline, request.is_disconnected)

    async def answer(self, request: Request, name: str, **arguments: object) -> Event:
        """The one event of a request that has but one. Raises Refusal."""
        async with contextlib.aclosing(self.events(request, name, **arguments)) as events:
            async for event in events:
                if event.get("event") == "error":
                    raise refused(event)
                if event.get("event") != "queued":
                    return event
        raise Refusal(499, "nobody waits for this any more")


def model_routes(studio: Studio) -> APIRouter:
    """What there is."""
    routes = APIRouter(tags=["models"])

    @routes.get("/health", response_model=schema.Health, response_model_exclude_none=True)
    async def health() -> Response:
        """Whether pictures can be drawn now, and how many requests wait."""
        courier = studio.courier
        told = {"status": courier.status, "waiting": courier.waiting(), "capacity": courier.capacity}
        is_ready = courier.status == "ready"
        told |= {"error": courier.problem} if courier.problem else {}
        return JSONResponse(told, 200 if is_ready else 503, {} if is_ready else RETRY)

    @routes.get("/api/versions", response_model=schema.Versions)
    async def versions() -> dict:
        """The models that can be asked: models/package and those of the registry."""
        try:
            default, known = await run_in_threadpool(lambda: (studio.versions.default().id, studio.versions.all()))
        except UserError as error:
            raise Refusal(503, str(error), headers=RETRY) from error
        return {"default": default, "versions": [dataclasses.asdict(one) for one in known]}

    @routes.get("/api/model", response_model=schema.Model)
    async def model(request: Request, version: schema.VersionName | None = None) -> dict:
        """What one has to know of a model to ask it for pictures."""
        chosen, folder = await studio.version(version)
        told = await studio.answer(request, "describe", folder=folder)
        return told | {"version": chosen.id, "most_candidates": schema.MOST_CANDIDATES}

    return routes


def picture_routes(studio: Studio) -> APIRouter:
    """What the models do."""
    routes = APIRouter(tags=["pictures"])

    @routes.post("/api/draw", responses=A_DRAW, response_class=Lines)
    async def draw(request: Request, asked: schema.Draw) -> Response:
        """Candidates as they are drawn, then their order: a line of JSON per event. Closing the connection stops the work."""
        version, folder = await studio.version(asked.version)
        started = time.monotonic()
        events = studio.events(request, "draw", folder=folder, prompt=asked.prompt, candidates=asked.candidates, seed=asked.seed,
                               given=asked.given, changes=asked.changes())  # fmt: skip
        first = await anext(events, None)
        if first and first["event"] == "error":
            await events.aclose()
            raise refused(first)
        return Lines(lines(studio.gallery, version, started, first, events))

    @routes.post("/api/redraw", response_model=schema.Redrawn, openapi_extra=ANY_PICTURE)
    async def redraw(request: Request) -> dict:
        """Draws the picture of a PNG that the studio made once more, and tells whether the same bytes came."""
        data = await request.body()
        with _about("picture"):
            version = await run_in_threadpool(_drawn_by, studio, data)
            folder = await run_in_threadpool(studio.versions.folder, version)
        return await studio.answer(request, "redraw", folder=folder, data=data) | {"version": version.id}

    @routes.post("/api/pictures", response_model=schema.Seen, openapi_extra=ANY_PICTURE)
    async def pictures(request: Request, version: schema.VersionName | None = None) -> dict:
        """A picture of your own as the model sees it: its square, its words, and what they give back."""
        data = await request.body()
        if not data:
            raise Refusal(422, "no picture came. Send the bytes of a PNG, JPEG or WebP as the body", "picture")
        _, folder = await studio.version(version)
        return await studio.answer(request, "picture", folder=folder, data=data)

    @routes.post("/api/words", response_model=schema.Changed)
    async def words(request: Request, asked: schema.ChangeWords) -> dict:
        """Words changed (stitched, then flipped, then single ones set), and the picture that they give."""
        _, folder = await studio.version(asked.version)
        changes = asked.model_dump(include={"stitch", "flip", "set"})
        return await studio.answer(request, "words", folder=folder, grid=asked.words, **changes)

    @routes.post("/api/likelihood", response_model=schema.Likelihood)
    async def likelihood(request: Request, asked: schema.AskLikelihood) -> dict:
        """How many bits each word of a picture costs under a caption: what surprises the model."""
        _, folder = await studio.version(asked.version)
        return await studio.answer(request, "likelihood", folder=folder, prompt=asked.prompt, grid=asked.words)

    @routes.get("/api/data", response_model=schema.Data, tags=["data"])
    async def data(
        request: Request,
        query: Annotated[str | None, Query(max_length=1000, description="what the pictures should show, for CLIP")] = None,
        split: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 24,
        offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        version: schema.VersionName | None = None,
    ) -> dict:
        """The data set, page by page, or the pictures that fit a text best."""
        _, folder = await studio.version(version)
        query = (query or "").strip() or None
        return await studio.answer(request, "look", folder=folder, query=query, split=split or None, offset=offset, limit=limit)

    @routes.post("/api/nearest", response_model=schema.Data, tags=["data"])
    async def nearest(request: Request, asked: schema.AskNearest) -> dict:
        """The training pictures most like the picture of these words."""
        _, folder = await studio.version(asked.version)
        return await studio.answer(request, "nearest", folder=folder, grid=asked.words, limit=asked.limit)

    return routes


def gallery_routes(studio: Studio) -> APIRouter:
    """What was drawn before."""
    routes = APIRouter(tags=["gallery"])

    @routes.get("/api/gallery", response_model=schema.Gallery, response_model_exclude_none=False)
    async def gallery(
        request: Request,
        query: Annotated[str | None, Query(max_length=1000, description="what the pictures should show, for CLIP")] = None,
        before: Annotated[str | None, Query(max_length=64, description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 24,
        version: schema.VersionName | None = None,
    ) -> dict:
        """Past draws, newest first; or those whose best pictures fit a text best."""
        if not (query or "").strip():
            return await run_in_threadpool(studio.gallery.page, before, limit)
        _, folder = await studio.version(version)
        found = await studio.answer(request, "remember", folder=folder, query=query.strip(), limit=limit)
        return {"draws": await run_in_threadpool(studio.gallery.several, found["names"]), "next": None}

    @routes.get("/api/gallery/{name}", response_model=schema.WholeDraw)
    async def one(name: str) -> dict:
        """One draw with all its candidates, best first."""
        return await run_in_threadpool(studio.gallery.one, name)

    @routes.get("/api/gallery/{name}/{candidate}.png", response_class=Response,
                responses={200: {"content": {"image/png": {}}}})  # fmt: skip
    async def picture(name: str, candidate: int) -> Response:
        """One picture, a PNG that says how it was drawn."""
        data = await run_in_threadpool(studio.gallery.picture, name, candidate)
        shown = {"Content-Disposition": f'inline; filename="{name}-{candidate}.png"'}
        return Response(data, media_type="image/png", headers=shown)

    @routes.delete("/api/gallery/{name}", status_code=204)
    async def remove(name: str) -> None:
        """Deletes a draw, for good."""
        await run_in_threadpool(studio.gallery.remove, name)

    return routes


def _drawn_by(studio: Studio, data: bytes) -> Version:
    """The version that drew the picture in a file. Raises UserError."""
    facts = provenance_of(data)
    if facts is None:
        raise UserError("this file does not say how it was drawn. Give a PNG that the studio made, as it was downloaded")
    return studio.versions.drawn_by(facts.package)


@contextlib.contextmanager
def _about(field: str) -> Iterator[None]:
    """What is wrong with a version, asked for by a field, becomes a Refusal."""
    try:
        yield
    except DamagedArtefact as error:  # or it is just being written
        raise Refusal(503, str(error), field, RETRY) from error
    except UserError as error:
        raise Refusal(422, str(error), field) from error
