"""One connection of a caller: uvicorn's own protocol, where it trusts callers with our memory or misreads them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 65_536  # of a request's line and headers, to within a PIECE; nginx and Envoy pass on no more, either
# What is parsed at a time. All requests in it are made into objects, a hundred times as large where they are short, and
# uvloop reads a quarter of a megabyte.
PIECE = 4_096

_TOO_LARGE = b"The request's line and headers may be at most %d bytes long" % HEAD_BYTES


class Connection(HttpToolsProtocol):
    """HTTP/1 as uvicorn speaks it, with these differences.

    - An offer to go on in another protocol is passed over. Java's HttpClient and `curl --http2` make it with every
      request, and uvicorn leaves out the body of such a request.
    - A head that is larger than HEAD_BYTES is refused with status 431, and so is as much between or behind the parts of
      a body: extensions of chunks and trailers. Trailers are none of the request's headers.
    - A head that is not there within the keep-alive time, from when the connection was opened or the last answer
      given, ends the connection. uvicorn stops that clock at the first byte, and starts none before the first answer.
    - So does an answer that is not taken: a caller has that long to take what waits to be sent.
    - What a caller sends while it has answers to get stays in the socket once a whole request waits.
    - What cannot be parsed is answered when the requests before it have been. uvicorn's 400 comes instead of theirs.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self)
        self._owed: deque[RequestResponseCycle] = deque()  # requests without their whole answer, the oldest first
        self._held = b""  # read, and parsed up to _parsed
        self._parsed = 0
        self._in_body = False
        self._still = True  # no head began or ended in this piece, and no part of a body came
        self._since = 0  # bytes in pieces that were still, since one was not
        self._refusal: Callable[[], None] | None = None  # of what cannot be parsed, once all answers are given
        self._unread: asyncio.TimerHandle | None = None  # ends the connection of a caller that takes no answer
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer, and have nobody work on answers any more."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._taken()
        self.pipeline.clear()
        for cycle in self._owed:  # uvicorn thinks of the last one alone
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._held:
            self._held = self._held[self._parsed :] + data
        else:
            self._held = data
        self._parsed = 0
        self._parse()

    def waits(self) -> bool:
        """Whether there is something that an earlier request's answer has to come before."""
        return bool(self.pipeline or self._held) or self._refusal is not None

    def on_message_begin(self) -> None:
        """Another head begins."""
        super().on_message_begin()
        self._still = False

    def on_headers_complete(self) -> None:
        """Start the request, unless it comes again without its offer."""
        self._still = False
        if not self.parser.should_upgrade():
            self._unset_keepalive_if_required()
            super().on_headers_complete()
            self._owed.append(self.cycle)
            self._in_body = True
            self.headers = []  # for trailers; the request's own are in its scope

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._still = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request's body."""
        self._in_body = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or with what was read and not parsed."""
        self._owed.popleft()
        super().on_response_complete()
        if self.transport.is_closing():
            self._see_it_taken()
        elif self._refusal is not None:
            if not self._owed:
                self._refusal()
                self._see_it_taken()
        elif self._held and not self.pipeline:
            self._parse()
            self.flow.resume_reading()

    def timeout_keep_alive_handler(self) -> None:
        """End the connection of a caller that sends nothing."""
        super().timeout_keep_alive_handler()
        self._see_it_taken()

    def pause_writing(self) -> None:
        """Let answers wait for the caller to take those before."""
        super().pause_writing()
        self._see_it_taken()

    def resume_writing(self) -> None:
        """Write answers again."""
        super().resume_writing()
        self._taken()
        if self.transport.is_closing():
            self._see_it_taken()

    def _parse(self) -> None:
        while not self.pipeline and self._refusal is None:
            self._parsed += self._feed(self._held[self._parsed : self._parsed + PIECE])
            if self._parsed >= len(self._held):
                self._held, self._parsed = b"", 0
                break

    def _feed(self, piece: bytes) -> int:
        """How much of the piece was parsed: all of it, if there is no offer."""
        self._still = True
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as offer:
            if any(name == b"upgrade" for name, _ in self.headers):
                head = self._without_offer()
                self._new_parser()
                self._feed(head)
            else:  # CONNECT, which is for proxies
                self._refuse(self._invalid)
            end: int = offer.args[0]  # of the head, where the parser has stopped
            return end
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self._refuse(self._invalid)
            return len(piece)
        self._since = self._since + len(piece) if self._still else 0
        if self._since > HEAD_BYTES:
            self._refuse(self._head_too_large)
        return len(piece)

    def _refuse(self, refusal: Callable[[], None]) -> None:
        """Parse no more, and refuse what could not be as soon as the requests before it are answered."""
        self._held = b""
        if self._in_body:  # of the last request
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:  # an answer behind that would be to nothing
                self.transport.close()
                self._see_it_taken()
                return
            self._owed.pop()
            if self.pipeline:
                self.pipeline.popleft()
        if self._owed:
            self._refusal = refusal
            self.flow.pause_reading()
        else:
            refusal()
            self._see_it_taken()

    def _invalid(self) -> None:
        self.send_400_response("Invalid HTTP request received.")

    def _head_too_large(self) -> None:
        lines = (
            b"HTTP/1.1 431 Request Header Fields Too Large",
            b"content-type: text/plain; charset=utf-8",
            b"content-length: %d" % len(_TOO_LARGE),
            b"connection: close",
        )
        self.transport.write(b"\r\n".join((*lines, b"", _TOO_LARGE)))
        self.transport.close()

    def _see_it_taken(self) -> None:
        if self._unread is None and self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def _taken(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

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
        if self.read_paused and not self._connection.waits():
            super().resume_reading()
