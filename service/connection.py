"""One connection of a caller: uvicorn's own protocol, where it trusts callers with our memory or misreads them."""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536  # of a request's line and headers; nginx and Envoy pass on no more, either

_TOO_LARGE = b"The request's line and headers may be at most %d bytes long" % HEAD_BYTES


class _HeadTooLarge(Exception):
    """More of a request's head than anybody needs."""


class Connection(HttpToolsProtocol):
    """HTTP/1 as uvicorn speaks it, with four differences.

    - An offer to go on in another protocol is passed over. Java's HttpClient and `curl --http2` make it with every
      request, and uvicorn leaves out the body of such a request.
    - A head that is larger than HEAD_BYTES is refused with status 431.
    - A head that is not there within the keep-alive time, from when the connection was opened or the last answer
      given, ends the connection. uvicorn stops that clock at the first byte, and starts none before the first answer.
    - What a caller sends while it has answers to get stays in the socket once a whole request waits.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self)
        self._in_head = True
        self._head = 0  # bytes of the head that the parser has told of
        self._untold = 0  # and of a header that has only begun, in whole reads
        self._quiet = True  # the parser has told of nothing since the read began
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        self._quiet = True
        try:
            self.parser.feed_data(data)
            if self._in_head and self._quiet:
                self._untold += len(data)
                self._bound_head()
        except _HeadTooLarge:
            self._refuse_head()
        except httptools.HttpParserUpgrade as offer:
            (end,) = offer.args  # of the head, where the parser has stopped
            if any(name == b"upgrade" for name, _ in self.headers):
                head = self._without_offer()
                self._new_parser()
                self.data_received(head + data[end:])
            else:  # CONNECT, which is for proxies
                self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLarge):
                self._refuse_head()
            else:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """Another head begins."""
        super().on_message_begin()
        self._in_head, self._quiet, self._head, self._untold = True, False, 0, 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the path."""
        self._told(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._told(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless it comes again without its offer."""
        self._in_head = False
        if not self.parser.should_upgrade():
            self._unset_keepalive_if_required()
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request's body."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _told(self, size: int) -> None:
        self._head += size
        self._quiet, self._untold = False, 0
        self._bound_head()

    def _bound_head(self) -> None:
        if self._head + self._untold > HEAD_BYTES:
            raise _HeadTooLarge

    def _refuse_head(self) -> None:
        lines = (
            b"HTTP/1.1 431 Request Header Fields Too Large",
            b"content-type: text/plain; charset=utf-8",
            b"content-length: %d" % len(_TOO_LARGE),
            b"connection: close",
        )
        self.transport.write(b"\r\n".join((*lines, b"", _TOO_LARGE)))
        self.transport.close()

    def _without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def _new_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does


class _Flow(FlowControl):
    """Reads no more while a whole request waits for its turn: uvicorn reads on as soon as another one is looked at."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        """Read again, if nothing waits."""
        if not self._connection.pipeline:
            super().resume_reading()
