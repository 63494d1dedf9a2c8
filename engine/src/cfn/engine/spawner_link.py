"""A hub's connection to the spawner: orders out, workers' sockets in, and what to do without it."""

import socket
import time
from collections.abc import Sequence

from cfn.engine import control, wire
from cfn.engine.hub import Hub
from cfn.engine.log import log
from cfn.engine.loop import READ, WRITE, Loop
from cfn.errors import DamagedError
from cfn.paths import Paths

_RETRY_S = 0.05
_MISSED_S = 0.2


class WorkerSocket:
    """A worker, reached by the hub's side of its socket (hub.Endpoint). Owns the descriptor."""

    def __init__(self, loop: Loop, hub: Hub, swarm_id: str, agent: str, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.swarm_id = swarm_id
        self.agent = agent
        self.socket = socket.socket(fileno=descriptor)
        self.socket.setblocking(False)
        self._loop = loop
        self._hub = hub

    def watch(self) -> None:
        """Begin to read."""
        self._loop.add(self.socket.fileno(), READ, self._ready)

    def send(self, parts: Sequence[bytes]) -> bool:
        """False when the worker does not take it now; its end shows when it is read."""
        try:
            self.socket.sendmsg(parts, (), socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Stop reading and close."""
        if self.socket.fileno() >= 0:
            self._loop.remove(self.socket.fileno())
            self.socket.close()

    def _ready(self, _events: int) -> None:
        while self.socket.fileno() >= 0:
            try:
                raw = self.socket.recv(wire.MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # answers sent before the reset are still queued
            except OSError:
                raw = b""
            if not raw:
                self._hub.lost(self.swarm_id, self.agent, self)
                return
            self._hub.received(self.swarm_id, self.agent, raw)


class SpawnerLink:
    """Keeps a connection to the spawner and is the hub's Provider. Call `start` once."""

    def __init__(self, loop: Loop, paths: Paths, generation: int) -> None:
        self._loop = loop
        self._path = str(paths.spawner_socket)
        self._generation = generation
        self._channel: control.Channel | None = None
        self._ready = False
        self._wanted: dict[tuple[str, str], int] = {}  # ordered and not yet come: the process replaced
        self.hub: Hub | None = None
        self.pid = 0

    @property
    def up(self) -> bool:
        """Whether the spawner has welcomed this hub."""
        return self._ready

    def start(self, hub: Hub) -> None:
        """Connect now if it can be, and again whenever the connection is lost."""
        self.hub = hub
        self._connect()

    # hub.Provider

    def spawn(self, swarm_id: str, agents: Sequence[str], replaces: Sequence[int]) -> None:
        """Order processes; without a spawner they are ordered when there is one."""
        for agent, replaced in zip(agents, replaces, strict=True):
            self._wanted[swarm_id, agent] = replaced
        if self._ready:
            self._order(swarm_id, agents, replaces)

    def kill(self, swarm_id: str, agent: str, pid: int) -> None:
        """SIGKILL a worker, if the spawner is there to do it."""
        self._send(control.Kill(swarm_id=swarm_id, agent=agent, pid=pid))

    def end(self, swarm_id: str) -> None:
        """Let go of a swarm."""
        self._wanted = {key: pid for key, pid in self._wanted.items() if key[0] != swarm_id}
        self._send(control.End(swarm_id=swarm_id))

    # The connection

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            self._loop.at(time.monotonic() + _RETRY_S, self._connect)
            return
        self._channel = control.Channel(connection)
        self._loop.add(connection.fileno(), READ, self._readable)
        self._send(control.Hello(generation=self._generation))
        self._adopt()

    def _adopt(self) -> None:
        """Hand over the sockets that this hub has: the spawner may be a new one."""
        assert self.hub is not None  # noqa: S101 - `start` sets it
        for swarm in self.hub.swarms.values():
            sockets = [m.endpoint for m in swarm.members.values() if isinstance(m.endpoint, WorkerSocket)]
            for start in range(0, len(sockets), control.BATCH):
                part = sockets[start : start + control.BATCH]
                self._send(
                    control.Adopt(
                        swarm_id=swarm.swarm_id, agents=[w.agent for w in part], pids=[w.pid for w in part]
                    ),
                    [w.socket.fileno() for w in part],
                )

    def _order(self, swarm_id: str, agents: Sequence[str], replaces: Sequence[int]) -> None:
        for start in range(0, len(agents), control.BATCH):
            end = start + control.BATCH
            self._send(
                control.Spawn(
                    swarm_id=swarm_id, agents=list(agents[start:end]), replaces=list(replaces[start:end])
                )
            )

    def _send(self, message: control.Message, descriptors: Sequence[int] = ()) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(message, descriptors)
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

    def _received(self, message: control.Message, descriptors: Sequence[int]) -> None:
        assert self.hub is not None  # noqa: S101 - `start` sets it
        match message:
            case control.Workers():
                self._workers(message, descriptors)
            case control.Failed():
                for agent in message.agents:
                    self._wanted.pop((message.swarm_id, agent), None)
                self.hub.spawning_failed(message.swarm_id, message.agents, message.reason)
            case control.Welcome():
                self._welcomed(message.pid)
            case control.Exited():
                if message.status not in (0, -9):
                    log(
                        "worker failed", swarm_id=message.swarm_id, agent=message.agent, status=message.status
                    )
            case _:
                raise DamagedError(f"{type(message).__name__} is not a spawner's to say")

    def _workers(self, message: control.Workers, descriptors: Sequence[int]) -> None:
        assert self.hub is not None  # noqa: S101 - `start` sets it
        for agent, pid, descriptor in zip(message.agents, message.pids, descriptors, strict=False):
            self._wanted.pop((message.swarm_id, agent), None)
            worker = WorkerSocket(self._loop, self.hub, message.swarm_id, agent, pid, descriptor)
            worker.watch()
            if not self.hub.attach(message.swarm_id, agent, worker):
                worker.close()
        missed = list(message.agents[len(descriptors) :])
        if missed:  # this process may open no more files: the kernel dropped the rest
            log("workers' sockets missed", swarm_id=message.swarm_id, agents=len(missed))
            for agent in missed:
                self._wanted[message.swarm_id, agent] = 0
            self.hub.later(_MISSED_S, lambda: self._order_wanted(message.swarm_id, missed))
        if message.swarm_id not in self.hub.swarms:
            self._send(control.End(swarm_id=message.swarm_id))

    def _order_wanted(self, swarm_id: str, agents: Sequence[str]) -> None:
        wanted = [agent for agent in agents if (swarm_id, agent) in self._wanted]
        if self._ready and wanted:
            self._order(swarm_id, wanted, [self._wanted[swarm_id, agent] for agent in wanted])

    def _welcomed(self, pid: int) -> None:
        log("spawner connected", spawner_pid=pid)
        self._ready = True
        self.pid = pid
        by_swarm: dict[str, list[tuple[str, int]]] = {}
        for (swarm_id, agent), replaced in self._wanted.items():
            by_swarm.setdefault(swarm_id, []).append((agent, replaced))
        for swarm_id, orders in by_swarm.items():
            self._order(swarm_id, [agent for agent, _ in orders], [pid for _, pid in orders])
