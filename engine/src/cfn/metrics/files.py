"""Reading JSON-lines files of any size, line by line, the rotated ones first.

The only I/O of the reduction. Memory is bounded: one line at a time, and no line above
MAX_LINE_BYTES is kept.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from os import fstat
from pathlib import Path
from typing import BinaryIO

MAX_LINE_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Line:
    """One line. `damage` is empty, `cut` (no newline at the end of a file) or `too_long`."""

    content: bytes
    damage: str = ""


def lines(path: Path) -> Iterator[Line]:
    """Every line of `path` and of its rotated parts (`path.1`, `path.2`, ...), the oldest part first.

    Empty lines are left out; a part that does not exist yields nothing. Raises OSError when a part
    cannot be read.
    """
    with ExitStack() as stack:
        for file in _open_parts(path, stack):
            while content := file.readline(MAX_LINE_BYTES):
                if content.endswith(b"\n"):
                    if content.strip():
                        yield Line(content)
                elif len(content) < MAX_LINE_BYTES:
                    yield Line(b"", "cut")
                else:
                    _skip_line(file)
                    yield Line(b"", "too_long")


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
        status = fstat(file.fileno())
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


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass
