"""Tell systemd how a daemon stands (`sd_notify`), and when the watchdog wants to be fed."""

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Send `state` ("READY=1", "WATCHDOG=1", "STOPPING=1", "STATUS=text") to the service manager.

    Does nothing outside of a unit. Never blocks and never raises: a manager that does not listen
    is no reason for a daemon to fail.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract name
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(state.encode(), address)


def watchdog_interval_s() -> float | None:
    """Seconds between two WATCHDOG=1, half of what the unit allows; None without a watchdog."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    if not allowed_us.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(allowed_us) / 2_000_000 or None
