"""What MLflow serves: prompts in, ranked pictures out. MLflow reads this file as a script (models from code); nothing is pickled.

    {"inputs": [{"prompt": "a small red star on sand", "candidates": 4, "keep": 1, "seed": 7}]}
    -> {"predictions": [{"prompt": …, "pictures": [{"png": base64, "score": 0.31, "candidate": 2, "seed": 7}], …}]}

`thousandwords` itself comes from where the server runs: a version holds weights, not a copy of the library.
"""
from __future__ import annotations

import base64
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel
from pydantic import BaseModel

MOST_CANDIDATES = 64  # of one request: its pictures are drawn while it waits


class Request(BaseModel):
    """One prompt, and how it is to be drawn."""

    prompt: str
    candidates: int = 8
    keep: int | None = None  # the best of them; none said: all
    seed: int = 0


class ServedPackage(PythonModel):
    """The package of a version, loaded once and verified; it draws for whoever asks."""

    def load_context(self, context: Any) -> None:
        from thousandwords.package import load_package  # late: this file is also read where a version is put together

        self.package = load_package(context.artifacts["package"])

    def predict(self, context: Any, model_input: list[Request], params: dict | None = None):
        from thousandwords.errors import UserError

        try:
            self._check(model_input)
            return [self._draw(request) for request in model_input]
        except UserError as error:  # else the server answers with a traceback
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error

    def _check(self, requests: list[Request]) -> None:
        """Raises UserError before anything is drawn: a late error would throw the pictures before it away."""
        from thousandwords.drawing import check_prompt
        from thousandwords.errors import UserError

        for request in requests:
            check_prompt(request.prompt)
            if request.candidates < 1 or (request.keep is not None and request.keep < 1):
                raise UserError("candidates and keep are counts from 1 on. Leave keep out to get all candidates")
        wanted = sum(request.candidates for request in requests)
        if wanted > MOST_CANDIDATES:
            raise UserError(
                f"{wanted} candidates are asked for, and one request may draw {MOST_CANDIDATES}. "
                "Ask for fewer candidates, or in several requests"
            )

    def _draw(self, request: Request) -> dict[str, Any]:
        from thousandwords.images import encode_png

        drawn = self.package.draw(request.prompt, request.candidates, request.seed)[: request.keep]
        pictures = [
            {
                "png": base64.b64encode(encode_png(one.picture)).decode(),
                "score": round(one.score, 6),
                "candidate": one.candidate,
                "seed": one.seed,
            }
            for one in drawn
        ]
        return {"prompt": request.prompt, "pictures": pictures, "package": self.package.fingerprint}


set_model(ServedPackage())
