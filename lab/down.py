"""``lab down`` and ``lab rm``: leave nothing behind, whatever was interrupted before.

What there is to remove is asked of the system (folders, cgroups, mounts, the bridge's name); the
state file only tells which files were written elsewhere.
"""

from dataclasses import dataclass
from pathlib import Path

from lab import cgroup, host, image, inventory, network, state
from lab.errors import LabError
from lab.files import remove_tree
from lab.locks import locked
from lab.names import bridge_name
from lab.proc import run
from lab.progress import Progress
from lab.state import LabState, Paths
from lab.up import LOCK_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What ``down`` found and removed."""

    hosts: tuple[str, ...]
    bridge: str | None
    files: tuple[str, ...]
    images: tuple[str, ...]
    images_kept: tuple[str, ...]


def down(where: Paths, *, images: bool, progress: Progress) -> Removed:
    """Remove the lab; with *images* also every cached image that no lab needs.

    Blocks until the last process is gone. Fine if there is no such lab. Raises LabError if
    something cannot be removed; running it again continues.
    """
    where.state_root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(where.lock, timeout_s=LOCK_TIMEOUT_S, what=f"the lab {where.name}",
                waiting=lambda: progress.waiting("another command works on this lab")):  # fmt: skip
        removed = _remove_all(where, progress)
        where.lock.unlink(missing_ok=True)
    image.remove_unfinished(where.cache_root)
    gone: list[str] = []
    kept: list[str] = []
    if images:
        gone, kept = image.remove_unused(where.cache_root, _images_needed(where.state_root))
        for name in gone:
            progress.step("image", f"{name} removed")
        for name in kept:
            progress.step("image", f"{name} kept: another lab uses it")
    hosts, bridge, files = removed
    return Removed(hosts=hosts, bridge=bridge, files=files, images=tuple(gone), images_kept=tuple(kept))


def rm(where: Paths, lab: LabState, name: str, layout: cgroup.Layout) -> LabState:
    """Remove one host; the caller holds the lab's lock. Returns the lab without it."""
    host.remove(where, name, layout)
    lab = lab.without_host(name)
    state.save(where, lab)
    return lab


def _remove_all(where: Paths, progress: Progress) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
    layout = cgroup.detect()
    lab_id = where.lab_id
    try:
        known = state.load(where)
    except LabError as error:
        progress.step("note", f"{error.args[0].partition(':')[0]} is unreadable; removing by name")
        known = None
    found = set(known.hosts) if known else set()
    found |= layout.hosts(lab_id)
    if where.hosts.is_dir():
        found |= {path.name.removesuffix(".building") for path in where.hosts.iterdir()}
    for name in sorted(found):
        host.remove(where, name, layout)
        progress.step(name, "removed")
    cgroup.remove_lab(layout, lab_id)
    for mount in mounts_below(Path("/proc/self/mountinfo").read_text(), where.lab):
        run(["umount", "--lazy", str(mount)])
    bridge = bridge_name(lab_id)
    had_bridge = network.remove_bridge(bridge)
    files = tuple(inventory.remove_outputs(known)) if known else ()
    remove_tree(where.lab)
    if had_bridge:
        progress.step("network", f"{bridge} removed")
    for path in files:
        progress.step("removed", path)
    return tuple(sorted(found)), bridge if had_bridge else None, files


def mounts_below(mountinfo: str, folder: Path) -> list[Path]:
    """The mount points in and below *folder*, innermost first, from /proc/self/mountinfo: pure."""
    points = [Path(line.split()[4].replace("\\040", " ")) for line in mountinfo.splitlines() if line]
    inside = [point for point in points if point.is_relative_to(folder)]
    return sorted(inside, key=lambda point: len(point.parts), reverse=True)


def _images_needed(state_root: Path) -> set[str]:
    """The images that the hosts of the remaining labs were made from."""
    needed: set[str] = set()
    for path in state_root.glob("*/state.json"):
        try:
            needed |= {one.image for one in state.from_json(path.read_text()).hosts.values()}
        except (OSError, KeyError, TypeError, ValueError):
            continue
    return needed
