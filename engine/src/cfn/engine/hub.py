"""A hub: gives requests to the workers of its teams and gathers what they say.

It carries out the orders of the assignments' state machines (assignment.py). What it is a hub *for*
is not its concern: the conductor has one for flat swarms and for agents from outside, each
coordinator has one for the teams that it is given.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cfn.coordination import AgentState, Tally
from cfn.engine.assignment import Assignment, Do, Order
from cfn.engine.broadcasts import Broadcasts
from cfn.engine.claims import Arena, Arenas, Ended, ended
from cfn.engine.lean import records, wire
from cfn.engine.lean.agent_process import GRACE_S
from cfn.engine.log import log
from cfn.engine.loop import Loop, Timer
from cfn.engine.members import Endpoint, First, Member, Provider, Team
from cfn.engine.teams import TeamOrder, TeamOutcome, results_json
from cfn.errors import DamagedError

_FAILED_S = 1.0  # before processes that could not be made are ordered again
_RESPAWN_S = 0.05  # first pause before a kept team's worker is replaced; doubles up to 6.4 s

Done = Callable[[TeamOutcome], None]


@dataclass(slots=True, kw_only=True)
class _Run:
    order: TeamOrder
    assignment: Assignment
    team: Team
    arena: Arena
    common: bytes
    indices: dict[str, int]
    done: Done
    long_outputs: bool = False
    timer: Timer | None = None
    timer_s: float = 0.0


class Hub:
    """Teams and the requests that run on them. `bus` is told to agents: the socket for messages."""

    def __init__(self, loop: Loop, provider: Provider, arenas: Arenas, *, outputs: str, bus: str) -> None:
        self._loop = loop
        self._provider = provider
        self._arenas = arenas
        self._outputs = outputs
        self._bus = bus
        self._runs: dict[int, _Run] = {}  # by epoch
        self.broadcasts = Broadcasts(loop)
        self.teams: dict[tuple[str, str], Team] = {}
        self._members: dict[tuple[str, str], tuple[Team, Member]] = {}  # by swarm and agent

    # Teams

    def add_team(self, swarm_id: str, team: str, shard: int, agents: Sequence[str], *, kept: bool) -> Team:
        """Make a team known, or add agents to one that is; their processes come by orders or by what
        the spawner still holds."""
        found = self.teams.get((swarm_id, team))
        if found is None:
            found = Team(swarm_id=swarm_id, team=team, shard=shard, kept=kept, members={})
            self.teams[swarm_id, team] = found
        found.kept = found.kept or kept  # a request may have come before its swarm's own word
        for agent in agents:
            if agent not in found.members:
                member = found.members[agent] = Member(agent=agent)
                self._members[swarm_id, agent] = (found, member)
        return found

    def spawn_missing(self, team: Team) -> None:
        """Order a process for every member of a team that has none."""
        missing = [m for m in team.members.values() if m.endpoint is None and not m.external]
        if missing and not team.ending:
            names, pids = [m.agent for m in missing], [m.last_pid for m in missing]
            self._provider.spawn(team.swarm_id, team.shard, names, pids, None)

    def stop_team(self, team: Team) -> None:
        """Ask its workers to end: what runs gets SIGTERM, then SIGKILL, and answers `failed`."""
        team.ending = True
        for member in list(team.members.values()):  # a guest's end removes it
            if member.endpoint is not None:
                member.endpoint.send(wire.stop())

    def end_team(self, team: Team) -> None:
        """Let go of every worker of a team; they end by themselves, or the spawner kills them."""
        if self.drop_team(team):
            self.end_workers(team.swarm_id, [m.agent for m in team.members.values() if not m.external])

    def leave_team(self, team: Team) -> None:
        """Forget a team whose workers stay with the spawner, and end what is not there yet of them."""
        absent = [m.agent for m in team.members.values() if m.endpoint is None and not m.external]
        if self.drop_team(team) and absent:
            self.end_workers(team.swarm_id, absent)

    def end_workers(self, swarm_id: str, agents: Sequence[str]) -> None:
        """End workers whose sockets no hub has any more."""
        self._provider.end(swarm_id, agents)

    def drop_team(self, team: Team) -> bool:
        """Forget a team and close its sockets here; the spawner keeps its workers. False: it was
        forgotten before."""
        if self.teams.pop((team.swarm_id, team.team), None) is None:
            return False
        team.ending = True
        for member in list(team.members.values()):
            self._members.pop((team.swarm_id, member.agent), None)
            if member.endpoint is not None:
                member.endpoint.close()
                member.endpoint = None
        return True

    def kill_team(self, team: Team) -> None:
        """SIGKILL what is still there of a team."""
        for member in list(team.members.values()):
            if member.endpoint is not None and not member.external:
                self._provider.kill(team.swarm_id, member.agent, member.endpoint.pid)

    def add_guest(self, team: Team, agent: str, endpoint: Endpoint) -> None:
        """Add an agent that is not a worker of the spawner; it leaves with its endpoint."""
        member = team.members[agent] = Member(agent=agent, external=True)
        self._members[team.swarm_id, agent] = (team, member)
        self.attach(team.swarm_id, agent, endpoint)

    def attach(self, swarm_id: str, agent: str, endpoint: Endpoint, born_with: int = 0) -> bool:
        """An agent can be reached from now on; `born_with` is the epoch of a task that it began with.
        False: it is not wanted, and the caller closes it."""
        team, member = self._members.get((swarm_id, agent), (None, None))
        if team is None or member is None or member.endpoint is not None:
            return False
        member.endpoint = endpoint
        member.last_pid = endpoint.pid
        for run in self._runs_of(team, agent):
            asked = run.order.epoch == born_with
            orders = run.assignment.attached(run.indices[agent], asked=asked)
            if not asked:
                self._carry_out(run, orders)
        return True

    def knows(self, swarm_id: str, agent: str) -> bool:
        """Whether an agent belongs to a team of this hub."""
        return (swarm_id, agent) in self._members

    def absent(self, swarm_id: str, agents: Sequence[str]) -> None:
        """No process of these agents lives."""
        for agent in agents:
            team, member = self._members.get((swarm_id, agent), (None, None))
            if team is not None and member is not None and member.endpoint is None:
                for run in self._runs_of(team, agent):
                    self._carry_out(run, run.assignment.missing(run.indices[agent]))

    def lost(self, swarm_id: str, agent: str, endpoint: Endpoint) -> None:
        """The agent's socket ended: its process is dead, or as good as dead."""
        team, member = self._members.get((swarm_id, agent), (None, None))
        if team is None or member is None or member.endpoint is not endpoint:
            return
        endpoint.close()
        member.endpoint = None
        for run in self._runs_of(team, agent):
            self._carry_out(run, run.assignment.missing(run.indices[agent]))
        self.broadcasts.lost(swarm_id, agent)
        if member.external:
            del team.members[agent]
            self._members.pop((swarm_id, agent), None)
        elif team.kept and not team.ending:
            pause_s = _RESPAWN_S * 2 ** min(member.losses, 7)
            member.losses += 1
            self._loop.at(time.monotonic() + pause_s, lambda: self._replace(team, member))

    def spawning_failed(self, swarm_id: str, agents: Sequence[str], reason: str) -> None:
        """No process could be made for these agents."""
        for agent in agents:
            team, _ = self._members.get((swarm_id, agent), (None, None))
            if team is None:
                continue
            for run in self._runs_of(team, agent):
                self._carry_out(run, run.assignment.spawning_failed(run.indices[agent], reason))
            if team.kept and not team.ending and not team.respawning:
                team.respawning = True
                self._loop.at(time.monotonic() + _FAILED_S, self._spawning(team))

    def _spawning(self, team: Team) -> Callable[[], None]:
        def respawn() -> None:
            team.respawning = False
            self.spawn_missing(team)

        return respawn

    def _replace(self, team: Team, member: Member) -> None:
        if member.endpoint is None and not team.ending:
            self._provider.spawn(team.swarm_id, team.shard, [member.agent], [member.last_pid], None)

    # Requests

    def start(self, order: TeamOrder, team: Team, payload: bytes, done: Done) -> None:
        """Run a team's part of a request on a team that was added; `done` is called once. Raises
        OSError when its claims cannot be reached; nothing was begun then."""
        task = wire.Task(
            order.task_id,
            order.swarm_id,
            order.team,
            self._outputs,
            bus=self._bus,
            timeout_ms=order.timeout_ms,
            max_output_bytes=order.max_output_bytes,
            slow_ms=order.slow_ms,
            command=order.command,
        )
        assignment = Assignment(
            agents=order.agents,
            epoch=order.epoch,
            deadline_at_s=order.deadline_at_s,
            deadline_ms=order.deadline_ms,
            run_limit_s=order.timeout_ms / 1000 + 2 * GRACE_S,
            lost_deliveries=frozenset(order.lost),
        )
        run = _Run(
            order=order,
            assignment=assignment,
            team=team,
            arena=self._arenas.shard(order.shard),
            common=wire.common(order.epoch, order.key, records.ticket(order.key), task, payload),
            indices={agent: index for index, agent in enumerate(order.agents)},
            done=done,
        )
        self._runs[order.epoch] = run
        if order.given_up:
            self._carry_out(run, assignment.give_up_unclaimed(order.given_up))
        elif order.fresh and not order.kept:
            self._carry_out(run, assignment.begin())
        else:
            self._begin_on(run)

    def _begin_on(self, run: _Run) -> None:
        """Give a task to workers that may be there, or may be alive with another hub's socket."""
        orders: list[Order] = []
        unseen = []
        for agent, index in run.indices.items():
            member = run.team.members.get(agent)
            if member is not None and member.endpoint is not None:
                orders += run.assignment.attached(index)
            elif member is not None and not member.external and not run.order.fresh:
                unseen.append(agent)
            else:
                orders += run.assignment.missing(index)
        if unseen:
            self._provider.fetch(run.team.swarm_id, unseen)
        self._carry_out(run, orders)

    def give_up(self, epoch: int, reason: str) -> None:
        """Nothing of this order may start any more."""
        run = self._runs.get(epoch)
        if run is not None:
            self._carry_out(run, run.assignment.give_up_unclaimed(reason))

    def stop_running(self, epoch: int, *, gently: bool) -> None:
        """End the processes that run this order's agents: as `stop_team` does, or with SIGKILL."""
        run = self._runs.get(epoch)
        if run is None:
            return
        if gently:
            self.stop_team(run.team)
            return
        for agent, index in run.indices.items():
            if run.assignment.state(index) is AgentState.RUNNING:
                self._kill(run, agent, index)

    def drop(self, epoch: int) -> None:
        """Forget an order; another hub has it, or will."""
        run = self._runs.pop(epoch, None)
        if run is not None and run.timer is not None:
            run.timer.cancel()

    def outcome(self, epoch: int) -> TeamOutcome | None:
        """An order's states as of now; None if it is not running here."""
        run = self._runs.get(epoch)
        return None if run is None else _outcome(run)

    def received(self, swarm_id: str, agent: str, raw: bytes) -> None:
        """A datagram of an agent. Garbage is logged and dropped."""
        try:
            kind, reason, index, epoch, exit_code, output = wire.read_answer(raw)
        except DamagedError as error:
            log("datagram refused", swarm_id=swarm_id, agent=agent, reason=str(error))
            return
        if kind == wire.RECEIVED:
            _, member = self._members.get((swarm_id, agent), (None, None))
            if member is not None:
                self.broadcasts.acknowledged(member, swarm_id, epoch)
            return
        run = self._runs.get(epoch)
        if run is None or run.indices.get(agent) != index or run.order.swarm_id != swarm_id:
            return
        now_s = time.monotonic()
        assignment = run.assignment
        orders: Sequence[Order] = ()
        if kind == wire.RESULT:
            run.long_outputs = run.long_outputs or len(output) > records.INLINE_BYTES
            assignment.ended(index, epoch, ended(reason, exit_code, output), now_s)
        elif kind == wire.CLAIMED:
            assignment.claimed(index, epoch, now_s)
        else:
            orders = assignment.refused(index, epoch)
        # The common answers bring no order and nothing due before what is scheduled already.
        if orders or assignment.complete or run.timer is None or run.timer_s > assignment.overdue_s(now_s):
            self._carry_out(run, orders)

    def claim_for(self, epoch: int, agent: str) -> bool:
        """Claim on behalf of an agent outside, which cannot lock the arena itself."""
        run = self._runs.get(epoch)
        if run is None or agent not in run.indices:
            return False
        return run.arena.claim(run.order.base + run.indices[agent], run.order.key)

    def end_for(self, epoch: int, agent: str, end: Ended) -> None:
        """Store the end of an agent outside."""
        run = self._runs.get(epoch)
        if run is not None and agent in run.indices:
            index = run.indices[agent]
            run.arena.end(run.order.base + index, run.order.key, index, end)

    # Orders

    def _carry_out(self, run: _Run, orders: Sequence[Order]) -> None:
        """Do what the state machine orders, and what follows from that, until it is satisfied."""
        todo = deque(orders)
        wanted: list[str] = []
        base, key = run.order.base, run.order.key
        while todo:
            order = todo.popleft()
            index = order.index
            agent = run.order.agents[index]
            if order.do is Do.SEND:
                self._send(run, agent, index)
            elif order.do is Do.SPAWN:
                member = run.team.members.get(agent)
                if member is None or member.external:
                    todo.extend(run.assignment.spawning_failed(index, "it left the swarm"))
                else:
                    wanted.append(agent)
            elif order.do is Do.KILL:
                self._kill(run, agent, index)
            else:
                ask = run.arena.fence if order.do is Do.FENCE else run.arena.judge
                verdict = ask(base + index, key, index)
                if verdict.ended is not None and len(verdict.ended.output) > records.INLINE_BYTES:
                    run.long_outputs = True
                todo.extend(run.assignment.judged(index, verdict, time.monotonic()))
        if wanted:
            self._spawn(run, wanted)
        if run.assignment.complete:
            self._complete(run)
        else:
            self._schedule(run)

    def _spawn(self, run: _Run, wanted: Sequence[str]) -> None:
        """Order workers that begin with this request, but for those whose delivery a lab fault loses."""
        members = run.team.members
        lost = set(run.order.lost)
        born = [agent for agent in wanted if run.indices[agent] not in lost]
        places = {agent: (run.indices[agent], run.order.base + run.indices[agent]) for agent in born}
        first = First(epoch=run.order.epoch, common=run.common, places=places)
        for agents, task in ((born, first), ([a for a in wanted if a not in places], None)):
            if agents:
                replaces = [members[agent].last_pid for agent in agents]
                self._provider.spawn(run.team.swarm_id, run.team.shard, agents, replaces, task)

    def _send(self, run: _Run, agent: str, index: int) -> None:
        endpoint = run.team.members[agent].endpoint
        if endpoint is not None:
            taken = endpoint.send(wire.head(index, run.order.base + index) + run.common)
            run.assignment.sent(index, time.monotonic(), taken=taken)

    def _kill(self, run: _Run, agent: str, index: int) -> None:
        """The process that holds the agent's slot, else the one behind its socket."""
        if any(
            other is not run and other.assignment.state(other.indices[agent]) is AgentState.RUNNING
            for other in self._runs_of(run.team, agent)
        ):
            return  # it did not hang: it was busy with another request
        slot = run.order.base + index
        holder = run.arena.judge(slot, run.order.key, index).pid
        member = run.team.members.get(agent)
        pid = holder or (member.last_pid if member is not None else 0)
        if not pid:
            return
        log("worker killed", swarm_id=run.team.swarm_id, agent=agent, pid=pid)
        self._provider.kill(run.team.swarm_id, agent, pid)
        if holder:  # the spawner may not know it; the lock proves that the number is still its own
            with suppress(OSError):
                pidfd = os.pidfd_open(holder)
                try:
                    if run.arena.judge(slot, run.order.key, index).pid == holder:
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
        if self._runs.get(run.order.epoch) is run:
            self._carry_out(run, run.assignment.tick(time.monotonic()))

    def _complete(self, run: _Run) -> None:
        if self._runs.pop(run.order.epoch, None) is None:
            return
        if run.timer is not None:
            run.timer.cancel()
        run.done(_outcome(run))

    def epochs_on(self, team: Team) -> list[int]:
        """The orders that run on a team."""
        return [epoch for epoch, run in self._runs.items() if run.team is team]

    def _runs_of(self, team: Team, agent: str) -> list[_Run]:
        return [run for run in self._runs.values() if run.team is team and agent in run.indices]

    # Counts

    def later(self, pause_s: float, action: Callable[[], None]) -> None:
        """Call `action` after a pause."""
        self._loop.at(time.monotonic() + pause_s, action)

    @property
    def live_agents(self) -> int:
        """Agents that can be reached now."""
        return sum(team.live for team in self.teams.values())

    @property
    def running(self) -> list[int]:
        """The epochs of running orders."""
        return list(self._runs)

    @property
    def running_agents(self) -> int:
        """Agents that running orders asked for."""
        return sum(len(run.indices) for run in self._runs.values())


def _outcome(run: _Run) -> TeamOutcome:
    results = run.assignment.results()
    return TeamOutcome(
        tally=Tally(str(result.state) for result in results),
        last_ack_s=run.assignment.last_ack_s,
        last_end_s=run.assignment.last_end_s,
        unclaimed=run.assignment.unclaimed,
        long_outputs=run.long_outputs,
        results=results_json(results),
    )
