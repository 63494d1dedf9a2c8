"""Tell systemd how a daemon stands (`sd_notify`), and when the watchdog wants to be fed."""

import _socket
import posix
import time

_sender: _socket.socket | None = None  # kept: a daemon without a free descriptor is alive all the same


def notify(state: str) -> None:
    """Send `state` ("READY=1", "WATCHDOG=1", "STOPPING=1", "STATUS=text") to the service manager.

    Does nothing outside of a unit. Never blocks and never raises: a manager that does not listen
    is no reason for a daemon to fail.
    """
    global _sender
    address = posix.environ.get(b"NOTIFY_SOCKET", b"")
    if not address:
        return
    if address.startswith(b"@"):  # an abstract name
        address = b"\0" + address[1:]
    try:
        if _sender is None:
            _sender = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            _sender.setblocking(False)
        _sender.sendto(state.encode(), address)
    except OSError:
        return


def watchdog_interval_s() -> float | None:
    """Seconds between two WATCHDOG=1, half of what the unit allows; None without a watchdog."""
    allowed_us = posix.environ.get(b"WATCHDOG_USEC", b"")
    own = str(posix.getpid()).encode()
    if not allowed_us.isdigit() or posix.environ.get(b"WATCHDOG_PID", own) != own:
        return None
    return int(allowed_us) / 2_000_000 or None


class Watchdog:
    """Feeds the watchdog from a main loop, no oftener than it needs."""

    def __init__(self) -> None:
        self._interval_s = watchdog_interval_s()
        self._fed_s = 0.0

    @property
    def longest_wait_s(self) -> float:
        """How long a turn of the loop may wait: at most a second."""
        return min(1.0, self._interval_s or 1.0)

    def feed(self) -> None:
        """Call after each turn that made progress."""
        now_s = time.monotonic()
        if self._interval_s is not None and now_s - self._fed_s >= self._interval_s / 2:
            self._fed_s = now_s
            notify("WATCHDOG=1")
