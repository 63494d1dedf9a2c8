"""Memory, descriptors, CPU and I/O of the engine's processes and of the host, from psutil."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cfn.config_follower import write_atomically
from cfn.metrics import checks

# A worker is forked with copies of all that the spawner holds, and closes them as soon as it runs: on a busy
# host hundreds that were forked at once may wait for that. Younger than this, its count is not its own.
NEWBORN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemons:
    """Process ids by role; None or 0 for what did not answer. Coordinators that are up, by id."""

    conductor: int | None = None
    spawner: int | None = None
    router: int | None = None
    coordinators: Mapping[str, int] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, int]:
        """Role to process id, of those that are known."""
        own = {"conductor": self.conductor, "spawner": self.spawner, "router": self.router}
        return {role: pid for role, pid in own.items() if pid} | {
            f"coordinator-{name}": pid for name, pid in self.coordinators.items()
        }

    @property
    def complete(self) -> bool:
        """Whether the three daemons that every topology has are known."""
        return bool(self.conductor and self.spawner and self.router)


@dataclass(slots=True)
class _Seen:
    """A process that was read before: its handle, since making one costs as much as a reading, and what
    it had used by then."""

    process: psutil.Process
    cpu_s: float | None = None


@dataclass(slots=True)
class Processes:
    """Reads the engine's processes; remembers their handles and what they had used."""

    _seen: dict[int, _Seen] = field(default_factory=dict)
    _io: dict[int, tuple[int, int]] = field(default_factory=dict)
    _read_at_s: float | None = None

    def read(self, daemons: Daemons) -> dict[str, Any]:
        """The process fields of a sample; see docs/reference/records.md.

        Sums are given only when conductor, spawner and router are all known and readable: a sum that
        lacks a daemon is not the engine's. A worker that ends meanwhile is left out. One that was just
        forked counts as many descriptors as the worker that has the fewest.
        """
        now_s = time.monotonic()
        elapsed_s = now_s - self._read_at_s if self._read_at_s is not None else None
        self._read_at_s = now_s
        named = daemons.named
        workers = [pid for pid in _children(daemons.spawner) if pid not in named.values()]
        alive = {*named.values(), *workers}
        self._seen = {pid: seen for pid, seen in self._seen.items() if pid in alive}
        readings = {role: self._one(pid) for role, pid in named.items()}
        working = [reading for reading in (self._one(pid) for pid in workers) if reading is not None]
        fields: dict[str, Any] = {}
        if daemons.complete and None not in readings.values():
            own = [reading for reading in readings.values() if reading is not None]
            everything = own + working
            fields["memory_kb"] = sum(each.memory_kb for each in everything)
            fields["fd_count"] = sum(each.descriptors for each in own) + _workers_descriptors(working)
            if elapsed_s and all(each.cpu_s is not None for each in everything):
                used_s = sum(each.cpu_s or 0.0 for each in everything)
                fields["engine_cpu_pct"] = round(100 * used_s / elapsed_s, 3)
        coordinators = [each for role, each in readings.items() if role.startswith("coordinator-") and each]
        if coordinators:
            fields["memory_coordinator_kb"] = max(each.memory_kb for each in coordinators)
        if working:
            fields["memory_worker_kb"] = max(each.memory_kb for each in working)
        return fields | self._io_rates(named, elapsed_s)

    def _one(self, pid: int) -> "_Reading | None":
        """One process, and the CPU time since the last time (None the first time); None if it is gone."""
        try:
            seen = self._seen.get(pid) or _Seen(psutil.Process(pid))
            with seen.process.oneshot():
                times = seen.process.cpu_times()
                memory_kb = seen.process.memory_info().rss // 1_024
                descriptors = seen.process.num_fds()
                newborn = time.time() - seen.process.create_time() < NEWBORN_S
        except psutil.Error:
            self._seen.pop(pid, None)
            return None
        cpu_s = times.user + times.system
        # A worker that is new since the last sample used all of it since then.
        used_s = cpu_s - seen.cpu_s if seen.cpu_s is not None else cpu_s if self._seen else None
        seen.cpu_s = cpu_s
        self._seen[pid] = seen
        return _Reading(memory_kb, descriptors, newborn, used_s)

    def _io_rates(self, named: Mapping[str, int], elapsed_s: float | None) -> dict[str, Any]:
        """Bytes a second that the daemons read from and wrote to storage."""
        now: dict[int, tuple[int, int]] = {}
        for pid in named.values():
            seen = self._seen.get(pid)
            if seen is None:
                continue
            try:
                counters = seen.process.io_counters()
            except (psutil.Error, OSError):
                continue
            now[pid] = (counters.read_bytes, counters.write_bytes)
        both = [(now[pid], self._io[pid]) for pid in now if pid in self._io]
        self._io = now
        if not elapsed_s or not both:
            return {}
        read, written = (sum(max(0, new[side] - old[side]) for new, old in both) for side in (0, 1))
        return {
            "engine_read_bytes_s": round(read / elapsed_s, 1),
            "engine_write_bytes_s": round(written / elapsed_s, 1),
        }


