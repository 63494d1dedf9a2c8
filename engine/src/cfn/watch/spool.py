"""A host's spool: what was done there that the ledger has not heard of. Written by root, in whole lines.

A guard notes that it fell back by itself; a way back that finds no control host notes its own record.
Whoever appends to the ledger next joins both (cfn.ledger.joining).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfn.ledger.backwards import last_line
from cfn.metrics import checks
from cfn.paths import Paths

MODE = 0o640
MAX_READ = 1_000


def place(tree: Paths) -> Path:
    """The file."""
    return tree.state / "watch" / "spool.jsonl"


def add(tree: Paths, line: Mapping[str, Any]) -> None:
    """Append a line, durably. Raises OSError."""
    path = place(tree)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    try:
        owner = path.parent.stat()
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        size = os.fstat(descriptor).st_size
        torn = b"\n" if last_line(descriptor, size) else b""  # by a crash: this line is not to end it
        os.write(descriptor, torn + json.dumps(dict(line)).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines(tree: Paths, last: int = MAX_READ) -> list[dict[str, Any]]:
    """The last lines, oldest first; none where there is no file, or nothing may be read."""
    try:
        text = place(tree).read_text().split("\n")[:-1]
    except OSError:
        return []
    found = []
    for line in text[-last:]:
        try:
            found.append(checks.load_object(line))
        except ValueError:
            continue  # torn by a crash
    return found
