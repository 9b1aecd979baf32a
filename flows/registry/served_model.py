"""The model that MLflow serves: prompts in, ranked images out.

MLflow runs this file as a script (models from code); no pickles.

    {"inputs": [{"prompt": "a small red star on sand", "candidates": 4, "keep": 1, "seed": 7}]}
    -> {"predictions": [{"prompt": …, "images": [{"png": base64, "score": 0.31, "candidate": 2, "seed": 7}], …}]}

`thousandwords` itself must be installed where the server runs: a version holds weights, not a copy of the
library.
"""

from __future__ import annotations

import base64
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel
from pydantic import BaseModel

MAX_CANDIDATES = 64  # of one request, which waits until all are generated


class Request(BaseModel):
    """One prompt and its settings."""

    prompt: str
    candidates: int = 8
    keep: int | None = None  # the number of best images to return; None: all
    seed: int = 0


class ServedPackage(PythonModel):
    """A version's package, loaded and verified once."""

    def load_context(self, context: Any) -> None:
        from thousandwords.inference.package import (
            load_package,
        )  # late: MLflow also runs this file to save a version

        self.package = load_package(context.artifacts["package"])

    def predict(self, context: Any, model_input: list[Request], params: dict | None = None):
        from thousandwords.core.errors import UserError

        try:
            self._check(model_input)
            return [self._generate(request) for request in model_input]
        except UserError as error:  # else the server answers with a traceback
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error

    def _check(self, requests: list[Request]) -> None:
        """Raises UserError before anything is generated: a late error would discard the images before it."""
        from thousandwords.core.errors import UserError
        from thousandwords.inference.config import check_prompt

        for request in requests:
            check_prompt(request.prompt)
            if request.candidates < 1 or (request.keep is not None and request.keep < 1):
                raise UserError("candidates and keep must be 1 or more. Leave keep out to get all candidates")
        count = sum(request.candidates for request in requests)
        if count > MAX_CANDIDATES:
            raise UserError(
                f"the request asks for {count} candidates; the limit is {MAX_CANDIDATES}. "
                "Ask for fewer candidates, or in several requests"
            )

    def _generate(self, request: Request) -> dict[str, Any]:
        from thousandwords.data.images import encode_png

        candidates = self.package.generate(request.prompt, request.candidates, request.seed)[: request.keep]
        images = [
            {
                "png": base64.b64encode(encode_png(candidate.image)).decode(),
                "score": round(candidate.score, 6),
                "candidate": candidate.candidate,
                "seed": candidate.seed,
            }
            for candidate in candidates
        ]
        return {"prompt": request.prompt, "images": images, "package": self.package.fingerprint}


set_model(ServedPackage())
