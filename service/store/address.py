"""Where a Redis is and how to reach it, from one URL.

    redis://[user:password@]host[:port][/db]                         one server
    unix://[user:password@]/path/to/socket[?db=0]                    one server on this machine
    redis+sentinel://[user:password@]host[:port],host2/service[/db]  the master that these sentinels name
    redis+cluster://[user:password@]host[:port],host2                a cluster that has these nodes

`rediss` in the place of `redis` speaks TLS, to sentinels and to every node of a cluster too. After `?` may stand

    ssl_ca_certs, ssl_certfile, ssl_keyfile   PEM files: who signed the server's certificate, and the client's own
    ssl_check_hostname=false                  the certificate need not name the host
    sentinel_username, sentinel_password      what the sentinels ask for; user and password above go to the data servers

User and password are percent-encoded. No message quotes the URL: any part of a mistyped one may be the password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Kind = Literal["server", "socket", "sentinel", "cluster"]

SCHEMES: dict[str, tuple[Kind, bool]] = {  # kind, TLS
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("socket", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
OPTIONS = frozenset(
    {
        "db",
        "ssl_ca_certs",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_check_hostname",
        "sentinel_username",
        "sentinel_password",
    }
)
PORTS = {"server": 6379, "socket": 0, "sentinel": 26379, "cluster": 6379}

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]@]+)(?::(?P<port>\d{1,5}))?")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL. `hosts` is empty for a socket; `service` is what sentinels call the master."""

    kind: Kind
    tls: bool
    hosts: list[tuple[str, int]] = field(default_factory=list)
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    check_hostname: bool = True


def is_redis(text: str) -> bool:
    """Whether a text is meant as one of these URLs."""
    return text.partition("://")[0].lower() in SCHEMES and "://" in text


def parse_address(url: str) -> Address:
    """Read a URL. Raises ValueError, with a message that quotes nothing of it but its scheme."""
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise ValueError(f"it must begin with {', '.join(f'{name}://' for name in SCHEMES)}")
    kind, tls = SCHEMES[scheme]
    try:
        parts = urlsplit(url)
        query = parts.query.replace("+", "%2B")  # a plus is one, as it is before the @: this is no form
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:  # its own message would quote the URL
        raise ValueError(f"it is no {scheme}:// URL: percent-encode special characters of the password") from None
    user, at, hosts = parts.netloc.rpartition("@")
    username, _, password = user.partition(":")
    if parts.fragment or "#" in url:
        raise ValueError("it holds a #: percent-encode special characters of the password")
    found = [] if kind == "socket" and not hosts else [_host(host, PORTS[kind]) for host in hosts.split(",")]
    if kind == "server" and len(found) != 1:
        raise ValueError("one server has one host; several belong to redis+sentinel:// or redis+cluster://")
    if not options.keys() <= OPTIONS:
        raise ValueError(f"after ? it may only hold {', '.join(sorted(OPTIONS))}")
    path, service, db = _place(kind, unquote(parts.path), options.get("db"))
    return Address(
        kind=kind,
        tls=tls,
        hosts=found,
        path=path,
        service=service,
        db=db,
        username=(unquote(username) or None) if at else None,
        password=(unquote(password) or None) if at else None,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        ca_file=options.get("ssl_ca_certs"),
        cert_file=options.get("ssl_certfile"),
        key_file=options.get("ssl_keyfile"),
        check_hostname=_flag(options.get("ssl_check_hostname", "true")),
    )


def _host(text: str, default: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    port = int(match["port"] or default) if match else 0
    if match is None or not 0 < port < 65536:
        raise ValueError("its hosts must be host or host:port, with a comma between two of them")
    return match["host"].strip("[]"), port


def _place(kind: Kind, path: str, option: str | None) -> tuple[str, str, int]:
    """Path of the socket, name of the service, number of the database."""
    if kind == "socket":
        if path in {"", "/"}:
            raise ValueError("it names no socket: unix:///path/to/socket")
        return path, "", _db(option or "0")
    parts = path.strip("/").split("/") if path.strip("/") else []
    service = ""
    if kind == "sentinel":
        if not parts:
            raise ValueError("it names no service: redis+sentinel://host:port/service")
        service, *parts = parts
    if len(parts) > 1 or (parts and option is not None):
        raise ValueError("after the hosts it holds more than a database")
    db = _db(parts[0] if parts else option or "0")
    if kind == "cluster" and db:
        raise ValueError("a cluster has no database but 0")
    return "", service, db


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("its database must be a number")
    return int(text)


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError("ssl_check_hostname must be true or false")
    return _FLAGS[text.lower()]
