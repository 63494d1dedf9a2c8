"""One agent command: started in a process group of its own, fed, read, bounded, ended.

The worker's poll loop drives it: `descriptors` says what to wait for, `advance` does what can be
done without waiting. Time is passed in, in seconds on the monotonic clock.
"""

from __future__ import annotations

import posix
import select

from cfn.engine.lean import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GRACE_S = 2.0  # between SIGTERM and SIGKILL
NO_COMMAND_EXIT_CODE = 127  # as a shell reports it

_CHUNK = 65_536
_SIGHUP, _SIGINT, _SIGKILL, _SIGPIPE, _SIGTERM, _SIGCHLD = 1, 2, 9, 13, 15, 17
_RUNNING, _TERMINATING, _KILLED = range(3)


class AgentProcess:
    """A started command. Raises OSError when it cannot be started; `failure` says what that means."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[bytes, bytes],
        payload: bytes,
        *,
        timeout_ms: int,
        max_output_bytes: int,
        now_s: float,
    ) -> None:
        input_read, self._input = posix.pipe2(posix.O_CLOEXEC)
        self._output, output_write = posix.pipe2(posix.O_CLOEXEC)
        try:
            self.pid = posix.posix_spawn(
                command[0],
                list(command),
                environment,
                file_actions=[
                    (posix.POSIX_SPAWN_DUP2, input_read, 0),
                    (posix.POSIX_SPAWN_DUP2, output_write, 1),
                ],
                setpgroup=0,
                setsigmask=[],
                setsigdef=[_SIGINT, _SIGTERM, _SIGPIPE, _SIGCHLD, _SIGHUP],
            )
        except OSError:
            posix.close(self._input)
            posix.close(self._output)
            raise
        finally:
            posix.close(input_read)
            posix.close(output_write)
        self._pidfd = posix.pidfd_open(self.pid)
        posix.set_blocking(self._input, False)
        posix.set_blocking(self._output, False)
        self._unsent = memoryview(payload)
        self._read = bytearray()
        self._limit = max_output_bytes
        self._phase = _RUNNING
        self._reason = records.NONE
        self.next_s = now_s + timeout_ms / 1000  # when `advance` must be called even if nothing is ready

    def descriptors(self) -> dict[int, int]:
        """What to wait for: descriptor to poll events."""
        waiting = {self._pidfd: select.POLLIN}
        if self._input >= 0:
            waiting[self._input] = select.POLLOUT
        if self._output >= 0:
            waiting[self._output] = select.POLLIN
        return waiting

    def stop(self, now_s: float) -> None:
        """Begin to end the process group: SIGTERM now, SIGKILL after the grace."""
        if self._phase == _RUNNING:
            self._reason = records.STOPPED
            self._terminate(now_s)

    def advance(self, now_s: float) -> tuple[int, int, bytes] | None:
        """Feed, read and enforce the time limit. Once it has ended: reason, exit code, output; call
        no more then."""
        self._feed()
        self._drain()
        if now_s >= self.next_s:
            if self._phase == _RUNNING:
                self._reason = records.TIMED_OUT
                self._terminate(now_s)
            else:
                self._signal_group(_SIGKILL)
                self._phase = _KILLED
                self.next_s = now_s + GRACE_S
        found = posix.waitid(posix.P_PID, self.pid, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        if found is None:
            return None
        self._drain()
        # The leader is dead but not reaped: its number cannot be anybody else's group yet.
        self._signal_group(_SIGKILL)
        posix.waitpid(self.pid, 0)
        for descriptor in (self._input, self._output, self._pidfd):
            if descriptor >= 0:
                posix.close(descriptor)
        status = found.si_status if found.si_code == posix.CLD_EXITED else -found.si_status
        if self._reason == records.NONE and status != 0:
            self._reason = records.EXIT if status > 0 else records.SIGNAL
        return self._reason, status, bytes(self._read)

    def _terminate(self, now_s: float) -> None:
        self._signal_group(_SIGTERM)
        self._phase = _TERMINATING
        self.next_s = now_s + GRACE_S

    def _signal_group(self, number: int) -> None:
        try:
            posix.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def _feed(self) -> None:
        while self._input >= 0:
            try:
                if self._unsent:
                    self._unsent = self._unsent[posix.write(self._input, self._unsent[:_CHUNK]) :]
            except BlockingIOError:
                return
            except BrokenPipeError:  # the command does not read what it is given
                self._unsent = memoryview(b"")
            if not self._unsent:
                posix.close(self._input)
                self._input = -1

    def _drain(self) -> None:
        """Read what is there; beyond the bound it is read and dropped, so the command never blocks."""
        while self._output >= 0:
            try:
                chunk = posix.read(self._output, _CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                posix.close(self._output)
                self._output = -1
                return
            self._read += chunk[: max(0, self._limit - len(self._read))]


def failure(error: OSError) -> tuple[int, int]:
    """The reason and exit code of a command that could not be started."""
    if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError)):
        return records.NO_COMMAND, NO_COMMAND_EXIT_CODE
    return records.NOT_STARTED, 0
