"""A cgroup for each host: how its processes are found, limited and ended.

Where systemd is process 1 the cgroup is a scope that systemd makes (``systemd-run --scope``).
Elsewhere (containers, other init systems) it is a folder ``cfn-lab/LAB_ID/HOST`` made by hand in
each hierarchy that systemd inside the host uses.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from lab import proc
from lab.errors import LabError

# cgroup v1 controllers that systemd inside a host acts on, if they are mounted.
_V1_CONTROLLERS = ("memory", "pids", "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where cgroups are on this machine.

    ``roots`` are the mounted hierarchies. ``systemd`` says that process 1 is systemd, so cgroups
    are asked of it rather than made.
    """

    roots: tuple[Path, ...]
    systemd: bool

    def lab_dirs(self, lab_id: str) -> list[Path]:
        """The parents of a lab's cgroups; empty where systemd makes them."""
        return [] if self.systemd else [root / "cfn-lab" / lab_id for root in self.roots]

    def host_dirs(self, lab_id: str, host: str) -> list[Path]:
        """A host's cgroups, one in each hierarchy."""
        if self.systemd:
            unit = scope_unit(lab_id, host)
            return [root / "system.slice" / unit for root in self.roots]
        return [path / host for path in self.lab_dirs(lab_id)]

    def hosts(self, lab_id: str) -> set[str]:
        """The hosts of a lab that have a cgroup now."""
        if self.systemd:
            prefix, suffix = scope_unit(lab_id, "").split(".")
            found = [
                path.name.removeprefix(prefix).removesuffix(f".{suffix}")
                for root in self.roots
                for path in root.glob(f"system.slice/{prefix}*.{suffix}")
            ]
            return set(found)
        return {p.name for d in self.lab_dirs(lab_id) if d.is_dir() for p in d.iterdir()
                if p.is_dir()}  # fmt: skip


def scope_unit(lab_id: str, host: str) -> str:
    """A host's scope where systemd is process 1; no lab's or host's name holds a ``:``."""
    return f"cfn-lab:{lab_id}:{host}.scope"


def parse_mounts(mounts: str) -> tuple[Path, ...]:
    """The hierarchies to use, from the text of /proc/self/mounts: pure. Raises LabError."""
    v1: dict[str, Path] = {}
    v2: list[Path] = []
    for line in mounts.splitlines():
        _, target, kind, options = line.split()[:4]
        if kind == "cgroup2":
            v2.append(Path(target))
        elif kind == "cgroup":
            v1 |= dict.fromkeys(options.split(","), Path(target))
    if not v1 and v2:
        return (v2[0],)
    if "name=systemd" not in v1:
        raise LabError(
            "no cgroup hierarchy that systemd can use inside a host is mounted: need cgroup v2 "
            "on /sys/fs/cgroup, or v1 with name=systemd"
        )
    chosen = [v1["name=systemd"], *v2[:1], *(v1[c] for c in _V1_CONTROLLERS if c in v1)]
    # cpu and cpuacct are often one hierarchy under two names: each folder once.
    return tuple(dict.fromkeys(chosen))


def detect() -> Layout:
    """How cgroups are on this machine. Raises LabError if systemd could not run in a host."""
    return Layout(
        roots=parse_mounts(Path("/proc/self/mounts").read_text()),
        systemd=Path("/run/systemd/system").is_dir(),
    )


def processes(directories: list[Path]) -> set[int]:
    """The ids of all processes in these cgroups and below."""
    found: set[int] = set()
    for directory in directories:
        for current, _, _ in os.walk(directory):
            try:
                found |= {int(line) for line in Path(current, "cgroup.procs").read_text().split()}
            except OSError:
                continue  # the cgroup went away while we looked
    found.discard(0)  # a process of a namespace that we do not see
    return found


def kill_all(directories: list[Path]) -> bool:
    """Send SIGKILL to every process in these cgroups; whether there was one."""
    any_left = False
    for pid in processes(directories):
        began = proc.start_time(pid)
        # Looked at again after the start time was read: the id is of this cgroup's process.
        if began is not None and pid in processes(directories):
            any_left = True
            proc.kill(pid, began)
    return any_left


def make(directories: list[Path]) -> None:
    """Make these cgroups. Another lab may be removing the parent they share at the same moment."""
    for directory in directories:
        for attempts_left in (2, 1, 0):
            try:
                directory.mkdir(parents=True, exist_ok=True)
                break
            except FileNotFoundError:
                if not attempts_left:
                    raise


def remove_lab(layout: Layout, lab_id: str) -> None:
    """Remove what is left of a lab's cgroups, and the folder of all labs if this was the last."""
    directories = layout.lab_dirs(lab_id)
    remove(directories)
    for directory in directories:
        with contextlib.suppress(OSError):  # another lab is in it, or it is gone
            directory.parent.rmdir()


def remove(directories: list[Path], *, timeout_s: float = 5) -> None:
    """Remove these cgroups and those below; fine if they are not there.

    Blocks up to *timeout_s* until the kernel has let go of the last dead process, then raises
    LabError.
    """
    deadline = time.monotonic() + timeout_s
    for directory in directories:
        while directory.is_dir():
            try:
                for current, _, _ in os.walk(directory, topdown=False):
                    Path(current).rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LabError(
                        f"cannot remove the cgroup {directory}: {error}; processes in it: "
                        f"{sorted(processes([directory])) or 'none'}"
                    ) from error
                time.sleep(0.02)
