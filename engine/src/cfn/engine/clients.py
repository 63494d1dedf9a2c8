"""The conductor's client connections: JSON lines in, JSON lines out, never blocking, all bounded."""

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from cfn.engine.log import log
from cfn.engine.loop import READ, WRITE, Loop
from cfn.engine.messages.credentials import same_group
from cfn.errors import EXIT_FAILED, CfnError, RefusedError, UsageError

MAX_LINE_BYTES = 1 << 20
MAX_CLIENTS = 512
ACCEPT_AGAIN_S = 0.1  # after descriptors ran out
MAX_UNSENT_BYTES = 64 << 20  # answers that one client does not read

Answer = Mapping[str, Any]


class Client:
    """One connection. It may ask several times; each request is answered once or more, in the order
    in which the answers come. When the caller has shut down its side, the last answer closes it."""

    def __init__(self, loop: Loop, connection: socket.socket, requested: "Requested", gone: "Gone") -> None:
        connection.setblocking(False)
        self.socket = connection
        self.pending = 0  # requests not finally answered
        self.on_close: list[Callable[[], None]] = []
        self._loop = loop
        self._requested = requested
        self._gone = gone
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._finished = False  # the caller sends no more
        self._open = True
        loop.add(connection.fileno(), READ, self._ready)

    def say(self, answer: Answer) -> None:
        """Send an answer that is not the last one to its request."""
        self._queue(json.dumps(answer, separators=(",", ":")).encode() + b"\n")

    def say_text(self, line: str) -> None:
        """Send one line as it is."""
        self._queue(line.encode() + b"\n")

    def finish(self, answer: Answer, *, text: str | None = None, exit_code: int = 0) -> None:
        """Send the final answer to one request; with `text`, as an exit code and plain lines."""
        self.pending -= 1
        if text is None:
            self.say(answer)
        else:
            self._queue(
                f"exit {exit_code}\n{text}".encode() + (b"" if text.endswith("\n") or not text else b"\n")
            )

    def finish_raw(self, answer: bytes) -> None:
        """Send a final answer that is JSON already."""
        self.pending -= 1
        self._queue(answer + b"\n")

    def refuse(self, error: CfnError, *, as_text: bool) -> None:
        """Send an error as the final answer."""
        value: dict[str, Any] = {"error": str(error), "exit_code": error.exit_code}
        if isinstance(error, RefusedError) and error.retry_after_s is not None:
            value["retry_after_s"] = error.retry_after_s
        self.finish(value, text=str(error) if as_text else None, exit_code=error.exit_code)

    def close(self) -> None:
        """Close now, whatever waits."""
        if self._open:
            self._open = False
            self._loop.remove(self.socket.fileno())
            self.socket.close()
            self._gone(self)
            for action in self.on_close:
                action()

    def _queue(self, raw: bytes) -> None:
        if not self._open:
            return
        self._outgoing += raw
        if len(self._outgoing) > MAX_UNSENT_BYTES:
            log("client dropped", reason="it does not read its answers")
            self.close()
            return
        self._flush()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self.socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if not self._outgoing and self._finished and self.pending <= 0:
            self.close()
            return
        reading = 0 if self._finished else READ
        self._loop.change(self.socket.fileno(), reading | (WRITE if self._outgoing else 0))

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if self._open and events & READ and not self._finished:
            self._read()
        elif self._open and events & ~(READ | WRITE):  # the caller is gone altogether
            self.close()

    def _read(self) -> None:
        try:
            chunk = self.socket.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._finished = not chunk
        self._incoming += chunk
        while self._open and (end := self._incoming.find(b"\n")) >= 0:
            line = bytes(self._incoming[:end])
            del self._incoming[: end + 1]
            self._line(line)
        if self._open and len(self._incoming) > MAX_LINE_BYTES:
            self._incoming.clear()
            self._finished = True
            self.pending += 1
            self.refuse(UsageError(f"a request is at most {MAX_LINE_BYTES} bytes"), as_text=False)
        if self._open and self._finished:
            self._flush()

    def _line(self, line: bytes) -> None:
        self.pending += 1
        as_text = False
        try:
            if len(line) > MAX_LINE_BYTES:
                raise UsageError(f"a request is at most {MAX_LINE_BYTES} bytes")
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                raise UsageError("a request is one JSON object on one line") from None
            if not isinstance(value, dict):
                raise UsageError("a request is one JSON object on one line")
            as_text = value.get("format") == "text"
            self._requested(self, value)
        except CfnError as error:
            self.refuse(error, as_text=as_text)
        except OSError as error:  # tmpfs or descriptors are exhausted: this request fails, the rest goes on
            failure = CfnError(f"the conductor cannot serve this request now: {error.strerror or error}")
            failure.exit_code = EXIT_FAILED
            self.refuse(failure, as_text=as_text)


Requested = Callable[[Client, dict[str, Any]], None]
Gone = Callable[[Client], None]


class Clients:
    """The listening socket and its connections. `requested` handles one request; what it raises as
    CfnError becomes the answer."""

    def __init__(self, loop: Loop, listener: socket.socket, requested: Requested) -> None:
        self._loop = loop
        self._listener = listener
        self._requested = requested
        self._clients: set[Client] = set()
        loop.add(listener.fileno(), READ, self._accept)

    def stop_accepting(self) -> None:
        """No new connection from now on."""
        if self._listener.fileno() >= 0:
            self._loop.remove(self._listener.fileno())
            self._listener.close()

    def close(self) -> None:
        """Close everything."""
        self.stop_accepting()
        for client in list(self._clients):
            client.close()

    @property
    def unsent(self) -> bool:
        """Whether an answer still waits to be read."""
        return any(client._outgoing for client in self._clients)

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor left: those who wait are served when one is free
            log("connection not accepted", reason=str(error))
            self._loop.pause(self._listener.fileno(), READ, self._accept, ACCEPT_AGAIN_S)
            return
        # The socket's mode keeps other users out, and this confirms it.
        allowed = same_group(connection)
        if not allowed or len(self._clients) >= MAX_CLIENTS:
            with suppress(OSError):
                reason = "too many connections" if allowed else "this user may not ask"
                connection.send(json.dumps({"error": reason, "exit_code": 5}).encode() + b"\n")
            connection.close()
            return
        self._clients.add(Client(self._loop, connection, self._requested, self._clients.discard))
