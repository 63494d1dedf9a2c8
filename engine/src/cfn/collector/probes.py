"""Asking the daemons and systemd: what does not answer gives None, quickly, and never 0."""

import json
import math
import os
import re
import socket
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_COORDINATOR = re.compile(r"cfn-coordinator@([0-9]{1,3})\.service")


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


def count(answer: dict[str, Any] | None, *names: str) -> int | None:
    """A whole number of an answer, by the names that lead to it; None if there is no such number."""
    value = number(answer, *names)
    return int(value) if value is not None and value == int(value) else None


def number(answer: object, *names: str) -> float | None:
    """A finite number of an answer that is not negative, by the names that lead to it, or None."""
    value = answer
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) and value >= 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """One coordinator as the conductor sees it; None for what its health does not say."""

    name: str
    state: str
    pid: int | None
    agents: int | None
    queue_depth: int | None
    response_time_ms: float | None


def coordinators(health: dict[str, Any] | None) -> list[Coordinator] | None:
    """The coordinators in a health answer; None without an answer, or in a flat topology."""
    listed = health.get("coordinators") if health else None
    if not isinstance(listed, list):
        return None
    return [
        Coordinator(
            name=str(each.get("id")),
            state=str(each.get("state")),
            pid=count(each, "pid"),
            agents=count(each, "agents"),
            queue_depth=count(each, "queue_depth"),
            response_time_ms=number(each, "response_time_ms"),
        )
        for each in listed
        if isinstance(each, dict)
    ]


def tmpfs_used(path: Path) -> tuple[float, float] | None:
    """Used share in percent, as `df` counts it, and used MB of the file system that holds `path`."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    used = status.f_blocks - status.f_bfree
    if not used + status.f_bavail:
        return None
    return 100.0 * used / (used + status.f_bavail), used * status.f_frsize / 1_048_576


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
        name = _unit_name(fields.get("Id", ""))
        restarts = fields.get("NRestarts", "")
        if name and restarts.isdecimal() and fields.get("ActiveEnterTimestampMonotonic", "0") != "0":
            starts[name] = int(restarts) + 1
    return starts or None


def _unit_name(unit: str) -> str | None:
    match = _COORDINATOR.fullmatch(unit)
    return f"coordinator-{match[1]}" if match else UNITS.get(unit)


def _systemctl_show() -> str:
    wanted = "--property=Id,NRestarts,ActiveEnterTimestampMonotonic"
    try:
        answer = subprocess.run(
            ["systemctl", "show", wanted, *UNITS, "cfn-coordinator@*.service"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
