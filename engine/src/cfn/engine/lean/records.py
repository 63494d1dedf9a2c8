"""The records of the claims arenas (claims.py): 64 bytes for each agent of a request.

A slot goes OPEN -> CLAIMED -> ENDED, or OPEN -> FENCED. Every record carries the key of its request, so
an order that is late by a request finds that the slot is not its own any more. A record never
crosses a page, so that SIGKILL cannot tear its write.

    offset  size  field
         0     1  magic, 0xCF
         1     1  kind
         2     1  reason
         3     1  bytes of output inside this record
         4     4  process id of the writer
         8     8  key of the request
        16     4  exit code (ENDED), negative for a signal
        20     4  bytes of output in all; more than 24 are kept in a file of their own
        24     8  time of the write, ns on the monotonic clock
        32     4  zero
        36     4  CRC-32 of the record with this field as zero
        40    24  output, if it fits, else its first bytes
"""

from __future__ import annotations

import struct
import zlib

RECORD_BYTES = 64
INLINE_BYTES = 24

OPEN, CLAIMED, FENCED, ENDED = 1, 2, 3, 4

# Why an agent did not simply end with exit code 0; `reason_text` puts it in words.
NONE, EXIT, SIGNAL, TIMED_OUT, NO_COMMAND, STOPPED, NOT_STARTED = range(7)

_MAGIC = 0xCF
_LAYOUT = struct.Struct(f"<BBBBIQiIQII{INLINE_BYTES}s")
_CRC_AT = 36
_LAST_REASON = NOT_STARTED
_TEXTS = (
    "",
    "ended with exit code {}",
    "ended by signal {}",
    "timed out",
    "the agent command does not exist or cannot be executed",
    "stopped with its swarm",
    "the agent command could not be started",
)


class Record:
    """One decoded record. `output_bytes` counts the whole output, `inline` holds what fits of it."""

    __slots__ = ("at_ns", "exit_code", "inline", "key", "kind", "output_bytes", "pid", "reason")

    def __init__(
        self,
        kind: int,
        reason: int,
        pid: int,
        key: int,
        exit_code: int,
        output_bytes: int,
        at_ns: int,
        inline: bytes,
    ) -> None:
        self.kind = kind
        self.reason = reason
        self.pid = pid
        self.key = key
        self.exit_code = exit_code
        self.output_bytes = output_bytes
        self.at_ns = at_ns
        self.inline = inline


def encode(
    kind: int,
    key: int,
    *,
    pid: int = 0,
    at_ns: int = 0,
    reason: int = NONE,
    exit_code: int = 0,
    output: bytes = b"",
) -> bytes:
    """The record's 64 bytes. Raises struct.error for a field that does not fit."""
    inline = output[:INLINE_BYTES]
    head = (_MAGIC, kind, reason, len(inline), pid, key, exit_code, len(output), at_ns, 0)
    checksum = zlib.crc32(_LAYOUT.pack(*head, 0, inline))
    return _LAYOUT.pack(*head, checksum, inline)


def ticket(key: int) -> bytes:
    """The OPEN record of a request, the same in each of its slots: what a claim must find."""
    return encode(OPEN, key)


def decode(raw: bytes) -> Record | None:
    """Read one slot; None for what is no whole record."""
    if len(raw) != RECORD_BYTES:
        return None
    magic, kind, reason, inline, pid, key, code, output, at_ns, _, crc, data = _LAYOUT.unpack(raw)
    zeroed = raw[:_CRC_AT] + bytes(4) + raw[_CRC_AT + 4 :]
    if magic != _MAGIC or crc != zlib.crc32(zeroed) or inline > INLINE_BYTES:
        return None
    if not OPEN <= kind <= ENDED or reason > _LAST_REASON:
        return None
    return Record(kind, reason, pid, key, code, output, at_ns, data[:inline])


def reason_text(reason: int, exit_code: int | None) -> str:
    """What a result says about an agent's end; empty when there is nothing to say."""
    return _TEXTS[reason].format(abs(exit_code or 0))
