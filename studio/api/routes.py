"""The studio as one ASGI application: a route checks a request, queues it for the worker process, and answers.

Described at /openapi.json. Without torch. A route that may wait for a file or the registry is no coroutine: FastAPI calls
it in a thread.
"""

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import fastapi_offline
import numpy as np
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi import Path as PathValue
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from studio.api import schema
from studio.api.errors import CLIENT_CLOSED, RETRY, ApiError, add_error_handlers, error_of
from studio.data.gallery import Gallery, GalleryEntry
from studio.data.training import image_file, training_status
from studio.data.versions import Version, Versions
from studio.worker.process import Event
from studio.worker.queue import RequestQueue, events_of
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.data.images import decode_png
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.provenance import read_provenance

STATIC = Path(__file__).parents[1] / "static"
SWAGGER = (
    Path(fastapi_offline.__file__).parent / "static"
)  # its own page has a script within, which the studio's policy forbids
ERROR_RESPONSES = {code: {"model": schema.ErrorResponse} for code in (400, 403, 413, 415, 422, 429, 503)}
IMAGE_FILE = {"schema": {"type": "string", "format": "binary"}}
IMAGE_BODY = {"requestBody": {"required": True, "content": {"image/*": IMAGE_FILE}}}
EVENT_LINES = {200: {"description": "a line of JSON per event", "model": schema.Event}}
WHAT_TO_SHOW = "what the images should show, for a search by CLIP"
SearchText = Annotated[str | None, Query(max_length=1000, description=WHAT_TO_SHOW)]
PNG_FILE = {"response_class": Response, "responses": {200: {"content": {"image/png": {}}}}}
ZIP_FILE = {200: {"content": {"application/zip": {}}}}
MAX_ZIPPED = 200  # entries: their names fit into the header of a request


class JsonLines(StreamingResponse):
    media_type = "application/x-ndjson"  # a line of JSON per event


@dataclasses.dataclass(frozen=True)
class Studio:
    queue: RequestQueue
    versions: Versions
    gallery: Gallery
    deadline: float = 120.0  # seconds for one request

    async def version(self, name: str | None) -> tuple[Version, str]:
        """A version and the folder of its package. Raises ApiError."""
        with _field_errors("version"):
            version = await run_in_threadpool(self.versions.find, name)
            return version, await run_in_threadpool(self.versions.folder, version)

    def events(self, request: Request, name: str, **arguments: object) -> AsyncIterator[Event]:
        """The events of a request; it is stopped if the client disconnects. Raises QueueFull or NotReady."""
        queued = self.queue.submit(name, **arguments)
        return events_of(self.queue, queued, self.deadline, request.is_disconnected)

    async def answer(self, request: Request, name: str, **arguments: object) -> Event:
        """The event of a request that has only one. Raises ApiError."""
        async with contextlib.aclosing(self.events(request, name, **arguments)) as events:
            async for event in events:
                if event.get("event") == "error":
                    raise error_of(event)
                if event.get("event") != "queued":
                    return event
        raise ApiError(CLIENT_CLOSED, "the client has disconnected")

    async def ask(self, request: Request, name: str, version: str | None, **arguments: object) -> Event:
        """The answer by a version with this id or alias. Raises ApiError."""
        _, folder = await self.version(version)
        return await self.answer(request, name, folder=folder, **arguments)


def make_app(studio: Studio) -> FastAPI:
    """The application; the request queue starts and ends with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        queue = asyncio.create_task(studio.queue.run())
        yield
        queue.cancel()
        await asyncio.wait([queue])

    app = FastAPI(
        title="thousandwords studio",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        summary="Generate ranked images from captions, inpaint them and edit their tokens.",
        responses=ERROR_RESPONSES,
    )
    for routes in (model_routes, image_routes, gallery_routes, training_routes):
        app.include_router(routes(studio))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.mount("/swagger", StaticFiles(directory=SWAGGER), name="swagger")
    add_error_handlers(app)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(STATIC / "swagger.html")

    return app


def model_routes(studio: Studio) -> APIRouter:
    routes = APIRouter(tags=["models"])

    @routes.get("/health", response_model=schema.Health, response_model_exclude_none=True)
    async def health() -> Response:
        """Whether images can be generated now, and how many requests wait."""
        queue = studio.queue
        body = {"status": queue.status, "waiting": queue.num_waiting(), "capacity": queue.capacity}
        body |= {"error": queue.problem} if queue.problem else {}
        return JSONResponse(body) if queue.status == "ready" else JSONResponse(body, 503, RETRY)

    @routes.get("/api/versions", response_model=schema.Versions)
    def versions() -> dict:
        """The models: models/package and the registry's versions."""
        try:
            return {"default": studio.versions.find().id, "versions": studio.versions.all()}
        except UserError as error:
            raise ApiError(503, str(error)) from error

    @routes.get("/api/model", response_model=schema.Model)
    async def model(request: Request, version: schema.VersionName | None = None) -> dict:
        """What a client must know of a model to send requests."""
        chosen, folder = await studio.version(version)
        description = await studio.answer(request, "describe", folder=folder)
        return description | {"version": chosen.id, "max_candidates": schema.MAX_CANDIDATES}

    return routes


