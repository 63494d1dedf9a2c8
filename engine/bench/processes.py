"""The engine's processes as the kernel shows them: whose they are, their memory, their descriptors."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROLES = ("conductor", "coordinator", "spawner", "worker")
SPAWNER_MODULE = "cfn.engine.lean.spawner"
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `pid` is its number here, `inner_pid` the one that it has for itself (on its host)."""

    pid: int
    inner_pid: int
    role: str
    number: int = 0  # of a coordinator


def role(words: Sequence[str]) -> tuple[str, int]:
    """(daemon, number of a coordinator) from a command line; ("", 0) for another program.

    A daemon is started as `cfn NAME [NUMBER]` or `python -m cfn NAME [NUMBER]`; the spawner then
    becomes a leaner interpreter of one module. Workers are forked, and have its command line.
    """
    if any(SPAWNER_MODULE in word for word in words):
        return "spawner", 0
    names = [word.rpartition("/")[2] for word in words]
    for place, name in enumerate(names):
        following = names[place + 1 :]
        if name == "cfn" and following and following[0] in ROLES:
            return following[0], _number(following[1:])
    return "", 0


def _number(words: Sequence[str]) -> int:
    return int(words[0]) if words and words[0].isdigit() else 0


def find(namespace: int, environment: bytes, spawner: int) -> Iterator[Process]:
    """The processes of one engine: in the process-id namespace with this inode, with this line in
    their environment (empty: any). `spawner` is the spawner's own pid, as the engine says it."""
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, number = role((entry / "cmdline").read_bytes().decode(errors="replace").split("\0"))
            if not name or (entry / "ns/pid").stat().st_ino != namespace:
                continue
            if environment and environment not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            inner = inner_pid((entry / "status").read_text())
        except OSError:  # it ended meanwhile
            continue
        if name == "spawner" and inner != spawner:
            name = "worker"
        yield Process(int(entry.name), inner, name, number)


def inner_pid(status: str) -> int:
    """The process's id in its own namespace, from the text of /proc/PID/status."""
    line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(line.split()[-1])


def namespace(pid: int | str = "self") -> int:
    """The inode of a process's process-id namespace."""
    return (PROC / str(pid) / "ns/pid").stat().st_ino


def pss_bytes(pid: int) -> int | None:
    """Proportional set size: private memory and its share of what is shared; None if it has ended."""
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return None
    return pss_of(text)


def pss_of(smaps_rollup: str) -> int | None:
    """The Pss line of /proc/PID/smaps_rollup in bytes; None if there is none (a zombie has none)."""
    for line in smaps_rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1_024
    return None


def descriptors(pid: int) -> int | None:
    """Open file descriptors; None if the process has ended."""
    try:
        return len(os.listdir(PROC / str(pid) / "fd"))  # noqa: PTH208 - only a count is wanted
    except OSError:
        return None


def tree_bytes(folder: Path) -> int:
    """What the files below a folder take up, as allocated."""
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(path) / file).lstat().st_blocks * 512
            except OSError:
                continue
    return total
