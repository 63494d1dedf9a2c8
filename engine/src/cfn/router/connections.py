"""Bounds on callers that hold a connection and ask nothing, or ask too slowly.

A connection on which no request is being answered is closed after IDLE_S, and earlier if there are too
many: those that have been idle longest first. What is being answered is never closed.
"""

import asyncio
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

IDLE_S = 60.0
# A request's body has to arrive within this.
BODY_S = 20.0
_EVERY_S = 1.0
_LARGEST_LIMIT = 16_384


def connection_limit() -> int:
    """Half of the descriptors that this process may have: the rest is V1's, V2's and for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_LARGEST_LIMIT, max(16, soft // 2))


class Connections:
    """Knows which connections are answering. `limit` is how many may be open."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._answering: dict[asyncio.Transport, int] = {}
        self._idle_since_s: dict[asyncio.Transport, float] = {}
        self.open = 0

    @contextmanager
    def answering(self, request: web.Request) -> Iterator[None]:
        """A request of this connection is being answered."""
        transport = request.transport
        if transport is None:  # the caller has gone already
            yield
            return
        self._answering[transport] = self._answering.get(transport, 0) + 1
        try:
            yield
        finally:
            self._answering[transport] -= 1
            if not self._answering[transport]:
                del self._answering[transport]
            self._idle_since_s[transport] = time.monotonic()

    async def watch(self, server: web.Server) -> None:
        """Close what is idle for too long, each second, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            self.sweep(server, time.monotonic())

    def sweep(self, server: web.Server, now_s: float) -> None:
        """Close what has been idle for too long at `now_s`."""
        transports = [each.transport for each in server.connections if each.transport is not None]
        self.open = len(transports)
        idle = {
            transport: self._idle_since_s.get(transport, now_s)
            for transport in transports
            if transport not in self._answering
        }
        self._idle_since_s = idle
        too_many = max(0, self.open - self._limit)
        for number, (transport, since_s) in enumerate(sorted(idle.items(), key=lambda each: each[1])):
            if number < too_many or now_s - since_s >= IDLE_S:
                transport.abort()
