"""A SEQPACKET connection in the loop: read in turns, paused at will, never blocking on what it sends."""

import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress

from cfn.engine.loop import READ, WRITE, Loop, Timer

TURN = 64  # datagrams of one peer before the others have their turn
MAX_UNSENT = 1_024  # datagrams that the peer does not read


class Flow(ABC):
    """One connection. Owns its socket. `limit_bytes` is more than any datagram may have."""

    def __init__(self, loop: Loop, connection: socket.socket, limit_bytes: int) -> None:
        connection.setblocking(False)
        self.closed = False
        self.paused = False
        self.blocked = False  # the peer reads too little: wait until it can be written
        self.held: deque[bytes] = deque()  # read, but to be handled after the pause
        self.socket = connection
        self._loop = loop
        self._limit_bytes = limit_bytes
        self._pause: Timer | None = None
        self._unsent: deque[bytes] = deque()
        self._events = READ
        loop.add(connection.fileno(), READ, self._ready)

    @abstractmethod
    def handle(self, came: deque[bytes] | list[bytes]) -> None:
        """Handle datagrams, the oldest first; what is put into `held` comes again after a pause."""

    @abstractmethod
    def flushed(self) -> None:
        """The peer reads again: send what is due now."""

    @abstractmethod
    def hung_up(self) -> None:
        """The peer is gone, but `held` is not handled yet: send it nothing more."""

    @abstractmethod
    def ended(self) -> None:
        """The connection is closed."""

    def close(self, last: bytes = b"") -> None:
        """End the connection, after a last datagram if the peer takes it."""
        if self.closed:
            return
        self.closed = True
        if last:
            with suppress(OSError):
                self.socket.send(last)
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove(self.socket.fileno())
        self.socket.close()
        self.ended()

    def say(self, raw: bytes) -> bool:
        """Send or queue; False, and nothing is done, when the peer lets too much wait."""
        if not self.blocked and not self._unsent:
            try:
                self.socket.send(raw)
            except BlockingIOError:
                self.stuck()
            except OSError:
                return True  # its end is read soon
            else:
                return True
        if len(self._unsent) >= MAX_UNSENT:
            return False
        self._unsent.append(raw)
        return True

    def stuck(self) -> None:
        """The peer did not take a datagram: `flushed` is called when it may."""
        self.blocked = True
        self._watch()

    def pause(self, wait_s: float | None) -> None:
        """Do not read for a while; None: until `resume`."""
        self.paused = True
        if wait_s is not None:
            self._pause = self._loop.at(time.monotonic() + wait_s, self.resume)
        self._watch()

    @property
    def timed(self) -> bool:
        """Whether a pause ends by itself."""
        return self._pause is not None

    def resume(self) -> None:
        """End a pause."""
        if self.closed or not self.paused:
            return
        self.paused = False
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self.held:
            held, self.held = self.held, deque()
            self.handle(held)
        self._watch()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if self.closed or not events & ~WRITE:
            return
        if self.paused:
            self._hang_up()
        else:
            self._read()

    def _read(self) -> None:
        receive, limit = self.socket.recv, self._limit_bytes
        came: list[bytes] = []
        gone = False
        for _ in range(TURN):
            try:
                raw = receive(limit)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # what was sent before the reset is still to be read
            except OSError:
                raw = b""
            if not raw:
                gone = True
                break
            came.append(raw)
        if came:
            self.handle(came)
        if gone and not self.closed:
            if self.held:
                self._hang_up()
            else:
                self.close()

    def _hang_up(self) -> None:
        """What the peer sent before it left is handled when the pause is over; then its end is read."""
        self.blocked = False
        self._unsent.clear()
        self.hung_up()
        self._watch()

    def _flush(self) -> None:
        self.blocked = False
        while self._unsent:
            try:
                self.socket.send(self._unsent[0])
            except BlockingIOError:
                self.stuck()
                return
            except OSError:
                return  # its end is read soon
            self._unsent.popleft()
        self.flushed()
        self._watch()

    def _watch(self) -> None:
        events = (0 if self.paused else READ) | (WRITE if self.blocked else 0)
        if self.closed or events == self._events:
            return
        descriptor = self.socket.fileno()
        if not events:
            self._loop.remove(descriptor)  # else a hang-up would be reported again and again
        elif not self._events:
            self._loop.add(descriptor, events, self._ready)
        else:
            self._loop.change(descriptor, events)
        self._events = events
