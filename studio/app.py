"""The studio as one ASGI application: its API, its page, and the request queue."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from studio.api import schema
from studio.api.errors import add_error_handlers
from studio.api.routes import Studio, gallery_routes, image_routes, model_routes

STATIC = Path(__file__).parent / "static"
ERROR_RESPONSES = {code: {"model": schema.ErrorResponse} for code in (400, 403, 413, 415, 422, 429, 503)}


def make_app(studio: Studio) -> FastAPI:
    """The application; the request queue starts and ends with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        studio.queue.start()
        yield
        await run_in_threadpool(studio.queue.close)

    app = FastAPI(
        title="thousandwords studio",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        summary="Generate ranked images from captions, inpaint them and edit their tokens.",
        responses=ERROR_RESPONSES,
    )
    for routes in (model_routes, image_routes, gallery_routes):
        app.include_router(routes(studio))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    add_error_handlers(app)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    return app
