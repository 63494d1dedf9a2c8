"""Answers by task id, kept so that a repeated id starts nothing and a caller can ask again, also
after the router was killed.

One append-only journal: `TASK_ID begun {...}` before anything is started, `TASK_ID answer {...}` when
the task has ended, `TASK_ID forgotten {}` if nothing of it was started after all. Answers are read
back from the file; memory holds only where they are.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cfn.engine.log import log

MAX_FILE_BYTES = 128 * 1024 * 1024
MAX_ANSWERS = 200_000
_MAX_UNWRITTEN = 1_000
_LENGTH_BITS = 32
_LENGTH = (1 << _LENGTH_BITS) - 1


class AnswerStore:
    """The journal `path` and the one before it (`path`.1). A journal that holds MAX_ANSWERS answers or
    MAX_FILE_BYTES is followed by a fresh one, and what was in the one before is forgotten.

    Where an answer lies in its file is one number, offset and length: the garbage collector does not
    look at numbers, and 200,000 objects would make it stop the router for 30 ms.

    An answer that cannot be written (`lost` counts them) is kept in memory, as long as there are not
    too many of those. Nothing here raises for a full disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        self._places_before: dict[str, int] = {}
        self._unwritten: OrderedDict[str, bytes] = OrderedDict()
        self._begun: dict[str, dict[str, Any]] = {}
        self._descriptor = self._previous = -1
        self._size = 0
        self.lost = 0
        self.problem = ""
        self._open()

    def begun(self) -> dict[str, dict[str, Any]]:
        """What was begun and not answered, by task id: after a start, what a crash cut off."""
        return dict(self._begun)

    def begin(self, task_id: str, facts: dict[str, Any]) -> None:
        """Note a task before anything of it is started; again, with other facts, when it moves on."""
        self._begun[task_id] = facts
        self._append(task_id, b"begun", json.dumps(facts).encode())

    def forget(self, task_id: str) -> None:
        """A task of which nothing was started, if it was begun at all: its id may be used again."""
        if self._begun.pop(task_id, None) is not None:
            self._append(task_id, b"forgotten", b"{}")

    def put(self, task_id: str, answer: bytes) -> None:
        """Keep the answer (JSON without a newline) of a task that has ended."""
        self._begun.pop(task_id, None)
        place = self._append(task_id, b"answer", answer)
        if place is not None:
            self._places[task_id] = place
        else:
            self.lost += 1
            self._unwritten[task_id] = answer
            if len(self._unwritten) > _MAX_UNWRITTEN:
                self._unwritten.popitem(last=False)

    def get(self, task_id: str) -> bytes | None:
        """The answer as it was put, or None."""
        if task_id in self._unwritten:
            return self._unwritten[task_id]
        for descriptor, places in (
            (self._descriptor, self._places),
            (self._previous, self._places_before),
        ):
            place = places.get(task_id)
            if place is not None:
                return os.pread(descriptor, place & _LENGTH, place >> _LENGTH_BITS)
        return None

    def close(self) -> None:
        """Give the files back."""
        for descriptor in (self._descriptor, self._previous):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._previous = -1

    def _append(self, task_id: str, kind: bytes, value: bytes) -> int | None:
        head = task_id.encode() + b" " + kind + b" "
        line = head + value + b"\n"
        try:
            full = self._size + len(line) > MAX_FILE_BYTES or len(self._places) >= MAX_ANSWERS
            if self._descriptor < 0 or full:
                self._rotate()
            written = os.write(self._descriptor, line)
            if written < len(line):
                os.ftruncate(self._descriptor, self._size)
                raise OSError(28, "No space left on device")
        except OSError as error:
            if not self.problem:
                log("answers-not-kept", path=self._path, error=error)
            self.problem = f"{self._path} cannot be written: {error.strerror}"
            return None
        self.problem = ""
        place = _place(self._size + len(head), len(value))
        self._size += len(line)
        return place

    def _open(self) -> None:
        """Open or make the journal and read where its answers are. What cannot be read is left out."""
        open_tasks: dict[str, bytes] = {}
        try:
            previous = self._path.with_name(self._path.name + ".1")
            if previous.exists():
                self._previous = os.open(previous, os.O_RDONLY | os.O_CLOEXEC)
                _read(previous, self._places_before, open_tasks)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = _read(self._path, self._places, open_tasks)
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            log("answers-not-kept", path=self._path, error=error)
        for task_id, facts in open_tasks.items():
            with suppress(ValueError):  # a damaged line is no reason not to start
                self._begun[task_id] = json.loads(facts)

    def _rotate(self) -> None:
        if self._descriptor < 0:
            raise OSError(2, "the journal could not be opened")
        fresh_path = self._path.with_name(self._path.name + ".new")
        fresh = os.open(fresh_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        fresh_path.replace(self._path)
        if self._previous >= 0:
            os.close(self._previous)
        self._previous, self._places_before = self._descriptor, self._places
        self._descriptor, self._places, self._size = fresh, {}, 0
        for task_id, facts in self._begun.items():  # what runs for long must outlive two rotations
            self._append(task_id, b"begun", json.dumps(facts).encode())


def _read(path: Path, places: dict[str, int], open_tasks: dict[str, bytes]) -> int:
    """Index one file; returns the length of its whole lines (a crash may have cut the last)."""
    size = 0
    for line in _whole_lines(path):
        parts = line.split(b" ", 2)
        if len(parts) == 3:
            task_id, kind, value = parts[0].decode(errors="replace"), parts[1], parts[2]
            if kind == b"answer":
                places[task_id] = _place(size + len(line) - len(value), len(value) - 1)
                open_tasks.pop(task_id, None)
            elif kind == b"begun":
                open_tasks[task_id] = value
            elif kind == b"forgotten":
                open_tasks.pop(task_id, None)
        size += len(line)
    return size


def _place(offset: int, length: int) -> int:
    return offset << _LENGTH_BITS | length


def knows(path: Path, task_id: str) -> bool:
    """Whether the journal at `path`, or the one before it, knows a task, without opening a store. Reads
    them whole. Raises OSError if one is there and cannot be read."""
    head = task_id.encode() + b" "
    known = False
    for file in (path.with_name(path.name + ".1"), path):
        with suppress(FileNotFoundError):
            for line in _whole_lines(file):
                if line.startswith(head):
                    known = not line.startswith(head + b"forgotten ")
    return known


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
