"""The spawner: a small, warm process that forks workers and outlives their hubs.

It keeps a duplicate of the hub's side of every worker's socket, so that a worker survives its hub,
and hands all of them to a hub that comes (back). It reaps, reports exit statuses, kills on order,
and kills what a worker that died badly left running. It never talks to a worker.
"""

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cfn.engine import control, sessions
from cfn.engine.guard import one_at_a_time, own_folder, serve_at
from cfn.engine.log import log
from cfn.engine.loop import READ, WRITE, Loop
from cfn.engine.notify import Watchdog, notify
from cfn.engine.worker import Worker
from cfn.errors import DamagedError
from cfn.paths import Paths

_HAND_OUT = 20  # workers in one datagram while forking: the hub assigns to them meanwhile
_END_GRACE_S = 0.5  # for a worker whose swarm has ended, before SIGKILL
_SWEEP_DELAY_S = 0.02  # gathers deaths, since a sweep reads all of /proc
_WORKER_FD = 3
_OF_THE_UNIT = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A worker and the duplicate of its hub's socket. `pidfd` is -1 for an own child."""

    swarm_id: str
    agent: str
    pid: int
    descriptor: int
    pidfd: int = -1


class Spawner:
    """The process's one object. `run` returns on SIGTERM; workers live on while a hub holds them."""

    def __init__(self, paths: Paths) -> None:
        own_folder(paths.shm)
        own_folder(paths.run)
        self._lock = one_at_a_time(paths.run / "spawner.lock", "spawner")
        self._loop = Loop()
        self._held: dict[tuple[str, str], _Held] = {}
        self._alive: dict[int, _Held] = {}  # by process id: children not reaped, adopted ones not seen to end
        self._hubs: dict[int, control.Channel] = {}
        self._generation = 0
        self._dead: set[int] = set()  # sessions to be swept
        self._stopping = False
        self._listener = serve_at(paths.spawner_socket, socket.SOCK_SEQPACKET)
        self._loop.add(self._listener.fileno(), READ, self._accept)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._loop.add(self._wake_read, READ, self._signalled)

    def run(self) -> None:
        """Serve until SIGTERM. Forks happen here and only here, with nothing else on the stack."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._terminated)
        signal.signal(signal.SIGINT, self._terminated)
        watchdog = Watchdog()
        gc.collect()
        gc.disable()  # a collection in a child would touch, and so copy, every page of this heap
        gc.freeze()
        notify("READY=1")
        log("spawner started", pid=os.getpid())
        try:
            while not self._stopping:
                self._loop.turn(watchdog.longest_wait_s)
                watchdog.feed()
        finally:
            notify("STOPPING=1")
            log("spawner stopped", workers=len(self._held))

    def _terminated(self, *_: object) -> None:
        self._stopping = True

    # Hubs

    def _accept(self, _events: int) -> None:
        with suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            hub = control.Channel(connection)
            descriptor = connection.fileno()
            self._hubs[descriptor] = hub
            self._loop.add(descriptor, READ, lambda events: self._hub_ready(descriptor, events))

    def _hub_ready(self, descriptor: int, events: int) -> None:
        hub = self._hubs[descriptor]
        try:
            if events & WRITE:
                hub.flush()
            if events & ~WRITE:
                while (received := hub.receive()) is not None:
                    self._ordered(hub, *received)
            self._watch(hub)
        except (OSError, EOFError, DamagedError) as error:
            if not isinstance(error, EOFError):
                log("hub dropped", reason=str(error))
            if self._hubs.pop(descriptor, None) is not None:
                self._loop.remove(descriptor)
                hub.close()

    def _watch(self, hub: control.Channel) -> None:
        self._loop.change(hub.socket.fileno(), READ | WRITE if hub.pending else READ)

    def _ordered(self, hub: control.Channel, message: control.Message, descriptors: Sequence[int]) -> None:
        match message:
            case control.Hello():
                self._welcome(hub, message.generation)
            case control.Spawn():
                self._spawn(hub, message)
            case control.Adopt():
                self._adopt(message, descriptors)
                return  # the descriptors are kept
            case control.Kill():
                self._kill(message)
            case control.End():
                self._end(message.swarm_id)
            case _:
                raise DamagedError(f"{type(message).__name__} is not a hub's to say")
        for descriptor in descriptors:
            os.close(descriptor)

    def _welcome(self, hub: control.Channel, generation: int) -> None:
        if generation < self._generation:
            raise DamagedError(f"generation {generation} was replaced by {self._generation}")
        self._generation = generation
        by_swarm: dict[str, list[_Held]] = {}
        for held in self._held.values():
            by_swarm.setdefault(held.swarm_id, []).append(held)
        for workers in by_swarm.values():
            for start in range(0, len(workers), control.BATCH):
                self._hand_out(hub, workers[start : start + control.BATCH])
        hub.send(control.Welcome(pid=os.getpid()))

    def _hand_out(self, hub: control.Channel, workers: Sequence[_Held]) -> None:
        if workers:
            hub.send(
                control.Workers(
                    swarm_id=workers[0].swarm_id,
                    agents=[held.agent for held in workers],
                    pids=[held.pid for held in workers],
                ),
                [held.descriptor for held in workers],
            )

    def _report(self, message: control.Message) -> None:
        for hub in list(self._hubs.values()):
            with suppress(OSError):  # its own handler will find out
                hub.send(message)
                self._watch(hub)

    # Workers

    def _spawn(self, hub: control.Channel, order: control.Spawn) -> None:
        ready: list[_Held] = []
        for position, (agent, replaced) in enumerate(zip(order.agents, order.replaces, strict=True)):
            held = self._held.get((order.swarm_id, agent))
            if held is not None and held.pid == replaced:
                self._signal(held)  # the hub saw its end: make it true
                self._forget(held)
                held = None
            if held is None:
                try:
                    held = self._fork(order.swarm_id, agent)
                except OSError as error:
                    self._hand_out(hub, ready)
                    hub.send(
                        control.Failed(
                            swarm_id=order.swarm_id,
                            agents=list(order.agents[position:]),
                            reason=f"no process could be started: {error.strerror}",
                        )
                    )
                    log("fork failed", swarm_id=order.swarm_id, agent=agent, reason=str(error))
                    return
            ready.append(held)
            if len(ready) == _HAND_OUT:
                self._hand_out(hub, ready)
                ready = []
        self._hand_out(hub, ready)

    def _fork(self, swarm_id: str, agent: str) -> _Held:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor, worker_end = ours.detach(), theirs.detach()  # plain numbers: no finalizer in a child
        try:
            pid = os.fork()
        except OSError:
            os.close(descriptor)
            os.close(worker_end)
            raise
        if pid == 0:
            _become_worker(agent, worker_end)
        os.close(worker_end)
        os.set_blocking(descriptor, False)
        held = _Held(swarm_id=swarm_id, agent=agent, pid=pid, descriptor=descriptor)
        self._held[swarm_id, agent] = held
        self._alive[pid] = held
        return held

    def _adopt(self, order: control.Adopt, descriptors: Sequence[int]) -> None:
        for agent, pid, descriptor in zip(order.agents, order.pids, descriptors, strict=False):
            key = (order.swarm_id, agent)
            try:
                pidfd = -1 if key in self._held else os.pidfd_open(pid)
            except OSError:
                pidfd = -1
            if pidfd < 0:  # known already, or dead: its hub will see the end of its socket
                os.close(descriptor)
                continue
            held = _Held(swarm_id=order.swarm_id, agent=agent, pid=pid, descriptor=descriptor, pidfd=pidfd)
            self._held[key] = held
            self._alive[pid] = held
            self._loop.add(pidfd, READ, self._end_of(held))

    def _end_of(self, held: _Held) -> Callable[[int], None]:
        return lambda _events: self._gone(held, 0)

    def _kill(self, order: control.Kill) -> None:
        held = self._held.get((order.swarm_id, order.agent))
        if held is not None and held.pid == order.pid:
            self._signal(held)

    def _signal(self, held: _Held) -> None:
        if self._alive.get(held.pid) is not held:
            return  # its number may be another process's by now
        with suppress(ProcessLookupError):
            if held.pidfd >= 0:
                signal.pidfd_send_signal(held.pidfd, signal.SIGKILL)
            else:
                os.kill(held.pid, signal.SIGKILL)

    def _end(self, swarm_id: str) -> None:
        ending = [held for held in self._held.values() if held.swarm_id == swarm_id]
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
            os.close(held.descriptor)

    # Deaths

    def _signalled(self, _events: int) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_read, 4_096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            held = self._alive.get(pid)
            if held is not None:
                self._gone(held, os.waitstatus_to_exitcode(status))

    def _gone(self, held: _Held, status: int) -> None:
        del self._alive[held.pid]
        self._forget(held)
        if held.pidfd >= 0:
            self._loop.remove(held.pidfd)
            os.close(held.pidfd)
        if status != 0 or held.pidfd >= 0:
            self._report(
                control.Exited(swarm_id=held.swarm_id, agent=held.agent, pid=held.pid, status=status)
            )
            if not self._dead:
                self._loop.at(time.monotonic() + _SWEEP_DELAY_S, self._sweep)
            self._dead.add(held.pid)

    def _sweep(self) -> None:
        leftovers = sessions.kill(self._dead)
        if leftovers:
            log("leftovers of dead workers killed", workers=len(self._dead), processes=leftovers)
        self._dead.clear()


def _become_worker(agent: str, worker_end: int) -> None:
    """The child's side of the fork; never returns. Closes every descriptor that is not its own."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.dup2(worker_end, _WORKER_FD, inheritable=False)
        os.closerange(_WORKER_FD + 1, 1 << 30)
        for name in _OF_THE_UNIT:
            os.environ.pop(name, None)
        Worker(agent, socket.socket(fileno=_WORKER_FD)).run()
        code = 0
    except BaseException as error:
        os.write(sys.stderr.fileno(), f"worker {agent}: {error!r}\n".encode())
    finally:
        os._exit(code)
