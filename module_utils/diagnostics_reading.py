# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Read files and commands of a host that may be ill: bounded in size and time, and never anything that
somebody put in a file's place.

Each returns a text and a problem in words, empty if there is none; the end is what is kept.
"""

from __future__ import annotations

import os
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

Read = tuple[str, str]
Runner = Callable[[list[str]], Read]

_CHUNK_BYTES = 65_536


def read_end(path: Path, most_bytes: int) -> Read:
    """The last whole lines of a file. A link, a pipe, or a file below a link is refused, since a daemon's
    account could point it at what only root may read."""
    try:
        if Path(os.path.realpath(path.parent)) != path.parent:
            return "", f"{path.parent} is reached through a link, which is not followed"
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return "", str(error.strerror)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return "", "not a plain file"
        start = max(0, found.st_size - most_bytes)
        # Files of /proc have no size; what grows meanwhile is cut as well.
        content = _read_up_to(descriptor, start, most_bytes)
    except OSError as error:
        return "", str(error.strerror)
    finally:
        os.close(descriptor)
    problem = f"the last {most_bytes} of {found.st_size} bytes" if start else ""
    return _whole_lines(content, cut=start > 0), problem


def _read_up_to(descriptor: int, start: int, most_bytes: int) -> bytes:
    content = bytearray()
    while len(content) < most_bytes:
        chunk = os.pread(descriptor, min(_CHUNK_BYTES, most_bytes - len(content)), start + len(content))
        if not chunk:
            break
        content += chunk
    return bytes(content)


def _whole_lines(content: bytes, *, cut: bool) -> str:
    if cut:
        content = content.partition(b"\n")[2]
    return content.decode(errors="replace")


def run(argv: list[str], *, most_bytes: int, timeout_s: float) -> Read:
    """What a command printed, errors too; it is killed with its children at the deadline."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
        )
    except OSError as error:
        return "", f"{argv[0]}: {error.strerror}"
    try:
        kept, cut, ended = _read_until(process, most_bytes, time.monotonic() + timeout_s)
    finally:
        _kill(process)
    problems = [f"the last {most_bytes} bytes"] if cut else []
    if not ended:
        problems.append(f"killed: no end within {timeout_s:g} s")
    elif process.returncode:
        problems.append(f"exit code {process.returncode}")
    return _whole_lines(kept, cut=cut), "; ".join(problems)


def _read_until(
    process: subprocess.Popen[bytes], most_bytes: int, deadline: float
) -> tuple[bytes, bool, bool]:
    """What was printed, whether its beginning was cut, and whether the command ended in time."""
    assert process.stdout is not None  # noqa: S101 - for the type checker: it was asked for above
    kept, cut = bytearray(), False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left_s := deadline - time.monotonic()) > 0:
            if not selector.select(left_s):
                break
            chunk = os.read(process.stdout.fileno(), _CHUNK_BYTES)
            if not chunk:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    break
                return bytes(kept), cut, True
            kept += chunk
            if len(kept) > most_bytes:
                del kept[: len(kept) - most_bytes]
                cut = True
    return bytes(kept), cut, False


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    with suppress(subprocess.TimeoutExpired):  # one that a dead disk holds does not end
        process.wait(1)
