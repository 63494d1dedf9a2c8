"""Datagrams between a hub and the spawner, some with descriptors (SCM_RIGHTS).

Each is text: a word, then fields joined by NUL; a list is joined by newlines, its items' parts by
spaces. Names are identifiers, which can hold none of these. What follows an EMPTY field is raw.

    hub -> spawner
        hello GENERATION RATE           its hub; the highest generation is the one that counts
        spawn SWARM SHARD LIST "" TASK  fork, or hand out who lives: AGENT REPLACED INDEX SLOT
        fetch SWARM LIST                hand out who lives: AGENT
        adopt SWARM LIST                keep duplicates of the descriptors that come along: AGENT PID
        kill SWARM AGENT PID            if it is still this process
        end SWARM LIST                  let go of these: AGENT
        retain TIME_NS LIST             let go of all older than that, but for these: SWARM
    spawner -> hub
        welcome PID
        workers SWARM LIST              the descriptors that come along, in this order: AGENT PID EPOCH
                                        (of the task that it was forked with just now, else 0)
        absent SWARM LIST               nobody here, to a fetch: AGENT
        failed SWARM REASON LIST        these could not be forked: AGENT
        exited SWARM AGENT PID STATUS   it ended badly

A `Channel` never blocks: what the other side does not take at once waits here, up to a bound.
"""

from __future__ import annotations

import _socket
import array
import posix
import struct

from cfn.errors import DamagedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DESCRIPTORS = 253  # the kernel's limit for one message
BATCH = 100  # agents named in one datagram: below 200 characters each, with a payload below the buffer
MAX_QUEUED = 4_096  # datagrams
MAX_BYTES = 200_000

_DIGITS = 18
_PEER = struct.Struct("3i")


def message(word: str, *fields: str | int, tail: bytes = b"") -> bytes:
    """One datagram; with `tail`, an empty field and these bytes."""
    raw = "\0".join((word, *map(str, fields))).encode()
    return raw + b"\0\0" + tail if tail else raw


def rows(items: Sequence[tuple[str | int, ...]]) -> str:
    """A list as one field."""
    return "\n".join([" ".join(map(str, item)) for item in items])


def fields_of(raw: bytes, count: int) -> list[str]:
    """The fields of a datagram, its word first. Raises DamagedError unless there are `count`."""
    try:
        fields = raw.decode().split("\0")
    except ValueError as error:
        raise DamagedError(f"not a control message: {error}") from None
    if len(fields) != count:
        raise DamagedError(
            f"not a control message: {fields[0][:20]!r} with {len(fields)} fields, not {count}"
        )
    return fields


def items_of(field: str, parts: int) -> list[list[str]]:
    """The items of a list field. Raises DamagedError unless each has `parts` parts."""
    items = [line.split(" ") for line in field.split("\n")] if field else []
    if any(len(item) != parts for item in items):
        raise DamagedError(f"not a list of a control message: items of {parts} parts are needed")
    return items


def number(text: str) -> int:
    """A whole number that fits any field: below 2^63. Raises DamagedError."""
    if not text.isdecimal() or len(text) > _DIGITS:
        raise DamagedError(f"not a number: {text[:20]!r}")
    return int(text)


def own_peer(connection: _socket.socket) -> int:
    """The process id of the other side. Raises DamagedError if it is another user's."""
    pid, user, _ = _PEER.unpack(connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEER.size))
    if user != posix.geteuid():
        raise DamagedError(f"process {pid} of user {user} may not connect")
    return int(pid)


class Channel:
    """One connected SEQPACKET socket with an outgoing queue. Owns the socket."""

    def __init__(self, connection: _socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._queue: list[tuple[bytes, list[int]]] = []

    @property
    def pending(self) -> bool:
        """Whether `flush` must be called when the socket can be written."""
        return bool(self._queue)

    def send(self, raw: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send or queue. The descriptors are duplicated at once, so the caller may close its own.

        Raises OSError when the other side is gone or has let the queue grow to its bound.
        """
        if len(self._queue) >= MAX_QUEUED:
            raise BlockingIOError(f"{MAX_QUEUED} datagrams wait and the other side does not read")
        if not self._queue and self._send_now(raw, descriptors):
            return
        copies: list[int] = []
        try:
            for descriptor in descriptors:
                copies.append(posix.dup(descriptor))
        except OSError:
            for copy in copies:
                posix.close(copy)
            raise
        self._queue.append((raw, copies))

    def flush(self) -> None:
        """Send what waits, as far as the other side takes it. Raises OSError when it is gone."""
        done = 0
        try:
            for raw, descriptors in self._queue:
                if not self._send_now(raw, descriptors):
                    break
                done += 1
                for descriptor in descriptors:
                    posix.close(descriptor)
        finally:
            del self._queue[:done]

    def receive(self) -> tuple[bytes, list[int]] | None:
        """One datagram and the descriptors that the caller now owns; None when nothing is there.

        Raises EOFError at the end.
        """
        while True:
            try:
                raw, ancillary, _, _ = self.socket.recvmsg(
                    MAX_BYTES, _socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), _socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                return None
            except ConnectionResetError:
                continue  # what was sent before the reset is still to be read
        descriptors: list[int] = []
        for level, kind, data in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                descriptors += array.array("i", data[: len(data) - len(data) % 4])
        if not raw:
            raise EOFError
        return raw, descriptors

    def close(self) -> None:
        """Close the socket and the descriptors that still waited."""
        for _, descriptors in self._queue:
            for descriptor in descriptors:
                posix.close(descriptor)
        self._queue.clear()
        self.socket.close()

    def _send_now(self, raw: bytes, descriptors: Sequence[int]) -> bool:
        rights = (
            [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        try:
            self.socket.sendmsg([raw], rights, _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        return True
