from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError
from starlette.datastructures import Headers

from service.access import Access, _offered
from service.errors import Forbidden, Unauthorized
from service.settings import AccessSettings


def access(*keys: str, admin: str | None = None) -> Access:
    return Access(
        AccessSettings(
            api_keys=tuple(SecretStr(key) for key in keys), admin_token=SecretStr(admin) if admin is not None else None
        )
    )


def test_without_keys_anyone_may_ask() -> None:
    access().check(Headers({}))


@pytest.mark.parametrize("key", ["old-key", "new-key"])
@pytest.mark.parametrize("form", ["Bearer {}", "bearer  {}", None])
def test_each_of_several_keys_opens(key: str, form: str | None) -> None:
    headers = {"x-api-key": key} if form is None else {"authorization": form.format(key)}
    access("old-key", "new-key").check(Headers(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": "old-ke"},
        {"x-api-key": "old-key2"},
        {"x-api-key": "schlüssel"},
        {"authorization": "Basic old-key"},
        {"authorization": "old-key"},
        {"authorization": "Bearer"},
    ],
)
def test_anything_else_does_not(headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    with pytest.raises(Unauthorized, match="API keys") as failed:
        access("old-key").check(Headers(raw=raw))
    assert "old-key" not in str(failed.value)


def test_an_empty_key_is_refused() -> None:
    for keys, admin in (["", "real"], None), (["real"], ""):
        with pytest.raises(ValidationError, match="at least 1"):
            access(*keys, admin=admin)


def test_whoever_sends_nothing_offers_nothing() -> None:
    for headers in ({}, {"x-api-key": ""}, {"authorization": "Bearer "}, {"authorization": "Bearer"}):
        assert _offered(Headers(headers)) == []


def test_administration_is_off_without_a_token_and_keys_do_not_open_it() -> None:
    with pytest.raises(Forbidden, match="SCOTER_ACCESS__ADMIN_TOKEN"):
        access("key").check_admin(Headers({"x-api-key": "key"}))
    with pytest.raises(Unauthorized):
        access("key", admin="root").check_admin(Headers({"x-api-key": "key"}))
    access("key", admin="root").check_admin(Headers({"authorization": "Bearer root"}))


def test_no_secret_shows_in_settings() -> None:
    settings = AccessSettings(api_keys=(SecretStr("hush"),), admin_token=SecretStr("quiet"))
    assert "hush" not in repr(settings)
    assert "quiet" not in repr(settings)


def test_a_key_counts_beside_a_token_that_is_somebody_elses() -> None:
    access = Access(AccessSettings(api_keys=(SecretStr("key"),), admin_token=SecretStr("root")))
    access.check(Headers({"X-API-Key": "key", "Authorization": "Bearer gateway"}))
    access.check_admin(Headers({"X-API-Key": "gateway", "Authorization": "Bearer root"}))
