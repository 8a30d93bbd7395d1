"""What to ask: bodies of POST /recommend."""

from __future__ import annotations

import json
from pathlib import Path

import typer

USERS = "reasoning/users.jsonl"  # in a release


def read_bodies(file: Path) -> list[bytes]:
    """Bodies from a file with a user id, or a whole request as a JSON object, on each line. Raises BadParameter."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    bodies = [line.encode() if line.startswith("{") else body_of(line) for line in lines if line]
    if not bodies:
        raise typer.BadParameter(f"{file} names no user")
    return bodies


def release_bodies(releases: Path) -> list[bytes]:
    """One body for each user of the release that was written last. Raises BadParameter if there is no release."""
    files = sorted(releases.glob(f"*/{USERS}"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise typer.BadParameter(f"{releases} holds no release with users: name the folder that `scoter export` filled")
    with files[-1].open(encoding="utf-8") as lines:
        return [body_of(json.loads(line)["user"]) for line in lines]


def body_of(user: str) -> bytes:
    """What a caller sends who knows nothing but the user."""
    return json.dumps({"user_id": user}).encode()
