"""What may be removed: what has outlived its retention, and orphans of dead workers.

A running conductor knows what is in use and removes the rest itself (`Keeper`). Where none runs, and no
spawner either, nothing is live, and age alone decides (`sweep_deserted`).
"""

import fcntl
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cfn.engine.lean.sessions import lives
from cfn.paths import Paths

STRAY_S = 60.0  # what nobody claims may be about to be claimed: not removed before


@dataclass(slots=True, kw_only=True)
class Removed:
    """How much was removed."""

    requests: int = 0
    outputs: int = 0
    swarms: int = 0
    inboxes: int = 0
    processes: int = 0


class Keeper:
    """The conductor's own sweeps. `swarms` and `keys` say what is in use, `requests` removes segments of
    the journal by age and size. A swarm that is kept is in use, however old."""

    def __init__(
        self,
        paths: Paths,
        *,
        swarms: Callable[[], Collection[str]],
        keys: Callable[[], Collection[int]],
        requests: Callable[[float], int],
    ) -> None:
        self._paths = paths
        self._swarms = swarms
        self._keys = keys
        self._requests = requests

    def sweep(self, retention_s: float) -> Removed:
        """Remove what is older than `retention_s` and what nobody uses. Raises OSError."""
        removed = Removed()
        stray_s = min(STRAY_S, retention_s)
        keys = {f"{key:016x}" for key in self._keys()}
        for folder in _old(self._paths.outputs, stray_s):
            if folder.name not in keys:
                shutil.rmtree(folder, ignore_errors=True)
                removed.outputs += 1
        swarms = set(self._swarms())
        for folder in _old(self._paths.shm / "inboxes", stray_s):
            if folder.name not in swarms:
                shutil.rmtree(folder, ignore_errors=True)
                removed.inboxes += 1
        # Last: open requests of an old segment are written anew, which needs room.
        removed.requests = self._requests(retention_s)
        return removed


def sweep_deserted(paths: Paths, retention_s: float) -> Removed:
    """Remove what is older than `retention_s` where no daemon runs. Raises OSError."""
    removed = Removed()
    if not (_free(paths.shm / "conductor.lock") and _free(paths.run / "spawner.lock")):
        return removed
    for name in ("requests", "outputs", "swarms", "inboxes"):
        for entry in _old(paths.shm / name, retention_s):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
            setattr(removed, name, getattr(removed, name) + 1)
    return removed


def stale(paths: Paths, retention_s: float, swarms: Collection[str], *, live: bool) -> dict[str, list[Path]]:
    """What a sweep removes, by kind, as far as the files tell: of what a running request holds (`live`: a
    conductor runs) only it knows. `swarms` are in use."""
    stray_s = min(STRAY_S, retention_s) if live else retention_s
    found = {
        "requests": [entry for entry in _old(paths.shm / "requests", retention_s) if entry.stat().st_size],
        "outputs": list(_old(paths.outputs, stray_s)),
        "swarms": [] if live else list(_old(paths.shm / "swarms", retention_s)),
        "inboxes": list(_old(paths.shm / "inboxes", stray_s)),
    }
    found["inboxes"] = [entry for entry in found["inboxes"] if entry.name not in swarms]
    return found


def size_bytes(entry: Path) -> int:
    """The bytes of a file, or of all files below a folder; 0 for what is gone."""
    total = 0
    for path in [entry, *(entry.rglob("*") if entry.is_dir() else ())]:
        with suppress(OSError):
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _old(folder: Path, age_s: float) -> Iterator[Path]:
    if not folder.is_dir() or folder.is_symlink():
        return
    oldest_s = time.time() - age_s
    for entry in list(folder.iterdir()):
        with suppress(FileNotFoundError):  # somebody else was faster
            if entry.lstat().st_mtime < oldest_s:
                yield entry


def _free(lock: Path) -> bool:
    """Whether no daemon holds this lock (guard.one_at_a_time). Not for the process that may hold it itself:
    closing the file would end that."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def kill_orphans(paths: Paths, *, check: bool = False) -> int:
    """Kill what an agent command left when its worker died and no spawner was there to do it; how many.
    With `check` they are only counted."""
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
            if not check:
                os.kill(int(entry.name), signal.SIGKILL)
            killed += 1
        except (OSError, ValueError):
            continue
    return killed


def describe(removed: Removed) -> str:
    """One line for people and the journal."""
    return " ".join(f"{name}={getattr(removed, name)}" for name in Removed.__slots__)
