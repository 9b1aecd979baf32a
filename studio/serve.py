"""python -m studio.serve PACKAGE: a package as a service, prompts in, ranked images out (`make serve`).

    POST /invocations {"inputs": ["a large blue ring", {"prompt": "a small red star", "candidates": 4, "seed": 7}]}
    -> {"predictions": [{"prompt": …, "images": [{"png": base64, "score": 0.31, "candidate": 2, …}, …], …}, …]}

The form is that of `mlflow models serve`, which is not used: it runs code that it finds in a version, and
reads bodies of any size.
"""

import contextlib
import threading
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel

from studio.api.errors import ApiError, add_error_handlers
from studio.api.schema import MAX_CANDIDATES
from studio.http import server
from thousandwords.core.command_line import one_sentence, parser
from thousandwords.core.errors import UserError
from thousandwords.inference.package import Package, load_package
from thousandwords.mlflow_model import Request, answer, read_requests

MAX_WAITING = 16  # requests, with the one that runs; further ones get 429


class Invocation(BaseModel):
    inputs: list[str | dict]  # read by thousandwords.mlflow_model


def make_app(package: Package) -> FastAPI:
    app = FastAPI(title="thousandwords", docs_url=None, redoc_url=None)
    one_at_a_time, places = threading.Lock(), threading.BoundedSemaphore(MAX_WAITING)
    add_error_handlers(app)

    @app.get("/ping")
    @app.get("/health")
    async def ping() -> dict:
        return {"status": "ready"}

    @app.post("/invocations")
    def invocations(body: Invocation) -> dict:
        if not places.acquire(blocking=False):
            raise ApiError(429, f"{MAX_WAITING} requests wait. Try again in a moment")
        try:
            requests = read_requests(body.inputs)
            check_count(requests)
            with one_at_a_time:
                return {"predictions": [answer(package, request) for request in requests]}
        except UserError as error:
            raise ApiError(422, str(error)) from error
        finally:
            places.release()

    return app


def check_count(requests: list[Request]) -> None:
    """Raises UserError before anything is generated: a late error would discard the images before it."""
    count = sum(request.candidates for request in requests)
    if count > MAX_CANDIDATES:
        found = f"the request asks for {count} candidates; the limit is {MAX_CANDIDATES}"
        raise UserError(f"{found}. Ask for fewer candidates, or in several requests")


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__, prog="python -m studio.serve")
    arguments.add_argument("package", type=Path)
    arguments.add_argument("--port", type=int, default=5001, help="(default: 5001)")
    arguments.add_argument("--allowed-host", action="append", default=[], metavar="NAME")
    options = arguments.parse_args(argv)
    server.start_log()
    with (
        one_sentence("serve"),
        contextlib.suppress(KeyboardInterrupt),  # uvicorn raises it again after a clean end
        server.open_socket("the model server", "127.0.0.1", options.port) as listener,
    ):
        app = make_app(load_package(options.package))
        print(f"serve: http://127.0.0.1:{options.port}/invocations  (Ctrl-C ends it)", flush=True)
        server.new_server(app, options.allowed_host).run(sockets=[listener])


if __name__ == "__main__":
    main()
