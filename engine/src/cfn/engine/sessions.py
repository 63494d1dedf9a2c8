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
        # The name is in brackets and may hold anything; state, parent, group and session follow.
        state, _, _, session = text[text.rindex(")") + 2 :].split(" ", 4)[:4]
        if int(session) in sessions and state != "Z":
            found.append(int(entry.name))
    return found


def kill(sessions: Collection[int]) -> int:
    """SIGKILL the members of these sessions; how many there were."""
    leftovers = members(sessions)
    for pid in leftovers:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(leftovers)
