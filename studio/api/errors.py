"""Errors of the HTTP API: JSON with a message and the field of the request that it is about."""

from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from studio.data.gallery import NoSuchEntry
from studio.worker.process import Event
from studio.worker.queue import NotReady, QueueFull
from thousandwords.core.errors import UserError

RETRY = {"Retry-After": "1"}  # seconds
CLIENT_CLOSED = 499  # nginx's status for a client that left before an answer began
INTERNAL_ERROR = (
    "the server failed; your request is not the cause. The reason is in the studio's log. Try again, "
    "and if it fails again, restart the studio"
)


class ApiError(Exception):
    """The error answer to a request, with Retry-After if it may succeed at another time."""

    def __init__(self, status: int, error: str, field: str | None = None) -> None:
        super().__init__(error)
        self.status, self.body = status, {"error": error, "field": field}

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse(self.body, self.status, RETRY if self.status in (429, 503) else headers)


def error_of(event: Event) -> ApiError:
    """The error answer for an error event of the worker process."""
    return ApiError(event["status"], event["error"], event["field"])


def add_error_handlers(app: FastAPI) -> None:
    to_api_error = {
        ApiError: lambda error: error,
        RequestValidationError: _invalid,
        QueueFull: lambda error: ApiError(429, str(error)),
        NotReady: lambda error: ApiError(503, str(error)),
        NoSuchEntry: lambda error: ApiError(404, str(error)),
        UserError: lambda error: ApiError(500, str(error)),
        ClientDisconnect: lambda _: ApiError(CLIENT_CLOSED, "the client has disconnected"),
        Exception: lambda _: ApiError(500, INTERNAL_ERROR),  # it is raised again, and uvicorn logs it
    }
    for exception_type, convert in to_api_error.items():
        app.add_exception_handler(exception_type, lambda _, error, convert=convert: convert(error).response())
    app.add_exception_handler(HTTPException, lambda _, error: _http(error))


def _invalid(error: RequestValidationError) -> ApiError:
    """The first error in a request, with its field; the value that was sent is not repeated."""
    first = error.errors()[0]
    # FastAPI's error for a body that it did not take for JSON
    if first["type"] == "model_attributes_type" and len(first["loc"]) == 1:
        fix = "Send one, with the header Content-Type: application/json"
        return ApiError(422, f"the body is not a JSON object. {fix}")
    names = [str(name) for name in first["loc"][1:] if first["type"] != "json_invalid"]
    field = ".".join(names) or None
    return ApiError(422, f"{field or 'the body'}: {first['msg']}", field)


def _http(error: HTTPException) -> JSONResponse:
    known = {
        400: (422, "the body is not valid JSON. Send an object as described by /openapi.json"),
        404: (404, "there is nothing at this address. /openapi.json lists all addresses"),
        # of a body that did not state its length; else `Guards` refused it
        413: (413, "the body has more bytes than the maximum here; send less"),
    }
    status, message = known.get(error.status_code, (error.status_code, str(error.detail)))
    return ApiError(status, message).response(error.headers)
