"""File locks that end with the process that holds them, however it ends."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Lock the file *path* without waiting; its descriptor, or None if another holds it.

    The caller closes the descriptor. A lock file may be removed by its holder: one that is no
    longer at *path* once locked is let go and opened again.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        try:
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


@contextmanager
def locked(
    path: Path, *, timeout_s: float, what: str, waiting: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Hold the lock *path*; yields its descriptor.

    Blocks for at most *timeout_s* seconds, calling *waiting* about five times a second, then
    raises LabError saying that *what* is in use.
    """
    deadline = time.monotonic() + timeout_s
    while (fd := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise LabError(
                f"{what} is in use by another lab command (lock {path}, waited "
                f"{timeout_s:.0f} s): let it end, then run this again"
            )
        waiting()
        time.sleep(0.2)
    try:
        yield fd
    finally:
        os.close(fd)
