"""Heads of a ledger, kept on a host: what shows that its end was cut off or the whole was rewritten.

One file for each environment, one line for each head, oldest first; a head is never replaced.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cfn.errors import DamagedError, RefusedError
from cfn.ledger.backwards import last_line
from cfn.ledger.chain import Head
from cfn.metrics import checks

MODE = 0o640


def keep(folder: Path, environment: str, head: Head, earlier: Sequence[Head] = (), *, time: str) -> bool:
    """Keep a head, and the `earlier` ones (oldest first) that are later than all that is kept. False if it
    is kept already. The caller has checked that `environment` is a name.

    Two writers of a ledger come here in any order; who brings the earlier heads lets the other one come
    late. Raises DamagedError if another hash is kept for a sequence, or a later head is kept and this one
    is not: the ledger was cut or rewritten. Raises RefusedError when the disk refuses.
    """
    path = folder / f"{environment}.jsonl"
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
            known = {each.sequence: each for each in kept}
            newest = kept[-1] if kept else Head()
            for each in (*earlier, head):
                late = each is head and head.sequence <= newest.sequence
                if late or known.get(each.sequence, each) != each:
                    raise DamagedError(
                        f"{path}: record {newest.sequence} ({newest.hash}) is kept here, and record "
                        f"{each.sequence} ({each.hash}) does not fit: the ledger was cut or rewritten"
                    )
            size = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, size - len(last_line(descriptor, size)))  # torn by a crash
            new = [each for each in (*earlier, head) if each.sequence > newest.sequence]
            os.write(descriptor, "".join(_line(each, time) for each in new).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RefusedError(f"{path}: cannot be written: {error}") from error
    return True


def _line(head: Head, time: str) -> str:
    return json.dumps({"v": 1, "time": time, "sequence": head.sequence, "hash": head.hash}) + "\n"


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
