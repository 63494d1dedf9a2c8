"""Datagrams between a hub and its workers: a fixed header, a small JSON part, raw bytes.

offset  size  field
     0     1  kind
     1     3  zero
     4     4  index of the agent in the request
     8     8  epoch of the assignment; for messages, the message's number
    16     4  bytes of the JSON part
    20        JSON part, then the raw bytes (payload, output or body) to the datagram's end
"""

import json
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from cfn.engine.claims import Ended
from cfn.engine.records import Reason
from cfn.errors import DamagedError

MAX_DATAGRAM_BYTES = 200_000  # below the default send buffer of a Unix socket (212,992)

_HEADER = struct.Struct("<B3xIQI")


class Kind(IntEnum):
    """Hub to worker: ASSIGN, MESSAGE, STOP. Worker to hub: CLAIMED, RESULT, REFUSED, RECEIVED."""

    ASSIGN = 1
    MESSAGE = 2
    STOP = 3
    CLAIMED = 4
    RESULT = 5
    REFUSED = 6  # somebody else claimed it, or it is fenced: the hub looks at the slot itself
    RECEIVED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What all agents of a request are given alike. `command` is empty for the built-in echo.
    Times in ms; `slow_ms` is a lab fault that delays the claim."""

    task_id: str
    folder: str
    swarm_id: str
    team: str
    command: tuple[str, ...]
    timeout_ms: int
    max_output_bytes: int
    slow_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One datagram, taken apart as far as every kind has it."""

    kind: Kind
    index: int = 0
    epoch: int = 0
    meta: bytes = b""
    body: bytes = b""


def decode(raw: bytes) -> Frame:
    """Take a datagram apart. Raises DamagedError for anything that is none."""
    try:
        kind, index, epoch, meta_bytes = _HEADER.unpack_from(raw)
        end = _HEADER.size + meta_bytes
        if end > len(raw):
            raise ValueError(f"{meta_bytes} bytes are announced, {len(raw)} came")
        return Frame(kind=Kind(kind), index=index, epoch=epoch, meta=raw[_HEADER.size : end], body=raw[end:])
    except (struct.error, ValueError) as error:
        raise DamagedError(f"not a datagram of this protocol: {error}") from error


def encode(kind: Kind, *, index: int = 0, epoch: int = 0, meta: bytes = b"", body: bytes = b"") -> bytes:
    """One datagram."""
    return _HEADER.pack(kind, index, epoch, len(meta)) + meta + body


def header(kind: Kind, index: int, epoch: int, meta_bytes: int) -> bytes:
    """The first part of a datagram whose other parts are shared by many."""
    return _HEADER.pack(kind, index, epoch, meta_bytes)


def message_meta(kind: str) -> bytes:
    """The JSON part of a MESSAGE."""
    return json.dumps({"type": kind}).encode()


def task_meta(task: Task) -> bytes:
    """The JSON part of an ASSIGN, made once for all agents of a request."""
    return json.dumps(asdict(task)).encode()


def task_from(frame: Frame) -> Task:
    """The task of an ASSIGN. Raises DamagedError."""
    value = _meta(frame)
    try:
        return Task(**{**value, "command": tuple(value["command"])})
    except (KeyError, TypeError) as error:
        raise DamagedError(f"not a task: {error!r}") from error


def result(index: int, epoch: int, ended: Ended) -> bytes:
    """A RESULT datagram."""
    meta = json.dumps({"reason": ended.reason, "exit_code": ended.exit_code}).encode()
    return encode(Kind.RESULT, index=index, epoch=epoch, meta=meta, body=ended.output)


def ended_from(frame: Frame) -> Ended:
    """The end that a RESULT carries. Raises DamagedError."""
    value = _meta(frame)
    try:
        code = value["exit_code"]
        return Ended(
            reason=Reason(value["reason"]), exit_code=None if code is None else int(code), output=frame.body
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"not a result: {error!r}") from error


def _meta(frame: Frame) -> dict[str, Any]:
    try:
        value = json.loads(frame.meta)
    except ValueError as error:
        raise DamagedError(f"a datagram's JSON part cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError("a datagram's JSON part is no object")
    return value
