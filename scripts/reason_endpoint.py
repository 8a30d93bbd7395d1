"""What `scoter reason` gets out of an endpoint, and what a million users would cost at its prices.

Usage: python -m scripts.reason_endpoint [--users 150] [--latency 0 --latency 1] [--concurrency 8 --concurrency 64]
                                         [--prompt-price 0.15 --completion-price 0.60]

A server of this machine stands in for the endpoint: it answers every request after so many seconds with a chain that
fills the five-step template, as long as `analyst` writes them, and counts four characters to a token. So the figures
are those of the stage and its client, with a model that takes that long; the encoder hashes texts into vectors. One
line for each latency and concurrency: chains a second, and the ceiling that the two of them set.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from fastapi import FastAPI, Request

from offline.chains.template import MANUAL
from offline.prepare import prepare
from offline.reason.chains import Asking
from offline.reason.engines import Job, Local
from offline.reason.stage import build
from offline.reason.writers import writer
from offline.recipe import PrepareRecipe, Recipe
from offline.sample import write_sample
from scripts.reason_memory import Hashing

STEPS = MANUAL["five-step"].steps
_SAID = "the customer keeps to what worked, reads labels closely, and now looks for a gentler one of the same brand"


def _serve(port: int, latency: float) -> None:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> dict[str, Any]:
        asked = await request.body()
        await asyncio.sleep(latency)
        names = ("Overall Analysis", *STEPS, "Summary")
        text = "\n\n".join(f"{name}: In part {place}, {_SAID}." for place, name in enumerate(names))
        used = {"prompt_tokens": len(asked) // 4, "completion_tokens": len(text) // 4}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {
            "id": "chat",
            "object": "chat.completion",
            "created": 0,
            "model": "stand-in",
            "choices": [choice],
            "usage": used | {"total_tokens": sum(used.values())},
        }

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _started(latency: float) -> tuple[multiprocessing.Process, int]:
    port = _free_port()
    server = multiprocessing.Process(target=_serve, args=(port, latency), daemon=True)
    server.start()
    for _ in range(600):
        with socket.socket() as asking:
            if asking.connect_ex(("127.0.0.1", port)) == 0:
                return server, port
        time.sleep(0.1)
    raise RuntimeError("the stand-in for the endpoint did not start")


def main(
    users: Annotated[int, typer.Option(help="simulated users; the 5-core keeps most of them")] = 150,
    latency: Annotated[list[float], typer.Option(help="seconds to an answer")] = [0.0, 1.0],  # noqa: B006
    concurrency: Annotated[list[int], typer.Option(help="requests at a time")] = [8, 64],  # noqa: B006
    prompt_price: Annotated[float, typer.Option(help="of a million tokens")] = 0.15,
    completion_price: Annotated[float, typer.Option(help="of a million tokens")] = 0.60,
) -> None:
    """Measure every combination."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_sample(work / "data", users=users, items=100)
        prepared = prepare(work / "run", work / "data", PrepareRecipe())
        for seconds in latency:
            for places in concurrency:
                server, port = _started(seconds)
                teacher = {
                    "backend": "endpoint",
                    "model": "stand-in",
                    "base_url": f"http://127.0.0.1:{port}/v1",
                    "concurrency": places,
                    "prompt_price": prompt_price,
                    "completion_price": completion_price,
                }
                recipe = Recipe.model_validate({"name": "endpoint", "teacher": teacher})
                folder = work / f"{seconds}-{places}"
                (folder / "out").mkdir(parents=True)
                chosen = writer(folder, recipe, STEPS, None)
                job = Job(prepared.folder, folder / "out" / "chunks", chosen, Asking(STEPS, 320), Hashing())
                build(folder / "out", folder / "kept", job, Local())
                server.terminate()
                told = json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))
                million = told["per_million_users"]
                ceiling = f"{places / seconds:,.0f}" if seconds else "none"
                print(
                    f"{seconds:g} s an answer, {places:>3} at a time: {told['written']['per_second']:,.0f} chains/s "
                    f"(ceiling {ceiling}), {told['written']['asked']:,} chains of {told['users']:,} users, "
                    f"{told['absent']['share']:.1%} absent; a million users: {million['prompt_tokens'] / 1e6:,.0f} M + "
                    f"{million['completion_tokens'] / 1e6:,.0f} M tokens, {million['cost']:,.0f} at "
                    f"{prompt_price:g} / {completion_price:g} a million",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
