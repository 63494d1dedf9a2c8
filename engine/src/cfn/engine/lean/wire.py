"""Datagrams between a hub and its workers.

    ASSIGN   head: kind, 3 zeros, u32 index, u32 slot
             common: u64 epoch, u64 key, u32 bytes of meta, 64 bytes of ticket, meta, payload
    MESSAGE  head with zeros, u64 number
    STOP     head with zeros
    answers  kind, reason, 2 zeros, u32 index, u64 epoch, i32 exit code, u32 bytes of output, output

Little-endian. What all agents of a request are given alike (common) is made once. `meta` is text: its
fields are joined by NUL, which neither ids nor arguments can hold.
"""

from __future__ import annotations

import struct

from cfn.errors import DamagedError

MAX_DATAGRAM_BYTES = 200_000  # below the default send buffer of a Unix socket (212,992)

# Hub to worker: ASSIGN, MESSAGE, STOP. Worker to hub: the others. A RESULT acknowledges as well.
ASSIGN, MESSAGE, STOP, CLAIMED, RESULT, REFUSED, RECEIVED = range(1, 8)

_HEAD = struct.Struct("<B3xII")
_COMMON = struct.Struct("<QQI64s")
_NUMBER = struct.Struct("<Q")
_ANSWER = struct.Struct("<BB2xIQiI")
_BODY_AT = _HEAD.size + _COMMON.size


class Task:
    """What all agents of a request are given alike. `command` is empty for the built-in echo, `bus` is
    the socket for messages, `outputs` the folder for outputs that no record can hold, `slow_ms` a lab
    fault that delays the claim. Times in ms."""

    __slots__ = (
        "bus",
        "command",
        "max_output_bytes",
        "outputs",
        "slow_ms",
        "swarm_id",
        "task_id",
        "team",
        "timeout_ms",
    )

    def __init__(
        self,
        task_id: str,
        swarm_id: str,
        team: str,
        outputs: str,
        bus: str = "",
        timeout_ms: int = 0,
        max_output_bytes: int = 0,
        slow_ms: int = 0,
        command: tuple[str, ...] = (),
    ) -> None:
        self.task_id = task_id
        self.swarm_id = swarm_id
        self.team = team
        self.outputs = outputs
        self.bus = bus
        self.timeout_ms = timeout_ms
        self.max_output_bytes = max_output_bytes
        self.slow_ms = slow_ms
        self.command = command


class Assignment:
    """An ASSIGN, taken apart."""

    __slots__ = ("epoch", "index", "key", "payload", "slot", "task", "ticket")

    def __init__(
        self, index: int, slot: int, epoch: int, key: int, ticket: bytes, task: Task, payload: bytes
    ) -> None:
        self.index = index
        self.slot = slot
        self.epoch = epoch
        self.key = key
        self.ticket = ticket
        self.task = task
        self.payload = payload


def common(epoch: int, key: int, ticket: bytes, task: Task, payload: bytes) -> bytes:
    """The part of an ASSIGN that all agents of a request share."""
    fields = (
        task.task_id,
        task.swarm_id,
        task.team,
        task.outputs,
        task.bus,
        str(task.timeout_ms),
        str(task.max_output_bytes),
        str(task.slow_ms),
        *task.command,
    )
    meta = "\0".join(fields).encode()
    return _COMMON.pack(epoch, key, len(meta), ticket) + meta + payload


def head(index: int, slot: int) -> bytes:
    """The part of an ASSIGN that is one agent's own."""
    return _HEAD.pack(ASSIGN, index, slot)


def read_common(raw: bytes, at: int = 0) -> tuple[int, int, bytes, Task, bytes]:
    """The inverse of `common`, from an offset: epoch, key, ticket, task, payload. Raises DamagedError."""
    try:
        epoch, key, meta_bytes, ticket = _COMMON.unpack_from(raw, at)
        begins = at + _COMMON.size
        ends = begins + meta_bytes
        if ends > len(raw):
            raise ValueError(f"{meta_bytes} bytes are announced, {len(raw) - begins} came")
        fields = raw[begins:ends].decode().split("\0")
        task_id, swarm_id, team, outputs, bus, timeout_ms, max_output_bytes, slow_ms = fields[:8]
        task = Task(
            task_id,
            swarm_id,
            team,
            outputs,
            bus,
            int(timeout_ms),
            int(max_output_bytes),
            int(slow_ms),
            tuple(fields[8:]),
        )
    except (struct.error, ValueError) as error:
        raise DamagedError(f"not an assignment: {error}") from None
    return epoch, key, ticket, task, raw[ends:]


def read_assignment(raw: bytes) -> Assignment:
    """Take an ASSIGN apart. Raises DamagedError."""
    epoch, key, ticket, task, payload = read_common(raw, _HEAD.size)
    _, index, slot = _HEAD.unpack_from(raw)
    return Assignment(index, slot, epoch, key, ticket, task, payload)


def message(number: int) -> bytes:
    """A MESSAGE: the worker says that it has come."""
    return _HEAD.pack(MESSAGE, 0, 0) + _NUMBER.pack(number)


def message_number(raw: bytes) -> int:
    """The number of a MESSAGE; -1 for one without."""
    return int(_NUMBER.unpack_from(raw, _HEAD.size)[0]) if len(raw) >= _HEAD.size + _NUMBER.size else -1


def stop() -> bytes:
    """A STOP: end, and what runs with you."""
    return _HEAD.pack(STOP, 0, 0)


def answer(
    kind: int, index: int, epoch: int, *, reason: int = 0, exit_code: int = 0, output: bytes = b""
) -> bytes:
    """A worker's datagram. For RECEIVED `epoch` is the message's number."""
    return _ANSWER.pack(kind, reason, index, epoch, exit_code, len(output)) + output


def read_answer(raw: bytes) -> tuple[int, int, int, int, int, bytes]:
    """Take a worker's datagram apart: kind, reason, index, epoch, exit code, output. Raises DamagedError."""
    try:
        kind, reason, index, epoch, exit_code, output_bytes = _ANSWER.unpack_from(raw)
    except struct.error as error:
        raise DamagedError(f"not a worker's datagram: {error}") from None
    if output_bytes != len(raw) - _ANSWER.size or not CLAIMED <= kind <= RECEIVED or reason > 6:
        raise DamagedError(f"not a worker's datagram: kind {kind}, {len(raw)} bytes")
    return kind, reason, index, epoch, exit_code, raw[_ANSWER.size :]
