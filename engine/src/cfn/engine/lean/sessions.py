"""Find and kill what a dead worker left behind: every worker leads a session of its own, and what
it ran stays in that session unless it made another one itself."""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_SIGKILL = 9


def members(sessions: Collection[int], proc: str = "/proc") -> list[int]:
    """The live processes in these sessions, the leaders themselves left out. Reads all of /proc."""
    found = []
    for name in posix.listdir(proc):
        if not name.isdigit() or int(name) in sessions:
            continue
        try:
            state, session = parse(_stat(proc, name))
        except OSError:
            continue
        if session in sessions and state != "Z":
            found.append(int(name))
    return found


def parse(stat: str) -> tuple[str, int]:
    """A process's state letter and session, from its /proc/PID/stat."""
    # The name is in brackets and may hold anything; state, parent, group and session follow.
    state, _, _, session = stat[stat.rindex(")") + 2 :].split(" ", 4)[:4]
    return state, int(session)


def lives(pid: int, proc: str = "/proc") -> bool:
    """Whether a process is there and has not ended (a zombie has)."""
    try:
        return parse(_stat(proc, str(pid)))[0] != "Z"
    except OSError:
        return False


def kill(sessions: Collection[int]) -> int:
    """SIGKILL the members of these sessions; how many there were."""
    leftovers = members(sessions)
    for pid in leftovers:
        try:
            posix.kill(pid, _SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    return len(leftovers)


def _stat(proc: str, name: str) -> str:
    descriptor = posix.open(f"{proc}/{name}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(descriptor, 4_096).decode(errors="replace")
    finally:
        posix.close(descriptor)
