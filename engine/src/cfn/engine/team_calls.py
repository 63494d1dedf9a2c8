"""What crosses the socket between conductor and coordinator: a JSON head and raw bytes behind it.

    u32 bytes of the head | head | tail

The conductor's heads are {"do": CALL, "ask": N, ...}; a coordinator answers with the same `ask`, more
than once where a call has more than one answer. What is longer than a datagram comes in several, all
but the last with {"ask": N, "more": true}. Without an `ask`: hello, welcome, heartbeat.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

from cfn.engine.lean.control import Channel
from cfn.errors import CfnError, DamagedError

MAX_TAIL_BYTES = 150_000
MAX_HEAD_BYTES = 195_000

# What handling a call raises whose fields are not what they should be.
MALFORMED = (CfnError, AttributeError, KeyError, OverflowError, TypeError, ValueError, struct.error)

_PREFIX = struct.Struct("<I")


def send(channel: Channel, head: Mapping[str, Any], tail: bytes = b"") -> None:
    """Send or queue one message, in as many datagrams as it takes. Raises OSError when the other side
    is gone or does not read."""
    while len(tail) > MAX_TAIL_BYTES:
        channel.send(encode({"ask": head.get("ask", 0), "more": True}, tail[:MAX_TAIL_BYTES]))
        tail = tail[MAX_TAIL_BYTES:]
    channel.send(encode(head, tail))


def encode(head: Mapping[str, Any], tail: bytes = b"") -> bytes:
    """One datagram."""
    raw = json.dumps(head, separators=(",", ":")).encode()
    return _PREFIX.pack(len(raw)) + raw + tail


def decode(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Take a datagram apart. Raises DamagedError."""
    try:
        (size,) = _PREFIX.unpack_from(raw)
        ends = _PREFIX.size + size
        if ends > len(raw):
            raise ValueError(f"{size} bytes are announced, {len(raw) - _PREFIX.size} came")
        head = json.loads(raw[_PREFIX.size : ends])
    except (struct.error, ValueError, RecursionError) as error:
        raise DamagedError(f"not a call: {error}") from None
    if not isinstance(head, dict):
        raise DamagedError("not a call: no object")
    return head, raw[ends:]


class Parts:
    """Puts tails together that came in several datagrams."""

    def __init__(self) -> None:
        self._begun: dict[int, bytearray] = {}

    def add(self, head: Mapping[str, Any], tail: bytes) -> bytes | None:
        """The whole tail, or None while more is to come."""
        ask = head.get("ask", 0)
        if head.get("more"):
            self._begun.setdefault(ask, bytearray()).extend(tail)
            return None
        begun = self._begun.pop(ask, None)
        return tail if begun is None else bytes(begun) + tail
