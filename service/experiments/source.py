"""Where experiments are read from: a file, or a URL. Both block, and are called in a thread."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from pydantic import SecretStr

from service.errors import ExperimentsUnavailable
from service.settings import ExperimentSettings

SIZE_CEILING = 8 * 1024 * 1024  # bytes


class Source(Protocol):
    """Content that may change."""

    name: str  # for messages; holds no secret

    def read(self) -> bytes | None:
        """The content, or None if it is what was read last. Raises ExperimentsUnavailable."""
        ...

    def forget(self) -> None:
        """Return the content at the next read, changed or not."""
        ...


def open_source(settings: ExperimentSettings) -> Source | None:
    """The source that the settings name, None if they name none."""
    if settings.source is None:
        return None
    if settings.source.startswith(("http://", "https://")):
        return UrlSource(settings.source, settings.api_key, settings.timeout_seconds)
    return FileSource(Path(settings.source))


class FileSource:
    """A file, watched by its time stamp, size and inode; a link, as Kubernetes mounts one, is followed."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> bytes | None:
        """The content, or None if the file has not changed. Raises ExperimentsUnavailable."""
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen == self._seen:
                return None
            with self._path.open("rb") as stream:
                content = stream.read(SIZE_CEILING + 1)
        except OSError as error:
            raise ExperimentsUnavailable(f"cannot read {self.name}: {error.strerror}") from error
        content = _sized(content, self.name)
        self._seen = seen  # only now: a file that is too large is so at every look
        return content

    def forget(self) -> None:
        """Read the file again, changed or not."""
        self._seen = None


class UrlSource:
    """An http(s) URL, asked with the ETag of its last answer; of a server without ETags the answers are compared."""

    def __init__(self, url: str, api_key: SecretStr | None, timeout: float) -> None:
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"  # the path bears a key
        self._url = url
        self._key = api_key
        self._timeout = timeout  # seconds, for each wait on the socket
        self._etag: str | None = None
        self._seen: bytes | None = None  # digest of the last answer
        self._opener = urllib.request.build_opener(_NoRedirect)

    def read(self) -> bytes | None:
        """The body, or None if it has not changed. Raises ExperimentsUnavailable."""
        headers = {"Accept": "application/json", "User-Agent": "scoter-serving"}
        if self._etag is not None:
            headers["If-None-Match"] = self._etag
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        request = urllib.request.Request(self._url, headers=headers)  # noqa: S310 - http(s) alone, by open_source
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                content = _sized(response.read(SIZE_CEILING + 1), self.name)
                self._etag = response.headers.get("ETag")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.NOT_MODIFIED:
                return None
            raise ExperimentsUnavailable(f"{self.name} answered {error.code} {error.reason}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ExperimentsUnavailable(f"{self.name} did not answer: {reason}") from error
        # Megabytes of saved groups take a third of a second to compile, beside the requests of that moment.
        seen = hashlib.sha256(content).digest()
        if seen == self._seen:
            return None
        self._seen = seen
        return content

    def forget(self) -> None:
        """Ask without an ETag, and return the answer whatever it is."""
        self._etag = self._seen = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the key would be sent along to wherever it leads."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        """Leave the answer as it is: an HTTPError of its status."""


def _sized(content: bytes, name: str) -> bytes:
    if len(content) > SIZE_CEILING:
        raise ExperimentsUnavailable(f"{name} holds more than {SIZE_CEILING // 1024**2} MiB")
    return content
