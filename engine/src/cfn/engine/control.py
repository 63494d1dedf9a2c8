"""Datagrams between a hub and the spawner: JSON objects, some with descriptors (SCM_RIGHTS).

A `Channel` never blocks: what the other side does not take at once waits here, up to a bound.
"""

import array
import json
import os
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cfn.errors import DamagedError

MAX_DESCRIPTORS = 253  # the kernel's limit for one message
BATCH = 100  # agents named in one datagram: at most 128 characters each, far below the buffer
MAX_QUEUED = 4_096  # datagrams
_MAX_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Hub: I am the hub of this generation; lower ones are refused from now on."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """Hub: I need these agents' sockets. `replaces[i]` is the process that I saw end, or 0; an agent
    that lives in another process is handed out, not forked again."""

    swarm_id: str
    agents: Sequence[str]
    replaces: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Hub: keep a duplicate of these workers' sockets (a spawner was restarted)."""

    swarm_id: str
    agents: Sequence[str]
    pids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Hub: SIGKILL this worker if it is still this process."""

    swarm_id: str
    agent: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Hub: drop this swarm's sockets, and kill the workers that do not end by themselves."""

    swarm_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Spawner: every worker that I hold has been sent to you."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Spawner: these agents' sockets, in the descriptors that come along, in the same order."""

    swarm_id: str
    agents: Sequence[str]
    pids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Spawner: these agents could not be forked."""

    swarm_id: str
    agents: Sequence[str]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """Spawner: a worker's process ended badly; `status` is its exit code, minus a signal, or 0
    for an adopted one, which is not the spawner's child."""

    swarm_id: str
    agent: str
    pid: int
    status: int


Message = Hello | Spawn | Adopt | Kill | End | Welcome | Workers | Failed | Exited

_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Hello, Spawn, Adopt, Kill, End, Welcome, Workers, Failed, Exited)
}


class Channel:
    """One connected SEQPACKET socket with an outgoing queue. Owns the socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._queue: deque[tuple[bytes, list[int]]] = deque()

    @property
    def pending(self) -> bool:
        """Whether `flush` must be called when the socket can be written."""
        return bool(self._queue)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send or queue. The descriptors are duplicated at once, so the caller may close its own.

        Raises OSError when the other side is gone or has let the queue grow to its bound.
        """
        raw = json.dumps({"kind": type(message).__name__, **asdict(message)}).encode()
        if len(self._queue) >= MAX_QUEUED:
            raise BlockingIOError(f"{MAX_QUEUED} datagrams wait and the other side does not read")
        if not self._queue and self._send_now(raw, descriptors):
            return
        self._queue.append((raw, [os.dup(descriptor) for descriptor in descriptors]))

    def flush(self) -> None:
        """Send what waits, as far as the other side takes it. Raises OSError when it is gone."""
        while self._queue:
            raw, descriptors = self._queue[0]
            if not self._send_now(raw, descriptors):
                return
            self._queue.popleft()
            for descriptor in descriptors:
                os.close(descriptor)

    def receive(self) -> tuple[Message, list[int]] | None:
        """One message and the descriptors that the caller now owns; None when nothing is there.

        Raises EOFError at the end, DamagedError (after closing the descriptors) for garbage.
        """
        try:
            raw, ancillary, _, _ = self.socket.recvmsg(
                _MAX_BYTES, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return self.receive()  # what was sent before the reset is still to be read
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not raw:
            raise EOFError
        try:
            value = json.loads(raw)
            return _KINDS[value.pop("kind")](**value), list(descriptors)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            for descriptor in descriptors:
                os.close(descriptor)
            raise DamagedError(f"not a control message: {error!r}") from error

    def close(self) -> None:
        """Close the socket and the descriptors that still waited."""
        for _, descriptors in self._queue:
            for descriptor in descriptors:
                os.close(descriptor)
        self._queue.clear()
        self.socket.close()

    def _send_now(self, raw: bytes, descriptors: Sequence[int]) -> bool:
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        try:
            self.socket.sendmsg([raw], rights, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        return True
