"""What callers send to and get from POST /recommend, and what they get when it fails."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from service.settings import BATCH_CEILING, EXCLUDE_CEILING, HISTORY_CEILING

ID_CHARS = 256  # of a user or an item; `scoter prepare` refuses longer ones, about which nobody could ask
COLUMN_CHARS = 64
VALUE_CHARS = 256

ItemId = Annotated[str, Field(min_length=1, max_length=ID_CHARS)]
# Lists stop at their first wrong element: one error for each of a body's 100,000 would take longer than 1,000 answers.
ItemIds = Annotated[list[ItemId], Field(fail_fast=True)]
AttributeName = Annotated[str, Field(min_length=1, max_length=COLUMN_CHARS)]
AttributeText = Annotated[str, Field(max_length=VALUE_CHARS)]
FilterValues = Annotated[list[AttributeText], Field(fail_fast=True, min_length=1, max_length=256)]
Attribute = AttributeText | bool | int | float | Annotated[list[AttributeText], Field(fail_fast=True, max_length=64)]


class FilterRequest(BaseModel):
    """Which items may be recommended, by the catalogue's attribute columns and exact values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    allow: dict[AttributeName, FilterValues] = Field(
        default={}, max_length=16, description="In every column named, the item has any of the values."
    )
    block: dict[AttributeName, FilterValues] = Field(
        default={}, max_length=16, description="In no column named, the item has any of the values."
    )


class RecommendRequest(BaseModel):
    """Whom to recommend to, and how."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={
            "examples": [
                {"user_id": "u00001"},  # of the sample, which whoever tries the page out will mostly serve
                {
                    "user_id": "u00001",
                    "history": ["i00391", "i00582"],
                    "exclude": ["i00012"],
                    "k": 5,
                    "explain": True,
                },
            ]
        },
    )

    user_id: str = Field(min_length=1, max_length=ID_CHARS)
    history: ItemIds | None = Field(
        default=None,
        max_length=HISTORY_CEILING,
        description="Item ids, oldest first, instead of the stored history; unknown ids are ignored and counted.",
    )
    exclude: ItemIds = Field(
        default=[], max_length=EXCLUDE_CEILING, description="Item ids never to return, besides those already seen."
    )
    filters: FilterRequest | None = Field(
        default=None, description="Items that do not pass are never returned, nor ranked."
    )
    k: int | None = Field(
        default=None, ge=1, description="Items to return, up to the model's beam. The service's default if left out."
    )
    reasoning: bool = Field(default=True, description="False ranks without the user's reasoning.")
    explain: bool = Field(default=False, description="Also return the text of the reasoning steps that were used.")
    model: str | None = Field(
        default=None,
        max_length=128,
        description="A model of the release. If left out, experiments decide, or else it is the default.",
    )
    attributes: dict[AttributeName, Attribute] = Field(
        default={}, max_length=64, description="What experiments may target: country, app version and the like."
    )


class RankedItem(BaseModel):
    """One recommended item."""

    rank: int = Field(description="1 is best.")
    id: str
    title: str
    score: float = Field(description="What items are ranked by; comparable within one response only.")


class Step(BaseModel):
    """One step of the reasoning, in words."""

    step: str = Field(description="The step of the template that this text fills.")
    text: str
    attention: float | None = Field(
        description="Share of the model's attention that this step received; null from a model that does not tell."
    )


class ReasoningReport(BaseModel):
    """What became of the user's reasoning."""

    used: bool
    reason: str | None = Field(description="Why it was not used; null if it was.")
    written: datetime | None = Field(description="When it was generated; null if it was not used.")
    history_length: int | None = Field(description="Items of history that it was generated from; null if not used.")
    age_seconds: int | None = Field(description="Time since it was generated; null if it was not used.")
    behind: int | None = Field(
        description="Items that the user has had since it was generated; null if not used or not known."
    )
    steps: list[Step] | None = Field(description="Null unless the request asks to explain.")


class ExperimentReport(BaseModel):
    """The user's part in one experiment."""

    experiment: str
    variation: str
    forced: bool = Field(description="Asked for by X-Scoter-Arm; no analysis counts it.")


