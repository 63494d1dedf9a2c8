"""Reading the daemons and the host: what does not answer gives None, quickly, and never 0."""

import json
import os
import socket
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cfn.errors import CfnError
from cfn.router.client import RouterClient

TIMEOUT_S = 1.0
MAX_ANSWER_BYTES = 1_048_576
STARTS_EVERY_S = 2.0  # systemctl costs some 10 ms; samples in between repeat what it said
UNITS = {
    "cfn-coordination.service": "conductor",
    "cfn-workers.service": "spawner",
    "cfn-router.service": "router",
}


def conductor_health(path: Path) -> dict[str, Any] | None:
    """The conductor's answer to `health`, or None. Blocks at most TIMEOUT_S."""
    deadline = time.monotonic() + TIMEOUT_S
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(b'{"verb":"health"}\n')
            answer = b""
            while b"\n" not in answer and len(answer) < MAX_ANSWER_BYTES:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                part = connection.recv(65_536)
                if not part:
                    break
                answer += part
        value = json.loads(answer.partition(b"\n")[0])
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def router_status(path: Path) -> dict[str, Any] | None:
    """The router's `/status`, or None. Blocks at most about TIMEOUT_S."""
    try:
        code, value = RouterClient(f"unix:{path}", timeout_s=TIMEOUT_S).get("/status")
    except CfnError:
        return None
    return value if code == 200 else None


def count(answer: dict[str, Any] | None, name: str) -> int | None:
    """A whole number of an answer, or None if there is no answer or no such number."""
    value = answer.get(name) if answer else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def tmpfs_used_pct(path: Path) -> float | None:
    """Used share of the file system that holds `path`, as `df` counts it."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    used = status.f_blocks - status.f_bfree
    return 100.0 * used / (used + status.f_bavail) if used + status.f_bavail else None


@dataclass(slots=True)
class Processes:
    """Reads memory and descriptors of the engine's processes; remembers their handles, since making
    one costs as much as a reading."""

    _known: dict[int, psutil.Process] = field(default_factory=dict)

    def read(self, conductor: int | None, spawner: int | None, router: int | None) -> tuple[int, int] | None:
        """Resident kB and open descriptors of the three daemons and the spawner's workers.

        None unless all three are known and readable: a sum that lacks a daemon is not the engine's.
        A worker that ends meanwhile is left out.
        """
        if not conductor or not spawner or not router:
            return None
        daemons = (conductor, spawner, router)
        pids = [*daemons, *_children(spawner)]
        self._known = {pid: process for pid, process in self._known.items() if pid in set(pids)}
        memory_kb = descriptors = 0
        for pid in pids:
            try:
                process = self._known.get(pid) or psutil.Process(pid)
                self._known[pid] = process
                with process.oneshot():
                    memory_kb += process.memory_info().rss // 1_024
                    descriptors += process.num_fds()
            except psutil.Error:
                self._known.pop(pid, None)
                if pid in daemons:
                    return None
        return memory_kb, descriptors


def _children(pid: int) -> list[int]:
    """The direct children. The kernel's own list costs one read; psutil would read every process."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        pass
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


@dataclass(slots=True)
class UnitStarts:
    """How often systemd started each unit by itself: 1 for the first start, and 1 for each automatic
    restart. A deliberate restart puts systemd's count back, so it is told from a crash."""

    _read_at_s: float = float("-inf")
    _starts: dict[str, int] | None = None

    def read(self) -> dict[str, int] | None:
        """Starts by process, of the units that systemd knows; None without systemd. Blocks up to 1 s."""
        now_s = time.monotonic()
        if now_s - self._read_at_s >= STARTS_EVERY_S:
            self._read_at_s = now_s
            self._starts = parse_starts(_systemctl_show())
        return self._starts


def parse_starts(text: str) -> dict[str, int] | None:
    """The `starts` of a sample from the output of `systemctl show`; None if it names no started unit."""
    starts = {}
    for block in text.split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = UNITS.get(fields.get("Id", ""))
        restarts = fields.get("NRestarts", "")
        if name and restarts.isdecimal() and fields.get("ActiveEnterTimestampMonotonic", "0") != "0":
            starts[name] = int(restarts) + 1
    return starts or None


def _systemctl_show() -> str:
    wanted = "--property=Id,NRestarts,ActiveEnterTimestampMonotonic"
    try:
        answer = subprocess.run(
            ["systemctl", "show", wanted, *UNITS],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
