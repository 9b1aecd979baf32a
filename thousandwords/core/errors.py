"""The one base of every error that a user can cause: a sentence that names the thing and the mend, no traceback."""
from __future__ import annotations


class UserError(ValueError):
    """Something a user can mend: a setting, a path, a damaged file. Its message says what, where and how."""