class HistoryReport(BaseModel):
    """What became of the user's history."""

    source: Literal["request", "stored", "none"]
    used: int = Field(description="Items that the model saw: the most recent known ones.")
    unknown: int = Field(description="Items that the catalogue does not hold, ignored.")
    excluded: int = Field(description="Distinct seen items kept out of the answer: the latest ones, up to a limit.")


class FilterReport(BaseModel):
    """What the request's filters came to."""

    eligible: int = Field(description="Items of the catalogue that pass.")
    unknown: list[str] = Field(description="`column=value` of values that no item has: a slip, or an item gone.")


class RecommendResponse(BaseModel):
    """Ranked items, and how they came about."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "0f8fad5bd9cb469fa165708b3a6c7c4e",
                    "release": "5d41402abc4b2a76",
                    "model": "scoter_h",
                    "source": "model",
                    "items": [{"rank": 1, "id": "B0002JHI1I", "title": "Night cream, 50 ml", "score": -2.31}],
                    "reasoning": {
                        "used": True,
                        "reason": None,
                        "written": "2025-06-01T03:12:45Z",
                        "history_length": 9,
                        "age_seconds": 86400,
                        "behind": 0,
                        "steps": [{"step": "Summarise the history", "text": "Gentle skin care.", "attention": 0.31}],
                    },
                    "history": {"source": "stored", "used": 9, "unknown": 0, "excluded": 9},
                    "filters": None,
                    "experiments": [{"experiment": "model", "variation": "scoter", "forced": False}],
                    "holdout": False,
                    "complete": True,
                    "degraded": [],
                }
            ]
        }
    )

    request_id: str
    release: str
    model: str
    source: Literal["model", "popular"] = Field(description="`popular` when no model could rank for this user.")
    items: list[RankedItem] = Field(description="Best first, never more than k.")
    reasoning: ReasoningReport
    history: HistoryReport
    filters: FilterReport | None = Field(description="Null if the request has none.")
    experiments: list[ExperimentReport] = Field(description="Experiments that this user takes part in.")
    holdout: bool = Field(description="The user is kept out of every experiment.")
    complete: bool = Field(description="False if fewer than k items could be returned.")
    degraded: list[str] = Field(description="Reasons why this answer is worse than it should be; empty if it is not.")


def _or_error(value: object, read: ValidatorFunctionWrapHandler) -> object:
    try:
        return read(value)
    except ValidationError as error:
        # Kept among the requests, it would hold the frames that hold them, until the garbage collector comes.
        return error.with_traceback(None)


_Member = Annotated[RecommendRequest, WrapValidator(_or_error)]


class BatchRequest(BaseModel):
    """Several requests at once."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # In the place of one that is no request stands what is wrong with it (ValidationError): the others get answers.
    requests: list[_Member] = Field(min_length=1, max_length=BATCH_CEILING)


class ReleaseRequest(BaseModel):
    """Which release to serve."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    release: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{16}$", description="Release id; null: the one that the store names."
    )


class ReleaseResponse(BaseModel):
    """Which release is served now."""

    release: str
    previous: str = Field(description="The one that was served when the request came.")


class Readiness(BaseModel):
    """Whether requests should come here."""

    status: Literal["ok", "degraded", "not ready"]
    release: str
    parts: dict[str, str] = Field(description="State of every part: `ok`, or what is wrong with it.")


class ProblemField(BaseModel):
    """What is wrong with one field."""

    pointer: str = Field(description="JSON pointer (RFC 6901) into the request's body.")
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:scoter:problem:request-invalid",
                    "title": "The request cannot be accepted",
                    "status": 422,
                    "detail": "/k: must be between 1 and 20, the beam of model scoter_h",
                    "request_id": "0f8fad5bd9cb469fa165708b3a6c7c4e",
                    "errors": [{"pointer": "/k", "detail": "must be between 1 and 20, the beam of model scoter_h"}],
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[ProblemField] | None = Field(default=None, description="The first ones, if there are many.")


class BatchResult(BaseModel):
    """What became of one request of a batch: either a response or a problem."""

    status: int = Field(description="The HTTP status that the request would have had alone.")
    response: RecommendResponse | None
    problem: Problem | None


class BatchResponse(BaseModel):
    """One result a request, in the requests' order."""

    results: list[BatchResult]
