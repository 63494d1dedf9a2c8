"""The ledger's file: one writer at a time, durable when `append` returns, safe against a crash in the
middle of a write.

An append reads the last record only. That it is the last one is held against the head, which is kept
in a file of its own and replaced after each append: what was cut off the end shows at the next append,
and any other damage to `verify`.
"""

import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cfn.config_follower import write_atomically
from cfn.errors import DamagedError, RefusedError, UsageError
from cfn.ledger.backwards import last_line, lines_backwards
from cfn.ledger.canonical import canonical
from cfn.ledger.chain import Anchor, Entry, Finding, Head, head_of, next_record, read_line, verify
from cfn.metrics import checks

MODE = 0o640
LOCK_WAIT_S = 30.0

Record = dict[str, Any]


class LedgerStore:
    """The ledger in `folder`. `say` is told what a person must know (a torn record was put aside)."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self.path = folder / "ledger.jsonl"
        self.head_path = folder / "head.json"

    def append(self, entry: Entry) -> Record:
        """Add a record and return it; it is on disk when this returns.

        Blocks up to LOCK_WAIT_S for another writer. Raises UsageError if the entry is no record,
        DamagedError if the ledger's end cannot be trusted, RefusedError if the lock is not had in time
        or the disk refuses (the ledger is then as it was).
        """
        return self.append_all(lambda _: [entry])[0]

    def append_all(self, decide: Callable[[Iterator[Record]], Sequence[Entry]]) -> list[Record]:
        """As `append`, of all that `decide` returns, one after the other: those before one that fails stay.
        It is given the records, newest first, and no other writer comes between its reading and the append;
        what `decide` raises leaves the ledger as it was."""
        appended = []
        with self._lock():
            descriptor = self._open()
            try:
                end = self._cut_torn_tail(descriptor)
                head = self._head(descriptor, end)
                for entry in decide(self._backwards(descriptor, end, head)):
                    try:
                        record = next_record(head, entry)
                    except ValueError as error:
                        raise UsageError(f"this is no record of the ledger: {error}") from None
                    end = self._write(descriptor, record, end)
                    head = Head(record["sequence"], record["hash"])
                    appended.append(record)
            finally:
                os.close(descriptor)
        return appended

    def records(self, last: int) -> list[Record]:
        """The last records, oldest first. Raises DamagedError naming the first that cannot be trusted."""
        return list(deque(self.oldest(), maxlen=last))

    def oldest(self) -> Iterator[Record]:
        """Every record, oldest first, each checked. Raises DamagedError at the first that cannot be
        trusted. A record that is still being written is left out."""
        head = Head()
        for number, line in enumerate(self._lines(), start=1):
            try:
                record, head = read_line(line, head)
            except (ValueError, RecursionError) as error:
                raise DamagedError(f"{self.path}: record {number} cannot be trusted: {error}") from None
            yield record

    def trusted(self) -> list[Record]:
        """The records before the first that cannot be trusted, oldest first."""
        found = []
        with suppress(DamagedError):
            for record in self.oldest():
                found.append(record)
        return found

    def newest(self) -> Iterator[Record]:
        """Every record, newest first, each held against the one after it, which names it. Reads no
        further than it is asked. Raises DamagedError at the first that cannot be trusted."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DamagedError(f"{self.path}: cannot be read: {error}") from error
        try:
            size = os.fstat(descriptor).st_size
            yield from self._backwards(descriptor, size - len(last_line(descriptor, size)), None)
        finally:
            os.close(descriptor)

    def verify(self, anchors: Sequence[Anchor] = ()) -> Finding:
        """Check every record, the ledger's own head and `anchors` (see cfn.ledger.chain.verify). A torn
        tail is damage here."""
        kept = self._kept_head()
        own = [] if kept is None else [Anchor(str(self.head_path), kept.hash, kept.sequence)]
        return verify(self._lines(keep_torn=True), [*own, *anchors])

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

    def _backwards(self, descriptor: int, end: int, head: Head | None) -> Iterator[Record]:
        for line in lines_backwards(descriptor, end):
            record, found = self._trusted(line, head.sequence if head else None)
            if head not in (None, found):
                raise DamagedError(
                    f"{self.path}: record {found.sequence} is not the one that its follower names"
                )
            head = Head(found.sequence - 1, record["previous"])
            yield record

    def _trusted(self, line: bytes, number: int | None) -> tuple[Record, Head]:
        try:
            return head_of(line)
        except (ValueError, RecursionError) as error:
            which = f"record {number}" if number else "the last record"
            raise DamagedError(f"{self.path}: {which} cannot be trusted: {error}") from None

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
        torn = last_line(descriptor, size)
        if not torn:
            return size
        aside = self._folder / f"ledger.{time.time_ns()}.torn"
        try:
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as file:
                file.write(torn)
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(descriptor, size - len(torn))
            os.fsync(descriptor)
        except OSError as error:
            raise RefusedError(f"{aside}: the torn last record cannot be put aside: {error}") from error
        self._say(f"the last record was torn by a crash: its {len(torn)} bytes are in {aside} now")
        return size - len(torn)

    def _head(self, descriptor: int, end: int) -> Head:
        """The head, from the last record, which must be the one that the head's own file names, or the
        one after it (a crash came between the two writes)."""
        kept = self._kept_head()
        if kept is None:
            finding = self.verify()
            if finding.problem:
                raise DamagedError(f"{self.path}: {finding.problem}; nothing was appended")
            return finding.head
        head, previous = Head(), Head()
        for line in lines_backwards(descriptor, end):
            record, head = self._trusted(line, None)
            previous = Head(head.sequence - 1, record["previous"])
            break
        if kept not in (head, previous):
            raise DamagedError(
                f"{self.path}: it ends at record {head.sequence} ({head.hash}), and {self.head_path} names "
                f"record {kept.sequence} ({kept.hash}): records were cut off its end, or it was rewritten; "
                "nothing was appended"
            )
        return head

    def _kept_head(self) -> Head | None:
        """The head in its own file; None if there is none."""
        try:
            value = checks.load_object(self.head_path.read_text())
            return Head(
                checks.whole(value.get("sequence"), "sequence"), checks.text(value.get("hash"), "hash")
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DamagedError(f"{self.head_path}: cannot be trusted: {error}") from None

    def _write(self, descriptor: int, record: Record, end: int) -> int:
        """Write a record at the end. Returns the size."""
        line = canonical(record).encode() + b"\n"
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
            head = json.dumps({"sequence": record["sequence"], "hash": record["hash"]})
            write_atomically(self.head_path, head + "\n", mode=MODE)
        except OSError as error:
            os.ftruncate(descriptor, end)
            raise RefusedError(f"{self.path}: cannot be written: {error}; it is as it was") from error
        return end + len(line)
