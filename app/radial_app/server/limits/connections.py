"""Connections that are made and say nothing, or say little for long, do not keep others out."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0  # in which a request's head must be there whole
MAX_HEAD = 64 << 10  # bytes
MAX_FILES = 16_384


class Connection(HttpToolsProtocol):
    """As uvicorn's, but a request's head must come soon and be small; where there are too many connections, those that
    have waited for one longest end."""

    most: ClassVar[int] = 512
    _waiting: ClassVar[dict[Connection, None]] = {}
    _timer: asyncio.TimerHandle | None = None
    _head = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection; it must soon ask for something."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait()
        if len(self.connections) > self.most and (longest := next(iter(self._waiting), None)) is not None:
            longest._give_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Its end."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        super().data_received(data)
        self._head += len(data)
        if self._timer is not None and self._head > MAX_HEAD:
            self._give_up()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """The answer is sent: the connection may be kept for another, which uvicorn's own timer ends."""
        super().on_response_complete()
        if not self.transport.is_closing() and self._timer is None and self.cycle.response_complete:
            self._waiting[self] = None

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting[self] = None
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        self._head = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._stop_waiting()
        self.transport.abort()


def allow_many_files() -> int:
    """Let this process have as many files and connections open as the system grants; how many connections fit."""
    with contextlib.suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        return max(64, min(soft, MAX_FILES) // 2)
    return Connection.most
