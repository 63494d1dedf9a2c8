"""A team's journal of messages in tmpfs: groups of datagrams, each whole or not there.

offset  size  field of a group
     0     4  magic
     4     4  bytes of the content
     8     4  CRC-32 of the content
    12     4  zero
    16        content: datagrams (datagram.py) one after the other, padded with zeros to 8 bytes

One process writes: it holds an flock on the file. A group that a SIGKILL tore is cut when the file
is opened; nobody was told that it was stored. The file appears with the first group.
"""

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cfn.engine.messages import datagram

_GROUP = struct.Struct("<IIII")
_MAGIC = 0x474D4643  # "CFMG"
_PADDING = (b"", b"\0" * 7, b"\0" * 6, b"\0" * 5, b"\0" * 4, b"\0" * 3, b"\0" * 2, b"\0")
_CHUNK_BYTES = 1 << 20  # of a group when a journal is rewritten


def encode(records: Sequence[bytes]) -> bytes:
    """A group as it is written."""
    content = b"".join(records)
    head = _GROUP.pack(_MAGIC, len(content), zlib.crc32(content), 0)
    return head + content + _PADDING[len(content) & 7]


def decode(raw: bytes) -> tuple[list[bytes], int]:
    """The datagrams of all whole groups, and the bytes that these take: the rest is torn."""
    found: list[bytes] = []
    offset = 0
    while offset + _GROUP.size <= len(raw):
        magic, size, checksum, zero = _GROUP.unpack_from(raw, offset)
        start = offset + _GROUP.size
        end = start + size + (-size & 7)
        if magic != _MAGIC or zero or end > len(raw) or any(raw[start + size : end]):
            break
        if zlib.crc32(raw[start : start + size]) != checksum:
            break
        try:
            records = split(raw[start : start + size])
        except (ValueError, struct.error):
            break
        found += records
        offset = end
    return found, offset


def split(content: bytes) -> list[bytes]:
    """Datagrams that follow one another. Raises ValueError or struct.error."""
    records = []
    offset = 0
    while offset < len(content):
        end = offset + datagram.size(content, offset)
        if end > len(content):
            raise ValueError("shorter than its header says")
        records.append(content[offset:end])
        offset = end
    return records


class Journal:
    """The file of one team. `size` is its bytes, 0 while there is no file."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, BlockingIOError when another process still holds the journal."""
        self.size = 0
        self.cut_bytes = 0
        self._path = path
        self._descriptor = -1
        self._loaded: list[bytes] = []
        with suppress(FileNotFoundError):
            self._descriptor = _open(path, create=False)
            raw = _read(self._descriptor)
            self._loaded, self.size = decode(raw)
            self.cut_bytes = len(raw) - self.size
            if self.cut_bytes:
                os.ftruncate(self._descriptor, self.size)

    def loaded(self) -> list[bytes]:
        """What the file held when it was opened, oldest first; once."""
        found, self._loaded = self._loaded, []
        return found

    def append(self, records: Sequence[bytes]) -> None:
        """Store datagrams, all or none. Raises OSError, ENOSPC when tmpfs is full."""
        if self._descriptor < 0:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._descriptor = _open(self._path, create=True)
        raw = encode(records)
        try:
            written = os.write(self._descriptor, raw)
        except OSError:
            self._cut()
            raise
        if written != len(raw):
            self._cut()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += written

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Put these datagrams in place of all the file holds, at once. Raises OSError, and then the
        file is as it was."""
        new = self._path.with_name(self._path.name + ".new")
        with suppress(FileNotFoundError):
            new.unlink()
        descriptor = _open(new, create=True)
        size = 0
        try:
            for chunk in _chunks(records):
                raw = encode(chunk)
                written = os.write(descriptor, raw)
                if written != len(raw):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                size += written
            new.replace(self._path)
        except OSError:
            os.close(descriptor)
            new.unlink(missing_ok=True)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self.size = size

    def close(self, *, remove: bool) -> None:
        """Let go of the file; `remove` deletes it, and its folder when that is empty then."""
        if remove and self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):
                self._path.parent.rmdir()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.size = 0

    def _cut(self) -> None:
        """A group was written in part: take it back."""
        os.ftruncate(self._descriptor, self.size)


def _open(path: Path, *, create: bool) -> int:
    """The file with its lock. It may be replaced between opening and locking: look again then."""
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        descriptor = os.open(path, flags, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            if not create:
                os.close(descriptor)
                raise
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(errno.EAGAIN, f"another hub still holds the inboxes in {path}") from None
        os.close(descriptor)


def _read(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    parts = []
    while size > 0:
        part = os.read(descriptor, size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _chunks(records: Iterable[bytes]) -> Iterable[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record)
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk
