from __future__ import annotations

import asyncio
import gc
import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from service.app import create_app
from service.edition import Edition, warmup_requests
from service.filters import Filters
from service.release.release import WARMUP, Release
from service.settings import LimitSettings
from tests.service.conftest import PATIENT, published_settings
from tests.service.tiny_release import TinyRelease, write_release


@pytest.fixture
def release(tiny: TinyRelease, tmp_path: Path) -> Release:
    """A release whose warm-up requests are long."""
    found = Release.open(shutil.copytree(tiny.path, tmp_path / tiny.path.name))
    items = [f"item-{number}" for number in range(1, 7)]
    bodies = [{"user_id": "u", "history": items, "exclude": items}, {"user_id": "v", "model": "hstu"}]
    (found.path / WARMUP).write_text("\n".join(map(json.dumps, bodies)))
    return found


def test_warm_up_requests_are_cut_to_the_limits_of_the_deployment_and_the_newest_items_kept(release: Release) -> None:
    requests = warmup_requests(release, LimitSettings(history=2, exclude=1))
    assert [(one.user_id, one.model) for one in requests] == [("u", "scoter_h"), ("u", "hstu"), ("v", "hstu")]
    for one in requests[:2]:
        assert (one.history, one.exclude) == (["item-5", "item-6"], ["item-6"])
    assert (requests[2].history, requests[2].exclude) == (None, [])
    whole = warmup_requests(release, LimitSettings())[0]
    assert (len(whole.history or []), len(whole.exclude)) == (6, 6)
    assert warmup_requests(release, LimitSettings(exclude=0))[0].exclude == []


def test_a_service_with_low_limits_serves_a_release_with_long_histories(tiny: TinyRelease, tmp_path: Path) -> None:
    assert max(len(user.history) for user in tiny.users) > 2
    limits = PATIENT.model_copy(update={"history": 2})
    settings = published_settings(tiny, tmp_path / "store").model_copy(update={"limits": limits})
    with TestClient(create_app(settings)) as client:
        assert client.get("/readyz").status_code == 200


class Closable:
    """A ladder that notes when it is closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def closable(tiny: TinyRelease) -> tuple[Edition, Closable]:
    """An edition that nobody asks for anything, and what stands for its engines."""
    engines = Closable()
    unused: Any = None
    return Edition(Release.open(tiny.path), cast("Any", engines), unused, unused), engines


@pytest.mark.anyio
async def test_the_engines_of_a_release_are_closed_after_its_last_request(closable: tuple[Edition, Closable]) -> None:
    edition, engines = closable
    with edition:
        with edition:
            retiring = asyncio.create_task(edition.retire(60))
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)  # one of two is answered
        assert not engines.closed
    await asyncio.wait_for(retiring, 10)
    assert engines.closed


@pytest.mark.anyio
async def test_the_engines_of_a_release_are_closed_in_time_whoever_still_waits(
    closable: tuple[Edition, Closable],
) -> None:
    edition, engines = closable
    with edition, capture_logs() as lines:
        await edition.retire(0.05)
    assert engines.closed
    assert [(line["event"], line["requests"]) for line in lines] == [("release_closed_while_busy", 1)]


def test_no_garbage_collection_walks_a_release(
    tiny: TinyRelease, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would stop the requests on the release before, while a large one is read and ever after."""
    collects: list[bool] = []
    opened, init = Release.open, Filters.__init__

    def noted(path: Path) -> Release:
        collects.append(gc.isenabled())
        return opened(path)

    def noted_too(self: Filters, *parts: Any) -> None:
        collects.append(gc.isenabled())
        init(self, *parts)

    monkeypatch.setattr(Release, "open", noted)
    monkeypatch.setattr(Filters, "__init__", noted_too)
    application = create_app(published_settings(tiny, tmp_path / "store", own.parent))
    other = write_release(own.parent, items=50)
    with TestClient(application) as client:
        assert client.portal is not None
        client.portal.call(application.state.serving.swap, other.manifest.release_id)
        assert collects == [False] * 4
        assert gc.isenabled()
        items = application.state.serving.edition.release.catalogue.items
        assert not any(found is items for found in gc.get_objects())
