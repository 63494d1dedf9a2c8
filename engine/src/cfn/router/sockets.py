"""The router's listening sockets: passed by systemd, or bound here when there is no systemd."""

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cfn.errors import RefusedError

_FIRST_PASSED = 3
_BACKLOG = 1_024


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. `unlink` is the path to remove at the end, for a socket bound here."""

    socket: socket.socket
    unlink: Path | None = None


def passed(environ: Mapping[str, str], process_id: int) -> list[socket.socket]:
    """The sockets that systemd passed to this process (sd_listen_fds); none outside of a unit."""
    if environ.get("LISTEN_PID") != str(process_id):
        return []
    count = int(environ.get("LISTEN_FDS", "0"))
    sockets = [socket.socket(fileno=number) for number in range(_FIRST_PASSED, _FIRST_PASSED + count)]
    for passed_socket in sockets:
        passed_socket.set_inheritable(False)
        passed_socket.setblocking(False)
    return sockets


def listeners(path: Path, port: int, given: list[socket.socket]) -> list[Listener]:
    """A Unix socket at `path` and a TCP socket on loopback at `port`, of which those in `given` are
    not bound again. Raises RefusedError when another process holds one."""
    result = [Listener(passed_socket) for passed_socket in given]
    families = {listener.socket.family for listener in result}
    if socket.AF_UNIX not in families:
        result.append(Listener(_bind_unix(path), unlink=path))
    if not families & {socket.AF_INET, socket.AF_INET6}:
        result.append(Listener(_bind_loopback(port)))
    return result


def _bind_unix(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise RefusedError(f"{path}: another router answers there; stop it first")
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    path.chmod(0o660)
    listening.listen(_BACKLOG)
    return listening


def _bind_loopback(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise RefusedError(
                f"port {port} (CFN_ROUTER_PORT) on loopback is taken by another process"
            ) from None
        raise
    listening.listen(_BACKLOG)
    return listening


def close(listener: Listener) -> None:
    """Give one back; a path bound here is removed."""
    listener.socket.close()
    if listener.unlink is not None:
        listener.unlink.unlink(missing_ok=True)


def clear_environment() -> None:
    """Children must not take the passed sockets for theirs."""
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
