"""Who may do more than ask for tasks: peers of the Unix socket, known to the kernel."""

import os
import socket
import struct

from aiohttp import web

_PEER = struct.Struct("3i")


def peer_uid(request: web.Request) -> int | None:
    """The user at the other end of the Unix socket; None over TCP."""
    transport = request.transport
    peer = transport.get_extra_info("socket") if transport else None
    if peer is None or peer.family != socket.AF_UNIX:
        return None
    _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


def may_control(uid: int | None) -> bool:
    """Whether this peer may move the breaker: root, or the router's own user, over the Unix socket."""
    return uid is not None and uid in (0, os.geteuid())


def may_override(uid: int | None, allowed: str) -> bool:
    """Whether this peer may choose the version of its tasks; `allowed` is CFN_OVERRIDE_PEERS."""
    return ("loopback" if uid is None else str(uid)) in allowed.split(",")
