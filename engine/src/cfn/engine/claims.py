"""Claims: who may run an agent's part of a request, decided under a kernel lock in tmpfs.

A request has a slot of 64 bytes (lean/records.py) for each agent, in an arena: one file for each shard,
which is the number of the team. The byte at a slot's start is locked (POSIX) around every decision about
the slot and, by the process that claimed it, until that process has written its end. So
- a claim is one compare-and-set that survives the death of everybody involved;
- a fence (FENCED in an open slot) makes "never started" certain, whatever is still in flight;
- a claimed slot without an end whose lock is free belongs to a dead process;
- an order that comes a request late finds another request's key, and starts nothing.
POSIX locks fit: they name their holder, end with it, and are not inherited by its children. They
also vanish when the process closes *any* descriptor of the file: each process opens it once.
"""

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from cfn.coordination import AgentState
from cfn.engine.lean import claim, records
from cfn.engine.lean.records import RECORD_BYTES

MAX_SHARDS = 33  # the conductor's own, and one for each of at most 32 coordinators' teams

_FLOCK = struct.Struct("hhqqi0q")  # struct flock of Linux on 64-bit machines


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an agent's part ended, as stored and as sent. `exit_code` is None if nothing was started."""

    reason: int
    exit_code: int | None
    output: bytes = b""

    @property
    def state(self) -> AgentState:
        """Done only for exit code 0 without a reason against it."""
        return AgentState.DONE if self.reason == records.NONE else AgentState.FAILED

    @property
    def text(self) -> str:
        """The reason in words."""
        return records.reason_text(self.reason, self.exit_code)


def ended(reason: int, exit_code: int, output: bytes) -> Ended:
    """An end as records and datagrams carry it: they have no exit code for what was not started."""
    return Ended(reason=reason, exit_code=None if reason == records.NOT_STARTED else exit_code, output=output)


class Standing(Enum):
    """What a slot says to a hub."""

    UNCLAIMED = auto()
    FENCED = auto()
    LOCKED = auto()  # open, and a process holds its lock: it is about to claim, or is stopped there
    RUNNING = auto()  # claimed by a process that lives
    ENDED = auto()
    ORPHANED = auto()  # claimed by a process that died before it wrote an end


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A slot's standing, with the end if there is one, the process that holds the lock, or 0, and when
    it claimed (monotonic seconds, 0: not known)."""

    standing: Standing
    ended: Ended | None = None
    pid: int = 0
    since_s: float = 0.0


class Arena:
    """A shard's claims file, opened for the life of this process. Raises OSError when it cannot be."""

    def __init__(self, folder: Path, outputs: Path, shard: int) -> None:
        self._outputs = str(outputs)
        self._descriptor = os.open(
            folder / str(shard), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640
        )

    def open_slots(self, base: int, slots: int, key: int) -> None:
        """Begin a request: its slots are open. Raises OSError when tmpfs has no room."""
        raw = records.ticket(key) * slots
        if os.pwrite(self._descriptor, raw, base * RECORD_BYTES) != len(raw):
            raise OSError(errno.ENOSPC, "no room in tmpfs for the claims of a request")

    def fence(self, slot: int, key: int, index: int) -> Verdict:
        """A hub's word that nobody may start this. FENCED, or why it is too late. Never waits."""
        at = slot * RECORD_BYTES
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return self.judge(slot, key, index)
        try:
            if os.pread(self._descriptor, RECORD_BYTES, at) == records.ticket(key):
                os.pwrite(self._descriptor, records.encode(records.FENCED, key, pid=os.getpid()), at)
                return Verdict(standing=Standing.FENCED)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, at)
        return self.judge(slot, key, index)

    def judge(self, slot: int, key: int, index: int) -> Verdict:
        """What a slot says now. Never waits."""
        raw = os.pread(self._descriptor, RECORD_BYTES, slot * RECORD_BYTES)
        if raw == records.ticket(key):
            holder = self._holder(slot)
            return Verdict(standing=Standing.LOCKED if holder else Standing.UNCLAIMED, pid=holder)
        record = records.decode(raw)
        if record is not None and record.key == key:
            if record.kind == records.FENCED:
                return Verdict(standing=Standing.FENCED)
            if record.kind == records.ENDED:
                return Verdict(standing=Standing.ENDED, ended=self._ended(record, index))
        holder = self._holder(slot)
        if holder:
            since_s = record.at_ns / 1e9 if record is not None and record.key == key else 0.0
            return Verdict(standing=Standing.RUNNING, pid=holder, since_s=since_s)
        # Claimed, and its lock is free: an end was written before the lock went, or never will be.
        record = records.decode(os.pread(self._descriptor, RECORD_BYTES, slot * RECORD_BYTES))
        if record is not None and record.key == key and record.kind == records.ENDED:
            return Verdict(standing=Standing.ENDED, ended=self._ended(record, index))
        return Verdict(standing=Standing.ORPHANED)

    def claim(self, slot: int, key: int) -> bool:
        """Claim on behalf of an agent that cannot lock, without keeping the lock."""
        if self.judge(slot, key, 0).standing is not Standing.UNCLAIMED:
            return False
        taken = claim.take(self._descriptor, slot, key, records.ticket(key)) == claim.TAKEN
        if taken:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, slot * RECORD_BYTES)
        return taken

    def end(self, slot: int, key: int, index: int, end: Ended) -> None:
        """Store an end on behalf of such an agent."""
        claim.end(
            self._descriptor,
            slot,
            key,
            self._outputs,
            index,
            reason=end.reason,
            exit_code=end.exit_code or 0,
            output=end.output,
        )

    def _ended(self, record: records.Record, index: int) -> Ended:
        return ended(record.reason, record.exit_code, claim.output_of(record, self._outputs, index))

    def _holder(self, slot: int) -> int:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot * RECORD_BYTES, 1, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_GETLK, asked))
        return 0 if kind == fcntl.F_UNLCK else int(pid)


class Arenas:
    """The arenas that this process has opened."""

    def __init__(self, folder: Path, outputs: Path) -> None:
        self._folder = folder
        self._outputs = outputs
        self._open: dict[int, Arena] = {}

    def shard(self, number: int) -> Arena:
        """The arena of a shard. Raises OSError."""
        arena = self._open.get(number)
        if arena is None:
            arena = self._open[number] = Arena(self._folder, self._outputs, number)
        return arena


class Slots:
    """Which slots of each shard are taken: first fit, decided by the conductor alone."""

    def __init__(self) -> None:
        self._taken: dict[int, dict[int, int]] = {}  # shard: first slot: how many

    def take(self, shard: int, slots: int) -> int:
        """The first of `slots` free ones in a row."""
        taken = self._taken.setdefault(shard, {})
        base = 0
        for first in sorted(taken):
            if first - base >= slots:
                break
            base = first + taken[first]
        self.note(shard, base, slots)
        return base

    def note(self, shard: int, base: int, slots: int) -> None:
        """These were taken before."""
        if slots:
            self._taken.setdefault(shard, {})[base] = slots

    def release(self, shard: int, base: int) -> None:
        """The request that had them is over."""
        self._taken.get(shard, {}).pop(base, None)
