"""A worker's birth: what is made before the fork, and what the child does first.

A child touches, and so copies, each page that it needs: what it does before its first answer is as little
as can be, by names of this module's own, and rehearsed in the parent before the first fork.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stub; `signal` would import enum
import _socket
import posix
import select

from cfn.engine.lean import control, records, wire
from cfn.engine.lean.worker import Worker, echo, is_echo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    First = tuple[int, int, bytes, wire.Task, bytes]

_REHEARSALS = 40
_WORKER_HUB, _WORKER_ARENA = 0, 1  # a command's own standard input and output replace them
# Names of their own, since a child touches, and so copies, a module's pages otherwise.
_setsid, _dup2, _closerange, _write = posix.setsid, posix.dup2, posix.closerange, posix.write
_set_wakeup_fd, _set_signal = _signal.set_wakeup_fd, _signal.signal
_SIGTERM, _DEFAULT = _signal.SIGTERM, _signal.SIG_DFL


class Order:
    """One agent of a `spawn`: `first` is the task that its worker begins with."""

    __slots__ = ("agent", "arena", "first", "hub", "index", "replaced", "slot", "swarm_id")

    def __init__(self, hub: int, swarm_id: str, arena: int, first: First | None, item: Sequence[str]) -> None:
        self.hub = hub
        self.swarm_id = swarm_id
        self.arena = arena
        self.first = first
        self.agent = item[0]
        self.replaced = control.number(item[1])
        self.index = control.number(item[2])
        self.slot = control.number(item[3])

    @property
    def epoch(self) -> int:
        """Of the task that its worker begins with; 0 without one."""
        return self.first[0] if self.first is not None else 0


class Birth:
    """A worker that is about to be forked: its sockets, and what it begins with."""

    __slots__ = ("_hub_side", "_worker_side", "order")

    def __init__(self, order: Order) -> None:
        self.order = order
        self._hub_side = self._worker_side = -1

    def connect(self) -> None:
        """Make the two ends; plain numbers, so that a child has no finalizer to run. Raises OSError."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self._hub_side, self._worker_side = ours.detach(), theirs.detach()
        posix.set_blocking(self._hub_side, False)

    def take_hub_side(self) -> int:
        """The hub's end, which the caller owns from now on."""
        taken, self._hub_side = self._hub_side, -1
        return taken

    def close(self) -> None:
        """Close what nobody has taken."""
        for descriptor in (self._hub_side, self._worker_side):
            if descriptor >= 0:
                posix.close(descriptor)
        self._hub_side = self._worker_side = -1

    def become_worker(self) -> None:
        """The child's side of the fork; never returns. Closes every descriptor that is not its own."""
        order = self.order
        code = 1
        try:
            _setsid()
            _dup2(self._worker_side, _WORKER_HUB, False)
            _dup2(order.arena, _WORKER_ARENA, False)
            _closerange(3, 1 << 30)
            _set_wakeup_fd(-1)
            _set_signal(_SIGTERM, _DEFAULT)
            first = None
            if order.first is not None:
                epoch, key, ticket, task, payload = order.first
                first = wire.Assignment(order.index, order.slot, epoch, key, ticket, task, payload)
            _serve(order.agent, first, _WORKER_HUB, _WORKER_ARENA)
            code = 0
        except BaseException as error:
            posix.write(2, f"worker {order.agent}: {error!r}\n".encode())
        finally:
            posix._exit(code)


def _serve(agent: str, first: wire.Assignment | None, hub: int, arena: int) -> None:
    """A worker's life. The built-in agent's first task is done before anything else is made: until all
    of a swarm have acknowledged, the rest would only be in the way."""
    if first is not None and is_echo(first):
        answer = echo(first, arena)
        if answer is not None:
            _write(hub, answer)
            if not _await(hub):
                return
            first = None
    Worker(agent, hub, arena).run(first)


def _await(hub: int) -> bool:
    """Block until the hub says something; False when it is gone."""
    poller = select.poll()
    poller.register(hub, select.POLLIN)
    return bool(poller.poll()[0][1] & select.POLLIN)


def rehearse() -> None:
    """Do here, before the first fork, what every worker does first. The interpreter adapts code to what
    it meets and fills its caches as it runs: done once, that is in the memory of all children; else
    each does it again, in pages that it has to copy for it."""
    arena = posix.memfd_create("rehearsal", posix.MFD_CLOEXEC)
    key = 1
    ticket = records.ticket(key)
    posix.pwrite(arena, ticket * 2 * _REHEARSALS, 0)
    common = wire.common(key, key, ticket, wire.Task("task", "swarm", "team", "/nowhere"), b"")
    for slot in range(0, 2 * _REHEARSALS, 2):
        hub, worker_end = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        first = wire.read_assignment(wire.head(0, slot) + common)
        hub.send(wire.head(slot + 1, slot + 1) + common)
        hub.send(wire.stop())
        _serve("agent", first, worker_end.fileno(), arena)
        worker_end.close()
        hub.close()
    posix.close(arena)
