"""The studio as one ASGI application: its API, its page, and the courier that lives as long as it does."""
from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from studio import schema
from studio.refusals import answer_problems
from studio.routes import Studio, gallery_routes, model_routes, picture_routes

STATIC = Path(__file__).parent / "static"
PROBLEMS = {code: {"model": schema.Problem} for code in (400, 403, 413, 415, 422, 429, 503)}


def make_app(studio: Studio) -> FastAPI:
    """The application; the courier runs for as long as it does."""

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        studio.courier.start()
        yield
        await run_in_threadpool(studio.courier.close)

    app = FastAPI(title="thousandwords studio", version="1", lifespan=running,
                  docs_url=None, redoc_url=None, summary="Captions in, ranked pictures out, and every word of them in the hand.",
                  responses=PROBLEMS)  # fmt: skip
    app.include_router(model_routes(studio))
    app.include_router(picture_routes(studio))
    app.include_router(gallery_routes(studio))
    app.include_router(page_routes())
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    answer_problems(app)
    return app


def page_routes() -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    return routes
