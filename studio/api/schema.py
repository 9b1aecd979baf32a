"""Requests and answers of the HTTP API, field by field: the source of its OpenAPI description.

Types and ranges that hold for every model are checked here; what depends on the model is checked in
`studio.worker.handlers`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from studio.data.versions import Version

MAX_CANDIDATES = 64  # per request
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True, description="another seed gives other images")]
Count = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False)]
PACKAGE_VALUE = "null: the package's value"
NO_LIMIT = "null: all tokens; left out: the package's value"
Token = Annotated[int, Field(ge=-1, lt=2**31, strict=True)]
ROWS = "rows of tokens; those of several grids are in one row, the coarsest grid first"
Row = Annotated[list[Token], Field(max_length=2**16)]
Grid = Annotated[list[Row], Field(max_length=256, description=ROWS)]
Caption = Annotated[str, Field(min_length=1, max_length=20_000, description="what the image shows")]
FIXED = (
    "inpainting: tokens that all candidates have, -1 for each token to sample; of several grids only cells of the finest, "
    "the last `side` x `side` tokens, can be -1, and the image stays elsewhere"
)
VERSION = "package, a version number or an alias of the registry; null: the default"
VersionName = Annotated[str, Field(max_length=64, description=VERSION)]
Png = Annotated[str, Field(description="a PNG file in base64")]


class RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GenerateRequest(RequestBody):
    prompt: Caption
    candidates: Annotated[Count, Field(ge=1, le=MAX_CANDIDATES)] = 16
    seed: Seed = 0
    temperature: Annotated[Number, Field(gt=0, le=100)] | None = Field(None, description=PACKAGE_VALUE)
    top_k: Annotated[Count, Field(ge=1, lt=2**31)] | None = Field(None, description=NO_LIMIT)
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = Field(None, description=NO_LIMIT)
    guidance: Annotated[Number, Field(ge=0, le=100)] | None = Field(None, description=PACKAGE_VALUE)
    version: VersionName | None = None
    fixed_tokens: Grid | None = Field(None, description=FIXED)

    def changes(self) -> dict:
        """The sampling settings of the request; null is left out where it means the package's value."""
        values = self.model_dump(include={"temperature", "top_k", "top_p", "guidance"}, exclude_unset=True)
        may_be_null = ("top_k", "top_p")
        return {name: value for name, value in values.items() if value is not None or name in may_be_null}


class Stitch(RequestBody):
    tokens: Grid
    columns: Annotated[Count, Field(ge=0, le=256, description="the left ones are from the edited grid")]


class SetToken(RequestBody):
    row: Annotated[Count, Field(ge=0, lt=256)]
    column: Annotated[Count, Field(ge=0, lt=256)]
    token: Annotated[Count, Field(ge=0, lt=2**31)]


class TokensRequest(RequestBody):
    tokens: Grid
    version: VersionName | None = None


class EditRequest(TokensRequest):
    stitch: Stitch | None = None
    flip: bool = False
    set: Annotated[list[SetToken], Field(max_length=65_536)] = []


class LikelihoodRequest(TokensRequest):
    prompt: Caption


class NearestRequest(TokensRequest):
    limit: Annotated[Count, Field(ge=1, le=100)] = 12


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: str = Field(description="the problem and the remedy, in a sentence")
    field: str | None = Field(None, description="the field of the request that it is about")


class Health(BaseModel):
    status: Literal["ready", "loading", "broken"]
    waiting: int = Field(description="requests in the queue")
    capacity: int = Field(description="requests that the queue holds")
    error: str | None = None


class Versions(BaseModel):
    default: str
    versions: list[Version]


class SamplingSettings(BaseModel):
    temperature: float
    top_k: int | None
    top_p: float | None
    guidance: float


class Model(BaseModel):
    version: str
    fingerprint: str = Field(description="sha256 of the package's manifest")
    image_size: int
    side: int | None = Field(
        description="rows, and columns, of the grid of cells to keep in inpainting; null: not by this model"
    )
    can_edit: bool = Field(
        description="whether the tokens form one grid, so that they can be edited and measured"
    )
    vocab_size: int
    text_length: int
    settings: SamplingSettings
    can_guide: bool
    max_candidates: int
    examples: list[str]


