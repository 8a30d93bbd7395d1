import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from offline.demo import Answer, DemoFailed, _check, _users, app
from offline.publish import publish
from service.cli import store_settings
from service.store.open import open_store
from tests.service.tiny_release import TinyRelease, seal, write_release


def response(**changes: Any) -> Answer:
    body: dict[str, Any] = {
        "items": [{"id": "a", "title": "A"}, {"id": "b", "title": "B"}],
        "reasoning": {"used": True, "reason": None, "steps": [{"step": "one", "text": "text"}]},
        "degraded": [],
    }
    return Answer(body | changes, "total;dur=1", 1.0)


def with_users(release: TinyRelease, *models: str) -> TinyRelease:
    """The release with users.jsonl as `scoter export` writes it, and of its models these alone, if any are named."""
    rows = ({"user": user.id, "history": user.history, "steps": user.steps} for user in release.users)
    lines = [json.dumps(row) + "\n" for row in rows]
    (release.path / "reasoning" / "users.jsonl").write_text("".join(lines), encoding="utf-8")
    size = release.manifest.dataset
    entries = [entry for entry in release.manifest.models if not models or entry.name in models]
    manifest = seal(release.path, entries, items=size.items, users=size.users)
    return replace(release, path=release.path.rename(release.path.parent / manifest.release_id), manifest=manifest)


def test_only_users_with_reasoning_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "reasoning" / "users.jsonl"
    path.parent.mkdir()
    rows = [{"user": str(number), "steps": ["Recommend."] if number % 2 else []} for number in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert _users(tmp_path, 3) == ["1", "3", "5"]
    path.write_text(json.dumps(rows[0]), encoding="utf-8")
    with pytest.raises(DemoFailed, match="names no user with reasoning"):
        _users(tmp_path, 3)


def published(release: TinyRelease, store: str) -> None:
    async def load() -> None:
        opened = open_store(store_settings(store))
        await publish(release.path, opened)
        await opened.close()

    asyncio.run(load())


@pytest.mark.slow
def test_a_published_release_is_shown_and_the_service_stopped(tmp_path: Path) -> None:
    release, store = with_users(write_release(tmp_path / "releases")), str(tmp_path / "store")
    published(release, store)
    result = CliRunner().invoke(app, ["--releases", str(tmp_path / "releases"), "--store", store, "--requests", "5"])
    assert result.exit_code == 0, result.output
    for user in release.users[::2]:
        assert f"User {user.id}" in result.output
    assert release.users[0].steps[0] in result.output
    assert "engine;dur=" in result.output
    assert "A user nobody knows" in result.output


@pytest.mark.slow
def test_a_release_without_reasoning_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    release, store = with_users(write_release(tmp_path / "releases"), "hstu"), str(tmp_path / "store")
    published(release, store)
    result = CliRunner().invoke(app, ["--releases", str(tmp_path / "releases"), "--store", store, "--requests", "5"])
    assert result.exit_code == 0, result.output
    assert f"Release {release.manifest.release_id} has no model that reads reasoning" in result.output
    assert f"User {release.users[0].id}" in result.output
    assert "with reasoning" not in result.output
    assert "A user nobody knows" in result.output


@pytest.mark.slow
def test_a_service_that_does_not_start_is_reported_with_its_reason(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--releases", str(tmp_path), "--store", str(tmp_path / "store")])
    assert result.exit_code == 1
    assert "no live release" in result.output


@pytest.mark.parametrize(
    "answer, complaint",
    [
        (response(items=[]), "nothing was recommended"),
        (response(items=[{"id": "a", "title": "A"}] * 2), "twice"),
        (response(items=[{"id": "seen", "title": "S"}]), "bought before"),
        (response(degraded=["store_timeout"]), "degraded: store_timeout"),
        (response(reasoning={"used": False, "reason": "absent", "steps": []}), r"was not used \(absent\)"),
        (response(reasoning={"used": True, "reason": None, "steps": []}), "steps are missing"),
    ],
)
def test_an_answer_that_is_wrong_fails_the_demo(answer: Answer, complaint: str) -> None:
    with pytest.raises(DemoFailed, match=complaint):
        _check(answer, "u", ["seen"], reasoning=True)


def test_an_answer_that_is_right_passes() -> None:
    _check(response(), "u", ["seen"], reasoning=True)
