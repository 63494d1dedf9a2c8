"""A listening SEQPACKET socket that outlives a lack of descriptors."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

from cfn.engine.guard import serve_at
from cfn.engine.log import log
from cfn.engine.loop import READ, Loop

TURN = 64  # connections taken before others have their turn
AGAIN_S = 0.1  # after descriptors ran out


class Listener:
    """Hands every connection to `accepted`, which owns it from then on."""

    def __init__(self, loop: Loop, path: Path, accepted: Callable[[socket.socket], None]) -> None:
        self._loop = loop
        self._path = path
        self._accepted = accepted
        self._socket = serve_at(path, socket.SOCK_SEQPACKET)
        self._wait()

    def close(self) -> None:
        """Accept nobody any more."""
        self._loop.remove(self._socket.fileno())
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _wait(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add(self._socket.fileno(), READ, self._ready)

    def _ready(self, _events: int) -> None:
        for _ in range(TURN):
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # those who wait are served when a descriptor is free
                log("connection not accepted", path=str(self._path), reason=str(error))
                self._loop.remove(self._socket.fileno())
                self._loop.at(time.monotonic() + AGAIN_S, self._wait)
                return
            self._accepted(connection)
