"""The spawner: a small, warm process that forks workers and outlives their hubs.

It keeps a duplicate of the hub's side of every worker's socket, so that a worker survives its hub,
and hands it to a hub that comes (back). It reaps, reports bad ends, kills on order, and kills what a
worker that died badly left running. It never talks to a worker.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stub; `signal` would import enum
import _socket
import gc
import posix
import sys
import time

from cfn.engine.lean import control, sessions, wire
from cfn.engine.lean.birth import Birth, Order, rehearse
from cfn.engine.log import log
from cfn.engine.loop import READ, WRITE, Loop
from cfn.engine.notify import Watchdog, notify
from cfn.errors import DamagedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_HAND_OUT = 50  # workers in one datagram while forking, and forks between two looks at everything else
_END_GRACE_S = 0.5  # for a worker whose swarm has ended, before SIGKILL
_SWEEP_DELAY_S = 0.02  # gathers deaths, since a sweep reads all of /proc
_ACCEPT_AGAIN_S = 0.1  # after descriptors ran out
_BURST_S = 0.05  # of the allowed rate may be forked at once
NOBODY: Mapping[int, int] = {}


class _Held:
    """A worker and the duplicate of its hub's socket. `pidfd` is -1 for an own child."""

    __slots__ = ("agent", "descriptor", "pid", "pidfd", "since_ns", "swarm_id")

    def __init__(
        self, swarm_id: str, agent: str, pid: int, descriptor: int, pidfd: int, since_ns: int
    ) -> None:
        self.swarm_id = swarm_id
        self.agent = agent
        self.pid = pid
        self.descriptor = descriptor
        self.pidfd = pidfd
        self.since_ns = since_ns


