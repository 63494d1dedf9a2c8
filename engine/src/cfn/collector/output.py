"""Where samples go: one line more in the samples file, and the newest alone in tmpfs."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfn.config_follower import write_atomically

MAX_BYTES = 67_108_864  # some two months of samples a minute
MAX_AGE_S = 35 * 86_400.0  # the longest window is two weeks, and one may look back at it later
PARTS = 1  # path.1: with it, at least one whole age or size is there
MODE = 0o640


class SamplesFile:
    """The samples file at `path`, rotated by size and by the age of its first sample. Not for threads."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, max_age_s: float = MAX_AGE_S) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._began: tuple[int, float] | None = None  # inode, time of the first sample

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record in one write, and rotate the file first if it is full or old.

        Raises OSError; no part of a line is left behind.
        """
        line = json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        if self._is_over(float(record["timestamp"])):
            self._path.replace(self._path.with_name(f"{self._path.name}.{PARTS}"))
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            written = os.write(descriptor, line)
            if written < len(line):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(28, "No space left on device", str(self._path))
        finally:
            os.close(descriptor)

    def _is_over(self, now_s: float) -> bool:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        if status.st_size >= self._max_bytes:
            return True
        if self._began is None or self._began[0] != status.st_ino:
            self._began = (status.st_ino, _first_timestamp(self._path, status.st_mtime))
        return now_s - self._began[1] >= self._max_age_s


def _first_timestamp(path: Path, otherwise: float) -> float:
    """The time of a file's first sample; of a damaged one, `otherwise`."""
    with path.open("rb") as file:
        line = file.readline(1_048_576)
    try:
        return float(json.loads(line)["timestamp"])
    except (ValueError, KeyError, TypeError):
        return otherwise


def replace_latest(path: Path, record: Mapping[str, Any]) -> None:
    """Replace the newest sample: readers see the old one or the new one. Raises OSError."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, sort_keys=True, allow_nan=False) + "\n", mode=MODE)
