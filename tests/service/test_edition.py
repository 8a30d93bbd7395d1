from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.edition import warmup_requests
from service.release.release import WARMUP, Release
from service.settings import LimitSettings
from tests.service.conftest import published_settings
from tests.service.tiny_release import TinyRelease


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
    settings = published_settings(tiny, tmp_path / "store").model_copy(update={"limits": LimitSettings(history=2)})
    with TestClient(create_app(settings)) as client:
        assert client.get("/readyz").status_code == 200
