# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""The checks of a host before a stage: what was found against what is required.

`judge` is pure: facts in, findings out. `gather` reads the host and changes nothing.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024

# Where a unit of systemd looks for programs, which need not be where a login shell does.
SERVICE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Finding:
    """One check. `level` is `required` (stops a rollout) or `advice`; `remedy` says what to do."""

    check: str
    found: str
    required: str
    ok: bool
    level: str
    remedy: str


def gather() -> dict[str, Any]:
    """Read the host. Absent figures are None, and fail their check. Blocks for some milliseconds."""
    return {
        "shm_total_mb": _shm_mb("f_blocks"),
        "shm_free_mb": _shm_mb("f_bavail"),
        "shm_folder": _shm_folder(Path("/dev/shm/cfn")),  # noqa: S108 - the place that is checked
        "nofile": _hard_limit("Max open files"),
        "memory_total_mb": _meminfo_mb("MemTotal"),
        "cores": os.cpu_count(),
        "bash_version": _version(["bash", "--version"]),
        "systemd_version": _version(["systemctl", "--version"]),
        "python_version": platform.python_version(),
        "machine": platform.machine(),
        "programs_missing": [
            name for name in ("socat", "base64") if shutil.which(name, path=SERVICE_PATH) is None
        ],
        "environment": _environment(Path("/etc/cfn/config.sh")),
        "opt_free_mb": _free_mb("/opt"),
        "log_free_mb": _free_mb("/var/log"),
    }


def judge(facts: Mapping[str, Any], needs: Mapping[str, Any]) -> list[Finding]:
    """Hold the facts against a stage's needs; every check is answered, good or bad.

    `needs`: shm_mb, nofile, memory_mb, memory_level, cores, bash_major, systemd_version,
    python_version, opt_free_mb, log_free_mb, and as wanted environment. `memory_level` says whether memory is
    required or advice; cores are advice; all else is required.
    """
    shm, nofile = needs["shm_mb"], needs["nofile"]
    return [
        _at_least(
            facts, "shm_total_mb", shm, "MB", f"mount -o remount,size={shm}M /dev/shm, and in /etc/fstab"
        ),
        _at_least(facts, "shm_free_mb", shm // 2, "MB", "remove what fills /dev/shm: du -xsh /dev/shm/*"),
        _at_least(
            facts, "nofile", nofile, "files", f"set DefaultLimitNOFILE={nofile} in /etc/systemd/system.conf"
        ),
        _at_least(
            facts,
            "memory_total_mb",
            needs["memory_mb"],
            "MB",
            "add memory to the host",
            needs["memory_level"],
        ),
        _at_least(facts, "cores", needs["cores"], "cores", "add cores to the host", "advice"),
        _version_at_least(
            facts, "bash_version", f"{needs['bash_major']}.0", "install bash 4 or newer first on PATH"
        ),
        _version_at_least(facts, "systemd_version", needs["systemd_version"], "upgrade systemd"),
        _same_python(facts, needs["python_version"]),
        _equal(facts, "machine", "x86_64", "use a host of this architecture"),
        _equal(facts, "programs_missing", [], "install the packages of these programs"),
        _equal(facts, "shm_folder", "fit", "remove /dev/shm/cfn if nothing of yours is in it"),
        *_same_environment(facts, needs.get("environment", "")),
        _at_least(facts, "opt_free_mb", needs["opt_free_mb"], "MB", "free space in /opt"),
        _at_least(facts, "log_free_mb", needs["log_free_mb"], "MB", "free space in /var/log"),
    ]


def _shown(value: object, unit: str) -> str:
    return (
        "nothing readable"
        if value is None
        else f"{value:g} {unit}"
        if isinstance(value, float)
        else f"{value} {unit}"
    )


def _at_least(
    facts: Mapping[str, Any], name: str, required: float, unit: str, remedy: str, level: str = "required"
) -> Finding:
    found = facts[name]
    ok = found is not None and found >= required
    return Finding(name, _shown(found, unit), f"at least {required} {unit}", ok, level, remedy)


def _equal(facts: Mapping[str, Any], name: str, required: object, remedy: str) -> Finding:
    def words(value: object) -> str:
        return (", ".join(value) or "none") if isinstance(value, list) else str(value)

    found = facts[name]
    return Finding(name, words(found), words(required), found == required, "required", remedy)


def _version_at_least(facts: Mapping[str, Any], name: str, required: str, remedy: str) -> Finding:
    found = facts[name]
    ok = found is not None and _numbers(found) >= _numbers(required)
    return Finding(name, found or "not found", f"at least {required}", ok, "required", remedy)


def _same_python(facts: Mapping[str, Any], required: str) -> Finding:
    found = facts["python_version"]
    ok = _numbers(found)[:2] == _numbers(required)[:2]
    return Finding(
        "python_version", found, f"{required}, which the artifact was built for", ok, "required",
        f"install Python {required}, or build the artifact with the host's Python",
    )  # fmt: skip


def _same_environment(facts: Mapping[str, Any], required: str) -> list[Finding]:
    """A host that belongs to another environment would be changed by both."""
    found = facts.get("environment", "")
    if not required or not found:
        return []
    return [
        Finding(
            "environment", found, required, found == required, "required",
            "take the host out of one of the two inventories; if it has moved, remove its /etc/cfn/config.sh",
        )
    ]  # fmt: skip


def _environment(path: Path) -> str:
    """The environment that a deployed configuration names; empty where there is none."""
    try:
        found = re.findall(r"(?m)^(?:export +)?CFN_ENVIRONMENT=[\"']?([^\"'#\s]*)", path.read_text())
    except (OSError, UnicodeDecodeError):
        return ""
    return str(found[-1]) if found else ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", version)]


def _version(argv: list[str]) -> str | None:
    try:
        output = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=10,
            env={"PATH": SERVICE_PATH, "LC_ALL": "C"},
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"[0-9]+(\.[0-9]+)*", output)
    return match[0] if match else None


def _shm_mb(field: str) -> int | None:
    try:
        status = os.statvfs("/dev/shm")  # noqa: S108 - the place that is checked
    except OSError:
        return None
    return int(getattr(status, field) * status.f_frsize // MIB)


def _shm_folder(path: Path) -> str:
    """`fit` if the engine's folder is absent or the engine's own, else what is wrong with it."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return "fit"
    if not stat.S_ISDIR(status.st_mode):
        return "not a directory"
    try:
        owner = pwd.getpwnam("cfn").pw_uid
    except KeyError:
        return f"left over, owned by user id {status.st_uid}, and there is no account cfn"
    return "fit" if status.st_uid == owner else f"owned by user id {status.st_uid}, not by cfn"


def _hard_limit(name: str) -> int | None:
    """The hard limit of process 1, which no service of systemd can exceed."""
    try:
        for line in Path("/proc/1/limits").read_text().splitlines():
            if line.startswith(name):
                value = line[len(name) :].split()[1]
                return int(value) if value != "unlimited" else 2**31
    except (OSError, ValueError, IndexError):
        pass
    return None


def _meminfo_mb(name: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) // 1024
    except (OSError, ValueError):
        pass
    return None


def _free_mb(path: str) -> int | None:
    try:
        return shutil.disk_usage(path).free // MIB
    except OSError:
        return None
