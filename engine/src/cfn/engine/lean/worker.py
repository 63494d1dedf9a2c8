"""A worker: the process of one agent, forked by the spawner.

It waits on one socket to its hub, claims each task in tmpfs, runs it, stores the end and tells the
hub: CLAIMED, acknowledge, run, ENDED, answer. It lives as long as anybody holds the other end of
its socket, and finishes what it runs before it goes.
"""

from __future__ import annotations

import posix
import select
import time

from cfn.engine.lean import claim, records, wire
from cfn.engine.lean.agent_process import AgentProcess, failure
from cfn.errors import DamagedError

# The spawner's own, and not for a command.
_OF_THE_UNIT = (
    b"LD_BIND_NOW",
    b"NOTIFY_SOCKET",
    b"WATCHDOG_USEC",
    b"WATCHDOG_PID",
    b"LISTEN_FDS",
    b"LISTEN_PID",
)
_MAX_WAITING = 64  # assignments that wait while another one runs; a hub sends them again


def is_echo(order: wire.Assignment) -> bool:
    """Whether the built-in agent runs it, with an output that fits its claim's record: then claim, run
    and end are one step."""
    return not order.task.command and not order.task.slow_ms and len(order.payload) <= records.INLINE_BYTES


def echo(order: wire.Assignment, arena: int) -> bytes | None:
    """Run such a task and return what to tell the hub; None if somebody else has decided about it."""
    output = order.payload[: order.task.max_output_bytes]
    if claim.take_and_end(arena, order.slot, order.key, order.ticket, output) != claim.TAKEN:
        return None
    return wire.answer(wire.RESULT, order.index, order.epoch, output=output)


class Worker:
    """The loop of one agent. `hub` is the descriptor of a connected SEQPACKET socket, closed by the
    process's end; `arena` that of the claims file of its team."""

    __slots__ = (
        "_agent",
        "_arena",
        "_generation",
        "_hub",
        "_orphaned",
        "_process",
        "_running",
        "_stopping",
        "_waiting",
    )

    def __init__(self, agent: str, hub: int, arena: int) -> None:
        self._agent = agent
        self._hub = hub
        self._arena = arena
        self._generation = 0
        self._orphaned = False  # no hub holds the other end any more
        self._stopping = False
        self._running: wire.Assignment | None = None  # its slot is locked meanwhile
        self._process: AgentProcess | None = None
        self._waiting: list[wire.Assignment] = []

    def run(self, first: wire.Assignment | None) -> None:
        """Serve until the hubs are gone or say STOP, and nothing runs any more."""
        if first is not None:
            self._ordered(first)
        while not (self._orphaned or self._stopping) or self._running is not None:
            if self._process is not None:
                self._wait(self._process)
                self._advance(self._process)
            elif self._waiting and not self._stopping:
                self._assigned(self._waiting.pop(0))
            else:
                self._receive()  # blocks: an idle worker has nothing else to wait for

    def _wait(self, process: AgentProcess) -> None:
        poller = select.poll()
        for descriptor, events in process.descriptors().items():
            poller.register(descriptor, events)
        if not self._orphaned:
            poller.register(self._hub, select.POLLIN)
        timeout_s = max(0.0, process.next_s - time.monotonic())
        for descriptor, _ in poller.poll(timeout_s * 1000 + 1):
            if descriptor == self._hub:
                self._receive()

    def _receive(self) -> None:
        try:
            raw = posix.read(self._hub, wire.MAX_DATAGRAM_BYTES)
        except ConnectionResetError:
            return  # what the hub had sent before it went is still to be read
        if not raw:
            self._orphaned = True
            return
        kind = raw[0]
        if kind == wire.ASSIGN:
            try:
                self._ordered(wire.read_assignment(raw))
            except DamagedError:
                return
        elif kind == wire.MESSAGE:
            number = wire.message_number(raw)
            if number >= 0:
                self._say(wire.answer(wire.RECEIVED, 0, number))
        elif kind == wire.STOP:
            self._stopping = True
            if self._process is not None:
                self._process.stop(time.monotonic())

    def _ordered(self, order: wire.Assignment) -> None:
        generation = order.epoch >> 32
        if generation < self._generation:
            return  # an order of a hub that has been replaced
        self._generation = generation
        running = self._running
        if running is None and not self._waiting:
            self._assigned(order)
        elif running is not None and running.key == order.key:
            running.epoch = order.epoch
            self._answer(wire.CLAIMED, order)
        elif len(self._waiting) < _MAX_WAITING:
            self._waiting.append(order)

    def _assigned(self, order: wire.Assignment) -> None:
        if is_echo(order):
            answer = echo(order, self._arena)
            if answer is None:
                self._refuse(order)
            else:
                self._say(answer)
            return
        if order.task.slow_ms:
            time.sleep(order.task.slow_ms / 1000)
        if claim.take(self._arena, order.slot, order.key, order.ticket) == claim.TAKEN:
            self._answer(wire.CLAIMED, order)
            self._start(order)
        else:
            self._refuse(order)

    def _refuse(self, order: wire.Assignment) -> None:
        """Somebody else has decided about the slot: tell what is stored, or let the hub look at it."""
        ended = claim.stored_end(self._arena, order.slot, order.key, order.task.outputs, order.index)
        if ended is None:
            self._answer(wire.REFUSED, order)
        else:
            self._answer(wire.RESULT, order, *ended)

    def _start(self, order: wire.Assignment) -> None:
        task = order.task
        if not task.command:
            self._ended(order, records.NONE, 0, order.payload[: task.max_output_bytes])
            return
        try:
            self._process = AgentProcess(
                task.command,
                self._environment(task),
                order.payload,
                timeout_ms=task.timeout_ms,
                max_output_bytes=task.max_output_bytes,
                now_s=time.monotonic(),
            )
        except OSError as error:
            self._ended(order, *failure(error), b"")
            return
        self._running = order

    def _environment(self, task: wire.Task) -> dict[bytes, bytes]:
        return {
            **{name: value for name, value in posix.environ.items() if name not in _OF_THE_UNIT},
            b"CFN_TASK_ID": task.task_id.encode(),
            b"CFN_AGENT_ID": self._agent.encode(),
            b"CFN_SWARM_ID": task.swarm_id.encode(),
            b"CFN_TEAM": task.team.encode(),
            b"CFN_BUS": task.bus.encode(),
            b"CFN_WORKER_PID": str(posix.getpid()).encode(),  # by which cleanup knows what a dead worker left
        }

    def _advance(self, process: AgentProcess) -> None:
        ended = process.advance(time.monotonic())
        order = self._running
        if ended is not None and order is not None:
            self._running = self._process = None
            self._ended(order, *ended)

    def _ended(self, order: wire.Assignment, reason: int, exit_code: int, output: bytes) -> None:
        claim.end(
            self._arena,
            order.slot,
            order.key,
            order.task.outputs,
            order.index,
            reason=reason,
            exit_code=exit_code,
            output=output,
        )
        self._answer(wire.RESULT, order, reason, exit_code, output)

    def _answer(
        self, kind: int, order: wire.Assignment, reason: int = 0, exit_code: int = 0, output: bytes = b""
    ) -> None:
        self._say(
            wire.answer(kind, order.index, order.epoch, reason=reason, exit_code=exit_code, output=output)
        )

    def _say(self, datagram: bytes) -> None:
        """Blocks while the hub does not read: a worker has nothing better to do. Without a hub it
        is silent; the journal has what matters."""
        try:
            posix.write(self._hub, datagram)
        except OSError:
            self._orphaned = True