class Spawner:
    """The process's one object. Workers live on without it, while a hub holds them.
    `listener` is a listening SEQPACKET socket, `arenas` the folder of the claims files."""

    def __init__(self, listener: _socket.socket, arenas: str) -> None:
        self._listener = listener
        self._arenas_folder = arenas
        self._arenas: dict[int, int] = {}  # shard: descriptor
        self._loop = Loop()
        self._held: dict[tuple[str, str], _Held] = {}
        self._alive: dict[int, _Held] = {}  # by process id: children not reaped, adopted ones not seen to end
        self._hubs: dict[int, control.Channel] = {}
        self._todo: list[Order] = []  # reversed: the next one is the last
        self._generation = 0
        self._rate = 0  # forks per second, 0 for no limit
        self._may_fork_at_s = 0.0
        self._error = OSError(0, "")  # of the last fork that failed
        self._dead: set[int] = set()  # sessions to be swept
        self._stopping = False
        listener.setblocking(False)
        self._loop.add(listener.fileno(), READ, self._accept)
        self._wake_read, self._wake_write = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        self._loop.add(self._wake_read, READ, self._signalled)

    def run(self) -> None:
        """Serve until SIGTERM. Forks happen here and only here, with nothing else on the stack."""
        _signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        _signal.signal(_signal.SIGTERM, self._terminated)
        watchdog = Watchdog()
        notify("READY=1")
        log("spawner started", pid=posix.getpid())
        rehearse()
        gc.collect()
        gc.disable()  # a collection in a child would touch, and so copy, every page of this heap
        gc.freeze()
        while not self._stopping:
            pause_s = self._fork_some()
            self._loop.turn(min(watchdog.longest_wait_s, pause_s))
            watchdog.feed()
        notify("STOPPING=1")
        posix.unlink(self._listener.getsockname())  # the lock is still held: it is this process's
        log("spawner stopped", workers=len(self._held))

    def _terminated(self, *_: object) -> None:
        self._stopping = True

    # Hubs

    def _accept(self, _events: int) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]  # typeshed lacks it
        except BlockingIOError:
            return
        except OSError:  # no descriptor is free for now
            self._loop.pause(self._listener.fileno(), READ, self._accept, _ACCEPT_AGAIN_S)
            return
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptor)
        try:
            control.own_peer(connection)
        except DamagedError as error:
            log("hub refused", reason=str(error))
            connection.close()
            return
        self._hubs[descriptor] = control.Channel(connection)
        self._loop.add(descriptor, READ, lambda events: self._hub_ready(descriptor, events))

    def _hub_ready(self, descriptor: int, events: int) -> None:
        hub = self._hubs[descriptor]
        try:
            if events & WRITE:
                hub.flush()
            if events & ~WRITE:
                while (received := hub.receive()) is not None:
                    self._ordered(descriptor, *received)
            self._watch(hub)
        except (OSError, EOFError, DamagedError) as error:
            self._drop(descriptor, str(error))

    def _drop(self, descriptor: int, reason: str) -> None:
        hub = self._hubs.pop(descriptor, None)
        if hub is not None:
            if reason:
                log("hub dropped", reason=reason)
            self._loop.remove(descriptor)
            hub.close()
            self._todo = [order for order in self._todo if order.hub != descriptor]

    def _watch(self, hub: control.Channel) -> None:
        self._loop.change(hub.socket.fileno(), READ | WRITE if hub.pending else READ)

    def _tell(self, descriptor: int, message: bytes, descriptors: Sequence[int] = ()) -> None:
        hub = self._hubs.get(descriptor)
        if hub is None:
            return
        try:
            hub.send(message, descriptors)
            if hub.pending:
                self._watch(hub)
        except OSError as error:
            self._drop(descriptor, str(error))

    def _ordered(self, hub: int, raw: bytes, descriptors: Sequence[int]) -> None:
        word = raw.partition(b"\0")[0]
        try:
            if word == b"spawn":
                self._spawn(hub, raw)
            elif word == b"adopt":
                self._adopt(raw, descriptors)
                descriptors = ()  # they are kept
            elif word == b"fetch":
                self._fetch(hub, raw)
            elif word == b"kill":
                self._kill(raw)
            elif word == b"end":
                self._end(raw)
            elif word == b"retain":
                self._retain(raw)
            elif word == b"hello":
                self._welcome(hub, raw)
            else:
                raise DamagedError(f"{word[:20]!r} is not a hub's to say")
        finally:
            for descriptor in descriptors:
                posix.close(descriptor)

    def _welcome(self, hub: int, raw: bytes) -> None:
        _, generation, rate = control.fields_of(raw, 3)
        if control.number(generation) < self._generation:
            raise DamagedError(f"generation {generation} was replaced by {self._generation}")
        self._generation = control.number(generation)
        self._rate = control.number(rate)
        self._tell(hub, control.message("welcome", posix.getpid()))

    def _fetch(self, hub: int, raw: bytes) -> None:
        _, swarm_id, names = control.fields_of(raw, 3)
        found, absent = [], []
        for (agent,) in control.items_of(names, 1):
            held = self._held.get((swarm_id, agent))
            if held is None:
                absent.append((agent,))
            else:
                found.append(held)
        self._hand_out(hub, found)
        if absent:
            self._tell(hub, control.message("absent", swarm_id, control.rows(absent)))

    def _hand_out(self, hub: int, workers: Sequence[_Held], born_with: Mapping[int, int] = NOBODY) -> None:
        for start in range(0, len(workers), control.BATCH):
            part = workers[start : start + control.BATCH]
            listed = control.rows([(held.agent, held.pid, born_with.get(held.pid, 0)) for held in part])
            message = control.message("workers", part[0].swarm_id, listed)
            self._tell(hub, message, [held.descriptor for held in part])

    # Workers

    def _spawn(self, hub: int, raw: bytes) -> None:
        listing, _, task = raw.partition(b"\0\0")
        _, swarm_id, shard, listed = control.fields_of(listing, 4)
        first = wire.read_common(task) if task else None
        items = control.items_of(listed, 4)
        try:
            arena = self._arena(control.number(shard))
        except OSError as error:
            self._failed(hub, swarm_id, [item[0] for item in items], error)
            return
        orders = [Order(hub, swarm_id, arena, first, item) for item in items]
        orders.reverse()
        self._todo[:0] = orders

    def _arena(self, shard: int) -> int:
        """The descriptor of a shard's claims file, opened again if another file has taken its place."""
        path = f"{self._arenas_folder}/{shard}"
        descriptor = self._arenas.get(shard, -1)
        if descriptor >= 0:
            try:
                if posix.stat(path).st_ino == posix.fstat(descriptor).st_ino:
                    return descriptor
            except FileNotFoundError:
                log("claims file is gone, another one begins", path=path)
            posix.close(self._arenas.pop(shard))
        flags = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC
        self._arenas[shard] = posix.open(path, flags, 0o640)
        return self._arenas[shard]

    def _fork_some(self) -> float:
        """Fork a few of those that are ordered; seconds until more may be."""
        if not self._todo:
            return 1.0
        now_s = time.monotonic()
        if now_s < self._may_fork_at_s:
            return self._may_fork_at_s - now_s
        hub, swarm_id = self._todo[-1].hub, self._todo[-1].swarm_id
        most = min(_HAND_OUT, max(1, int(self._rate * _BURST_S))) if self._rate else _HAND_OUT
        ready: list[_Held] = []
        births: list[Birth] = []
        named: set[str] = set()
        while self._todo and len(births) < most:
            order = self._todo[-1]
            if order.hub != hub or order.swarm_id != swarm_id or order.agent in named:
                break  # two requests may want the same agent: the next turn hands out who is born in this
            named.add(order.agent)
            held = self._held.get((swarm_id, order.agent))
            if held is not None and held.pid == order.replaced:
                self._signal(held)  # the hub saw its end: make it true
                self._forget(held)
                held = None
            self._todo.pop()
            if held is not None:
                ready.append(held)
            else:
                births.append(Birth(order))
        forked = self._fork_all(births)
        born_with = {held.pid: birth.order.epoch for held, birth in zip(forked, births)}  # noqa: B905
        self._hand_out(hub, ready + forked, born_with)
        if len(forked) < len(births):
            self._give_up(hub, swarm_id, [birth.order for birth in births[len(forked) :]])
        if self._rate and forked:
            since_s = max(self._may_fork_at_s, now_s - _BURST_S)
            self._may_fork_at_s = since_s + len(forked) / self._rate
        return 0.0

    def _fork_all(self, births: Sequence[Birth]) -> list[_Held]:
        """Fork them one right after the other: every page that is touched in between is copied again.
        Those that could be forked, in order; `_error` says why the others could not."""
        pids: list[int] = []
        fork = posix.fork
        try:
            for birth in births:
                birth.connect()
            for birth in births:
                pid = fork()
                if pid == 0:
                    birth.become_worker()
                pids.append(pid)
        except OSError as error:
            self._error = error
        forked = []
        now_ns = time.monotonic_ns()
        for birth, pid in zip(births, pids):  # noqa: B905 - those that could not be forked are left out
            order = birth.order
            held = _Held(order.swarm_id, order.agent, pid, birth.take_hub_side(), -1, now_ns)
            self._held[order.swarm_id, order.agent] = held
            self._alive[pid] = held
            forked.append(held)
        for birth in births:
            birth.close()
        return forked

    def _give_up(self, hub: int, swarm_id: str, first: Sequence[Order]) -> None:
        """The rest of this order cannot be forked either."""
        rest = [o for o in self._todo if (o.hub, o.swarm_id) == (hub, swarm_id)]
        self._todo = [o for o in self._todo if (o.hub, o.swarm_id) != (hub, swarm_id)]
        agents = [order.agent for order in (*first, *reversed(rest))]
        self._failed(hub, swarm_id, agents, self._error)

    def _failed(self, hub: int, swarm_id: str, agents: Sequence[str], error: OSError) -> None:
        reason = f"no process could be started: {error.strerror}"
        log("fork failed", swarm_id=swarm_id, agents=len(agents), reason=str(error))
        for start in range(0, len(agents), control.BATCH):
            listed = control.rows([(agent,) for agent in agents[start : start + control.BATCH]])
            self._tell(hub, control.message("failed", swarm_id, reason, listed))

    def _adopt(self, raw: bytes, descriptors: Sequence[int]) -> None:
        _, swarm_id, items = control.fields_of(raw, 3)
        listed = [(agent, control.number(pid)) for agent, pid in control.items_of(items, 2)]
        for descriptor in descriptors[len(listed) :]:
            posix.close(descriptor)
        for (agent, pid), descriptor in zip(listed, descriptors):  # noqa: B905
            key = (swarm_id, agent)
            try:
                pidfd = -1 if key in self._held else posix.pidfd_open(pid)
            except OSError:
                pidfd = -1
            if pidfd < 0:  # known already, or dead: its hub will see the end of its socket
                posix.close(descriptor)
                continue
            held = _Held(swarm_id, agent, pid, descriptor, pidfd, time.monotonic_ns())
            self._held[key] = held
            self._alive[pid] = held
            self._loop.add(pidfd, READ, self._end_of(held))

    def _end_of(self, held: _Held) -> Callable[[int], None]:
        return lambda _events: self._gone(held, 0)

    def _kill(self, raw: bytes) -> None:
        _, swarm_id, agent, pid = control.fields_of(raw, 4)
        held = self._held.get((swarm_id, agent))
        if held is not None and held.pid == control.number(pid):
            self._signal(held)

    def _signal(self, held: _Held) -> None:
        if self._alive.get(held.pid) is not held:
            return  # its number may be another process's by now
        try:
            if held.pidfd >= 0:
                _signal.pidfd_send_signal(held.pidfd, _signal.SIGKILL)
            else:
                posix.kill(held.pid, _signal.SIGKILL)
        except ProcessLookupError:
            return

    def _end(self, raw: bytes) -> None:
        _, swarm_id, names = control.fields_of(raw, 3)
        keys = {(swarm_id, agent) for (agent,) in control.items_of(names, 1)}
        ending = [self._held[key] for key in keys if key in self._held]
        self._todo = [order for order in self._todo if (order.swarm_id, order.agent) not in keys]
        self._let_go(ending)

    def _retain(self, raw: bytes) -> None:
        """The conductor's word on which swarms there are: a hub that died may have left others. Workers
        younger than that word are not meant."""
        _, at_ns, names = control.fields_of(raw, 3)
        known = {swarm_id for (swarm_id,) in control.items_of(names, 1)}
        before_ns = control.number(at_ns)
        self._let_go([h for h in self._held.values() if h.swarm_id not in known and h.since_ns < before_ns])

    def _let_go(self, ending: Sequence[_Held]) -> None:
        for held in ending:
            self._forget(held)
        if ending:
            self._loop.at(time.monotonic() + _END_GRACE_S, lambda: self._end_now(ending))

    def _end_now(self, ending: Sequence[_Held]) -> None:
        for held in ending:
            self._signal(held)

    def _forget(self, held: _Held) -> None:
        """Drop the duplicate of the socket: without a hub's own, the worker ends by itself."""
        if self._held.get((held.swarm_id, held.agent)) is held:
            del self._held[held.swarm_id, held.agent]
            posix.close(held.descriptor)

    # Deaths

    def _signalled(self, _events: int) -> None:
        posix.read(self._wake_read, 4_096)
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            held = self._alive.get(pid)
            if held is not None:
                self._gone(held, posix.waitstatus_to_exitcode(status))

    def _gone(self, held: _Held, status: int) -> None:
        del self._alive[held.pid]
        self._forget(held)
        if held.pidfd >= 0:
            self._loop.remove(held.pidfd)
            posix.close(held.pidfd)
        if status != 0 or held.pidfd >= 0:
            message = control.message("exited", held.swarm_id, held.agent, held.pid, status)
            for hub in list(self._hubs):
                self._tell(hub, message)
            if not self._dead:
                self._loop.at(time.monotonic() + _SWEEP_DELAY_S, self._sweep)
            self._dead.add(held.pid)

    def _sweep(self) -> None:
        leftovers = sessions.kill(self._dead)
        if leftovers:
            log("leftovers of dead workers killed", workers=len(self._dead), processes=leftovers)
        self._dead.clear()


def main(listener: str, arenas: str) -> None:
    """What `cfn spawner` becomes: `listener` is the number of an inherited descriptor."""
    sys.stdin.close()
    Spawner(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, int(listener)), arenas).run()
