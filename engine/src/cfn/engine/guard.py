"""What a daemon insists on before it starts: its folders are its own, and it is the only one."""

import fcntl
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from cfn.errors import CfnError, RefusedError


def own_folder(path: Path) -> None:
    """Make sure that `path` is a real folder, owned by this user and writable by no other.

    Creates it when it is missing. Raises CfnError when somebody else planted it, or a link.
    """
    try:
        path.mkdir(mode=0o750, parents=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise CfnError(f"{path} cannot be made: {error.strerror}") from error
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise CfnError(f"{path} is a symbolic link; remove it, then start again")
    if not stat.S_ISDIR(status.st_mode):
        raise CfnError(f"{path} is not a folder; remove it, then start again")
    if status.st_uid != os.geteuid():
        raise CfnError(
            f"{path} belongs to user {status.st_uid}, not to this daemon's user {os.geteuid()}; "
            "remove it, then start again"
        )
    if status.st_mode & 0o022:
        path.chmod(0o750)


def one_at_a_time(path: Path, name: str) -> int:
    """Hold the lock of a daemon of which one may run; the descriptor is kept until the process ends.

    A POSIX lock: it goes through an exec, and no child has it, so that a worker that has just been forked
    keeps no new spawner out when its own dies. It ends when the process closes any descriptor of the file.
    Raises RefusedError at once when another holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RefusedError(f"another {name} is running ({path} is locked)") from None
    return descriptor


def serve_at(path: Path, kind: socket.SocketKind) -> socket.socket:
    """Listen on a Unix socket, in place of one that a dead daemon left. Call with the lock held."""
    with suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    path.chmod(0o660)
    listener.listen(128)
    listener.setblocking(False)
    return listener


def connected(path: str) -> socket.socket:
    """A SEQPACKET connection that does not block. Raises OSError when nobody listens, or no descriptor is
    left; nothing is left open then."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setblocking(False)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
