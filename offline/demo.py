"""Start the service on a published release, ask it for recommendations, and show what came back and how fast.

    python -m offline.demo --releases out/releases --store out/store

Each user is asked about twice, with and without the reasoning, and then somebody nobody knows. Every answer is
checked as it comes, so that an exit status of 0 means: the whole path works.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from offline.errors import OfflineError
from service.cli import store_settings
from service.errors import ScoterError
from service.release.catalogue import Catalogue
from service.release.manifest import read_manifest
from service.store.keys import history_key, user_tag
from service.store.open import open_store
from service.store.records import History, decode_history

HOST = "127.0.0.1"
START_SECONDS = 90.0
STOP_SECONDS = 10.0
SHOWN = 5  # items of a history or an answer that are printed
NOBODY = "nobody-knows-this-user"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class DemoFailed(OfflineError):
    """The service did not start, or an answer was not what it has to be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to POST /recommend."""

    body: dict[str, Any]
    server_timing: str
    milliseconds: float  # as the caller saw it

    @property
    def ids(self) -> list[str]:
        """Ids of the recommended items, best first."""
        return [item["id"] for item in self.body["items"]]


class Client:
    """One kept-alive connection to the service."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection(HOST, port, timeout=10)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ready(self) -> str | None:
        """Id of the release being served, or None while the service is not ready."""
        try:
            self._connection.request("GET", "/readyz")
            response = self._connection.getresponse()
            body = json.loads(response.read())
        except (OSError, HTTPException, ValueError):
            self._connection.close()
            return None
        return str(body["release"]) if response.status == 200 else None

    def recommend(self, request: dict[str, Any]) -> Answer:
        """Ask for recommendations. Raises DemoFailed unless the answer is 200."""
        payload = json.dumps(request).encode()
        started = time.perf_counter()
        try:
            self._connection.request("POST", "/recommend", payload, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, HTTPException) as error:
            raise DemoFailed(f"the service did not answer {request}: {error!r}") from error
        milliseconds = (time.perf_counter() - started) * 1000
        if response.status != 200:
            raise DemoFailed(f"the service answered {request} with {response.status}: {text.decode(errors='replace')}")
        return Answer(json.loads(text), response.getheader("Server-Timing", ""), milliseconds)