def image_routes(studio: Studio) -> APIRouter:
    routes = APIRouter(tags=["images"])

    @routes.post("/api/generate", responses=EVENT_LINES, response_class=JsonLines)
    async def generate(request: Request, body: schema.GenerateRequest) -> Response:
        """Candidates when they are finished, then their ranking, as JSON lines. To stop, disconnect."""
        version, folder = await studio.version(body.version)
        started = time.monotonic()
        arguments = body.model_dump(include={"prompt", "candidates", "seed", "fixed_tokens"})
        events = studio.events(request, "generate", folder=folder, changes=body.changes(), **arguments)
        first = await anext(events, None)
        if first and first["event"] == "error":
            await events.aclose()
            raise error_of(first)
        return JsonLines(stream_lines(studio.gallery, version, started, first, events))

    @routes.post("/api/reproduce", response_model=schema.ReproducedImage, openapi_extra=IMAGE_BODY)
    async def reproduce(request: Request) -> dict:
        """Generate the image of a downloaded PNG again, and say whether the bytes are equal."""
        data = await request.body()
        with _field_errors("image"):
            if (provenance := await run_in_threadpool(read_provenance, data)) is None:
                fix = "Give a PNG of the studio as it was downloaded"
                raise UserError(f"this file does not say how it was generated. {fix}")
            version = await run_in_threadpool(studio.versions.with_fingerprint, provenance.package)
            folder = await run_in_threadpool(studio.versions.folder, version)
        answer = await studio.answer(request, "reproduce", folder=folder, data=data)
        return answer | {"version": version.id}

    @routes.post("/api/images", response_model=schema.EncodedImage, openapi_extra=IMAGE_BODY)
    async def encode_image(request: Request, version: schema.VersionName | None = None) -> dict:
        """An image of yours as the model sees it: its center square, its tokens and their reconstruction."""
        data = await request.body()
        if not data:
            message = "the body is empty. Send the bytes of a PNG, JPEG or WebP file as the body"
            raise ApiError(422, message, "image")
        return await studio.ask(request, "encode_image", version, data=data)

    @routes.post("/api/tokens", response_model=schema.EditedTokens)
    async def edit_tokens(request: Request, body: schema.EditRequest) -> dict:
        """Tokens after edits (stitch, then flip, then set single tokens), and their image."""
        edits = body.model_dump(include={"stitch", "flip", "set"})
        return await studio.ask(request, "edit_tokens", body.version, grid=body.tokens, **edits)

    @routes.post("/api/likelihood", response_model=schema.Likelihood)
    async def likelihood(request: Request, body: schema.LikelihoodRequest) -> dict:
        """The bits that each token of an image costs under a caption: many for an unexpected token."""
        return await studio.ask(request, "likelihood", body.version, prompt=body.prompt, grid=body.tokens)

    @routes.get("/api/dataset", response_model=schema.DatasetPage, tags=["dataset"])
    async def dataset(
        request: Request,
        query: SearchText = None,
        split: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 24,
        offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        version: schema.VersionName | None = None,
    ) -> dict:
        """The data set, page by page, or the images that match a text best."""
        search = {"query": (query or "").strip() or None, "split": split or None}
        return await studio.ask(request, "browse_dataset", version, **search, offset=offset, limit=limit)

    @routes.post("/api/nearest", response_model=schema.DatasetPage, tags=["dataset"])
    async def nearest(request: Request, body: schema.NearestRequest) -> dict:
        """The training images nearest to the image of these tokens."""
        return await studio.ask(request, "nearest_images", body.version, grid=body.tokens, limit=body.limit)

    return routes


