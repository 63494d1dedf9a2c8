"""Whole files in tmpfs."""

import os
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Put `text` at `path` in one step: readers see the old text or the new one, never a torn one.

    No fsync: tmpfs has no disk. Raises OSError without room; the old text is left then.
    """
    temporary = path.with_name(f".{path.name[:200]}.new")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640
    )
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
