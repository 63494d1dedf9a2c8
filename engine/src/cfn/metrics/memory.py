"""Remembering what a piece of the events file reduces to, by the SHA-256 of its content.

A window of two weeks is judged many times, and most of its lines are old. A piece that is remembered
costs its hash (a quarter of a second for half a gigabyte); one changed byte gives another hash, so
nothing that is remembered can be stale. Without a folder of its own that only its user can write, or
with a full disk, nothing is remembered and every piece is reduced anew.
"""

import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from cfn.metrics.tally import Tally

FORMAT = 2  # changes whenever the same bytes would give another tally
KEPT_S = 172_800.0  # an entry that nothing asked for in two days is removed

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Tally)


def pack(tally: Tally) -> bytes:
    """A tally as bytes."""
    return _encoder.encode(tally)


def unpack(packed: bytes) -> Tally:
    """The inverse of `pack`. Raises msgspec.MsgspecError."""
    return _decoder.decode(packed)


class Memory:
    """Entries in `folder`, for one split key and one length of a bucket. None remembers nothing."""

    def __init__(self, folder: Path | None, *, split_key: str, bucket_ms: int) -> None:
        self._folder = folder if folder is not None and _usable(folder) else None
        self._salt = f"{FORMAT}:{bucket_ms}:".encode() + hashlib.sha256(split_key.encode()).digest()

    def name(self, content: bytes) -> str:
        """The name under which a piece is remembered."""
        digest = hashlib.sha256(content)
        digest.update(self._salt)
        return digest.hexdigest()

    def recall(self, name: str) -> Tally | None:
        """What was remembered, or None. A damaged entry is as good as none."""
        if self._folder is None:
            return None
        path = self._folder / name
        try:
            found = unpack(path.read_bytes())
            os.utime(path)
        except (OSError, msgspec.MsgspecError):
            return None
        return found

    def keep(self, name: str, tally: Tally) -> None:
        """Remember. A disk that refuses is no error: the piece is reduced again next time."""
        if self._folder is None:
            return
        temporary = self._folder / f".{name}.{os.getpid()}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pack(tally))
            temporary.replace(self._folder / name)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def forget_old(self) -> None:
        """Remove what nothing asked for lately."""
        if self._folder is None:
            return
        oldest_s = time.time() - KEPT_S
        with suppress(OSError):
            for entry in os.scandir(self._folder):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest_s:
                        Path(entry.path).unlink()


def _usable(folder: Path) -> bool:
    """Whether the folder is there, or can be made, and only its user can write in it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    private = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return stat.S_ISDIR(status.st_mode) and private