def gallery_routes(studio: Studio) -> APIRouter:
    routes = APIRouter(tags=["gallery"])

    @routes.get("/api/gallery", response_model=schema.GalleryPage, response_model_exclude_none=False)
    async def gallery(
        request: Request,
        query: SearchText = None,
        before: Annotated[str | None, Query(max_length=64, description="`next` of the previous page")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 24,
        version: schema.VersionName | None = None,
        starred: Annotated[bool, Query(description="only those with a star; not in a search")] = False,
    ) -> dict:
        """Past generations, newest first; or those whose best images match a text best."""
        if not (query or "").strip():
            return await run_in_threadpool(studio.gallery.page, before, limit, starred)
        result = await studio.ask(request, "search_gallery", version, query=query.strip(), limit=limit)
        return {"entries": await run_in_threadpool(studio.gallery.entries, result["names"]), "next": None}

    @routes.get("/api/gallery.zip", response_class=StreamingResponse, responses=ZIP_FILE)
    def download(name: Annotated[list[str], Query(min_length=1, max_length=MAX_ZIPPED)]) -> Response:
        """The images of some entries in one ZIP file, a folder for each entry, best first."""
        file = studio.gallery.zip_file(name)
        return StreamingResponse(iter(lambda: file.read(2**16), b""), media_type="application/zip")

    @routes.get("/api/gallery/{name}", response_model=schema.WholeEntry)
    def entry(name: str) -> dict:
        """One entry with all its candidates, best first."""
        return studio.gallery.entry(name)

    @routes.get("/api/gallery/{name}/{candidate}.png", **PNG_FILE)
    def image(name: str, candidate: int) -> Response:
        """One image as a PNG with its provenance."""
        headers = {"Content-Disposition": f'inline; filename="{name}-{candidate}.png"'}
        return Response(studio.gallery.image(name, candidate), media_type="image/png", headers=headers)

    @routes.put("/api/gallery/{name}/star", status_code=204)
    def star(name: str) -> None:
        """Give an entry a star."""
        studio.gallery.star(name, True)

    @routes.delete("/api/gallery/{name}/star", status_code=204)
    def unstar(name: str) -> None:
        """Take the star of an entry away."""
        studio.gallery.star(name, False)

    @routes.delete("/api/gallery/{name}", status_code=204)
    def remove(name: str) -> None:
        """Delete an entry for good."""
        studio.gallery.remove(name)

    return routes


def training_routes(studio: Studio) -> APIRouter:
    routes = APIRouter(tags=["training"])

    @routes.get("/api/training", response_model=schema.TrainingStatus)
    def training() -> dict:
        """The stages that run now, and of each training its progress, curves and images. Ask again for news."""
        return training_status(studio.versions.root)

    @routes.get("/api/training/{stage}/{step}.png", **PNG_FILE)
    def training_image(stage: str, step: Annotated[int, PathValue(ge=0, lt=2**31)]) -> Response:
        """The images that a training drew at a step."""
        path = image_file(studio.versions.root, stage, step)
        if not path.is_file():
            raise ApiError(404, f"{stage} drew no images at step {step}. /api/training lists them")
        return FileResponse(path, media_type="image/png")

    return routes


log = logging.getLogger("studio")


async def stream_lines(
    gallery: Gallery, version: Version, started: float, first: Event | None, events: AsyncIterator[Event]
) -> AsyncIterator[bytes]:
    """Yield the events of a generation as JSON lines; the last line has the id of the gallery entry."""
    candidates: list[Event] = []
    async with contextlib.aclosing(events):
        event = first or await anext(events, None)
        while event is not None:
            if event["event"] == "started":
                event |= {"version": version.id}
            if event["event"] == "candidate":
                candidates.append(event)
            if event["event"] == "ranked":
                arguments = (gallery, version, candidates, event["order"], event.pop("settings"))
                name = await run_in_threadpool(_save_entry, *arguments)
                event |= {"id": name, "seconds": round(time.monotonic() - started, 3)}
            event.pop("status", None)
            yield json.dumps(event, separators=(",", ":")).encode() + b"\n"
            event = await anext(events, None)


def _save_entry(
    gallery: Gallery, version: Version, candidates: list[Event], order: list[int], settings: dict
) -> str | None:
    """Save a finished generation in the gallery; None if that fails, with the reason in the log."""
    files = [base64.b64decode(event["png"]) for event in candidates]
    sampling = section(settings, "settings", SamplingConfig)
    provenance = dataclasses.replace(read_provenance(files[0]), settings=sampling)
    tokens = [[token for row in event["tokens"] for token in row] for event in candidates]
    images = np.stack([decode_png(file) for file in files])
    scores = [event["score"] for event in candidates]
    try:
        return gallery.add(GalleryEntry(provenance, version.id, tokens, images, scores, order))
    except (UserError, OSError) as error:
        log.warning("a generation could not be saved in the gallery: %s", error)
        return None


@contextlib.contextmanager
def _field_errors(field: str) -> Iterator[None]:
    """Turn errors of a version into an ApiError for the field that selected it."""
    try:
        yield
    except DamagedArtefact as error:  # or another process is writing it
        raise ApiError(503, str(error), field) from error
    except UserError as error:
        raise ApiError(422, str(error), field) from error
