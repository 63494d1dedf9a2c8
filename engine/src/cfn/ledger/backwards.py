"""Lines of a file from its end, in pieces: the last record of a large ledger costs one read."""

import os
from collections.abc import Iterator

BLOCK_BYTES = 65_536


def last_line(descriptor: int, end: int) -> bytes:
    """What follows the last newline before `end`: empty if a newline is the last byte."""
    begin, tail = end, b""
    while begin > 0 and b"\n" not in tail:
        step = min(BLOCK_BYTES, begin)
        begin -= step
        tail = os.pread(descriptor, step, begin) + tail
    return tail[tail.rfind(b"\n") + 1 :]


def lines_backwards(descriptor: int, end: int) -> Iterator[bytes]:
    """Whole lines without their newline, the last first. `end` must follow a newline, or be 0."""
    pieces: list[bytes] = []  # of the line that is being put together, last piece first
    position = max(0, end - 1)
    while position > 0:
        step = min(BLOCK_BYTES, position)
        position -= step
        first, *lines = os.pread(descriptor, step, position).split(b"\n")
        for line in reversed(lines):
            pieces.append(line)
            yield b"".join(reversed(pieces))
            pieces = []
        pieces.append(first)
    if end > 0:
        yield b"".join(reversed(pieces))
