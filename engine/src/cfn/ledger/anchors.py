"""Heads of a ledger, kept on a host: what shows that its end was cut off or the whole was rewritten.

One file for each environment, one line for each head, oldest first; a head is never replaced.
"""

import fcntl
import json
import os
from pathlib import Path

from cfn.errors import DamagedError, RefusedError
from cfn.ledger.backwards import last_line
from cfn.ledger.chain import Head
from cfn.metrics import checks

MODE = 0o640


def keep(folder: Path, environment: str, head: Head, *, time: str) -> bool:
    """Keep a head. False if it is kept already. The caller has checked that `environment` is a name.

    Raises DamagedError if another hash is kept for its sequence, or a later head is kept and this one
    is not: the ledger was cut or rewritten. Raises RefusedError when the disk refuses.
    """
    path = folder / f"{environment}.jsonl"
    line = json.dumps({"v": 1, "time": time, "sequence": head.sequence, "hash": head.hash}) + "\n"
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.geteuid() == 0:  # whoever comes first: the watch's account must be able to add to it
                owner = folder.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            kept = read(folder, environment)
            if head in kept:
                return False
            if kept and kept[-1].sequence >= head.sequence:
                raise DamagedError(
                    f"{path}: record {kept[-1].sequence} ({kept[-1].hash}) is kept here, and record "
                    f"{head.sequence} ({head.hash}) does not fit: the ledger was cut or rewritten"
                )
            size = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, size - len(last_line(descriptor, size)))  # torn by a crash
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RefusedError(f"{path}: cannot be written: {error}") from error
    return True


def read(folder: Path, environment: str) -> list[Head]:
    """The heads that are kept, oldest first; a line that was cut by a crash is left out.

    Raises DamagedError when a line cannot be trusted.
    """
    path = folder / f"{environment}.jsonl"
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: cannot be read: {error}") from error
    heads = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            value = checks.load_object(line)
            sequence = checks.whole(value.get("sequence"), "sequence", low=1)
            heads.append(Head(sequence, checks.text(value.get("hash"), "hash")))
        except ValueError as error:
            raise DamagedError(f"{path}: line {number} cannot be trusted: {error}") from None
    return heads
