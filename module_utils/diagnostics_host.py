# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""What a bundle holds of a host: read with Python and the system's own tools alone, so that it can be had
where the engine is dead and where no release is installed."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.diagnostics_reading import Read, read_end
from ansible.module_utils.diagnostics_redaction import is_secret_name

CFN = "opt/cfn/current/bin/cfn"
UNITS = "cfn*"
LEDGER_RECORDS = 200
LISTED_FILES = 2_000
LISTED_PROCESSES = 1_000
MOST_CONFIG_BYTES = 262_144

UNIT_PROPERTIES = (
    "Id,LoadState,UnitFileState,ActiveState,SubState,Result,NRestarts,MainPID,ExecMainCode,ExecMainStatus,"
    "ActiveEnterTimestamp,InactiveEnterTimestamp,MemoryCurrent,MemoryPeak,TasksCurrent,LimitNOFILE,"
    "NeedDaemonReload,DropInPaths,FragmentPath"
)
SYSCTLS = (
    "fs/file-max",
    "fs/file-nr",
    "fs/nr_open",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "kernel/pid_max",
    "kernel/threads-max",
    "kernel/core_pattern",
    "kernel/random/boot_id",
    "net/core/somaxconn",
    "net/unix/max_dgram_qlen",
    "vm/max_map_count",
    "vm/overcommit_memory",
    "vm/swappiness",
)
FILESYSTEMS = ("/", "/opt", "/var/log", "/var/lib", "/run", "/dev/shm")  # noqa: S108 - what is looked at
# Folders whose files are listed, and how deep: a release's own files are held against its manifest elsewhere.
LISTED = {"opt/cfn": 2} | dict.fromkeys(
    ("etc/cfn", "run/cfn", "opt/cfn-v1", "var/lib/cfn", "var/log/cfn", "dev/shm/cfn"), 3
)

# The ends of these are kept, newest last. Payloads, results and answers are nowhere among them.
LOGS = {
    "events.jsonl": "var/log/cfn/coordination-events.jsonl",
    "router-events.jsonl": "var/log/cfn/router-events.jsonl",
    "samples.jsonl": "var/log/cfn/v2-metrics.jsonl",
}
STATES = (
    "dev/shm/cfn/metrics/latest.json",
    "var/lib/cfn/router/breaker.json",
    "var/lib/cfn/router/generation.json",
    "var/lib/cfn/watch-memory.json",
    "var/lib/cfn/watch/heard.json",
    "var/lib/cfn/watch/obeyed.json",
    "var/lib/cfn/watch/order.json",
    "var/lib/cfn/watch/spool.jsonl",
    "var/lib/cfn/ledger/head.json",
)


@dataclass(frozen=True)
class Host:
    """Where and how to read. `root` is / on a host; `run` runs a command within its own bounds."""

    root: Path
    run: Callable[[list[str]], Read]
    since_s: float
    most_part_bytes: int


@dataclass(frozen=True)
class Part:
    """One file of the bundle. `problem` says why it is missing or not whole."""

    name: str
    source: str
    text: str
    problem: str = ""


def parts(host: Host) -> Iterator[Part]:
    """Every part, what is most worth having first. One that cannot be read is a part with a problem."""
    yield from _configuration(host)
    for name, make in (
        ("facts.json", _facts),
        ("versions.json", _versions),
        ("processes.txt", _processes),
        ("files.txt", _files),
        ("ledger.txt", _ledger),
    ):
        try:
            yield Part(name, "this host", *make(host))
        except Exception as error:  # whatever a broken host does, the other parts are had
            yield Part(name, "this host", "", f"{type(error).__name__}: {error}")
    yield from _commands(host)
    for path in STATES:
        if (host.root / path).exists():
            yield _file(host, f"state/{path.replace('/', '.')}", path)
    for name, path in LOGS.items():
        yield _file(host, name, path)


def _file(host: Host, name: str, path: str, most_bytes: int = 0) -> Part:
    text, problem = read_end(host.root / path, most_bytes or host.most_part_bytes)
    return Part(name, f"/{path}", text, problem)


def _configuration(host: Host) -> Iterator[Part]:
    folder = host.root / "etc/cfn"
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        name = f"config/{path.name}"
        if holds_a_secret(path):
            yield Part(name, f"/etc/cfn/{path.name}", "", "left out: it is a secret")
        elif path.is_file():
            yield _file(host, name, f"etc/cfn/{path.name}", MOST_CONFIG_BYTES)
    if not (folder / "config.sh").exists():
        yield Part("config/config.sh", "/etc/cfn/config.sh", "", "does not exist")
    if (host.root / "run/cfn/env").exists():
        yield _file(host, "config/env", "run/cfn/env", MOST_CONFIG_BYTES)


