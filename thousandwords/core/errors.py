"""Errors that a user can cause: one sentence that names the problem and the fix, no traceback."""


class UserError(ValueError):
    """An error that the user can fix: a setting, a path, a damaged file. The message says how."""


class InvalidInput(ValueError):
    """An input that cannot be used: `reason` is a short key to count by, `detail` a sentence to read."""

    def __init__(self, reason: str, detail: str):
        self.reason = reason
        # file names can hold any bytes
        self.detail = detail.encode("utf-8", "backslashreplace").decode()[:500]
        super().__init__(f"{reason}: {self.detail}")

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.detail)  # to pickle it for another process
