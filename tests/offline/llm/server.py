"""A real server of a language model, and a layer in front of it that fails as real ones do."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from openai.types.chat import ChatCompletion

from tests.ports import free_port

Send = Callable[[dict[str, Any]], Awaitable[None]]
Fault = Callable[["Asked", Send], Awaitable[None]]


@contextmanager
def transformers_serve(model: Path, folder: Path) -> Iterator[str]:
    """`transformers serve` with a model, its log in a folder; its URL up to /v1."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)),
        *("--port", str(port), "--host", "127.0.0.1", "--device", "cpu"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        end = time.monotonic() + 300
        while True:
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            log_text = (folder / "server.log").read_text(encoding="utf-8", errors="replace")
            assert process.poll() is None, log_text
            assert time.monotonic() < end, log_text
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@dataclass
class Asked:
    """A request as it came."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float


class Layer:
    """Passes requests on to a server, unless a fault is due; `faults` are used up in the order of requests."""

    def __init__(self, upstream: str, *, port: int | None = None) -> None:
        self.port = port or free_port()
        self.asked: list[Asked] = []
        self.faults: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.ignores_n = False  # answers one, however many are asked for
        self.headers: list[tuple[bytes, bytes]] = []  # of answers
        self._upstream = upstream
        self._client: httpx2.AsyncClient | None = None
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            host="127.0.0.1",
            port=self.port,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        """As a server that dies: nobody listens afterwards, and open connections are reset."""
        self._server.force_exit = self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        async with httpx2.AsyncClient(timeout=60) as self._client:
            await self._server.serve()

    async def _app(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
        content = b""
        more = True
        while more:
            event = await receive()
            content += event.get("body", b"")
            more = event.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        asked = Asked(json.loads(content), headers, time.monotonic())
        self.asked.append(asked)
        fault = self.faults.popleft() if self.faults else self.always
        if fault is not None:
            await fault(asked, send)
        else:
            await respond(send, 200, await self.completion(asked), headers=self.headers)

    async def completion(self, asked: Asked) -> bytes:
        """What the server says, n times if need be, in the form that the openai SDK defines."""
        body = {name: value for name, value in asked.body.items() if name not in {"model", "n", "response_format"}}
        body = {name: value for name, value in body.items() if name not in {"structured_outputs", "guided_regex"}}
        count = 1 if self.ignores_n else asked.body.get("n", 1)
        assert self._client is not None
        answers = []
        for number in range(count):
            seeded = body | ({"seed": body["seed"] + number} if "seed" in body else {})
            response = await self._client.post(f"{self._upstream}/chat/completions", json=seeded)
            answers.append(ChatCompletion.model_validate_json(response.content))
        whole = answers[0]
        for number, other in enumerate(answers[1:], start=1):
            assert whole.usage is not None
            assert other.usage is not None
            whole.choices.append(other.choices[0].model_copy(update={"index": number}))
            whole.usage.completion_tokens += other.usage.completion_tokens
        return whole.model_dump_json().encode()


async def respond(
    send: Send,
    status: int,
    body: bytes,
    *,
    kind: bytes = b"application/json",
    headers: list[tuple[bytes, bytes]] | None = None,
    length: int | None = None,
) -> None:
    """One answer; with `length` it is announced longer than it is."""
    all_headers = [(b"content-type", kind), (b"content-length", str(length or len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def status(code: int, message: str = "no", *, headers: dict[str, str] | None = None, kind: str = "error") -> Fault:
    """An error as OpenAI words it."""
    body = json.dumps({"error": {"message": message, "type": kind, "code": kind}}).encode()
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]

    async def fault(asked: Asked, send: Send) -> None:
        await respond(send, code, body, headers=pairs)

    return fault


def says(body: bytes, *, kind: bytes = b"application/json", length: int | None = None) -> Fault:
    """200, and this."""

    async def fault(asked: Asked, send: Send) -> None:
        await respond(send, 200, body, kind=kind, length=length)

    return fault


def sleeps(seconds: float) -> Fault:
    """Says nothing for so long, and then that it cannot."""

    async def fault(asked: Asked, send: Send) -> None:
        await asyncio.sleep(seconds)
        await respond(send, 503, b"{}")

    return fault


def completion(*texts: str | None, usage: Any = (10, 5), finish: str = "stop") -> bytes:
    """A chat completion; `usage` as (prompt, completion) tokens, or as it should stand there."""
    if isinstance(usage, tuple):
        usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    choices = [
        {"index": place, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for place, text in enumerate(texts)
    ]
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return json.dumps(body).encode()
