"""Errors of the HTTP API: JSON with a message and the field of the request that it is about."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from studio.data.gallery import NoSuchEntry
from studio.worker.process import Event
from thousandwords.core.errors import UserError

RETRY = {"Retry-After": "1"}  # seconds
CLIENT_CLOSED = 499  # nginx's status for a client that left before an answer began
INTERNAL_ERROR = (
    "the server failed; your request is not the cause. The reason is in the studio's log. Try again, "
    "and if it fails again, restart the studio"
)


class ApiError(Exception):
    """The error answer to a request."""

    def __init__(
        self, status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.headers = status, message, field, headers or {}

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.message, "field": self.field}, self.status, self.headers)


def error_of(event: Event) -> ApiError:
    """The error answer for an error event of the worker process."""
    headers = RETRY if event["status"] == 503 else None
    return ApiError(event["status"], event["error"], event["field"], headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer all errors in the same form."""
    to_api_error: dict[type[Exception], Callable[[Any], ApiError]] = {
        ApiError: lambda error: error,
        RequestValidationError: _invalid,
        HTTPException: _http,
        NoSuchEntry: lambda error: ApiError(404, str(error)),
        UserError: lambda error: ApiError(500, str(error)),
        ClientDisconnect: lambda _: ApiError(CLIENT_CLOSED, "the client has disconnected"),
        Exception: lambda _: ApiError(500, INTERNAL_ERROR),  # it is raised again, and uvicorn logs it
    }
    for exception_type, convert in to_api_error.items():
        app.add_exception_handler(exception_type, lambda _, error, convert=convert: convert(error).response())


def _invalid(error: RequestValidationError) -> ApiError:
    """The first error in a request, with its field; the value that was sent is not repeated."""
    first = error.errors()[0]
    # FastAPI's error for a body that it did not take for JSON
    if first["type"] == "model_attributes_type" and len(first["loc"]) == 1:
        message = "the body is not a JSON object. Send one, with the header Content-Type: application/json"
        return ApiError(422, message)
    names = [str(name) for name in first["loc"][1:] if first["type"] != "json_invalid"]
    field = ".".join(names) or None
    return ApiError(422, f"{field or 'the body'}: {first['msg']}", field)


def _http(error: HTTPException) -> ApiError:
    if error.status_code == 400:  # FastAPI's, for a body that it could not parse
        return ApiError(422, "the body is not valid JSON. Send an object as described by /openapi.json")
    if error.status_code == 413:  # of a body that did not state its length; else `Guards` refused it
        return ApiError(413, "the body has more bytes than the maximum here; send less")
    if error.status_code == 404:
        return ApiError(404, "there is nothing at this address. /openapi.json lists all addresses")
    return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
