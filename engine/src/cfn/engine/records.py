"""The records of a request's claims file: 64 bytes each, two slots for each agent.

The first slot holds CLAIMED (an agent's process took the task) or FENCED (nobody ever will); the
second holds ENDED. A record never crosses a page, so that SIGKILL cannot tear its write.

    offset  size  field
         0     1  magic, 0xCF
         1     1  kind
         2     1  reason
         3     1  bytes of output inside this record
         4     4  index of the agent in the request
         8     8  epoch of the assignment
        16     4  exit code (ENDED), negative for a signal
        20     4  process id of the writer
        24     8  time of the write, ns on the monotonic clock
        32     4  bytes of output in all; more than 24 are kept in a file of their own
        36     4  CRC-32 of the record with this field as zero
        40    24  output, if it fits
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

RECORD_BYTES = 64
SLOT_BYTES = 2 * RECORD_BYTES
INLINE_BYTES = 24

_MAGIC = 0xCF
_LAYOUT = struct.Struct(f"<BBBBIQiIQII{INLINE_BYTES}s")
_CRC_AT = 36
_EMPTY = bytes(RECORD_BYTES)


class Kind(IntEnum):
    """What a record says."""

    CLAIMED = 1
    FENCED = 2
    ENDED = 3


class Reason(IntEnum):
    """Why an agent did not simply end with exit code 0; `reason_text` puts it in words."""

    NONE = 0
    EXIT = 1
    SIGNAL = 2
    TIMED_OUT = 3
    NO_COMMAND = 4
    STOPPED = 5
    NOT_STARTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One decoded record. `output_bytes` counts the whole output, `inline` holds it if it fits."""

    kind: Kind
    index: int
    epoch: int
    pid: int
    at_ns: int
    reason: Reason = Reason.NONE
    exit_code: int = 0
    output_bytes: int = 0
    inline: bytes = b""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A slot that holds neither zeros nor a whole record. It counts as claimed: never run again."""


def encode(record: Record) -> bytes:
    """The record's 64 bytes. Raises struct.error for a field that does not fit."""
    fields = (
        _MAGIC,
        record.kind,
        record.reason,
        len(record.inline),
        record.index,
        record.epoch,
        record.exit_code,
        record.pid,
        record.at_ns,
        record.output_bytes,
    )
    checksum = zlib.crc32(_LAYOUT.pack(*fields, 0, record.inline))
    return _LAYOUT.pack(*fields, checksum, record.inline)


def decode(raw: bytes) -> Record | Damaged | None:
    """Read one slot half: None when it was never written."""
    if raw == _EMPTY or not raw:
        return None
    if len(raw) != RECORD_BYTES:
        return Damaged()
    magic, kind, reason, inline, index, epoch, code, pid, at_ns, output, crc, data = _LAYOUT.unpack(raw)
    zeroed = raw[:_CRC_AT] + bytes(4) + raw[_CRC_AT + 4 :]
    if magic != _MAGIC or crc != zlib.crc32(zeroed) or inline > INLINE_BYTES:
        return Damaged()
    try:
        return Record(
            kind=Kind(kind),
            reason=Reason(reason),
            index=index,
            epoch=epoch,
            exit_code=code,
            pid=pid,
            at_ns=at_ns,
            output_bytes=output,
            inline=data[:inline],
        )
    except ValueError:
        return Damaged()


def reason_text(reason: Reason, exit_code: int) -> str:
    """What a result says about an agent's end; empty when there is nothing to say."""
    return {
        Reason.NONE: "",
        Reason.EXIT: f"ended with exit code {exit_code}",
        Reason.SIGNAL: f"ended by signal {-exit_code}",
        Reason.TIMED_OUT: "timed out",
        Reason.NO_COMMAND: "the agent command does not exist or cannot be executed",
        Reason.STOPPED: "stopped with its swarm",
        Reason.NOT_STARTED: "the agent command could not be started",
    }[reason]
