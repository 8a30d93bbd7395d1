"""What an experiment can change about an answer."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ShortText = Annotated[str, Field(min_length=1, max_length=128)]


class Arm(BaseModel):
    """How to answer. A field that is None leaves the matter to the request, and then to the service's default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: ShortText | None = None  # what to call it in logs
    model: ShortText | None = None  # a model of the release
    reasoning: bool | None = None  # whether H is read


NO_ARM = Arm()
