"""One agent command: started in a process group of its own, fed, read, bounded, ended.

The worker's poll loop drives it: `descriptors` says what to wait for, `advance` does what can be
done without waiting. Time is passed in, in seconds on the monotonic clock.
"""

import os
import select
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto

from cfn.engine.claims import Ended
from cfn.engine.records import Reason

GRACE_S = 2.0  # between SIGTERM and SIGKILL
_CHUNK = 65_536
NO_COMMAND_EXIT_CODE = 127  # as a shell reports it


class _Phase(Enum):
    RUNNING = auto()
    TERMINATING = auto()  # SIGTERM was sent
    KILLED = auto()


class AgentProcess:
    """A started command. Raises OSError when it cannot be started; `failure` turns that into an end."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        payload: bytes,
        *,
        timeout_ms: int,
        max_output_bytes: int,
        now_s: float,
    ) -> None:
        input_read, self._input = os.pipe()
        self._output, output_write = os.pipe()
        try:
            self.pid = os.posix_spawn(
                command[0],
                list(command),
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, input_read, 0),
                    (os.POSIX_SPAWN_DUP2, output_write, 1),
                ],
                setpgroup=0,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD, signal.SIGHUP],
            )
        except OSError:
            os.close(self._input)
            os.close(self._output)
            raise
        finally:
            os.close(input_read)
            os.close(output_write)
        self._pidfd = os.pidfd_open(self.pid)
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        self._unsent = memoryview(payload)
        self._read = bytearray()
        self._limit = max_output_bytes
        self._phase = _Phase.RUNNING
        self._next_s = now_s + timeout_ms / 1000
        self._reason = Reason.NONE

    def descriptors(self) -> dict[int, int]:
        """What to wait for: descriptor to poll events."""
        waiting = {self._pidfd: select.POLLIN}
        if self._input >= 0:
            waiting[self._input] = select.POLLOUT
        if self._output >= 0:
            waiting[self._output] = select.POLLIN
        return waiting

    @property
    def next_s(self) -> float:
        """When `advance` must be called even if nothing is ready."""
        return self._next_s

    def stop(self, now_s: float) -> None:
        """Begin to end the process group: SIGTERM now, SIGKILL after the grace."""
        if self._phase is _Phase.RUNNING:
            self._reason = Reason.STOPPED
            self._terminate(now_s)

    def advance(self, now_s: float) -> Ended | None:
        """Feed, read and enforce the time limit. The end, once there is one; call no more then."""
        self._feed()
        self._drain()
        if now_s >= self._next_s:
            if self._phase is _Phase.RUNNING:
                self._reason = Reason.TIMED_OUT
                self._terminate(now_s)
            else:
                self._signal_group(signal.SIGKILL)
                self._phase = _Phase.KILLED
                self._next_s = now_s + GRACE_S
        ended, status = self._peek()
        if not ended:
            return None
        self._drain()
        # The leader is dead but not reaped: its number cannot be anybody else's group yet.
        self._signal_group(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._close()
        if self._reason is Reason.NONE and status != 0:
            self._reason = Reason.EXIT if status > 0 else Reason.SIGNAL
        return Ended(reason=self._reason, exit_code=status, output=bytes(self._read))

    def _peek(self) -> tuple[bool, int]:
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return False, 0
        return True, found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def _terminate(self, now_s: float) -> None:
        self._signal_group(signal.SIGTERM)
        self._phase = _Phase.TERMINATING
        self._next_s = now_s + GRACE_S

    def _signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _feed(self) -> None:
        while self._input >= 0:
            try:
                if self._unsent:
                    self._unsent = self._unsent[os.write(self._input, self._unsent[:_CHUNK]) :]
            except BlockingIOError:
                return
            except BrokenPipeError:  # the command does not read what it is given
                self._unsent = memoryview(b"")
            if not self._unsent:
                os.close(self._input)
                self._input = -1

    def _drain(self) -> None:
        """Read what is there; beyond the bound it is read and dropped, so the command never blocks."""
        while self._output >= 0:
            try:
                chunk = os.read(self._output, _CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                os.close(self._output)
                self._output = -1
                return
            self._read += chunk[: max(0, self._limit - len(self._read))]

    def _close(self) -> None:
        for descriptor in (self._input, self._output, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._input = self._output = self._pidfd = -1


def failure(error: OSError) -> Ended:
    """The end of a command that could not be started."""
    if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError)):
        return Ended(reason=Reason.NO_COMMAND, exit_code=NO_COMMAND_EXIT_CODE)
    return Ended(reason=Reason.NOT_STARTED, exit_code=None)
