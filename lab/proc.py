"""Running programs, and looking at and ending processes without mistaking one for another."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError


def run(argv: Sequence[str], *, timeout_s: float = 60) -> str:
    """Run *argv* to its end and return its standard output.

    Blocks for at most *timeout_s* seconds. Raises LabError with the command, its exit code and
    the end of what it printed to standard error.
    """
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(argv)}` did not end within {timeout_s:.0f} s") from error
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed: run `python -m lab doctor`") from error
    if done.returncode != 0:
        detail = done.stderr.strip()[-600:] or "it printed nothing"
        raise LabError(f"`{' '.join(argv)}` failed with exit code {done.returncode}: {detail}")
    return done.stdout


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot; None if there is no such process.

    A process id with its start time is unique; a process id alone is reused.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name is in parentheses and may hold anything: count from the last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def started_at(pid: int) -> float | None:
    """When a process began, in seconds since the epoch; None if there is no such process."""
    ticks = start_time(pid)
    if ticks is None:
        return None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def is_namespace_init(pid: int) -> bool:
    """Is *pid* the first process of a process-id namespace just below this one?"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            ids = line.split()[1:]
            return len(ids) == 2 and ids[1] == "1"
    return False


def kill(pid: int, expected_start: int | None) -> bool:
    """Send SIGKILL to *pid* if it still is the process that began at *expected_start*.

    A pidfd is opened before the check, so the id cannot be reused between the two.
    Returns whether a signal was sent.
    """
    if expected_start is None:
        return False
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if start_time(pid) != expected_start:
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True
