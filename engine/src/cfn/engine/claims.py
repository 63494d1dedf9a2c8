"""Claims: who may run an agent's part of a request, decided under a kernel lock in tmpfs.

A request's folder holds `claims`, one slot of two records for each agent (records.py). The byte
at a slot's start is locked (POSIX) around every decision about the slot and, by the process that
claimed it, until that process has written its end. So
- a claim is one compare-and-set that survives the death of everybody involved;
- a fence (FENCED in an empty slot) makes "never started" certain, whatever is still in flight;
- a claimed slot without an end whose lock is free belongs to a dead process.
POSIX locks fit: they name their holder, end with it, and are not inherited by its children. They
also vanish when the process closes *any* descriptor of the file: each side opens it once.
"""

import errno
import fcntl
import os
import struct
import time
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from cfn.coordination import AgentState
from cfn.engine.records import (
    INLINE_BYTES,
    RECORD_BYTES,
    SLOT_BYTES,
    Damaged,
    Kind,
    Reason,
    Record,
    decode,
    encode,
    reason_text,
)

_FLOCK = struct.Struct("hhqqi0q")  # struct flock of Linux on 64-bit machines


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an agent's part ended, as stored and as sent."""

    reason: Reason
    exit_code: int | None
    output: bytes = b""

    @property
    def state(self) -> AgentState:
        """Done only for exit code 0 without a reason against it."""
        return AgentState.DONE if self.reason is Reason.NONE else AgentState.FAILED

    @property
    def text(self) -> str:
        """The reason in words."""
        return reason_text(self.reason, self.exit_code or 0)


class Claim(Enum):
    """The answer to a worker that wants to start."""

    TAKEN = auto()  # it is this worker's: run it, exactly now
    EARLIER = auto()  # somebody claimed it before, and ended or died
    FENCED = auto()  # nobody may start it any more


class Standing(Enum):
    """What a slot says to a hub."""

    UNCLAIMED = auto()
    FENCED = auto()
    LOCKED = auto()  # empty, and a process holds its lock: it is about to claim, or is stopped there
    RUNNING = auto()  # claimed by a process that lives
    ENDED = auto()
    ORPHANED = auto()  # claimed by a process that died before it wrote an end


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A slot's standing, with the end if there is one and the process that holds the lock, or 0."""

    standing: Standing
    ended: Ended | None = None
    pid: int = 0


def create(folder: Path, agents: int) -> None:
    """Make the claims file of a request, with an empty slot for each agent. Its pages are taken from
    tmpfs here, so that no claim and no end can fail for want of room. Raises OSError."""
    descriptor = os.open(folder / "claims", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        os.posix_fallocate(descriptor, 0, agents * SLOT_BYTES)
    finally:
        os.close(descriptor)


class ClaimsFile:
    """One process's single descriptor of a request's claims.

    Raises FileNotFoundError when the request is over (its folder is gone): nothing may start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = os.open(folder / "claims", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def close(self) -> None:
        """Give up the descriptor, and with it this process's locks."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def claim(self, index: int, epoch: int) -> Claim:
        """A worker's question: may I run this? On TAKEN the slot's lock is kept until `close`.

        Waits while another process holds the lock: a hub for microseconds, an earlier incarnation
        of the agent until it is dead or has ended.
        """
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, index * SLOT_BYTES)
        raw = os.pread(self._descriptor, RECORD_BYTES, index * SLOT_BYTES)
        record = decode(raw)
        if record is None and len(raw) == RECORD_BYTES:
            self._write(index, Kind.CLAIMED, epoch)
            return Claim.TAKEN
        self._unlock(index)
        if isinstance(record, Record) and record.kind is Kind.FENCED:
            return Claim.FENCED
        return Claim.EARLIER

    def end(self, index: int, epoch: int, ended: Ended) -> None:
        """Store an end, before anybody is told of it. A long output goes to a file of its own first."""
        inline = ended.output if len(ended.output) <= INLINE_BYTES else b""
        if len(ended.output) > INLINE_BYTES:
            self._output_path(index).write_bytes(ended.output)
        record = Record(
            kind=Kind.ENDED,
            index=index,
            epoch=epoch,
            pid=os.getpid(),
            at_ns=time.monotonic_ns(),
            reason=ended.reason,
            exit_code=ended.exit_code or 0,
            output_bytes=len(ended.output),
            inline=inline,
        )
        os.pwrite(self._descriptor, encode(record), index * SLOT_BYTES + RECORD_BYTES)

    def fence(self, index: int, epoch: int) -> Verdict:
        """A hub's word that nobody may start this. FENCED, or why it is too late. Never waits."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index * SLOT_BYTES)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return self.judge(index)
        try:
            if decode(os.pread(self._descriptor, RECORD_BYTES, index * SLOT_BYTES)) is None:
                self._write(index, Kind.FENCED, epoch)
                return Verdict(standing=Standing.FENCED)
        finally:
            self._unlock(index)
        return self.judge(index)

    def judge(self, index: int) -> Verdict:
        """What a slot says now. Never waits."""
        first, second = self._read(index)
        if second is not None:
            return Verdict(standing=Standing.ENDED, ended=self._ended(second))
        holder = self._holder(index)
        if first is None:
            return Verdict(standing=Standing.LOCKED if holder else Standing.UNCLAIMED, pid=holder)
        if isinstance(first, Record) and first.kind is Kind.FENCED:
            return Verdict(standing=Standing.FENCED)
        if holder:
            return Verdict(standing=Standing.RUNNING, pid=holder)
        # Claimed, and its lock is free: an end was written before the lock went, or never will be.
        _, second = self._read(index)
        if second is not None:
            return Verdict(standing=Standing.ENDED, ended=self._ended(second))
        return Verdict(standing=Standing.ORPHANED)

    def stored_end(self, index: int) -> Ended | None:
        """The end that an earlier process of this agent wrote, if it did."""
        _, second = self._read(index)
        return None if second is None else self._ended(second)

    def _read(self, index: int) -> tuple[Record | Damaged | None, Record | None]:
        raw = os.pread(self._descriptor, SLOT_BYTES, index * SLOT_BYTES)
        second = decode(raw[RECORD_BYTES:])
        return decode(raw[:RECORD_BYTES]), second if isinstance(second, Record) else None

    def _ended(self, record: Record) -> Ended:
        output = record.inline
        if record.output_bytes > INLINE_BYTES:
            try:
                output = self._output_path(record.index).read_bytes()
            except OSError:
                output = b""
        exit_code = None if record.reason is Reason.NOT_STARTED else record.exit_code
        return Ended(reason=record.reason, exit_code=exit_code, output=output)

    def _write(self, index: int, kind: Kind, epoch: int) -> None:
        record = Record(kind=kind, index=index, epoch=epoch, pid=os.getpid(), at_ns=time.monotonic_ns())
        os.pwrite(self._descriptor, encode(record), index * SLOT_BYTES)

    def _unlock(self, index: int) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, index * SLOT_BYTES)

    def _holder(self, index: int) -> int:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, index * SLOT_BYTES, 1, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_GETLK, asked))
        return 0 if kind == fcntl.F_UNLCK else int(pid)

    def _output_path(self, index: int) -> Path:
        return self._folder / f"output-{index}"
