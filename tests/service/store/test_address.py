from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.address import Address, is_redis, parse_address


@pytest.mark.parametrize(
    "url, expected",
    [
        ("redis://h", Address("server", tls=False, hosts=[("h", 6379)])),
        ("redis://h:1/3", Address("server", tls=False, hosts=[("h", 1)], db=3)),
        ("redis://h?db=3", Address("server", tls=False, hosts=[("h", 6379)], db=3)),
        ("REDISS://[::1]:7/", Address("server", tls=True, hosts=[("::1", 7)])),
        (
            "rediss://h?ssl_ca_certs=/ca&ssl_certfile=/c&ssl_keyfile=/k&ssl_check_hostname=false",
            Address(
                "server",
                tls=True,
                hosts=[("h", 6379)],
                ca_file="/ca",
                cert_file="/c",
                key_file="/k",
                check_hostname=False,
            ),
        ),
        ("unix:///run/r.sock?db=2", Address("socket", tls=False, path="/run/r.sock", db=2)),
        (
            "unix://me:pw@/run/r.sock",
            Address("socket", tls=False, path="/run/r.sock", username="me", password="pw"),
        ),
        (
            "redis+sentinel://u:p@a:1,b/users/2?sentinel_password=s",
            Address(
                "sentinel",
                tls=False,
                hosts=[("a", 1), ("b", 26379)],
                service="users",
                db=2,
                username="u",
                password="p",
                sentinel_password="s",
            ),
        ),
        (
            "rediss+sentinel://:p+1@a/users?sentinel_password=b+c/d%3D=&ssl_ca_certs=/a+b",
            Address(
                "sentinel",
                tls=True,
                hosts=[("a", 26379)],
                service="users",
                password="p+1",
                sentinel_password="b+c/d==",
                ca_file="/a+b",
            ),
        ),
        ("rediss+cluster://:p@a,b:2", Address("cluster", tls=True, hosts=[("a", 6379), ("b", 2)], password="p")),
    ],
)
def test_every_form_is_read(url: str, expected: Address) -> None:
    assert parse_address(url) == expected
    assert is_redis(url)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_any_user_and_password_can_be_written(user: str, password: str) -> None:
    address = parse_address(f"redis+cluster://{quote(user, safe='')}:{quote(password, safe='')}@h:1")
    assert (address.username or "", address.password or "") == (user, password)
    assert address.hosts == [("h", 1)]


@pytest.mark.parametrize(
    "url",
    [
        "http://pa55@h",
        "redis://",
        "redis://:pa55@",
        "redis://:pa55@h:port",
        "redis://:pa55@h:99999",
        "redis://:pa55@h:0",
        "redis://:pa/55@h:1",
        "redis://:pa#55@h:1",
        "redis://:pa?55@h:1",
        "redis://h?pa55=1",
        "redis://h?pa55",
        "redis://:pa55@h/one",
        "redis://:pa55@h/1/2",
        "redis://:pa55@h/1?db=2",
        "redis://:pa55@a,b",
        "redis://:pa55@a b",
        "redis://:pa55@[::1",
        "redis://:pa55@h\u2100:1",
        "redis://h?ssl_check_hostname=pa55",
        "unix://:pa55@",
        "unix://",
        "redis+sentinel://:pa55@h",
        "redis+sentinel://:pa55@h/",
        "redis+sentinel://:pa55@h/s/0/1",
        "redis+cluster://:pa55@h/1",
    ],
)
def test_what_cannot_be_read_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(it|its|after|one|a|ssl_check_hostname) ") as caught:
        parse_address(url)
    assert "55" not in str(caught.value).replace("65535", "")
    assert caught.value.__cause__ is None


@given(st.text())
def test_no_text_makes_it_raise_anything_else(text: str) -> None:
    for url in (text, f"redis://{text}", f"redis+sentinel://{text}", f"unix://{text}"):
        with suppress(ValueError):
            assert isinstance(parse_address(url), Address)


def test_passwords_are_not_shown() -> None:
    address = parse_address("redis+sentinel://user:hunter2@h/s?sentinel_username=watch&sentinel_password=hunter3")
    assert not any(part in repr(address) for part in ("user", "hunter2", "watch", "hunter3"))
