"""Find and kill what a dead worker left behind: every worker leads a session of its own, and what
it ran stays in that session unless it made another one itself."""

import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path


def members(sessions: Collection[int], proc: Path = Path("/proc")) -> list[int]:
    """The live processes in these sessions, the leaders themselves left out. Reads all of /proc."""
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdigit() or int(entry.name) in sessions:
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue
        state, session = parse(text)
        if session in sessions and state != "Z":
            found.append(int(entry.name))
    return found


def parse(stat: str) -> tuple[str, int]:
    """A process's state letter and session, from its /proc/PID/stat."""
    # The name is in brackets and may hold anything; state, parent, group and session follow.
    state, _, _, session = stat[stat.rindex(")") + 2 :].split(" ", 4)[:4]
    return state, int(session)


def lives(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a process is there and has not ended (a zombie has)."""
    try:
        return parse((proc / str(pid) / "stat").read_text())[0] != "Z"
    except OSError:
        return False


def kill(sessions: Collection[int]) -> int:
    """SIGKILL the members of these sessions; how many there were."""
    leftovers = members(sessions)
    for pid in leftovers:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(leftovers)
