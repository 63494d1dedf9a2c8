"""The ledger's file: one writer at a time, durable when `append` returns, safe against a crash in the
middle of a write.
"""

import fcntl
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cfn.errors import DamagedError, RefusedError, UsageError
from cfn.ledger.canonical import canonical
from cfn.ledger.chain import Entry, Finding, Head, next_record, read_line, verify

MODE = 0o640
LOCK_WAIT_S = 30.0


class LedgerStore:
    """The ledger in `folder`. `say` is told what a person must know (a torn record was put aside)."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self.path = folder / "ledger.jsonl"

    def append(self, entry: Entry) -> dict[str, Any]:
        """Add a record and return it; it is on disk when this returns.

        Blocks up to LOCK_WAIT_S for another writer. Raises UsageError if the entry is no record,
        DamagedError if the ledger's last record cannot be trusted, RefusedError if the lock is not
        had in time or the disk refuses (the ledger is then as it was).
        """
        with self._lock():
            descriptor = self._open()
            try:
                end = self._cut_torn_tail(descriptor)
                head = self._head()
                try:
                    record = next_record(head, entry)
                except ValueError as error:
                    raise UsageError(f"this is no record of the ledger: {error}") from None
                self._write(descriptor, canonical(record).encode() + b"\n", end)
            finally:
                os.close(descriptor)
        return record

    def records(self, last: int) -> list[dict[str, Any]]:
        """The last records, oldest first. Raises DamagedError naming the first that cannot be trusted."""
        head = Head()
        found: deque[dict[str, Any]] = deque(maxlen=last)
        for number, line in enumerate(self._lines(), start=1):
            try:
                record, head = read_line(line, head)
            except (ValueError, RecursionError) as error:
                raise DamagedError(f"{self.path}: record {number} cannot be trusted: {error}") from None
            found.append(record)
        return list(found)

    def verify(self, anchor: str = "") -> Finding:
        """Check every record (see cfn.ledger.chain.verify). A torn tail is damage here."""
        return verify(self._lines(keep_torn=True), anchor)

    def _lines(self, *, keep_torn: bool = False) -> Iterator[bytes]:
        """Lines without their newline; a last one that has none is a write that never ended."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise DamagedError(f"{self.path}: cannot be read: {error}") from error
        with file:
            for line in file:
                if line.endswith(b"\n") or keep_torn:
                    yield line[:-1] if line.endswith(b"\n") else line

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """A lock file of its own: the ledger itself is never replaced while it is held."""
        try:
            self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
        except OSError as error:
            raise RefusedError(f"{self._folder}: the ledger cannot be locked: {error}") from error
        try:
            deadline = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise RefusedError(f"{self.path}: another writer holds the ledger") from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(lock)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.path, flags, MODE)
            os.fchmod(descriptor, MODE)  # whatever the caller's umask
        except OSError as error:
            raise RefusedError(f"{self.path}: cannot be opened for writing: {error}") from error
        return descriptor

    def _cut_torn_tail(self, descriptor: int) -> int:
        """Put a last line without newline aside, durably, before it is cut off. Returns the size."""
        size = os.fstat(descriptor).st_size
        tail = b""
        begin = size
        while begin > 0 and b"\n" not in tail:
            step = min(65_536, begin)
            begin -= step
            tail = os.pread(descriptor, step, begin) + tail
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return size
        aside = self._folder / f"ledger.{time.time_ns()}.torn"
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as file:
            file.write(torn)
            file.flush()
            os.fsync(file.fileno())
        os.ftruncate(descriptor, size - len(torn))
        os.fsync(descriptor)
        self._say(f"the last record was torn by a crash: its {len(torn)} bytes are in {aside} now")
        return size - len(torn)

    def _head(self) -> Head:
        """The head by reading the whole ledger: an append to a damaged chain would hide the damage."""
        finding = self.verify()
        if finding.problem:
            raise DamagedError(f"{self.path}: {finding.problem}; nothing was appended")
        return finding.head

    def _write(self, descriptor: int, line: bytes, end: int) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)  # the file's own name, when it is new
            finally:
                os.close(folder)
        except OSError as error:
            os.ftruncate(descriptor, end)
            raise RefusedError(f"{self.path}: cannot be written: {error}; it is as it was") from error
