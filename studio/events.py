"""Events and errors that the worker process sends to the web server."""

from typing import Any

from thousandwords.core.errors import UserError

Event = dict[str, Any]  # becomes one JSON object

Grid = list[list[int]]  # rows of tokens


class FieldError(UserError):
    """The value of one field of a request is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple:  # pickled between processes
        return FieldError, (self.field, str(self))
