"""The events file: one JSON line for each coordination and each generation, appended while serving."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cfn.engine.log import log


class EventLog:
    """Appends records to `path`, which may be rotated or removed at any time, and is rotated here (to
    `path`.1, .2, ...) when it has `max_bytes`; at most `parts` files are kept.

    A record that cannot be written is lost and counted: serving goes on (a full disk is the usual
    cause). Records are written in one call each and not synced: a crash of the router loses none,
    a crash of the host may lose the last seconds.
    """

    def __init__(self, path: Path, *, max_bytes: int = 256 << 20, parts: int = 16) -> None:
        self._path = path
        self._descriptor = -1
        self._file = (0, 0)
        self.max_bytes = max_bytes
        self.parts = parts
        self.lost = 0
        self.problem = ""

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record. Never raises; blocks for a write to the page cache."""
        line = json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            self._write(line)
            self.problem = ""
        except OSError as error:
            self.lost += 1
            if not self.problem:
                log("events-lost", path=self._path, error=error)
            self.problem = f"{self._path} cannot be written: {error.strerror}"

    def close(self) -> None:
        """Give the file back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, line: bytes) -> None:
        self._follow_rotation()
        if self._descriptor < 0:
            self._descriptor = os.open(
                self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640
            )
            mine = os.fstat(self._descriptor)
            self._file = (mine.st_dev, mine.st_ino)
        written = os.write(self._descriptor, line)
        if written < len(line):
            # Half a line would damage the next one too.
            with suppress(OSError):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(28, "No space left on device")

    def _follow_rotation(self) -> None:
        if self._descriptor < 0:
            return
        try:
            at_path = os.stat(self._path)  # noqa: PTH116 - once for each event, and cheaper
        except FileNotFoundError:
            self.close()
            return
        if (at_path.st_dev, at_path.st_ino) != self._file:
            self.close()
        elif at_path.st_size >= self.max_bytes:
            self.close()
            self._rotate()

    def _rotate(self) -> None:
        """Move each part up by one, as far as the first number that is free (a crash may have left one),
        and the oldest out."""
        number = 1
        while number < self.parts and self._part(number).exists():
            number += 1
        if number >= self.parts:
            self._part(self.parts - 1).unlink(missing_ok=True)
            number = self.parts - 1
        for free in range(number, 0, -1):
            self._part(free - 1).replace(self._part(free))

    def _part(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
