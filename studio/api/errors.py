"""Requests that are not answered with what was asked for: one form for all, a sentence and the field that it is about."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from studio.easel import Event
from studio.gallery import NoDraw
from thousandwords.errors import UserError

RETRY = {"Retry-After": "1"}  # seconds


class Refusal(Exception):
    """A request that is not answered with what was asked for, and why."""

    def __init__(self, status: int, error: str, field: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.field, self.headers = status, error, field, headers or {}

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.error, "field": self.field}, self.status, self.headers)


def refused(event: Event) -> Refusal:
    return Refusal(event["status"], event["error"], event["field"], RETRY if event["status"] == 503 else None)


def answer_problems(app: FastAPI) -> None:
    """Every refusal in one form."""
    handlers: dict[type[Exception], Callable[[Any], Refusal]] = {
        Refusal: lambda error: error,
        RequestValidationError: _invalid,
        HTTPException: _http,
        NoDraw: lambda error: Refusal(404, str(error)),
        UserError: lambda error: Refusal(500, str(error)),
    }
    for kind, told in handlers.items():
        app.add_exception_handler(kind, lambda _, error, told=told: told(error).response())


def _invalid(error: RequestValidationError) -> Refusal:
    """The first thing wrong with a request, by its field; what was sent is not sent back."""
    first = error.errors()[0]
    if first["type"] == "model_attributes_type" and len(first["loc"]) == 1:  # so FastAPI says that it took the body for no JSON
        return Refusal(422, "the body is no JSON object. Send one, with the header Content-Type: application/json")
    where = [str(one) for one in first["loc"][1:] if first["type"] != "json_invalid"]
    field = ".".join(where) or None
    return Refusal(422, f"{field or 'the body'}: {first['msg']}", field)


def _http(error: HTTPException) -> Refusal:
    if error.status_code == 400:  # FastAPI's, for a body that it could not parse at all
        return Refusal(422, "the body is no JSON that can be read. Send an object as /openapi.json describes it")
    if error.status_code == 404:
        return Refusal(404, "there is nothing at this address. /openapi.json lists what there is")
    return Refusal(error.status_code, str(error.detail), headers=dict(error.headers or {}))
