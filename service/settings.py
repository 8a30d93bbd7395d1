"""Settings, from the environment (`SCOTER_*`, nested with `__`) or from arguments. Built once and passed on.

SCOTER_RELEASES=/releases
SCOTER_STORE__KIND=redis  SCOTER_STORE__URL=redis://:password@redis:6379/0
SCOTER_ENGINE__THREADS=4
SCOTER_ENGINE__KIND=triton  SCOTER_ENGINE__URL=triton:8001
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.store.address import parse_address

HISTORY_CEILING = 10_000
EXCLUDE_CEILING = 10_000
BATCH_CEILING = 1_000

# An empty one, of a template that was not filled in, would open to whoever sends none.
Secret = Annotated[SecretStr, Field(min_length=1)]
Milliseconds = Annotated[float, Field(gt=0, description="milliseconds")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)  # it may be a password


class LmdbSettings(_Section):
    """The embedded store: one folder on this machine."""

    kind: Literal["lmdb"] = "lmdb"
    path: Path = Path("store")


class RedisSettings(_Section):
    """The shared store. A late Redis costs the reasoning of a request, so reads give up after tens of ms."""

    kind: Literal["redis"] = "redis"
    url: SecretStr  # all forms are in service/store/address.py: one server, sentinels, a cluster; TLS; files
    connect_timeout_ms: Milliseconds = 50.0
    read_timeout_ms: Milliseconds = 20.0
    write_timeout_ms: Milliseconds = 5_000.0  # publishing moves megabytes at once
    connections: int = Field(default=64, ge=1)  # at most, for reading and again for writing; to each node of a cluster

    @field_validator("url")
    @classmethod
    def _readable(cls, url: SecretStr) -> SecretStr:
        parse_address(url.get_secret_value())
        return url


class CacheSettings(_Section):
    """Reasoning and step texts kept in this process, so that a user who returns costs no read. Histories never are."""

    entries: int = Field(default=0, ge=0)  # blobs kept, the least recently used leave first; 0 keeps none
    ttl_seconds: float = Field(default=300.0, gt=0)


def _default_kind(value: object) -> object:
    # SCOTER_STORE__URL or SCOTER_STORE__PATH alone is enough.
    return {"kind": "redis" if "url" in value else "lmdb", **value} if isinstance(value, dict) else value


StoreSettings = Annotated[LmdbSettings | RedisSettings, Field(discriminator="kind")]


class _StoreSection(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SCOTER_", env_nested_delimiter="__", hide_input_in_errors=True, extra="ignore", frozen=True
    )

    store: dict[str, Any] = {}


def store_section() -> dict[str, Any]:
    """What the environment says about the store but where it is, unchecked. Raises SettingsError if it is no JSON."""
    return {name: value for name, value in _StoreSection().store.items() if name not in {"kind", "url", "path"}}


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxSettings(_Section):
    """In-process inference."""

    kind: Literal["onnx"] = "onnx"
    threads: int = Field(default_factory=usable_cores, ge=1)  # batches that run at the same time, one core each
    max_batch: int = Field(default=16, ge=1)  # requests taken together
    queue_limit: int = Field(default=256, ge=1)  # requests that may wait; the next one is refused with 503


class TritonSettings(_Section):
    """Inference on a Triton server, over gRPC."""

    kind: Literal["triton"] = "triton"
    # host:port, of a name with several addresses to spread requests over all of them, or any gRPC target
    url: str = Field(min_length=1)
    tls: bool = False  # always on when one of the three files is given
    ca: FilePath | None = None  # PEM; None: the authorities that gRPC brings
    certificate: FilePath | None = None  # PEM, the service's own, for a server that asks for one (mTLS)
    key: FilePath | None = None  # PEM, the certificate's
    in_flight: int = Field(default=512, ge=1)  # requests sent and unanswered; the next one is refused with 503
    check_timeout_ms: Milliseconds = 2_000.0  # for readiness, and for each model's configuration when a release opens
    reconnect_ms: Milliseconds = 1_000.0  # longest pause between attempts to reach a server that is away

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: set both or neither")
        return self


def _default_engine(value: object) -> object:
    # SCOTER_ENGINE__THREADS alone is enough for the default kind.
    return {"kind": "onnx", **value} if isinstance(value, dict) else value


EngineSettings = Annotated[OnnxSettings | TritonSettings, Field(discriminator="kind")]


class BreakerSettings(_Section):
    """When an engine is left alone, and how its time is shared with the fallback."""

    failures: int = Field(default=5, ge=1)  # in a row, per model, before the engine is left alone
    open_ms: Milliseconds = 1_000.0  # until a single request may try it again
    slow_ms: Milliseconds = 25.0  # a timeout counts as a failure at once if the model had at least this long
    reserve_ms: Milliseconds = 25.0  # kept back for the fallback engine


class AccessSettings(_Section):
    """Who may ask. Several keys at once make rotation possible: add the new one, move callers, drop the old one."""

    api_keys: tuple[Secret, ...] = ()  # empty: anyone may ask for recommendations
    admin_token: Secret | None = None  # None: nobody may administer


class LimitSettings(_Section):
    """What one request may ask for, and how many there may be."""

    concurrency: int = Field(default=512, ge=1)  # requests that are answered at the same time; more are refused
    batch: int = Field(default=64, ge=1, le=BATCH_CEILING)  # requests in one POST /recommend/batch
    body_bytes: int = Field(default=256 * 1024, ge=1024)
    body_ms: Milliseconds = 5_000.0  # time for a body to arrive
    history: int = Field(default=HISTORY_CEILING, ge=1, le=HISTORY_CEILING)  # items in a request's own history
    exclude: int = Field(default=1_000, ge=0, le=EXCLUDE_CEILING)  # items in a request's exclude list
    seen: int = Field(default=1_024, ge=0)  # most recent distinct items of a history that are not recommended again
    deadline_ms: Milliseconds = 250.0  # time to answer when the caller does not say
    deadline_ceiling_ms: Milliseconds = 10_000.0  # the most that a caller may allow
    store_ms: Milliseconds = 50.0  # the store's share of that time; half of what is left, if that is less
    k: int = Field(default=10, ge=1)  # items returned when the request does not say
    stored_history: int = Field(default=200, ge=1, le=HISTORY_CEILING)  # newest items kept once events are appended


class ExperimentSettings(_Section):
    """Where experiments come from, in GrowthBook's feature format (docs/experiments.md)."""

    source: str | None = None  # a file, or a URL such as https://cdn.growthbook.io/api/features/<client key>
    api_key: SecretStr | None = None  # sent to the URL as `Authorization: Bearer`
    prefix: str = ""  # only features whose key begins so are ours; for a payload shared with other programs
    reload_seconds: float = Field(default=15.0, gt=0)  # how often to look for a change
    timeout_seconds: float = Field(default=5.0, gt=0)  # for the URL to answer
    allow_forced: bool = False  # honour X-Scoter-Arm: for test systems, or behind a gateway that strips it


