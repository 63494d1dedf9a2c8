"""Reading JSON-lines files of any size in pieces of whole lines, the rotated parts first.

The only I/O of the reduction. Memory is bounded: one piece at a time, and a line above
MAX_LINE_BYTES is never read. A piece begins where the one before ended, from the file's first byte,
so an append-only file has the same pieces whenever it is read and whatever it is called by then:
what a piece reduces to can be remembered by its content (cfn.metrics.memory).
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_LINE_BYTES = 1_048_576
PIECE_BYTES = 4_194_304  # some 9,000 events


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes of whole lines at `offset` of the open file `descriptor`.

    `damage` is what follows them: empty, `cut` (a last line without its newline) or `too_long` (a line
    that was skipped). `complete` is false while the file may still grow within the piece.
    """

    descriptor: int
    offset: int
    length: int
    damage: str = ""
    complete: bool = True

    def read(self) -> bytes:
        """The lines. Raises OSError; blocks for the disk. A file cut meanwhile gives fewer."""
        return os.pread(self.descriptor, self.length, self.offset)


def pieces(path: Path, stack: ExitStack) -> Iterator[Piece]:
    """Every piece of `path` and of its rotated parts (`path.1`, `path.2`, ...), the oldest part first.

    The files stay open until `stack` is closed. A part that does not exist yields nothing. Raises
    OSError when a part cannot be read.
    """
    for file in _open_parts(path, stack):
        yield from _pieces_of(file.fileno())


def _pieces_of(descriptor: int) -> Iterator[Piece]:
    size = os.fstat(descriptor).st_size
    offset = 0
    while offset < size:
        target = offset + PIECE_BYTES
        if target >= size:
            end, damage, rest = _last_end(descriptor, offset, size)
        else:
            end, damage, rest = _line_end(descriptor, target, size)
        complete = target < size or damage == "too_long"
        yield Piece(descriptor, offset, end - offset, damage, complete)
        offset = rest


def _line_end(descriptor: int, target: int, size: int) -> tuple[int, str, int]:
    """Where the line across `target` ends: the piece's end, damage, and the next piece's begin."""
    newline = os.pread(descriptor, MAX_LINE_BYTES, target).find(b"\n")
    if newline >= 0:
        return target + newline + 1, "", target + newline + 1
    begin = _newline_before(descriptor, target)
    if size - target < MAX_LINE_BYTES:
        return begin, "cut", size
    return begin, "too_long", _skip_line(descriptor, target, size)


def _last_end(descriptor: int, offset: int, size: int) -> tuple[int, str, int]:
    """As `_line_end`, for the last piece of a file."""
    begin = max(offset, _newline_before(descriptor, size))
    if begin == size:
        return size, "", size
    return begin, "cut" if size - begin < MAX_LINE_BYTES else "too_long", size


def _newline_before(descriptor: int, end: int) -> int:
    """The first byte of the line that `end` lies in."""
    while end > 0:
        begin = max(0, end - 65_536)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _skip_line(descriptor: int, offset: int, size: int) -> int:
    while offset < size:
        block = os.pread(descriptor, MAX_LINE_BYTES, offset)
        found = block.find(b"\n")
        if found >= 0:
            return offset + found + 1
        if not block:
            break
        offset += len(block)
    return size


def _open_parts(path: Path, stack: ExitStack) -> list[BinaryIO]:
    """The parts, oldest first, each once. The newest is opened first: a rotation meanwhile then shows
    the same file again under the next name, instead of hiding one."""
    files: list[BinaryIO] = []
    seen: set[tuple[int, int]] = set()
    for candidate in (path, *_rotated(path)):
        try:
            file = stack.enter_context(candidate.open("rb"))
        except FileNotFoundError:
            continue
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            files.append(file)
    return files[::-1]


def _rotated(path: Path) -> Iterator[Path]:
    """path.1, path.2, ... up to the first that does not exist (looked at only when asked for)."""
    number = 1
    while (part := path.with_name(f"{path.name}.{number}")).exists():
        yield part
        number += 1
