"""A hub: gives requests to the workers of its swarms and gathers what they say.

It carries out the orders of the assignments' state machines (assignment.py) and owns swarms, runs
and claims files. What it is a hub *for* is not its concern: the conductor journals requests, talks
to clients and hands it sockets; a coordinator can do the same with a part of a swarm.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cfn.coordination import AgentState, Coordination
from cfn.engine import wire
from cfn.engine.assignment import Assignment, Do, Order
from cfn.engine.broadcasts import Broadcasts
from cfn.engine.claims import Claim, ClaimsFile, Standing
from cfn.engine.log import log
from cfn.engine.loop import Loop, Timer
from cfn.engine.members import Endpoint, Member, Provider, Swarm
from cfn.errors import DamagedError

_RESPAWN_S = 0.05  # first pause before a kept swarm's worker is replaced; doubles up to 6.4 s


@dataclass(slots=True, kw_only=True)
class _Run:
    assignment: Assignment
    swarm: Swarm
    claims: ClaimsFile
    meta: bytes
    indices: dict[str, int]
    timer: Timer | None = None
    timer_s: float = 0.0


class Hub:
    """Swarms and the requests that run on them. `completed` is called once for each run."""

    def __init__(self, loop: Loop, provider: Provider, completed: Callable[[Coordination], None]) -> None:
        self._loop = loop
        self._provider = provider
        self._completed = completed
        self._runs: dict[str, _Run] = {}
        self.broadcasts = Broadcasts(loop)
        self.swarms: dict[str, Swarm] = {}

    # Swarms

    def add_swarm(self, swarm_id: str, agents: Sequence[str], *, kept: bool) -> Swarm:
        """Make a swarm known; its processes come by `spawn` or by what the spawner still holds."""
        swarm = Swarm(swarm_id=swarm_id, kept=kept, members={agent: Member(agent=agent) for agent in agents})
        self.swarms[swarm_id] = swarm
        return swarm

    def spawn_missing(self, swarm: Swarm) -> None:
        """Order a process for every member of the swarm that has none."""
        missing = [m for m in swarm.members.values() if m.endpoint is None and not m.external]
        if missing and not swarm.ending:
            self._provider.spawn(swarm.swarm_id, [m.agent for m in missing], [m.last_pid for m in missing])

    def stop_swarm(self, swarm: Swarm) -> None:
        """Ask its workers to end: what runs gets SIGTERM, then SIGKILL, and answers `failed`."""
        swarm.ending = True
        for member in list(swarm.members.values()):  # a guest's end removes it
            if member.endpoint is not None:
                member.endpoint.send([wire.encode(wire.Kind.STOP)])

    def end_swarm(self, swarm_id: str) -> None:
        """Let go of every worker of a swarm; they end by themselves, or the spawner kills them."""
        swarm = self.swarms.pop(swarm_id, None)
        if swarm is None:
            return
        swarm.ending = True
        for member in list(swarm.members.values()):  # a guest's end removes it
            if member.endpoint is not None:
                member.endpoint.close()
                member.endpoint = None
        self._provider.end(swarm_id)

    def kill_swarm(self, swarm: Swarm) -> None:
        """SIGKILL what is still there of a swarm."""
        for member in list(swarm.members.values()):  # a guest's end removes it
            if member.endpoint is not None and not member.external:
                self._provider.kill(swarm.swarm_id, member.agent, member.endpoint.pid)

    def add_guest(self, swarm: Swarm, agent: str, endpoint: Endpoint) -> None:
        """Add an agent that is not a worker of the spawner; it leaves with its endpoint."""
        swarm.members[agent] = Member(agent=agent, external=True)
        self.attach(swarm.swarm_id, agent, endpoint)

    def attach(self, swarm_id: str, agent: str, endpoint: Endpoint) -> bool:
        """An agent can be reached from now on. False: it is not wanted, and the caller closes it."""
        swarm = self.swarms.get(swarm_id)
        member = swarm.members.get(agent) if swarm is not None else None
        if swarm is None or member is None or member.endpoint is not None:
            return False
        member.endpoint = endpoint
        member.last_pid = endpoint.pid
        for run in self._runs_of(swarm_id, agent):
            self._carry_out(run, run.assignment.attached(run.indices[agent]))
        return True

    def lost(self, swarm_id: str, agent: str, endpoint: Endpoint) -> None:
        """The agent's socket ended: its process is dead, or as good as dead."""
        swarm = self.swarms.get(swarm_id)
        member = swarm.members.get(agent) if swarm is not None else None
        if swarm is None or member is None or member.endpoint is not endpoint:
            return
        endpoint.close()
        member.endpoint = None
        for run in self._runs_of(swarm_id, agent):
            self._carry_out(run, run.assignment.missing(run.indices[agent]))
        self.broadcasts.lost(swarm_id, agent)
        if member.external:
            del swarm.members[agent]
        elif swarm.kept and not swarm.ending:
            pause_s = _RESPAWN_S * 2 ** min(member.losses, 7)
            member.losses += 1
            self._loop.at(time.monotonic() + pause_s, lambda: self._replace(swarm, member))

    def spawning_failed(self, swarm_id: str, agents: Sequence[str], reason: str) -> None:
        """No process could be made for these agents."""
        for agent in agents:
            for run in self._runs_of(swarm_id, agent):
                self._carry_out(run, run.assignment.spawning_failed(run.indices[agent], reason))
        swarm = self.swarms.get(swarm_id)
        if swarm is not None and swarm.kept and not swarm.ending:
            self._loop.at(time.monotonic() + 1.0, lambda: self.spawn_missing(swarm))

    def _replace(self, swarm: Swarm, member: Member) -> None:
        if member.endpoint is None and not swarm.ending:
            self._provider.spawn(swarm.swarm_id, [member.agent], [member.last_pid])

    # Requests

    def start(
        self, assignment: Assignment, swarm: Swarm, claims: ClaimsFile, task: wire.Task, *, fresh: bool
    ) -> None:
        """Run a request on a swarm that was added. `fresh`: its swarm was made for it just now, so no
        worker and no claim can exist. Owns `claims` from now on."""
        agents = assignment.request.agents
        run = _Run(
            assignment=assignment,
            swarm=swarm,
            claims=claims,
            meta=wire.task_meta(task),
            indices={agent: index for index, agent in enumerate(agents)},
        )
        self._runs[assignment.request.task_id] = run
        if fresh:
            self._carry_out(run, assignment.begin())
            return
        orders: list[Order] = []
        for index, agent in enumerate(agents):
            member = swarm.members.get(agent)
            present = member is not None and member.endpoint is not None
            orders += assignment.attached(index) if present else assignment.missing(index)
        self._carry_out(run, orders)

    def assignment(self, task_id: str) -> Assignment | None:
        """A running request's state."""
        run = self._runs.get(task_id)
        return None if run is None else run.assignment

    def give_up_unclaimed(self, task_id: str, reason: str) -> None:
        """Nothing of this request may start any more."""
        run = self._runs[task_id]
        self._carry_out(run, run.assignment.give_up_unclaimed(reason))

    def kill_running(self, task_id: str) -> None:
        """SIGKILL the processes that still run this request's agents."""
        run = self._runs[task_id]
        for agent, index in run.indices.items():
            if run.assignment.state(index) is AgentState.RUNNING:
                self._kill(run, agent, index)

    def received(self, swarm_id: str, agent: str, raw: bytes) -> None:
        """A datagram of an agent. Garbage is logged and dropped."""
        try:
            frame = wire.decode(raw)
            if frame.kind is wire.Kind.RECEIVED:
                swarm = self.swarms.get(swarm_id)
                if swarm is not None and agent in swarm.members:
                    self.broadcasts.acknowledged(swarm.members[agent], swarm_id, frame.epoch)
                return
            for run in self._runs_of(swarm_id, agent):
                if run.assignment.epoch == frame.epoch and run.indices[agent] == frame.index:
                    self._answered(run, frame)
        except DamagedError as error:
            log("datagram refused", swarm_id=swarm_id, agent=agent, reason=str(error))

    def _answered(self, run: _Run, frame: wire.Frame) -> None:
        now = time.monotonic()
        orders: list[Order] = []
        if frame.kind is wire.Kind.CLAIMED:
            run.assignment.claimed(frame.index, frame.epoch, now)
        elif frame.kind is wire.Kind.RESULT:
            run.assignment.ended(frame.index, frame.epoch, wire.ended_from(frame), now)
        elif frame.kind is wire.Kind.REFUSED:
            orders = run.assignment.refused(frame.index, frame.epoch)
        # The common answers bring no order and nothing due before what is scheduled already, and to
        # ask for the next due time costs a look at every agent.
        if (
            orders
            or run.assignment.complete
            or run.timer is None
            or run.timer_s > run.assignment.overdue_s(now)
        ):
            self._carry_out(run, orders)

    def claim_for(self, task_id: str, agent: str, epoch: int) -> bool:
        """Claim on behalf of an agent outside, which cannot lock the journal itself."""
        run = self._runs.get(task_id)
        if run is None or agent not in run.indices or run.assignment.epoch != epoch:
            return False
        index = run.indices[agent]
        if run.claims.judge(index).standing is not Standing.UNCLAIMED:
            return False
        return run.claims.claim(index, epoch) is Claim.TAKEN

    def end_for(self, task_id: str, agent: str, epoch: int, frame: wire.Frame) -> None:
        """Store the end of an agent outside."""
        run = self._runs.get(task_id)
        if run is not None and agent in run.indices:
            run.claims.end(run.indices[agent], epoch, wire.ended_from(frame))

    # Orders

    def _carry_out(self, run: _Run, orders: Sequence[Order]) -> None:
        """Do what the state machine orders, and what follows from that, until it is satisfied."""
        todo = deque(orders)
        wanted: list[str] = []
        while todo:
            order = todo.popleft()
            agent = run.assignment.request.agents[order.index]
            if order.do is Do.SEND:
                self._send(run, agent, order.index)
            elif order.do is Do.SPAWN:
                member = run.swarm.members.get(agent)
                if member is None or member.external:
                    todo.extend(run.assignment.spawning_failed(order.index, "it left the swarm"))
                else:
                    wanted.append(agent)
            elif order.do is Do.KILL:
                self._kill(run, agent, order.index)
            else:
                look = run.claims.fence if order.do is Do.FENCE else None
                verdict = (
                    run.claims.judge(order.index) if look is None else look(order.index, run.assignment.epoch)
                )
                todo.extend(run.assignment.judged(order.index, verdict, time.monotonic()))
        if wanted:
            members = run.swarm.members
            self._provider.spawn(run.swarm.swarm_id, wanted, [members[agent].last_pid for agent in wanted])
        if run.assignment.complete:
            self._complete(run)
        else:
            self._schedule(run)

    def _send(self, run: _Run, agent: str, index: int) -> None:
        endpoint = run.swarm.members[agent].endpoint
        if endpoint is None:
            return
        request = run.assignment.request
        head = wire.header(wire.Kind.ASSIGN, index, run.assignment.epoch, len(run.meta))
        taken = endpoint.send([head, run.meta, request.payload])
        run.assignment.sent(index, time.monotonic(), taken=taken)

    def _kill(self, run: _Run, agent: str, index: int) -> None:
        """The process that holds the agent's slot, else the one behind its socket."""
        if any(
            other is not run and other.assignment.state(other.indices[agent]) is AgentState.RUNNING
            for other in self._runs_of(run.swarm.swarm_id, agent)
        ):
            return  # it did not hang: it was busy with another request
        holder = run.claims.judge(index).pid
        member = run.swarm.members.get(agent)
        pid = holder or (member.last_pid if member is not None else 0)
        if not pid:
            return
        log("worker killed", swarm_id=run.swarm.swarm_id, agent=agent, pid=pid)
        self._provider.kill(run.swarm.swarm_id, agent, pid)
        if holder:  # the spawner may not know it; the lock proves that the number is still its own
            with suppress(OSError):
                pidfd = os.pidfd_open(holder)
                try:
                    if run.claims.judge(index).pid == holder:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)

    def _schedule(self, run: _Run) -> None:
        due = run.assignment.next_s()
        if run.timer is not None and due is not None and run.timer_s <= due:
            return  # it will fire, find nothing due, and be set again
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        if due is not None:
            run.timer_s = due
            run.timer = self._loop.at(due, lambda: self._due(run))

    def _due(self, run: _Run) -> None:
        run.timer = None
        if not run.assignment.complete:
            self._carry_out(run, run.assignment.tick(time.monotonic()))

    def _complete(self, run: _Run) -> None:
        task_id = run.assignment.request.task_id
        if self._runs.pop(task_id, None) is None:
            return
        if run.timer is not None:
            run.timer.cancel()
        self._completed(run.assignment.outcome(time.monotonic()))
        run.claims.close()

    def running_on(self, swarm: Swarm) -> list[str]:
        """The task ids that run on a swarm."""
        return [task_id for task_id, run in self._runs.items() if run.swarm is swarm]

    def _runs_of(self, swarm_id: str, agent: str) -> list[_Run]:
        return [r for r in self._runs.values() if r.swarm.swarm_id == swarm_id and agent in r.indices]

    # Counts

    def later(self, pause_s: float, action: Callable[[], None]) -> None:
        """Call `action` after a pause."""
        self._loop.at(time.monotonic() + pause_s, action)

    @property
    def live_agents(self) -> int:
        """Agents that can be reached now."""
        return sum(m.endpoint is not None for s in self.swarms.values() for m in s.members.values())

    @property
    def running_agents(self) -> int:
        """Agents that running requests asked for."""
        return sum(len(run.indices) for run in self._runs.values())

    @property
    def running(self) -> list[str]:
        """The task ids of running requests."""
        return list(self._runs)
