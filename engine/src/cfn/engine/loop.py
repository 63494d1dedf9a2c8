"""A readiness loop: descriptors, timers and queued signals, one thread, nothing else."""

from __future__ import annotations

import heapq
import itertools
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[int], None]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT


class Timer:
    """A call that is due at a time; `cancel` makes it nothing."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """The call will not be made."""
        self.action = None


class Loop:
    """Waits on descriptors and timers and calls their handlers. Owns no descriptor but its epoll.

    A descriptor must be removed before it is closed: a duplicate elsewhere would keep it in epoll.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._paused: set[int] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._sweep_at = 64  # timers, cancelled ones too

    def add(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call `handler(ready events)` whenever one of `events` (or an error, or the end) is there."""
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, events: int) -> None:
        """Wait for other events on a descriptor."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Forget a descriptor; call it before closing it. Nothing happens for an unknown one."""
        self._paused.discard(descriptor)
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def pause(self, descriptor: int, events: int, handler: Handler, pause_s: float) -> None:
        """Do not wait on a descriptor for a while: what is ready there cannot be handled now."""
        self.remove(descriptor)
        self._paused.add(descriptor)

        def go_on() -> None:
            if descriptor in self._paused:
                self._paused.discard(descriptor)
                self.add(descriptor, events, handler)

        self.at(time.monotonic() + pause_s, go_on)

    def at(self, when_s: float, action: Callable[[], None]) -> Timer:
        """Call `action` once, at a time of the monotonic clock (seconds) or soon after."""
        timer = Timer(action)
        if len(self._timers) >= self._sweep_at:  # a deadline that was met long before it is no timer
            self._timers = [entry for entry in self._timers if entry[2].action is not None]
            heapq.heapify(self._timers)
            self._sweep_at = max(64, 2 * len(self._timers))
        heapq.heappush(self._timers, (when_s, next(self._order), timer))
        return timer

    def turn(self, longest_s: float) -> None:
        """Wait for at most `longest_s` seconds, then handle everything that is ready and due."""
        if self._timers:
            longest_s = min(longest_s, max(0.0, self._timers[0][0] - time.monotonic()))
        handlers = self._handlers
        ready = self._epoll.poll(longest_s, 256)
        for descriptor, events, handler in [(d, events, handlers.get(d)) for d, events in ready]:
            # An earlier one of this turn may have removed it, and its number may be another's by now.
            if handler is not None and handlers.get(descriptor) is handler:
                handler(events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            action = heapq.heappop(self._timers)[2].action
            if action is not None:
                action()

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()
