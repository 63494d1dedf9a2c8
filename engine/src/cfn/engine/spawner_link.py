"""A hub's connection to the spawner: orders out, workers' sockets in, and what to do without it."""

import socket
import time
from collections.abc import Callable, Iterable, Sequence

from cfn.engine.guard import connected
from cfn.engine.hub import Hub
from cfn.engine.lean import control, wire
from cfn.engine.log import log
from cfn.engine.loop import READ, WRITE, Loop
from cfn.engine.members import First
from cfn.errors import DamagedError
from cfn.paths import Paths

_RETRY_S = 0.02
_MISSED_S = 0.2


class WorkerSocket:
    """A worker, reached by the hub's side of its socket (members.Endpoint). Owns the descriptor."""

    __slots__ = ("_hub", "_loop", "agent", "pid", "socket", "swarm_id")

    def __init__(self, loop: Loop, hub: Hub, swarm_id: str, agent: str, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.swarm_id = swarm_id
        self.agent = agent
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptor)
        self._loop = loop
        self._hub = hub

    def watch(self) -> None:
        """Begin to read."""
        self._loop.add(self.socket.fileno(), READ, self._ready)

    def send(self, datagram: bytes) -> bool:
        """False when the worker does not take it now; its end shows when it is read."""
        try:
            self.socket.send(datagram, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Stop reading and close."""
        if self.socket.fileno() >= 0:
            self._loop.remove(self.socket.fileno())
            self.socket.close()

    def _ready(self, _events: int) -> None:
        # One datagram at a time: epoll tells again what is left, and most often nothing is.
        try:
            raw = self.socket.recv(wire.MAX_DATAGRAM_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            return  # answers sent before the reset are still queued
        except OSError:
            raw = b""
        if raw:
            self._hub.received(self.swarm_id, self.agent, raw)
        else:
            self._hub.lost(self.swarm_id, self.agent, self)


class SpawnerLink:
    """Keeps a connection to the spawner and is the hub's Provider. Call `start` once. `rate` tells how
    many forks a second are allowed, 0 for any number."""

    def __init__(self, loop: Loop, paths: Paths, generation: int, rate: Callable[[], int]) -> None:
        self._loop = loop
        self._path = str(paths.spawner_socket)
        self._generation = generation
        self._rate = rate
        self._channel: control.Channel | None = None
        self._ready = False
        # Ordered and not yet come: the shard, and the process replaced.
        self._wanted: dict[tuple[str, str], tuple[int, int]] = {}
        self._fetched: dict[str, dict[str, None]] = {}  # asked for and not yet answered: agents by swarm
        self._hub: Hub | None = None
        self.pid = 0

    @property
    def hub(self) -> Hub:
        """The hub that this link provides for."""
        if self._hub is None:
            raise RuntimeError("not started")
        return self._hub

    @property
    def up(self) -> bool:
        """Whether the spawner has welcomed this hub."""
        return self._ready

    def start(self, hub: Hub) -> None:
        """Connect now if it can be, and again whenever the connection is lost."""
        self._hub = hub
        self._connect()

    def renew(self, generation: int) -> None:
        """There is another conductor: say so."""
        self._generation = generation
        self._send(control.message("hello", generation, self._rate()))

    # members.Provider

    def spawn(
        self, swarm_id: str, shard: int, agents: Sequence[str], replaces: Sequence[int], first: First | None
    ) -> None:
        """Order processes; without a spawner they are ordered when there is one, without a first task."""
        for agent, replaced in zip(agents, replaces, strict=True):
            self._wanted[swarm_id, agent] = (shard, replaced)
        if not self._ready:
            return
        for start in range(0, len(agents), control.BATCH):
            part = range(start, min(start + control.BATCH, len(agents)))
            items = []
            for position in part:
                agent = agents[position]
                index, slot = first.places[agent] if first is not None else (0, 0)
                items.append((agent, replaces[position], index, slot))
            tail = b"" if first is None else first.common
            self._send(control.message("spawn", swarm_id, shard, control.rows(items), tail=tail))

    def fetch(self, swarm_id: str, agents: Sequence[str]) -> None:
        """Ask for the sockets of workers that live. Without a spawner nobody can tell: the next one is
        asked, also for what the last one had not answered."""
        self._fetched.setdefault(swarm_id, {}).update(dict.fromkeys(agents))
        if not self._ready:
            return
        for start in range(0, len(agents), control.BATCH):
            items = [(agent,) for agent in agents[start : start + control.BATCH]]
            self._send(control.message("fetch", swarm_id, control.rows(items)))

    def kill(self, swarm_id: str, agent: str, pid: int) -> None:
        """SIGKILL a worker, if the spawner is there to do it."""
        self._send(control.message("kill", swarm_id, agent, pid))

    def end(self, swarm_id: str, agents: Sequence[str]) -> None:
        """Let go of workers."""
        for agent in agents:
            self._wanted.pop((swarm_id, agent), None)
            self._answered(swarm_id, agent)
        for start in range(0, len(agents), control.BATCH):
            items = [(agent,) for agent in agents[start : start + control.BATCH]]
            self._send(control.message("end", swarm_id, control.rows(items)))

    def _answered(self, swarm_id: str, agent: str) -> None:
        asked = self._fetched.get(swarm_id)
        if asked is not None:
            asked.pop(agent, None)
            if not asked:
                del self._fetched[swarm_id]

    def retain(self, swarms: Iterable[str]) -> None:
        """Have the spawner let go of all workers of other swarms."""
        listed = control.rows([(swarm_id,) for swarm_id in swarms])
        self._send(control.message("retain", time.monotonic_ns(), listed))

    # The connection

    def _connect(self) -> None:
        try:
            connection = connected(self._path)
        except OSError:  # nobody is there, or no descriptor is left
            self._loop.at(time.monotonic() + _RETRY_S, self._connect)
            return
        self._channel = control.Channel(connection)
        self._loop.add(connection.fileno(), READ, self._readable)
        self._send(control.message("hello", self._generation, self._rate()))
        self._adopt()

    def _adopt(self) -> None:
        """Hand over the sockets that this hub has: the spawner may be a new one."""
        for team in self.hub.teams.values():
            sockets = [m.endpoint for m in team.members.values() if isinstance(m.endpoint, WorkerSocket)]
            for start in range(0, len(sockets), control.BATCH):
                part = sockets[start : start + control.BATCH]
                listed = control.rows([(worker.agent, worker.pid) for worker in part])
                message = control.message("adopt", team.swarm_id, listed)
                self._send(message, [worker.socket.fileno() for worker in part])

    def _send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(message, descriptors)
            if self._channel.pending:
                self._watch()
        except OSError as error:
            self._lost(str(error))

    def _watch(self) -> None:
        if self._channel is not None:
            pending = self._channel.pending
            self._loop.change(self._channel.socket.fileno(), READ | WRITE if pending else READ)

    def _readable(self, events: int) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            if events & WRITE:
                channel.flush()
                self._watch()
            while self._channel is channel and (received := channel.receive()) is not None:
                self._received(*received)
        except (OSError, EOFError, DamagedError) as error:
            self._lost(str(error) or "it closed the connection")

    def _lost(self, reason: str) -> None:
        if self._channel is None:
            return
        log("spawner lost", reason=reason)
        self._loop.remove(self._channel.socket.fileno())
        self._channel.close()
        self._channel = None
        self._ready = False
        self._loop.at(time.monotonic() + _RETRY_S, self._connect)

    def _received(self, raw: bytes, descriptors: Sequence[int]) -> None:
        word = raw.partition(b"\0")[0]
        if word == b"workers":
            self._workers(raw, descriptors)
        elif word == b"absent":
            _, swarm_id, names = control.fields_of(raw, 3)
            agents = [agent for (agent,) in control.items_of(names, 1)]
            for agent in agents:
                self._answered(swarm_id, agent)
            self.hub.absent(swarm_id, agents)
        elif word == b"failed":
            _, swarm_id, reason, names = control.fields_of(raw, 4)
            agents = [agent for (agent,) in control.items_of(names, 1)]
            for agent in agents:
                self._wanted.pop((swarm_id, agent), None)
                self.hub.spawning_failed(swarm_id, agents, reason)
        elif word == b"welcome":
            self._welcomed(control.number(control.fields_of(raw, 2)[1]))
        elif word == b"exited":
            _, swarm_id, agent, _, status = control.fields_of(raw, 5)
            if status not in ("0", "-9"):
                log("worker failed", swarm_id=swarm_id, agent=agent, status=int(status))
        else:
            raise DamagedError(f"{word[:20]!r} is not a spawner's to say")

    def _workers(self, raw: bytes, descriptors: Sequence[int]) -> None:
        _, swarm_id, items = control.fields_of(raw, 3)
        listed = control.items_of(items, 3)
        for (agent, pid, born_with), descriptor in zip(listed, descriptors, strict=False):
            self._wanted.pop((swarm_id, agent), None)
            self._answered(swarm_id, agent)
            worker = WorkerSocket(self._loop, self.hub, swarm_id, agent, int(pid), descriptor)
            worker.watch()
            if not self.hub.attach(swarm_id, agent, worker, int(born_with)):
                worker.close()  # it is here already, or this hub let go of its team: another may have it
        missed = [agent for agent, _, _ in listed[len(descriptors) :]]
        if missed:  # this process may open no more files: the kernel dropped the rest
            log("workers' sockets missed", swarm_id=swarm_id, agents=len(missed))
            self._loop.at(time.monotonic() + _MISSED_S, lambda: self.fetch(swarm_id, missed))

    def _welcomed(self, pid: int) -> None:
        log("spawner connected", spawner_pid=pid)
        self._ready = True
        self.pid = pid
        orders: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for (swarm_id, agent), (shard, replaced) in self._wanted.items():
            if not self.hub.knows(swarm_id, agent):
                continue  # this hub let go of its team meanwhile
            orders.setdefault((swarm_id, shard), []).append((agent, replaced))
        for (swarm_id, shard), wanted in orders.items():
            self.spawn(swarm_id, shard, [agent for agent, _ in wanted], [pid for _, pid in wanted], None)
        fetched, self._fetched = self._fetched, {}
        for swarm_id, names in fetched.items():
            known = [agent for agent in names if self.hub.knows(swarm_id, agent)]
            if known:
                self.fetch(swarm_id, known)
