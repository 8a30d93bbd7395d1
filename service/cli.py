"""`scoter-serve`: run the service."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError

from service.app import create_app
from service.connection import Connection
from service.errors import ScoterError, StoreAddressInvalid
from service.logs import LogLevel, configure_logs
from service.settings import LmdbSettings, RedisSettings, Settings, store_section

DRAIN_SECONDS = 20  # less than the 30 s that Kubernetes waits between SIGTERM and SIGKILL
# Who closes an idle connection may cross the other's next request, which is then lost, so the caller's side has to come
# first: nginx and most balancers keep theirs for 60 s. uvicorn's own 5 s would end nearly all of them on our side.
KEEP_ALIVE_SECONDS = 75

_KINDS = {"lmdb", "redis", "onnx", "triton"}  # pydantic puts the chosen one into the path of what is wrong with it

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    releases: Annotated[
        Path | None, typer.Option(help="Folder of releases, each named by its id.", show_default="releases")
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="Serve this release, whichever is live.", show_default="the store's pointer")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Folder of an LMDB store, or the URL of a Redis (docs/store.md).", show_default="store"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000")] = None,
    log_level: Annotated[LogLevel, typer.Option(case_sensitive=False)] = LogLevel.info,
) -> None:
    r"""Answer POST /recommend from a release and a user store.

    Every option but --log-level can be set in the environment instead, and so can
    what has no option (an unknown section is ignored, an unknown name within one
    refused):

        SCOTER_RELEASES, SCOTER_RELEASE, SCOTER_HOST, SCOTER_PORT
        SCOTER_STORE__KIND=redis
        SCOTER_STORE__URL=redis://redis:6379/0 (and others: docs/store.md)
        SCOTER_CACHE__ENTRIES, ..._TTL_SECONDS
        SCOTER_ENGINE__THREADS, ..._MAX_BATCH, ..._QUEUE_LIMIT
        SCOTER_ENGINE__KIND=triton
        SCOTER_ENGINE__URL=triton:8001
        SCOTER_LIMITS__DEADLINE_MS, ..._STORE_MS, ..._CONCURRENCY, ..._BATCH
        SCOTER_LIMITS__BODY_BYTES, ..._HISTORY, ..._EXCLUDE, ..._SEEN, ..._K
        SCOTER_FALLBACK__THREADS
        SCOTER_BREAKER__FAILURES, ..._OPEN_MS, ..._SLOW_MS, ..._RESERVE_MS
        SCOTER_ACCESS__API_KEYS, ..._ADMIN_TOKEN
        SCOTER_EXPERIMENTS__SOURCE, ... (docs/experiments.md)
        SCOTER_EXPOSURES__FILE, ... (docs/experiments.md)
        SCOTER_POLL_SECONDS, SCOTER_DRAIN_SECONDS

    What each means, and its default: docs/serving.md and service/settings.py.

    Keep a Redis password in the environment: arguments are visible to every user
    of the machine.

    Example: scoter-serve --releases out/releases --store out/store, then

        curl localhost:8000/recommend -H 'content-type: application/json' \
            -d '{"user_id": "u00001"}'
    """
    chosen: dict[str, Any] = {"releases": releases, "release": release, "host": host, "port": port}
    try:
        if store is not None:
            chosen["store"] = store_settings(store)
        settings = Settings(**{name: value for name, value in chosen.items() if value is not None})
    except ValidationError as error:
        for wrong in error.errors(include_url=False, include_input=False):
            where = [str(part) for part in wrong["loc"]]
            if len(where) > 1 and where[0] in {"store", "engine"} and where[1] in _KINDS:
                del where[1]
            name = "SCOTER_" + "__".join(where).upper()
            unknown = "no such setting: docs/serving.md and service/settings.py name those that there are"
            typer.echo(
                f"scoter-serve: {name}: {unknown if wrong['type'] == 'extra_forbidden' else wrong['msg']}", err=True
            )
        raise typer.Exit(2) from None
    except SettingsError as error:  # names the section, and quotes nothing: it may be a key
        hint = """lists and sections are JSON, such as SCOTER_ACCESS__API_KEYS='["KEY"]'"""
        typer.echo(f"scoter-serve: SCOTER_*: {error}: {hint}", err=True)
        raise typer.Exit(2) from None
    except StoreAddressInvalid as error:
        typer.echo(f"scoter-serve: --store: {error}", err=True)
        raise typer.Exit(2) from None
    configure_logs(log_level)
    if (why := _unusable(settings.host, settings.port)) is not None:
        typer.echo(f"scoter-serve: {why}", err=True)
        raise typer.Exit(1)
    try:
        uvloop.run(run(create_app(settings), settings))
    except ScoterError as error:
        # ONNX Runtime's and lmdb's own words may span lines; whoever reads logs wants one.
        typer.echo(f"scoter-serve: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None


def store_settings(text: str) -> LmdbSettings | RedisSettings:
    """The store that a command line names: a URL, or else a folder. Raises StoreAddressInvalid.

    What a URL does not say, such as SCOTER_STORE__READ_TIMEOUT_MS, is the environment's.
    """
    if "://" not in text:
        return LmdbSettings(path=Path(text))
    try:
        return RedisSettings(**store_section() | {"kind": "redis", "url": SecretStr(text)})
    except SettingsError:
        raise StoreAddressInvalid("SCOTER_STORE in the environment is no JSON object") from None
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        if (name := str(wrong["loc"][0])) == "url":
            reason = wrong["msg"].removeprefix("Value error, ")
            raise StoreAddressInvalid(f"the URL of the store cannot be used: {reason}") from None
        reason = "a Redis has no such setting" if wrong["type"] == "extra_forbidden" else wrong["msg"]
        raise StoreAddressInvalid(f"SCOTER_STORE__{name.upper()} in the environment: {reason}") from None


def _unusable(host: str, port: int) -> str | None:
    """Why nobody can listen there, known before a release is opened and warmed up; None if somebody can."""
    try:
        # As the server does: no name is every address, and one of IPv6 leaves those of IPv4 to others.
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        where = host or "any address"
        return f"cannot listen on {where}, port {port} ({error.strerror}): choose others with --host and --port"
    return None


async def run(application: FastAPI, settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is running. Raises the ScoterError that start-up meets."""
    # uvicorn would log a failing lifespan as a traceback; entered here, its error reaches the caller.
    server = _Server(
        uvicorn.Config(
            application,
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http=Connection,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        ),
        application,
        settings.drain_seconds,
    )
    # Once it has drained, uvicorn raises the signal again for whoever handled it before: that is our way out.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    async with application.router.lifespan_context(application):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, application.state.serving.reload)
        await server.serve()


class _Server(uvicorn.Server):
    """Turns /readyz red on SIGTERM and goes on answering for a while, as callers are told with some delay."""

    def __init__(self, config: uvicorn.Config, application: FastAPI, seconds: float) -> None:
        super().__init__(config)
        self._application = application
        self._seconds = seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at once on Ctrl-C or a second signal, else when the balancers have had time to notice."""
        serving = self._application.state.serving
        if sig != signal.SIGTERM or serving.draining or self._seconds == 0:
            super().handle_exit(sig, frame)
        else:
            asyncio.get_running_loop().call_later(self._seconds, super().handle_exit, sig, frame)
        serving.draining = True


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
