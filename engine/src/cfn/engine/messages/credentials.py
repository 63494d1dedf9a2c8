"""Who is at the other end of a Unix socket, as the kernel says."""

import os
import socket
import struct

_PEER = struct.Struct("3i")
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_MOST_GROUPS = 1_024


def same_user(connection: socket.socket) -> bool:
    """Whether the peer runs as this process's user."""
    return _peer(connection)[1] == os.geteuid()


def same_group(connection: socket.socket) -> bool:
    """Whether the peer is root, this user or a member of this process's group."""
    _, uid, gid = _peer(connection)
    if uid in (0, os.geteuid()) or gid == os.getegid():
        return True
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:
        return False
    return os.getegid() in struct.unpack(f"{len(raw) // 4}I", raw)


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid, gid
