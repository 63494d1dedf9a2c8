"""A worker's side of the claims arenas (claims.py has the hub's side and what it is good for).

POSIX locks name their holder, end with it, and are not inherited by its children. They also vanish when
the process closes *any* descriptor of the file, so each process has one for its life.
"""

from __future__ import annotations

import fcntl
import posix
import time

from cfn.engine.lean import records
from cfn.engine.lean.records import RECORD_BYTES

TAKEN, EARLIER, FENCED = range(3)

# Names of their own, since every worker's first steps touch, and so copy, a module's pages otherwise.
_lockf, _pread, _pwrite = fcntl.lockf, posix.pread, posix.pwrite
_LOCK, _UNLOCK = fcntl.LOCK_EX, fcntl.LOCK_UN
_encode, _getpid, _now_ns = records.encode, posix.getpid, time.monotonic_ns

_READ_CHUNK = 1 << 20


def take(arena: int, slot: int, key: int, ticket: bytes) -> int:
    """May this process run the agent's part of this request? On TAKEN the slot stays locked until `end`.

    EARLIER: somebody claimed it, and has ended or died. FENCED: nobody may start it any more, or the
    request is over. Waits while another process holds the lock: a hub for microseconds, an earlier
    incarnation of the agent until it has ended or is dead.
    """
    at = slot * RECORD_BYTES
    fcntl.lockf(arena, fcntl.LOCK_EX, 1, at)
    raw = posix.pread(arena, RECORD_BYTES, at)
    if raw == ticket:
        posix.pwrite(
            arena, records.encode(records.CLAIMED, key, pid=posix.getpid(), at_ns=time.monotonic_ns()), at
        )
        return TAKEN
    fcntl.lockf(arena, fcntl.LOCK_UN, 1, at)
    return _refusal(raw, key)


def take_and_end(arena: int, slot: int, key: int, ticket: bytes, output: bytes) -> int:
    """Claim and end at once: for what has no effect but its short output. As `take`, and unlocked."""
    at = slot * RECORD_BYTES
    _lockf(arena, _LOCK, 1, at)
    raw = _pread(arena, RECORD_BYTES, at)
    if raw == ticket:
        _pwrite(arena, _encode(records.ENDED, key, pid=_getpid(), at_ns=_now_ns(), output=output), at)
    _lockf(arena, _UNLOCK, 1, at)
    return TAKEN if raw == ticket else _refusal(raw, key)


def _refusal(raw: bytes, key: int) -> int:
    record = records.decode(raw)
    if record is None:
        return EARLIER  # damaged: it counts as claimed
    return EARLIER if record.key == key and record.kind != records.FENCED else FENCED


def end(
    arena: int, slot: int, key: int, outputs: str, index: int, *, reason: int, exit_code: int, output: bytes
) -> None:
    """Store an end, before anybody is told of it, and give up the lock. A long output goes to a file of
    its own first; without room for that its beginning is in the record."""
    if len(output) > records.INLINE_BYTES:
        try:
            _store_output(outputs, key, index, output)
        except OSError:
            output = output[: records.INLINE_BYTES]
    record = records.encode(
        records.ENDED,
        key,
        pid=posix.getpid(),
        at_ns=time.monotonic_ns(),
        reason=reason,
        exit_code=exit_code,
        output=output,
    )
    posix.pwrite(arena, record, slot * RECORD_BYTES)
    fcntl.lockf(arena, fcntl.LOCK_UN, 1, slot * RECORD_BYTES)


def stored_end(arena: int, slot: int, key: int, outputs: str, index: int) -> tuple[int, int, bytes] | None:
    """An end that is in the slot: reason, exit code, output. None if there is none for this request."""
    record = records.decode(posix.pread(arena, RECORD_BYTES, slot * RECORD_BYTES))
    if record is None or record.key != key or record.kind != records.ENDED:
        return None
    return record.reason, record.exit_code, output_of(record, outputs, index)


def output_of(record: records.Record, outputs: str, index: int) -> bytes:
    """The whole output of an ENDED record, or what is left of it."""
    if record.output_bytes <= len(record.inline):
        return record.inline
    try:
        descriptor = posix.open(output_path(outputs, record.key, index), posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return record.inline
    try:
        parts = []
        while part := posix.read(descriptor, _READ_CHUNK):
            parts.append(part)
        return b"".join(parts)
    finally:
        posix.close(descriptor)


def output_folder(outputs: str, key: int) -> str:
    """Where the long outputs of a request are."""
    return f"{outputs}/{key:016x}"


def output_path(outputs: str, key: int, index: int) -> str:
    """The file of one agent's long output."""
    return f"{output_folder(outputs, key)}/{index}"


def _store_output(outputs: str, key: int, index: int, output: bytes) -> None:
    try:
        posix.mkdir(output_folder(outputs, key), 0o750)
    except FileExistsError:
        pass  # another agent of this request was first
    path = output_path(outputs, key, index)
    descriptor = posix.open(
        path, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o640
    )
    try:
        while output:
            output = output[posix.write(descriptor, output) :]
    except OSError:
        posix.unlink(path)
        raise
    finally:
        posix.close(descriptor)