def holds_a_secret(path: Path) -> bool:
    """Whether a file of /etc/cfn is nothing but a secret, by its name."""
    return path.suffix in (".pem", ".key", ".token", ".p12") or (
        path.suffix not in (".pub", ".sh", ".json", ".conf") and is_secret_name(path.name)
    )


def _commands(host: Host) -> Iterator[Part]:
    since = f"@{host.since_s:.0f}"
    journal = ["journalctl", "--no-pager", "--utc", "--output=short-iso-precise", f"--since={since}"]
    systemctl = ["systemctl", "--no-pager", "--plain", "--no-legend"]
    wanted: dict[str, list[str]] = {
        "units.txt": [*systemctl, "show", UNITS, "--all", f"--property={UNIT_PROPERTIES}"],
        "unit-files.txt": [*systemctl, "list-unit-files", UNITS],
        "timers.txt": [*systemctl, "list-timers", "--all", UNITS],
        "failed.txt": [*systemctl, "list-units", "--failed"],
        "unit-texts.txt": [*systemctl, "cat", UNITS],
        "clock.txt": ["timedatectl", "show"],
        "sockets.txt": ["ss", "--unix", "--tcp", "--listening", "--processes", "--numeric"],
        "journal.txt": [*journal, "--unit=cfn*"],
        "journal-kernel.txt": [*journal, "--dmesg", "--lines=500"],
    }
    if (host.root / CFN).exists():
        yield Part("status.json", "cfn status --json", *host.run([str(host.root / CFN), "status", "--json"]))
    else:
        yield Part("status.json", "cfn status --json", "", "no release is in force on this host")
    for name, argv in wanted.items():
        yield Part(name, " ".join(argv), *host.run(argv))


def _facts(host: Host) -> Read:
    """Memory, descriptors, tmpfs, disks, limits of the kernel."""
    return _json(
        {
            "uname": " ".join(os.uname()),
            "uptime_s": _number(host.root / "proc/uptime"),
            "load": _line(host.root / "proc/loadavg"),
            "cores": os.cpu_count(),
            "memory_kb": meminfo(host.root),
            "pressure": {name: _line(host.root / "proc/pressure" / name) for name in ("cpu", "io", "memory")},
            "filesystems": {path: filesystem(path) for path in FILESYSTEMS},
            "tmpfs_kb": _folder_sizes_kb(host.root / "dev/shm/cfn"),
            "sysctl": {name.replace("/", "."): _line(host.root / "proc/sys" / name) for name in SYSCTLS},
        }
    )


def meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo, in kB."""
    text, _ = read_end(root / "proc/meminfo", MOST_CONFIG_BYTES)
    return {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def filesystem(path: str) -> dict[str, float] | None:
    """Size and use of a file system; None if it cannot be asked."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    mib = found.f_frsize / 1_048_576
    return {
        "size_mb": round(found.f_blocks * mib),
        "free_mb": round(found.f_bavail * mib),
        "used_pct": round(100 * (1 - found.f_bfree / found.f_blocks), 1) if found.f_blocks else 0.0,
        "inodes_free": found.f_favail,
    }


def _folder_sizes_kb(folder: Path) -> dict[str, float]:
    """What each entry of the engine's tmpfs takes; links are not followed."""
    sizes: dict[str, float] = {}
    for entry in sorted(os.scandir(folder), key=lambda each: each.name) if folder.is_dir() else []:
        blocks = entry.stat(follow_symlinks=False).st_blocks
        if entry.is_dir(follow_symlinks=False):
            blocks += sum(path.lstat().st_blocks for path in _walk(Path(entry.path)))
        sizes[entry.name] = blocks / 2
    return sizes


def _walk(folder: Path, depth: int = 99) -> Iterator[Path]:
    """What is below a folder, down to a depth; links are not followed."""
    count = 0
    for above, folders, files in os.walk(folder):
        names = [*folders, *files]
        if len(Path(above).relative_to(folder).parts) + 1 >= depth:
            folders.clear()  # os.walk goes into what is left
        for name in names:
            count += 1
            if count > LISTED_FILES:
                return
            yield Path(above) / name


def _versions(host: Host) -> Read:
    """Releases, Python, systemd, the kernel, V1."""
    current = host.root / "opt/cfn/current"
    releases = host.root / "opt/cfn/releases"
    v1 = host.root / "opt/cfn-v1/bin/coordinate"
    return _json(
        {
            "release": current.readlink().name if current.is_symlink() else None,
            "release_works": (host.root / CFN).exists(),
            "releases": sorted(path.name for path in releases.iterdir()) if releases.is_dir() else [],
            "v1_built_in": v1.exists(),
            "os": _line(host.root / "usr/lib/os-release"),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "systemd": host.run(["systemctl", "--version"])[0].split("\n")[0],
            "bash": host.run(["bash", "--version"])[0].split("\n")[0],
        }
    )