@app.command()
def main(
    releases: Annotated[Path, typer.Option(help="Folder of releases.")],
    store: Annotated[str, typer.Option(help="The store that the release was published to.")],
    users: Annotated[int, typer.Option(min=1, help="How many users to ask about.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="Requests to time at the end.")] = 200,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running until Ctrl-C.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Show a published release at work."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        with running(releases, store) as (port, process, log):
            console.print("[bold]▶ demo[/] [dim]starting the service[/]")
            with closing(Client(port)) as client:
                release = wait_until_ready(client, process, log)
                show(console, client, releases / release, store, users, requests)
            if keep:
                console.print(f"The service is at http://{HOST}:{port}, described at /docs. Ctrl-C stops it.")
                process.wait()
    except (OfflineError, ScoterError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]demo failed:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(0 if keep else 130) from None


@contextmanager
def running(releases: Path, store: str) -> Iterator[tuple[int, subprocess.Popen[bytes], IO[bytes]]]:
    """The service in a process of its own, on a free port, with its log; stopped at the end."""
    port = _free_port()
    command = [sys.executable, "-m", "service", "--host", HOST, "--port", str(port)]
    command += ["--releases", str(releases), "--store", store]
    with tempfile.TemporaryFile("a+b") as log:  # the child appends, wherever we read
        process = subprocess.Popen(command, stdout=log, stderr=log)
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the service must not outlive us
        try:
            yield port, process, log
        finally:
            signal.signal(signal.SIGTERM, before)
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(client: Client, process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """Wait for the service; returns the id of its release. Raises DemoFailed with the end of its log."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoFailed(f"the service ended with status {process.returncode} while starting:\n{_tail(log)}")
        if release := client.ready():
            return release
        time.sleep(0.1)
    raise DemoFailed(f"the service was not ready after {START_SECONDS:.0f} s:\n{_tail(log)}")


def show(console: Console, client: Client, release: Path, store: str, users: int, requests: int) -> None:
    """Ask about some users, print and check the answers. Raises DemoFailed at the first that is wrong."""
    catalogue = Catalogue.read(release / "catalogue")
    manifest = read_manifest(release)
    model = manifest.model(manifest.default_model)
    reads = model is not None and model.reasoning is not None
    if not reads:
        console.print(f"Release {manifest.release_id} has no model that reads reasoning: see `models` in its recipe.")
    chosen = _users(release, users)
    for user, history in zip(chosen, asyncio.run(_histories(store, chosen)), strict=True):
        reasoned = client.recommend({"user_id": user, "explain": True}) if reads else None
        plain = client.recommend({"user_id": user, "reasoning": False})
        if reasoned is not None:
            _check(reasoned, user, history, reasoning=True)
        _check(plain, user, history, reasoning=False)
        _print_user(console, catalogue, user, history, reasoned, plain)

    unknown = client.recommend({"user_id": NOBODY})
    _check(unknown, NOBODY, [], reasoning=False)
    console.rule(f"A user nobody knows: {NOBODY}", align="left")
    titles = ", ".join(escape(item["title"]) for item in unknown.body["items"][:3])
    console.print(f"{titles}, ...\n[dim]no reasoning ({unknown.body['reasoning']['reason']}); {_timing(unknown)}[/]\n")

    taken = sorted(
        client.recommend({"user_id": chosen[number % len(chosen)]}).milliseconds for number in range(requests)
    )
    middle, late = taken[len(taken) // 2], taken[min(len(taken) - 1, len(taken) * 99 // 100)]
    console.print(
        f"[green]✓[/] release {release.name}: {requests} more requests, one at a time: "
        f"p50 {middle:.2f} ms, p99 {late:.2f} ms; no language model was called"
    )


def _print_user(
    console: Console, catalogue: Catalogue, user: str, history: list[str], reasoned: Answer | None, plain: Answer
) -> None:
    console.rule(f"User {escape(user)}", align="left")
    console.print(f"Bought {len(history)} items, the latest:")
    for item in history[-SHOWN:]:
        index = catalogue.index_of(item)
        console.print(
            f"  · {escape(catalogue.item(index).title if index else item)}", no_wrap=True, overflow="ellipsis"
        )

    answers = {"with reasoning": reasoned, "without": plain} if reasoned is not None else {"without": plain}
    table = Table(box=None, padding=(0, 1))
    half = (console.width - 8) // 2
    table.add_column("")
    for name in answers:
        table.add_column(name, no_wrap=True, max_width=half)
    ranked = zip(*(answer.body["items"] for answer in answers.values()), strict=False)
    for rank, items in enumerate(islice(ranked, SHOWN), start=1):
        # What reasoning brought up stands out.
        titles = (Text(item["title"], "" if item["id"] in plain.ids[:SHOWN] else "bold") for item in items)
        table.add_row(str(rank), *titles)
    console.print(table)

    if reasoned is not None:
        console.print("Reasoning, written beforehand:")
        for step in reasoned.body["reasoning"]["steps"]:
            console.print(f"  [bold]{escape(step['step'])}[/]: {escape(step['text'])}")
        console.print(f"[dim]with reasoning: {_timing(reasoned)}[/]")
    console.print(f"[dim]without:        {_timing(plain)}[/]\n")


def _check(answer: Answer, user: str, history: list[str], *, reasoning: bool) -> None:
    report = answer.body["reasoning"]
    if not answer.ids:
        raise DemoFailed(f"user {user}: nothing was recommended")
    if len(set(answer.ids)) != len(answer.ids):
        raise DemoFailed(f"user {user}: an item was recommended twice: {answer.ids}")
    if seen := set(answer.ids) & set(history):
        raise DemoFailed(f"user {user}: what was bought before was recommended again: {', '.join(sorted(seen))}")
    if history and answer.body["degraded"]:
        raise DemoFailed(f"user {user}: the answer is degraded: {', '.join(answer.body['degraded'])}")
    if report["used"] is not reasoning:
        reason = f" ({report['reason']})" if report["reason"] else ""
        raise DemoFailed(f"user {user}: reasoning was{'' if report['used'] else ' not'} used{reason}")
    if reasoning and not report["steps"]:
        raise DemoFailed(f"user {user}: the reasoning steps are missing: publish the release again")


def _timing(answer: Answer) -> str:
    """Both sides' view of the time of a request."""
    return f"{answer.milliseconds:.2f} ms for the caller; Server-Timing {escape(answer.server_timing)}"


def _users(release: Path, number: int) -> list[str]:
    """Users with reasoning, spread over the release. Raises DemoFailed if there are none."""
    path = release / "reasoning" / "users.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        known = [str(row["user"]) for row in rows if row["steps"]]
    except (OSError, ValueError, KeyError) as error:
        raise DemoFailed(f"cannot read the users of the release from {path}: {error!r}") from error
    if not known:
        raise DemoFailed(f"{path} names no user with reasoning")
    number = min(number, len(known))
    return [known[place * len(known) // number] for place in range(number)]


async def _histories(store: str, users: list[str]) -> list[list[str]]:
    """The stored history of each user, oldest first."""
    opened = open_store(store_settings(store))
    try:
        records = [(await opened.get([history_key(user_tag(user))]))[0] for user in users]
    finally:
        await opened.close()
    histories = [decode_history(record) for record in records]
    return [history.items if isinstance(history, History) else [] for history in histories]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: IO[bytes], lines: int = 15) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


if __name__ == "__main__":
    app()
