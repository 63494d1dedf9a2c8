"""Run one command as a child of the event loop: lines of its output as they come, an end that is
never waited for longer than allowed, and nothing left behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TERM_GRACE_S = 1.0
OUTPUT_GRACE_S = 1.0
_STDERR_TAIL_BYTES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), why it was ended from outside
    ("": it ended by itself), and the end of its standard error."""

    exit_code: int
    reason: str
    stderr: str


class _Output:
    """Reads one descriptor to its end without blocking; owns it."""

    def __init__(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        self._descriptor = descriptor
        self._take = take
        self.ended = asyncio.Event()
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65_536)
        except BlockingIOError:
            return
        if data:
            self._take(data)
        else:
            self.close()

    def close(self) -> None:
        if not self.ended.is_set():
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self.ended.set()


class _Lines:
    """Cuts bytes into lines. Beyond the limit it only notes that there was more."""

    def __init__(self, on_line: Callable[[str], None], limit_bytes: int) -> None:
        self._on_line = on_line
        self._left_bytes = limit_bytes
        self._rest = b""
        self.overflowed = False

    def take(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        self.overflowed = self._left_bytes < 0
        if self.overflowed:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_line(line.decode(errors="replace"))

    def end(self) -> None:
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: bytes,
    on_line: Callable[[str], None],
    ends_at: Callable[[], float],
    max_output_bytes: int,
) -> Ended:
    """Run `argv` in a process group of its own and wait for its end.

    `stdin` is given as a file in memory, so it can be read more than once and never blocks either
    side. `ends_at` is asked again each time it is reached (seconds of the loop's clock): then, or
    beyond `max_output_bytes`, or when the caller is cancelled, the group gets TERM and after
    TERM_GRACE_S KILL. Raises OSError if the command cannot be started.
    """
    loop = asyncio.get_running_loop()
    child, stdout, stderr = _start(argv, env, stdin)
    pidfd = os.pidfd_open(child.pid)
    exited = asyncio.Event()
    loop.add_reader(pidfd, _set_once, loop, pidfd, exited)
    lines = _Lines(on_line, max_output_bytes)
    tail = bytearray()

    def keep_tail(data: bytes) -> None:
        tail.extend(data)
        del tail[:-_STDERR_TAIL_BYTES]

    outputs = (_Output(stdout, lines.take), _Output(stderr, keep_tail))
    reason = ""
    try:
        reason = await _until_exit(exited, ends_at, lambda: lines.overflowed)
    finally:
        try:
            if not exited.is_set():
                await _end_group(child.pid, exited)
            await _drain(child.pid, outputs)
        finally:
            # The group's number stays reserved until the child is reaped, here.
            for output in outputs:
                output.close()
            loop.remove_reader(pidfd)
            os.close(pidfd)
            if not exited.is_set():
                _kill_group(child.pid, signal.SIGKILL)
            exit_code = child.wait()
    lines.end()
    return Ended(exit_code=exit_code, reason=reason, stderr=tail.decode(errors="replace").strip())


def _start(
    argv: Sequence[str], env: Mapping[str, str], stdin: bytes
) -> tuple[subprocess.Popen[bytes], int, int]:
    """The child, and the reading ends of its standard output and error."""
    with contextlib.ExitStack() as on_error, contextlib.ExitStack() as always:
        source = os.memfd_create("payload")
        always.callback(os.close, source)
        _write_all(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)
        ends = []
        for _ in range(2):
            read_end, write_end = os.pipe()
            on_error.callback(os.close, read_end)
            always.callback(os.close, write_end)
            ends.append((read_end, write_end))
        child = subprocess.Popen(
            argv,
            env=env,
            stdin=source,
            stdout=ends[0][1],
            stderr=ends[1][1],
            start_new_session=True,
        )
        on_error.pop_all()
        return child, ends[0][0], ends[1][0]


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _set_once(loop: asyncio.AbstractEventLoop, pidfd: int, exited: asyncio.Event) -> None:
    loop.remove_reader(pidfd)
    exited.set()


async def _until_exit(
    exited: asyncio.Event, ends_at: Callable[[], float], too_much: Callable[[], bool]
) -> str:
    """Wait for the end; returns why it has to be forced, or ""."""
    loop = asyncio.get_running_loop()
    while not exited.is_set():
        if too_much():
            return "it printed more than its output limit"
        left_s = ends_at() - loop.time()
        if left_s <= 0:
            return "it did not end in time"
        # Woken at least each second, to notice too much output.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(exited.wait(), min(left_s, 1.0))
    return ""


async def _end_group(group: int, exited: asyncio.Event) -> None:
    _kill_group(group, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(exited.wait(), TERM_GRACE_S)
    _kill_group(group, signal.SIGKILL)
    await exited.wait()


async def _drain(group: int, outputs: Sequence[_Output]) -> None:
    """Read what the child has printed. A process that it left behind may hold its output open: it is
    ended after a moment."""
    for output in outputs:
        try:
            await asyncio.wait_for(output.ended.wait(), OUTPUT_GRACE_S)
        except TimeoutError:
            _kill_group(group, signal.SIGKILL)


def _kill_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
