"""A worker: the process of one agent, forked by the spawner.

It waits on one socket to its hub, claims each task in tmpfs, runs it, stores the end and tells the
hub: CLAIMED, acknowledge, run, ENDED, answer. It lives as long as anybody holds the other end of
its socket, and finishes what it runs before it goes.
"""

import os
import select
import socket
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cfn.engine import wire
from cfn.engine.agent_process import AgentProcess, failure
from cfn.engine.claims import Claim, ClaimsFile, Ended
from cfn.engine.records import Reason
from cfn.errors import DamagedError

_REMEMBERED = 64  # ends kept in memory for a hub that asks again; older ones are in the journal


@dataclass(slots=True, kw_only=True)
class _Running:
    """What runs now, with the claim that is kept locked meanwhile. `epoch` is the newest asked under."""

    task_id: str
    index: int
    epoch: int
    claims: ClaimsFile


class Worker:
    """The loop of one agent. `hub` is a connected SEQPACKET socket, closed by the process's end."""

    def __init__(self, agent: str, hub: socket.socket) -> None:
        self._agent = agent
        self._hub = hub
        self._generation = 0
        self._orphaned = False  # no hub holds the other end any more
        self._stopping = False
        self._running: _Running | None = None
        self._process: AgentProcess | None = None
        self._ends: OrderedDict[str, Ended] = OrderedDict()
        self._waiting: list[tuple[wire.Frame, wire.Task]] = []  # assignments that came while another runs

    def run(self) -> None:
        """Serve until the hubs are gone or say STOP, and nothing runs any more."""
        while not (self._orphaned or self._stopping) or self._running is not None:
            self._wait()
            if self._running is not None:
                self._advance()
            elif self._waiting and not self._stopping:
                self._assigned(*self._waiting.pop(0))

    def _wait(self) -> None:
        process = self._process
        if process is None:
            if not self._waiting:
                self._receive()  # blocks: an idle worker has nothing else to wait for
            return
        poller = select.poll()
        for descriptor, events in process.descriptors().items():
            poller.register(descriptor, events)
        if not self._orphaned:
            poller.register(self._hub, select.POLLIN)
        timeout_s = max(0.0, process.next_s - time.monotonic())
        for descriptor, _ in poller.poll(timeout_s * 1000 + 1):
            if descriptor == self._hub.fileno():
                self._receive()

    def _receive(self) -> None:
        try:
            raw = self._hub.recv(wire.MAX_DATAGRAM_BYTES)
        except ConnectionResetError:
            return  # what the hub had sent before it went is still to be read
        if not raw:
            self._orphaned = True
            return
        try:
            frame = wire.decode(raw)
        except DamagedError:
            return
        if frame.kind is wire.Kind.ASSIGN:
            self._ordered(frame)
        elif frame.kind is wire.Kind.MESSAGE:
            self._send(wire.encode(wire.Kind.RECEIVED, epoch=frame.epoch))
        elif frame.kind is wire.Kind.STOP:
            self._stopping = True
            if self._process is not None:
                self._process.stop(time.monotonic())

    def _ordered(self, frame: wire.Frame) -> None:
        generation = frame.epoch >> 32
        if generation < self._generation:
            return  # an order of a hub that has been replaced
        self._generation = generation
        try:
            task = wire.task_from(frame)
        except DamagedError:
            return
        running = self._running
        if running is not None and running.task_id == task.task_id:
            running.epoch = frame.epoch
            self._send(wire.encode(wire.Kind.CLAIMED, index=frame.index, epoch=frame.epoch))
        else:
            self._waiting.append((frame, task))

    def _assigned(self, frame: wire.Frame, task: wire.Task) -> None:
        known = self._ends.get(task.task_id)
        if known is not None:
            self._answer(frame, known)
            return
        if task.slow_ms:
            time.sleep(task.slow_ms / 1000)
        try:
            claims = ClaimsFile(Path(task.folder))
        except OSError:  # the request is over
            self._send(wire.encode(wire.Kind.REFUSED, index=frame.index, epoch=frame.epoch))
            return
        claim = claims.claim(frame.index, frame.epoch)
        if claim is not Claim.TAKEN:
            claims.close()
            self._send(wire.encode(wire.Kind.REFUSED, index=frame.index, epoch=frame.epoch))
            return
        self._send(wire.encode(wire.Kind.CLAIMED, index=frame.index, epoch=frame.epoch))
        self._start(frame, task, claims)

    def _start(self, frame: wire.Frame, task: wire.Task, claims: ClaimsFile) -> None:
        running = _Running(task_id=task.task_id, index=frame.index, epoch=frame.epoch, claims=claims)
        if not task.command:  # the built-in agent: an echo
            output = frame.body[: task.max_output_bytes]
            self._ended(running, Ended(reason=Reason.NONE, exit_code=0, output=output))
            return
        environment = {
            **os.environ,
            "CFN_TASK_ID": task.task_id,
            "CFN_AGENT_ID": self._agent,
            "CFN_SWARM_ID": task.swarm_id,
            "CFN_TEAM": task.team,
            "CFN_WORKER_PID": str(os.getpid()),  # by which cleanup knows what a dead worker left
        }
        try:
            process = AgentProcess(
                task.command,
                environment,
                frame.body,
                timeout_ms=task.timeout_ms,
                max_output_bytes=task.max_output_bytes,
                now_s=time.monotonic(),
            )
        except OSError as error:
            self._ended(running, failure(error))
            return
        self._process = process
        self._running = running

    def _advance(self) -> None:
        running, process = self._running, self._process
        if running is None or process is None:
            return
        ended = process.advance(time.monotonic())
        if ended is not None:
            self._running = self._process = None
            self._ended(running, ended)

    def _ended(self, running: _Running, ended: Ended) -> None:
        with suppress(OSError):  # no room for a long output: the answer still carries it
            running.claims.end(running.index, running.epoch, ended)
        running.claims.close()
        self._ends[running.task_id] = ended
        while len(self._ends) > _REMEMBERED:
            self._ends.popitem(last=False)
        self._send(wire.result(running.index, running.epoch, ended))

    def _answer(self, frame: wire.Frame, ended: Ended) -> None:
        self._send(wire.encode(wire.Kind.CLAIMED, index=frame.index, epoch=frame.epoch))
        self._send(wire.result(frame.index, frame.epoch, ended))

    def _send(self, datagram: bytes) -> None:
        """Blocks while the hub does not read: a worker has nothing better to do. Without a hub it
        is silent; the journal has what matters."""
        try:
            self._hub.send(datagram)
        except OSError:
            self._orphaned = True