class ExposureSettings(_Section):
    """Where exposures are logged: any of the three sinks, or none."""

    stdout: bool = False
    file: Path | None = None  # appended to by this process alone; follows the path when the file is moved away
    redis: RedisSettings | None = None  # adds to a stream there
    stream: str = Field(default="scoter:exposures", min_length=1)  # the stream's key
    stream_length: int = Field(default=1_000_000, ge=1)  # events kept there, roughly; the oldest go
    user: Literal["id", "tag"] = "tag"  # how the user is named: by id, or by the tag that the store's keys bear
    queue: int = Field(default=20_000, ge=1)  # events that wait for a sink; further ones are dropped and counted
    batch: int = Field(default=100, ge=1)  # events written at once
    linger_seconds: float = Field(default=0.2, ge=0)  # rest between two writes, so that events are written in batches
    close_seconds: float = Field(default=5.0, gt=0)  # time to write what waits when the service stops


class Settings(BaseSettings):
    """Everything that can be set. Arguments win over the environment."""

    model_config = SettingsConfigDict(
        env_prefix="SCOTER_",
        env_nested_delimiter="__",
        hide_input_in_errors=True,
        extra="forbid",
        frozen=True,
    )

    releases: Path = Path("releases")  # holds one folder per release, each named by its release id
    release: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$")  # None: the one the store's pointer names
    store: Annotated[StoreSettings, BeforeValidator(_default_kind)] = LmdbSettings()
    engine: Annotated[EngineSettings, BeforeValidator(_default_engine)] = Field(default_factory=OnnxSettings)
    fallback: OnnxSettings | None = None  # in-process engine that answers when `engine` does not; None: none
    breaker: BreakerSettings = BreakerSettings()
    cache: CacheSettings = CacheSettings()
    limits: LimitSettings = LimitSettings()
    experiments: ExperimentSettings = ExperimentSettings()
    exposures: ExposureSettings = ExposureSettings()
    access: AccessSettings = AccessSettings()
    poll_seconds: float = Field(default=5.0, gt=0)  # how often the store's pointer is looked at for a new release
    drain_seconds: float = Field(default=0.0, ge=0)  # from SIGTERM, when /readyz turns red, until the port closes
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
