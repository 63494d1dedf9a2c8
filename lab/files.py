"""Writing and removing files so that no reader ever sees half of one."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from lab.errors import LabError


def write_atomic(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Put *text* at *path* in one step: a reader sees the old content or the new, never a mix."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def private_dir(path: Path) -> Path:
    """Make *path*, and make it readable by root only."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def remove_tree(path: Path, *, timeout_s: float = 5) -> None:
    """Remove a folder and all in it; fine if it is not there.

    Processes that were killed a moment ago may still write into it: blocks and tries again for
    at most *timeout_s* seconds, then raises LabError.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            if not path.exists():
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabError(f"cannot remove {path}: {error}") from error
        time.sleep(0.05)