def _processes(host: Host) -> Read:
    """Every process of the engine: the largest first, with its descriptors and limits."""
    found = processes(host.root)
    lines = [f"{len(found)} processes of cfn's units, {sum(each['rss_kb'] for each in found)} kB resident, "
             f"{sum(each['fds'] or 0 for each in found)} descriptors"]  # fmt: skip
    lines += [
        "{pid:>8} parent {ppid:>8} {state} {rss_kb:>9} kB {threads:>3} threads {fds} of {nofile} "
        "descriptors  {unit}  {command}".format(**each)
        for each in found[:LISTED_PROCESSES]
    ]
    cut = f"the {LISTED_PROCESSES} largest of {len(found)}" if len(found) > LISTED_PROCESSES else ""
    return "\n".join(lines) + "\n", cut


def processes(root: Path) -> list[dict[str, Any]]:
    """The processes in the control groups of cfn's units, the largest first."""
    found = []
    for folder in (root / "proc").glob("[0-9]*"):
        group = _line(folder / "cgroup")
        unit = re.search(r"(cfn[^/]*\.(?:service|scope))", group)
        if unit is None:
            continue
        try:
            status = dict(re.findall(r"^(\w+):\t(.*)$", (folder / "status").read_text(), re.MULTILINE))
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        nofile = re.search(r"Max open files\s+(\S+)", read_end(folder / "limits", 65_536)[0])
        found.append(
            {
                "pid": int(folder.name),
                "ppid": int(status.get("PPid", 0)),
                "state": status.get("State", "?").split()[0],
                "rss_kb": int(status.get("VmRSS", "0 kB").split()[0]),
                "threads": int(status.get("Threads", 0)),
                "fds": _entries(folder / "fd"),
                "nofile": nofile[1] if nofile else "?",
                "unit": unit[1],
                "command": command.strip()[:300] or status.get("Name", "?"),
            }
        )
    return sorted(found, key=lambda each: (-each["rss_kb"], each["pid"]))


def _entries(folder: Path) -> int | None:
    try:
        return len(os.listdir(folder))  # noqa: PTH208 - no object for each of ten thousand
    except OSError:
        return None


def _files(host: Host) -> Read:
    """Who owns what, how large and since when, in the folders of the project."""
    lines: list[str] = []
    cut = False
    for name, depth in LISTED.items():
        folder = host.root / name
        if not folder.is_dir():
            lines.append(f"/{name}: does not exist")
            continue
        paths = [folder, *_walk(folder, depth)]
        cut = cut or len(paths) > LISTED_FILES
        for path in paths:
            try:
                found = path.lstat()
            except OSError:
                continue
            target = f" -> {path.readlink()}" if path.is_symlink() else ""
            lines.append(
                f"{found.st_mode:06o} {found.st_uid:>5}:{found.st_gid:<5} {found.st_size:>12} "
                f"{found.st_mtime:.0f} /{path.relative_to(host.root)}{target}"
            )
    return "\n".join(lines) + "\n", f"at most {LISTED_FILES} of each folder" if cut else ""


def _ledger(host: Host) -> Read:
    """The last records without the evidence that they hold, and how many there are of each kind."""
    path = host.root / "var/lib/cfn/ledger/ledger.jsonl"
    if not path.exists():
        return "no ledger is kept on this host\n", ""
    text, problem = read_end(path, 8 * host.most_part_bytes)
    lines: list[str] = []
    kinds: dict[str, int] = {}
    for line in text.splitlines()[-LEDGER_RECORDS:]:
        try:
            record = json.loads(line)
            kind = record["kind"]
            kinds[kind] = kinds.get(kind, 0) + 1
            lines.append(f"{record['sequence']} {record['time']} {kind} {record['stage']} {record['actor']}: "
                         f"{_gist(record)}")  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            lines.append(f"damaged: {type(error).__name__}: {line[:200]}")
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return "\n".join([f"the last {len(lines)} records: {counted}", *lines]) + "\n", problem


def _gist(record: dict[str, Any]) -> str:
    data = record["data"]
    if record["kind"] == "verdict":
        data = {"verdict": data["verdict"]["verdict"], "reasons": data["verdict"].get("reasons")}
    return json.dumps(data, sort_keys=True)[:500]


def _json(found: dict[str, Any]) -> Read:
    return json.dumps(found, indent=1, sort_keys=True) + "\n", ""


def _line(path: Path) -> str:
    return (read_end(path, 65_536)[0].strip() or "").split("\n")[0]


def _number(path: Path) -> float | None:
    try:
        return float(_line(path).split()[0])
    except (ValueError, IndexError):
        return None
