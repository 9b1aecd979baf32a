"""What may be asked of the studio and what it answers, field by field: the source of its OpenAPI description.

Types and ranges that hold for every model are looked at here; what depends on the model (how many rows of words), in `easel`.
"""
from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CANDIDATES = 64  # of one request
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True, description="another seed, other pictures")]
Count = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Word = Annotated[int, Field(ge=-1, lt=2**31, strict=True)]
Grid = Annotated[list[Annotated[list[Word], Field(max_length=256)]], Field(max_length=256, description="rows of words")]
Caption = Annotated[str, Field(min_length=1, max_length=20_000, description="what to draw")]
VersionName = Annotated[str, Field(max_length=64, description="package, a number of the registry, an alias; none: the default")]
Png = Annotated[str, Field(description="a PNG file in base64")]


class Asked(BaseModel):
    """What is not known is refused, not passed over."""

    model_config = ConfigDict(extra="forbid")


class Draw(Asked):
    prompt: Caption
    candidates: Annotated[Count, Field(ge=1, le=MOST_CANDIDATES)] = 16
    seed: Seed = 0
    temperature: Annotated[Number, Field(gt=0, le=100)] | None = Field(None, description="none: as the model was packaged")
    top_k: Annotated[Count, Field(ge=1, lt=2**31)] | None = Field(None, description="null: all words; left out: as packaged")
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = Field(None, description="null: all words; left out: as packaged")
    guidance: Annotated[Number, Field(ge=0, le=100)] | None = Field(None, description="none: as the model was packaged")
    version: VersionName | None = None
    given: Grid | None = Field(None, description="words that all candidates have, -1 where one is to be drawn")

    def changes(self) -> dict:
        """The settings that were asked for; of those that know no null, null is as packaged."""
        known = ("temperature", "top_k", "top_p", "guidance")
        named = {name: getattr(self, name) for name in known if name in self.model_fields_set}
        return {name: value for name, value in named.items() if value is not None or name in ("top_k", "top_p")}


class Stitch(Asked):
    words: Grid
    columns: Annotated[Count, Field(ge=0, le=256, description="taken from the first grid; the rest is from this one")]


class SetWord(Asked):
    row: Annotated[Count, Field(ge=0, lt=256)]
    column: Annotated[Count, Field(ge=0, lt=256)]
    word: Annotated[Count, Field(ge=0, lt=2**31)]


class ChangeWords(Asked):
    words: Grid
    stitch: Stitch | None = None
    flip: bool = False
    set: Annotated[list[SetWord], Field(max_length=65_536)] = []
    version: VersionName | None = None


class AskLikelihood(Asked):
    prompt: Caption
    words: Grid
    version: VersionName | None = None


class AskNearest(Asked):
    words: Grid
    limit: Annotated[Count, Field(ge=1, le=100)] = 12
    version: VersionName | None = None


# --- answers -----------------------------------------------------------------------------------------------------------


class Problem(BaseModel):
    """Every refusal."""

    error: str = Field(description="a sentence that names the thing and the mend")
    field: str | None = Field(None, description="the field of the request that it is about")


class Health(BaseModel):
    status: Literal["ready", "loading", "broken"]
    waiting: int = Field(description="requests in the line")
    capacity: int = Field(description="requests that may wait")
    error: str | None = None


class Version(BaseModel):
    id: str
    label: str
    aliases: list[str]
    note: str


class Versions(BaseModel):
    default: str
    versions: list[Version]


class Settings(BaseModel):
    temperature: float
    top_k: int | None
    top_p: float | None
    guidance: float


class Model(BaseModel):
    version: str
    fingerprint: str = Field(description="sha256 of the package's manifest")
    image_size: int
    side: int | None = Field(description="rows, and columns, of words")
    vocab_size: int
    text_length: int
    settings: Settings
    can_guide: bool
    most_candidates: int
    examples: list[str]


class Event(BaseModel):
    """A line of the answer to a draw; which fields there are, follows from `event`."""

    event: Literal["queued", "started", "candidate", "ranked", "error"]
    ahead: int | None = Field(None, description="queued: how many are done before it")
    version: str | None = Field(None, description="started")
    fingerprint: str | None = Field(None, description="started: of the package")
    prompt: str | None = Field(None, description="started: as models read it")
    read: str | None = Field(None, description="started: the part of the caption that is read")
    truncated: bool | None = Field(None, description="started: whether there is more of it")
    candidates: int | None = Field(None, description="started")
    seed: int | None = Field(None, description="started")
    candidate: int | None = Field(None, description="candidate: its number, from 0")
    png: Png | None = None
    words: Grid | None = Field(None, description="candidate")
    score: float | None = Field(None, description="candidate: CLIP's cosine with the caption")
    order: list[int] | None = Field(None, description="ranked: candidates, best first")
    id: str | None = Field(None, description="ranked: the draw in the gallery; null where it could not be kept")
    seconds: float | None = Field(None, description="ranked: since it was begun")
    error: str | None = Field(None, description="error: why there are no more")
    field: str | None = None


class Seen(BaseModel):
    words: Grid
    png: Png = Field(description="the middle square, as the model sees it")
    rebuilt: Png = Field(description="what its words give back")
    psnr: float = Field(description="dB, of that")
    provenance: dict | None = Field(description="how it was drawn, where the file says so")


class Redrawn(BaseModel):
    same: bool = Field(description="byte for byte the file that was sent")
    same_pixels: bool
    png: Png
    words: Grid
    score: float
    version: str
    provenance: dict


class Changed(BaseModel):
    words: Grid
    png: Png


class WorstWord(BaseModel):
    row: int
    column: int
    word: int
    bits: float


class Likelihood(BaseModel):
    bits: list[list[float]] = Field(description="of each word, given the caption and the words before")
    picture_bits: float
    caption_bits: float
    bits_per_word: float
    blind_bits_per_word: float = Field(description="what a guess costs: log2 of the vocabulary")
    worst: list[WorstWord]
    png: Png = Field(description="the same as colours over the picture")


class DataPicture(BaseModel):
    key: str
    caption: str
    split: str
    score: float | None = Field(description="cosine with what was searched for")
    png: Png


class Data(BaseModel):
    state: Literal["ready", "reading", "none"] = Field(description="reading: a search goes over `done` of `total` so far")
    done: int
    total: int
    splits: list[str]
    pictures: list[DataPicture]
    next: int | None


class DrawnPicture(BaseModel):
    candidate: int
    score: float
    url: str
    words: Grid | None = None


class DrawFacts(BaseModel):
    id: str
    when: str
    prompt: str
    seed: int
    candidates: int
    version: str
    is_completion: bool


class PastDraw(DrawFacts):
    best: list[DrawnPicture]


class WholeDraw(DrawFacts):
    settings: dict
    pictures: list[DrawnPicture]


class Gallery(BaseModel):
    draws: list[PastDraw]
    next: str | None = Field(description="give it as `before` for the next page")
