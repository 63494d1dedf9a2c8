"""Connections to the conductor that are kept: one question at a time on each, so that an answer
belongs to the question before it, whatever order the conductor answers in."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from cfn.errors import DamagedError, NotRunningError

_KEPT_IDLE = 64


class _Connection(asyncio.Protocol):
    """One connection. `lost` is called once when it has ended, whoever ended it."""

    def __init__(self, lost: Callable[["_Connection"], None]) -> None:
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        while True:
            line, newline, data = data.partition(b"\n")
            self._parts.append(line)
            if not newline:
                return
            line, self._parts = b"".join(self._parts), []
            # Two fields alone are an interim state; their line is short.
            if len(line) < 512 and b'"state"' in line and b'"results"' not in line and _is_interim(line):
                continue
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(line)
            else:  # nobody asked: what comes next could not be told apart either
                self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EOFError(f"the connection ended before the answer: {error or 'EOF'}"))
        self._lost(self)

    @property
    def open(self) -> bool:
        """Whether it is not known to have ended."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, question: bytes) -> bytes:
        """The final line that answers one line. Raises EOFError if the connection ends before it."""
        if self._transport is None or self._transport.is_closing():
            raise EOFError("the connection had ended")
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(question)
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        """End it; an answer that is still out is not heard."""
        if self._transport is not None:
            self._transport.abort()


def _is_interim(line: bytes) -> bool:
    try:
        return set(json.loads(line.decode())) == {"state", "task_id"}
    except (ValueError, TypeError):
        return False


class Link:
    """The conductor behind the Unix socket `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[_Connection] = []

    async def exchange(
        self, question: dict[str, Any], on_sent: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, Any], bytes]:
        """Ask, and return the final answer, an error too, and its line as it came. A cancelled caller
        costs the connection.

        Raises NotRunningError if nothing was sent, EOFError if it is unknown what became of the
        question, DamagedError for an answer that is no JSON object. `on_sent` is called when, from then
        on, nobody knows what the conductor has read.
        """
        line = json.dumps(question, separators=(",", ":")).encode() + b"\n"
        connection: _Connection | None = None
        kept = False
        try:
            connection = self._open() or await self._connect()
            on_sent()
            raw = await connection.ask(line)
            answer = _object(raw, self._path)
            kept = connection.open and len(self._idle) < _KEPT_IDLE
            return answer, raw
        finally:
            if connection is not None:
                if kept:
                    self._idle.append(connection)
                else:
                    connection.close()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    def _open(self) -> _Connection | None:
        """One that is idle and was open when the loop last looked."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_unix_connection(
                lambda: _Connection(self._forget), str(self._path)
            )
        except OSError as error:
            raise NotRunningError(f"{self._path} does not answer: {error.strerror or error}") from error
        return connection

    def _forget(self, connection: _Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


def _object(line: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())
    except ValueError as error:
        raise DamagedError(f"{path} answered what is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} answered what is no JSON object")
    return value
