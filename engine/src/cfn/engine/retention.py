"""What may be removed: results, journals, swarms past their retention, and orphans of dead workers.

Nothing live is touched. A request in the journal belongs to the conductor, which completes it; only
what it never accepted, or what no daemon has come back for within the retention, is removed here.
"""

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cfn.engine.lean.sessions import lives
from cfn.paths import Paths


@dataclass(slots=True, kw_only=True)
class Removed:
    """How much was removed."""

    results: int = 0
    journals: int = 0
    swarms: int = 0
    inboxes: int = 0
    processes: int = 0


def sweep(paths: Paths, retention_s: float, now_s: float) -> Removed:
    """Remove what is older than `retention_s` at `now_s` (seconds since 1970). Raises OSError."""
    removed = Removed()
    deserted = _free(paths.shm / "conductor.lock") and _free(paths.run / "spawner.lock")
    for file in _old(paths.shm / "results", retention_s, now_s):
        file.unlink(missing_ok=True)
        removed.results += 1
    for folder in _old(paths.shm / "journal", retention_s, now_s):
        if deserted or not (folder / "accept.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            removed.journals += 1
    for file in _old(paths.shm / "swarms", retention_s, now_s):
        if deserted:
            file.unlink(missing_ok=True)
            removed.swarms += 1
    for folder in _old(paths.shm / "inboxes", retention_s, now_s):
        if not (paths.shm / "swarms" / f"{folder.name}.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            removed.inboxes += 1
    removed.processes = _kill_orphans(paths)
    return removed


def _old(folder: Path, retention_s: float, now_s: float) -> Iterator[Path]:
    if not folder.is_dir() or folder.is_symlink():
        return
    for entry in list(folder.iterdir()):
        with suppress(FileNotFoundError):  # somebody else was faster
            if now_s - entry.lstat().st_mtime > retention_s:
                yield entry


def _free(lock: Path) -> bool:
    """Whether no daemon holds this lock."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _kill_orphans(paths: Paths) -> int:
    """Kill what an agent command left when its worker died and no spawner was there to do it."""
    killed = 0
    root = os.fsencode(paths.root)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "environ").read_bytes().split(b"\0")
            environment = dict(word.split(b"=", 1) for word in words if b"=" in word)
            worker = int(environment.get(b"CFN_WORKER_PID", b"0"))
            ours = environment.get(b"CFN_ROOT", b"/") == root
            if not worker or not ours or os.getsid(int(entry.name)) != worker:
                continue  # not an agent's, another installation's, or it left its session on purpose
            if lives(worker):
                continue
            os.kill(int(entry.name), signal.SIGKILL)
            killed += 1
        except (OSError, ValueError):
            continue
    return killed


def describe(removed: Removed) -> str:
    """One line for people and the journal."""
    return " ".join(f"{name}={getattr(removed, name)}" for name in Removed.__slots__)
