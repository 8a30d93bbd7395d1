from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import CacheSettings, LmdbSettings, OnnxSettings, RedisSettings, Settings, TritonSettings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("SCOTER_"):
            monkeypatch.delenv(name)


def test_defaults() -> None:
    settings = Settings()
    assert settings.store == LmdbSettings(path=Path("store"))
    assert settings.release is None
    assert settings.limits.body_bytes == 256 * 1024
    assert settings.limits.k == 10
    assert isinstance(settings.engine, OnnxSettings)
    assert settings.engine.threads >= 1


def test_nested_values_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOTER_STORE__KIND", "redis")
    monkeypatch.setenv("SCOTER_STORE__URL", "redis://:hunter2@redis:6379/0")
    monkeypatch.setenv("SCOTER_STORE__READ_TIMEOUT_MS", "15")
    monkeypatch.setenv("SCOTER_ENGINE__THREADS", "3")
    monkeypatch.setenv("SCOTER_PORT", "9000")
    settings = Settings()
    assert isinstance(settings.store, RedisSettings)
    assert settings.store.read_timeout_ms == 15
    assert settings.store.url.get_secret_value().endswith("redis:6379/0")
    assert isinstance(settings.engine, OnnxSettings)  # the default kind
    assert (settings.engine.threads, settings.port) == (3, 9000)
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_a_triton_engine_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    monkeypatch.setenv("SCOTER_ENGINE__KIND", "triton")
    monkeypatch.setenv("SCOTER_ENGINE__URL", "triton:8001")
    monkeypatch.setenv("SCOTER_ENGINE__CA", str(ca))
    assert Settings().engine == TritonSettings(url="triton:8001", ca=ca)
    monkeypatch.setenv("SCOTER_ENGINE__CERTIFICATE", str(ca))
    with pytest.raises(ValidationError, match="certificate and key go together"):
        Settings()
    monkeypatch.setenv("SCOTER_ENGINE__KEY", str(tmp_path / "absent.pem"))
    with pytest.raises(ValidationError, match="does not point to a file"):
        Settings()


@pytest.mark.parametrize("url", ["redis://:hunter2@redis:port", "redis://:hunter2@a,b", "http://:hunter2@redis"])
def test_a_url_that_cannot_be_read_is_not_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SCOTER_STORE__KIND", "redis")
    monkeypatch.setenv("SCOTER_STORE__URL", url)
    with pytest.raises(ValidationError, match=r"(?i)must|belong") as caught:
        Settings()
    assert "hunter2" not in str(caught.value)


def test_a_url_alone_is_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOTER_STORE__URL", "redis+cluster://a,b")
    assert isinstance(Settings().store, RedisSettings)


def test_the_cache_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().cache.entries == 0
    monkeypatch.setenv("SCOTER_CACHE__ENTRIES", "1000")
    monkeypatch.setenv("SCOTER_CACHE__TTL_SECONDS", "60")
    assert Settings().cache == CacheSettings(entries=1000, ttl_seconds=60)


def test_a_path_alone_is_an_lmdb_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOTER_STORE__PATH", "/data/store")
    assert Settings().store == LmdbSettings(path=Path("/data/store"))


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOTER_STORE__KIND", "redis")
    monkeypatch.setenv("SCOTER_STORE__URL", "redis://redis")
    monkeypatch.setenv("SCOTER_PORT", "9000")
    settings = Settings(store=LmdbSettings(path=Path("here")), port=1234)
    assert settings.store == LmdbSettings(path=Path("here"))
    assert settings.port == 1234


@pytest.mark.parametrize(
    "name, value",
    [
        ("SCOTER_RELEASE", "../../etc"),
        ("SCOTER_STORE__KIND", "mongo"),
        ("SCOTER_ENGINE__THREADS", "0"),
        ("SCOTER_ENGINE__THREDS", "1"),
        ("SCOTER_PORT", "70000"),
        ("SCOTER_LIMITS__HISTORY", "10001"),
    ],
)
def test_mistakes_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()
