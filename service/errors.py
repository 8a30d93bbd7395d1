"""Every error the product raises on purpose, as one tree.

    ScoterError
    ├── ReleaseError            a release cannot be read, or its parts do not belong together
    │   ├── ReleaseMissing      nothing there, or no release has been published yet
    │   ├── ReleaseCorrupt      a file is truncated, altered or absent
    │   └── ReleaseUnsupported  written for another schema version
    ├── RequestError            the caller's request cannot be answered as asked
    │   ├── BodyTooLarge
    │   ├── BodyMalformed       the body is not JSON in UTF-8
    │   ├── BodyUnsupported     the body is not declared as JSON
    │   ├── BodyLate            the body did not arrive in time
    │   ├── HeaderInvalid       a header cannot be read
    │   ├── Unauthorized        no valid key was sent
    │   ├── Forbidden           nobody may do this here
    │   └── RequestInvalid      JSON, but a field is missing, of another type or out of its bounds
    │       └── UnknownModel
    ├── Busy                    the service turns the request away; another replica may have room
    │   ├── Overloaded          too many requests are being answered
    │   └── DeadlineExceeded    the caller's time is up
    ├── StoreError              the user store did not answer
    │   ├── StoreAddressInvalid  its URL cannot be read
    │   ├── StoreUnavailable
    │   └── StoreTimeout
    ├── EngineError             the inference engine did not answer
    │   ├── EngineUnavailable
    │   ├── EngineTimeout
    │   └── EngineOverloaded
    └── ExperimentsError        experiments cannot be loaded; those that run stay
        ├── ExperimentsUnavailable  the file or URL cannot be read
        └── ExperimentsInvalid  it was read, and says what cannot be

Third-party exceptions (redis, lmdb, onnxruntime) are translated into this tree where the library is
called, and nowhere else. `service.problems` maps the tree to HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FIELDS_LISTED = 20  # of a request's wrong fields, how many its caller is told about


class ScoterError(Exception):
    """Base of all errors; `str(error)` says what is wrong, where, and what to do."""


class ReleaseError(ScoterError):
    """A release cannot be used."""


class ReleaseMissing(ReleaseError):
    """There is no release where one was looked for."""


class ReleaseCorrupt(ReleaseError):
    """A file of the release is absent, truncated or altered."""


class ReleaseUnsupported(ReleaseError):
    """The release was written for a schema version that this service does not read."""


class RequestError(ScoterError):
    """The request is at fault."""


class BodyTooLarge(RequestError):
    """The request's body is larger than the service accepts."""


class BodyMalformed(RequestError):
    """The request's body is not JSON in UTF-8."""


class BodyUnsupported(RequestError):
    """The request's body is declared as something other than JSON."""


class BodyLate(RequestError):
    """The request's body did not arrive in time."""


class HeaderInvalid(RequestError):
    """A header of the request cannot be read."""


class Unauthorized(RequestError):
    """The request carries no valid credentials."""


class Forbidden(RequestError):
    """What is asked for is switched off."""


class Busy(ScoterError):
    """The request was turned away unanswered."""


class Overloaded(Busy):
    """As many requests as the service takes are being answered."""


class DeadlineExceeded(Busy):
    """The caller's time was up before there was anything to answer."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field. `pointer` is a JSON pointer (RFC 6901) into the request's body."""

    pointer: str
    detail: str


def pointer_to(location: Iterable[int | str]) -> str:
    """The JSON pointer (RFC 6901) to a place, from the names and numbers on the way there."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


class RequestInvalid(RequestError):
    """One or more fields of the request cannot be accepted; `fields` says which and why, of the first ones.

    `total` counts them all, where `fields` is known to be a part: an answer must not outgrow the request it refuses.
    """

    def __init__(self, fields: list[FieldError], total: int | None = None) -> None:
        self.fields = fields[:FIELDS_LISTED]
        more = (len(fields) if total is None else total) - len(self.fields)
        said = [f"{field.pointer or 'body'}: {field.detail}" for field in self.fields]
        super().__init__("; ".join([*said, f"and {more:,} more"] if more else said))


class UnknownModel(RequestInvalid):
    """The request names a model that the loaded release does not hold."""

    def __init__(self, detail: str) -> None:
        super().__init__([FieldError("/model", detail)])


class StoreError(ScoterError):
    """The user store failed."""


class StoreAddressInvalid(StoreError):
    """The URL of the store cannot be read; the message quotes nothing of it."""


class StoreUnavailable(StoreError):
    """The user store cannot be reached or refused the connection."""


class StoreTimeout(StoreError):
    """The user store did not answer in time."""


class EngineError(ScoterError):
    """The inference engine failed."""


class EngineUnavailable(EngineError):
    """The engine is not running, or holds no such model."""


class EngineTimeout(EngineError):
    """The engine did not answer in the time that was left."""


class EngineOverloaded(EngineError):
    """The engine's queue is full."""


class ExperimentsError(ScoterError):
    """Experiments cannot be loaded."""


class ExperimentsUnavailable(ExperimentsError):
    """The file or URL that holds the experiments cannot be read."""


class ExperimentsInvalid(ExperimentsError):
    """The experiments were read and cannot be accepted; `fields` says where, as pointers into them, and why."""

    def __init__(self, fields: list[FieldError]) -> None:
        self.fields = fields
        super().__init__("; ".join(f"{field.pointer or 'experiments'}: {field.detail}" for field in fields))