class Event(BaseModel):
    """One line of the answer to a generation; `event` says which fields it has."""

    event: Literal["queued", "started", "candidate", "ranked", "error"]
    ahead: int | None = Field(None, description="queued: requests before this one")
    version: str | None = Field(None, description="started")
    fingerprint: str | None = Field(None, description="started: of the package")
    prompt: str | None = Field(None, description="started: the caption, normalized")
    text_used: str | None = Field(None, description="started: the part of the caption that the model uses")
    truncated: bool | None = Field(None, description="started: whether the caption is longer than that")
    unseen_words: list[str] | None = Field(None, description="started: words that no training caption has")
    max_words: int | None = Field(
        None,
        description="started, if this caption has more words: those of the longest training caption here",
    )
    candidates: int | None = Field(None, description="started")
    seed: int | None = Field(None, description="started")
    candidate: int | None = Field(None, description="candidate: its number, from 0")
    png: Png | None = None
    tokens: Grid | None = Field(None, description="candidate")
    score: float | None = Field(None, description="candidate: CLIP's cosine with the caption")
    order: list[int] | None = Field(None, description="ranked: candidates, best first")
    id: str | None = Field(None, description="ranked: the gallery entry; null if it could not be saved")
    seconds: float | None = Field(None, description="ranked: since the request")
    error: str | None = Field(None, description="error: why no more candidates follow")
    field: str | None = None


class EditedTokens(BaseModel):
    tokens: Grid
    png: Png


class EncodedImage(EditedTokens):
    png: Png = Field(description="the center square, in the model's size")
    reconstruction: Png = Field(description="decoded from the tokens")
    psnr: float = Field(description="of the reconstruction, in dB")
    caption: str | None = Field(description="written by the model's captioner; null if it has none")
    provenance: dict | None = Field(description="how the image was generated, if the file says so")


class ReproducedImage(EditedTokens):
    same: bool = Field(description="byte for byte the file that was sent")
    same_pixels: bool
    score: float
    version: str
    provenance: dict


class LeastLikelyToken(BaseModel):
    row: int
    column: int
    token: int
    bits: float


class Likelihood(BaseModel):
    bits: list[list[float]] = Field(description="of each token, given the caption and the tokens before it")
    image_bits: float
    caption_bits: float | None = Field(description="null if this model gives captions no probability")
    bits_per_token: float
    uniform_bits_per_token: float = Field(description="of a uniform guess: log2 of the vocabulary size")
    least_likely: list[LeastLikelyToken]
    png: Png = Field(description="the bits as a heat map over the image")


class DatasetImage(BaseModel):
    key: str
    caption: str
    split: str
    score: float | None = Field(description="cosine with the search text or image")
    png: Png


class DatasetPage(BaseModel):
    state: Literal["ready", "indexing", "none"]
    done: int = Field(description="a search covers so many of `total` images so far")
    total: int
    splits: list[str]
    images: list[DatasetImage]
    next: int | None


class GalleryImage(BaseModel):
    candidate: int
    score: float
    url: str
    tokens: Grid | None = None


class GalleryEntry(BaseModel):
    id: str
    when: str
    prompt: str
    seed: int
    candidates: int
    version: str
    is_inpainted: bool
    is_starred: bool
    settings: dict


class ListedEntry(GalleryEntry):
    best: list[GalleryImage]


class WholeEntry(GalleryEntry):
    images: list[GalleryImage]


class GalleryPage(BaseModel):
    entries: list[ListedEntry]
    next: str | None = Field(description="send it as `before` to get the next page")


class TrainingImage(BaseModel):
    step: int
    url: str


class Training(BaseModel):
    stage: str
    state: Literal["running", "finished", "stopped"]
    step: int
    steps: int
    seconds_left: int | None
    # name -> (step, value); validation/loss is of held-out pairs
    curves: dict[str, list[tuple[int, float | None]]]
    images: list[TrainingImage] = Field(description="the newest last")


class TrainingStatus(BaseModel):
    running: list[str] = Field(description="stages of the pipeline that run now")
    trainings: list[Training]
