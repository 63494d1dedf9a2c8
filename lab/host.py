"""One host: its folder, and turning it on and off.

::

    hosts/HOST/upper         what differs from the image; all that the host writes
    hosts/HOST/work          overlayfs needs it
    hosts/HOST/root          where the overlay is mounted, seen only by the keeper and the host
    hosts/HOST/launch.json   what keeper.py runs
    hosts/HOST/keeper.lock   held while the host runs; the keeper's process id and start time
    hosts/HOST/console.log

Whether a host runs is asked of its cgroup, never of a file.
"""

import enum
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import lab
from lab import cgroup, hostfiles, image, keeper, names, nspawn, proc, ssh
from lab.errors import LabError
from lab.files import remove_tree
from lab.locks import try_lock
from lab.state import HostState, Paths

# nspawn ends by itself once the host's process 1 has, and the keeper once nspawn has. Killed before
# that they could not collect the exit status of what they started, and it would stay defunct.
NSPAWN_GRACE_S = 1.0
KEEPER_GRACE_S = 0.5
PROPAGATE = Path("/run/systemd/nspawn/propagate")


class Status(enum.Enum):
    """What a host is doing."""

    RUNNING = "running"
    STARTING = "starting"  # its keeper runs, its first process does not (yet, or again)
    OFF = "off"
    MISSING = "missing"  # remembered, but its folder is not there


def make(where: Paths, host: HostState) -> None:
    """Make the folder of *host*, off. It appears in one step; an unfinished one is removed."""
    final = where.host(host.name)
    building = final.with_name(f"{host.name}.building")  # no host's name has a dot
    remove_tree(building)
    for name in ("upper", "work", "root"):
        (building / name).mkdir(parents=True)
    # The upper folder's mode becomes that of the host's /.
    (building / "upper").chmod(0o755)
    key = building / "ssh_host_key"
    ssh.make_key(key, f"root@{host.name}")
    files = hostfiles.host_files(
        where.name,
        host,
        public_key=where.key.with_name(f"{where.key.name}.pub").read_text(),
        host_key=(key.read_text(), key.with_name(f"{key.name}.pub").read_text()),
        machine_id=uuid.uuid4().hex,
    )
    for path, (content, mode) in files.items():
        target = building / "upper" / path.lstrip("/")
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(mode)
    key.unlink()
    key.with_name(f"{key.name}.pub").unlink()
    (building / keeper.LOCK).touch(mode=0o600)
    building.rename(final)


def start(where: Paths, host: HostState, layout: cgroup.Layout) -> None:
    """Turn *host* on; returns at once, before it has booted. Raises LabError without its image."""
    folder = where.host(host.name)
    image_dir = where.cache_root / host.image
    if not image.root_of(where.cache_root, host.image).is_dir():
        raise LabError(
            f"{host.name} was made from the image {host.image}, which is no longer in "
            f"{where.cache_root}: `lab rm {host.name}`, then `lab up`"
        )
    (folder / keeper.LAUNCH).write_text(nspawn.launch_file(where.lab_id, host, folder, image_dir, layout))
    package_root = str(Path(lab.__file__).resolve().parent.parent)
    with (folder / "console.log").open("a") as console:
        subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private",
             sys.executable, "-m", "lab.keeper", str(folder)],
            stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            cwd="/", env={**os.environ, "PYTHONPATH": package_root},
            # Not of this terminal: it outlives this command, and Ctrl-C does not reach it.
            start_new_session=True,
        )  # fmt: skip


def leader(lab_id: str, name: str, layout: cgroup.Layout) -> int | None:
    """The process that is the host's process 1; None if the host does not run."""
    pids = cgroup.processes(layout.host_dirs(lab_id, name))
    return next((pid for pid in sorted(pids) if proc.is_namespace_init(pid)), None)


def status(where: Paths, name: str, layout: cgroup.Layout) -> Status:
    """What the host is doing now."""
    if leader(where.lab_id, name, layout) is not None:
        return Status.RUNNING
    if not where.host(name).is_dir():
        return Status.MISSING
    return Status.STARTING if keeper_alive(where, name) else Status.OFF


def keeper_alive(where: Paths, name: str) -> bool:
    """Does a process run that keeps the host?"""
    lock = try_lock(where.host(name) / keeper.LOCK)
    if lock is None:
        return True
    os.close(lock)
    return False


def power_cut(where: Paths, name: str, layout: cgroup.Layout, *, timeout_s: float = 10) -> bool:
    """End the host at once, as a power cut does; its files stay.

    Kills the host's process 1, and with it the kernel kills all others. Whatever is left then, or
    was on the way up, is killed too: only processes in the host's cgroup, and the process that
    holds the keeper's lock. Blocks until the last is gone, at most *timeout_s* seconds, then raises
    LabError. Returns whether any was running.
    """
    directories = layout.host_dirs(where.lab_id, name)
    lock_file = where.host(name) / keeper.LOCK
    began = quiet_since = time.monotonic()
    ended = False
    while True:
        now = time.monotonic()
        pid = leader(where.lab_id, name, layout)
        if pid is not None and proc.kill(pid, proc.start_time(pid)):
            busy = True
        elif ended and now - began < NSPAWN_GRACE_S:
            busy = bool(cgroup.processes(directories))
        else:
            busy = cgroup.kill_all(directories)
        lock = try_lock(lock_file) if lock_file.parent.is_dir() else -1
        if lock is not None and not busy:
            break
        if lock is not None and lock >= 0:
            os.close(lock)
        ended = True
        if busy:
            quiet_since = now
        elif now - quiet_since > KEEPER_GRACE_S:
            _kill_keeper(lock_file)
        if now - began > timeout_s:
            raise LabError(
                f"{name} does not end: processes "
                f"{sorted(cgroup.processes(directories)) or '(none in its cgroup)'}"
            )
        time.sleep(0.02)
    # With the lock held no keeper can begin; without a process the cgroups can go.
    cgroup.remove(directories)
    if lock >= 0:
        os.close(lock)
    return ended


def _kill_keeper(lock_file: Path) -> None:
    """Kill the process that wrote itself into a lock file that is locked now."""
    words = lock_file.read_text().split()
    if len(words) == 2:
        proc.kill(int(words[0]), int(words[1]))


def remove(where: Paths, name: str, layout: cgroup.Layout) -> None:
    """End the host and remove all that is left of it."""
    power_cut(where, name, layout)
    remove_tree(where.host(name))
    remove_tree(where.hosts / f"{name}.building")
    # nspawn makes this folder for every machine and leaves it.
    remove_tree(PROPAGATE / names.machine_name(where.lab_id, name))


def write_etc_hosts(where: Paths, name: str, hosts: list[HostState], layout: cgroup.Layout) -> None:
    """Tell the host the names of *hosts*: in its files, through its own view if it runs."""
    pid = leader(where.lab_id, name, layout)
    upper = where.host(name) / "upper"
    path = (upper if pid is None else Path(f"/proc/{pid}/root")) / "etc/hosts"
    try:
        current = path.read_text()
    except FileNotFoundError:
        current = ""
    wanted = hostfiles.etc_hosts(current, hosts)
    if wanted != current:
        path.write_text(wanted)
        path.chmod(0o644)
