"""Where samples go: one line more in the samples file, and the newest alone in tmpfs."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfn.config_follower import write_atomically

MAX_BYTES = 67_108_864  # some five months of samples a minute; the part before is kept as path.1
MODE = 0o640


def append(path: Path, record: Mapping[str, Any], *, max_bytes: int = MAX_BYTES) -> None:
    """Add a record in one write, and rotate the file first if it has reached `max_bytes`.

    Raises OSError; no part of a line is left behind.
    """
    line = json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    try:
        if path.stat().st_size >= max_bytes:
            path.replace(path.with_name(f"{path.name}.1"))
    except FileNotFoundError:
        pass
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(28, "No space left on device", str(path))
    finally:
        os.close(descriptor)


def replace_latest(path: Path, record: Mapping[str, Any]) -> None:
    """Replace the newest sample: readers see the old one or the new one. Raises OSError."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, sort_keys=True, allow_nan=False) + "\n", mode=MODE)