@dataclass(frozen=True, slots=True)
class _Reading:
    memory_kb: int
    descriptors: int
    newborn: bool
    cpu_s: float | None


def _workers_descriptors(workers: Sequence[_Reading]) -> int:
    """Open descriptors of all workers, without what newborns have not closed yet."""
    fewest = min((each.descriptors for each in workers), default=0)
    return sum(fewest if each.newborn else each.descriptors for each in workers)


def _children(pid: int | None) -> Sequence[int]:
    """The direct children. The kernel's own list costs one read; psutil would read every process."""
    if not pid:
        return []
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        pass
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


@dataclass(slots=True)
class Host:
    """CPU and I/O of the whole host, since the reading before. `kept` is where its boot is remembered."""

    kept: Path
    _booted_s: float | None = None
    _io: tuple[int, int] | None = None
    _cpu: tuple[float, float] | None = None
    _read_at_s: float | None = None

    def read(self) -> dict[str, Any]:
        """The fields of a sample that are the host's."""
        now_s = time.monotonic()
        elapsed_s = now_s - self._read_at_s if self._read_at_s is not None else None
        self._read_at_s = now_s
        fields: dict[str, Any] = {"boot_time_s": self._boot_time_s()}
        try:
            memory = psutil.virtual_memory()
            fields["host_memory_available_kb"] = memory.available // 1_024
            times = psutil.cpu_times()
            disks = psutil.disk_io_counters()
        except (OSError, RuntimeError):
            return fields
        total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        if self._cpu is not None and total_s > self._cpu[0]:
            busy = 1 - (idle_s - self._cpu[1]) / (total_s - self._cpu[0])
            fields["host_cpu_pct"] = round(100 * min(1.0, max(0.0, busy)), 3)
        self._cpu = (total_s, idle_s)
        if disks is not None:
            now = (disks.read_bytes, disks.write_bytes)
            if self._io is not None and elapsed_s:
                fields["host_read_bytes_s"] = round(max(0, now[0] - self._io[0]) / elapsed_s, 1)
                fields["host_write_bytes_s"] = round(max(0, now[1] - self._io[1]) / elapsed_s, 1)
            self._io = now
        return fields

    def _boot_time_s(self) -> float:
        """When the host started, as its clock said when that was first asked in this boot: the kernel's
        answer moves with a clock that is set, and that is no reboot."""
        if self._booted_s is None:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            try:
                known = checks.load_object(self.kept.read_text())
                if known.get("boot") == boot:
                    self._booted_s = checks.number(known.get("boot_time_s"), "boot_time_s")
            except (OSError, ValueError):
                pass
            if self._booted_s is None:
                self._booted_s = round(psutil.boot_time(), 3)
                text = json.dumps({"boot": boot, "boot_time_s": self._booted_s})
                with suppress(OSError):  # then the next process of this boot asks again
                    write_atomically(self.kept, text + "\n", mode=0o640)
        return self._booted_s
