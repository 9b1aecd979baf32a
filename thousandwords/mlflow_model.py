"""A package as a service answers: prompts or records in, ranked images in base64 out. It imports no MLflow.

MLflow loads a version of the registry by `_load_pyfunc` of this module, so that
`mlflow.pyfunc.load_model("models:/thousandwords@champion").predict(["a small red star"])` generates; `make serve`
(studio/serve.py) answers in the same form.
"""

import base64
from dataclasses import dataclass
from pathlib import Path

import torch

from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.data.images import encode_png
from thousandwords.inference.config import SamplingConfig, check_prompt, replace_settings
from thousandwords.inference.package import Package, load_package

PACKAGE = "artifacts/package"  # in the folder of a version
SETTINGS = ("temperature", "top_k", "top_p", "guidance")


@dataclass(frozen=True)
class Request:
    """One prompt; what is None is as in the package."""

    prompt: str
    candidates: int = 8
    keep: int | None = None  # the number of best images to return; None: all
    seed: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance: float | None = None
    fixed_tokens: list[int] | None = (
        None  # inpainting: the tokens of an answer, -1 for each one to sample anew
    )

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if self.candidates < 1 or (self.keep is not None and self.keep < 1):
            raise UserError("candidates and keep must be 1 or more. Leave keep out to get all candidates")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it needs to be 0 or more")
        replace_settings(SamplingConfig(), **self.settings)

    @property
    def settings(self) -> dict[str, float]:
        """What replaces settings of the package."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in values.items() if value is not None}


def read_requests(inputs: object) -> list[Request]:
    """["a star", {"prompt": "a ring", "seed": 7}], a table with these columns, or one of them -> its requests.

    Raises UserError, so that nothing is generated before an error in a later request.
    """
    if hasattr(inputs, "columns"):  # pandas.DataFrame
        inputs = inputs.to_dict("records")
    inputs = _plain(inputs)
    records = inputs if isinstance(inputs, list) else [inputs]
    return [_read_request(record, f"inputs[{number}]") for number, record in enumerate(records)]


def _read_request(record: object, name: str) -> Request:
    record = {"prompt": record} if isinstance(record, str) else record
    if isinstance(record, dict):  # an empty cell of a table is NaN
        record = {key: _plain(value) for key, value in record.items()}
        record = {key: value for key, value in record.items() if value is not None and value == value}
    return section(record, name, Request, file="the request")


def _plain(value: object) -> object:
    """A number or list of NumPy, which MLflow's server makes of JSON, as Python's; 4.0 as 4."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def answer(package: Package, request: Request) -> dict:
    """Generate the images of a request, best first."""
    fixed_tokens = None
    if request.fixed_tokens is not None:
        fixed_tokens = torch.tensor(request.fixed_tokens, dtype=torch.int64)
        try:
            package.generator.check_fixed_tokens(fixed_tokens[None], 1)
        except ValueError as error:
            raise UserError(f"the request: {error}") from error
    candidates = package.generate(
        request.prompt, request.candidates, request.seed, fixed_tokens, request.keep, **request.settings
    )
    images = [
        {
            "png": base64.b64encode(encode_png(each.image)).decode(),
            "score": round(each.score, 6),
            "candidate": each.candidate,
            "seed": each.seed,
            "tokens": each.tokens.tolist(),
        }
        for each in candidates
    ]
    return {"prompt": request.prompt, "images": images, "package": package.fingerprint}


@dataclass(frozen=True)
class ServedPackage:
    package: Package

    def predict(self, model_input: object) -> list[dict]:
        """An answer for each request."""
        return [answer(self.package, request) for request in read_requests(model_input)]


def _load_pyfunc(folder: str) -> ServedPackage:
    return ServedPackage(load_package(Path(folder) / PACKAGE, "auto"))
