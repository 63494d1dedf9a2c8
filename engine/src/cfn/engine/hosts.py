"""Hosts of teams: what the conductor orders, whether a hub is its own or a coordinator's.

Orders are answered through callbacks. A host that dies answers nothing any more: its owner knows
which orders it had, and gives them to another.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cfn.engine.broadcasts import Broadcast
from cfn.engine.hub import Hub
from cfn.engine.log import log
from cfn.engine.members import Team
from cfn.engine.messages.office import Messages
from cfn.engine.placement import GUESTS
from cfn.engine.teams import TeamOrder, TeamOutcome

READY_S = 10.0  # for all workers of a kept team to be there
ACKNOWLEDGE_S = 5.0  # for all agents to acknowledge a broadcast
STOP_S = 3.5  # for a closed team's agents to end; longer than the grace of what they run
_LOOK_S = 0.005
_RETRY_S = 0.05

Told = Callable[[TeamOutcome], None]


class Host(Protocol):
    """Where teams live."""

    number: int

    @property
    def workers(self) -> int:
        """Workers of all its teams, dead ones too."""

    def begin(
        self,
        order: TeamOrder,
        payload: bytes,
        *,
        begun: Callable[[float], None],
        done: Told,
        failed: Callable[[str], None],
    ) -> None:
        """Run an order. `begun` is told the time (monotonic) at which the hub had it, `done` the end;
        or `failed` that it cannot begin now."""

    def give_up(self, epoch: int, reason: str, told: Told) -> None:
        """Let nothing more of an order start; `told` when that is certain."""

    def snapshot(self, epoch: int, told: Told) -> None:
        """An order's states as of now. Nothing is told of an order that is not running."""

    def stop(self, epoch: int, *, gently: bool) -> None:
        """End what still runs of an order: with SIGTERM first, or at once."""

    def open_team(
        self, swarm_id: str, team: str, shard: int, agents: Sequence[str], ready: Callable[[int], None]
    ) -> None:
        """Have a team of a kept swarm; `ready` is told how many live, when all do or time is up."""

    def close_team(self, swarm_id: str, team: str, closed: Callable[[int], None]) -> None:
        """End a team and its workers; `closed` is told how many messages nobody took."""

    def hand_over(self, swarm_id: str, team: str, dropped: Callable[[], None]) -> None:
        """Let go of a team whose workers, and what they run, go on with another host."""

    def broadcast(self, swarm_id: str, team: str, kind: str, done: Callable[[int, int], None]) -> None:
        """Send to each agent of a team; `done` is told how many it was sent to and how many have it."""

    def roll(self, swarm_id: str, team: str, told: Callable[[list[dict[str, Any]]], None]) -> None:
        """Each agent's standing."""


class LocalHost:
    """A hub in this process, and the messages of its agents."""

    def __init__(self, number: int, hub: Hub, messages: Messages) -> None:
        self.number = number
        self._hub = hub
        self._messages = messages

    @property
    def workers(self) -> int:
        """Workers of all its teams, dead ones too."""
        return sum(len(team.members) for team in self._hub.teams.values())

    def begin(
        self,
        order: TeamOrder,
        payload: bytes,
        *,
        begun: Callable[[float], None],
        done: Told,
        failed: Callable[[str], None],
    ) -> None:
        """As Host."""
        begun(time.monotonic())
        team = self._hub.teams.get((order.swarm_id, order.team))
        if team is None:  # of a kept swarm: `open_team` adds its other agents
            # Who is from outside joins by itself, or is not there.
            agents = () if order.team == GUESTS else order.agents
            team = self._hub.add_team(order.swarm_id, order.team, order.shard, agents, kept=order.kept)
        if order.command and not order.given_up:  # the built-in agent sends and reads nothing
            self._open_inboxes(team)
        own = team

        def ended(outcome: TeamOutcome) -> None:
            if not own.kept:
                self._messages.close_team(own.swarm_id, own.team, remove=True)
                if order.shared:  # its workers end with the request: until then that would be in the way
                    self._hub.leave_team(own)
                    if order.command:
                        self._messages.team_ended(own.swarm_id, own.team)
                else:
                    self._hub.end_team(own)
            done(outcome)

        try:
            self._hub.start(order, team, payload, ended)
        except OSError as error:
            if not team.kept:
                self._hub.drop_team(team)
            failed(str(error))

    def end_workers(self, swarm_id: str, agents: Sequence[str]) -> None:
        """End the workers of a request's teams, which their hubs left when they were done."""
        self._hub.end_workers(swarm_id, agents)

    def give_up(self, epoch: int, reason: str, told: Told) -> None:
        """As Host."""
        self._hub.give_up(epoch, reason)
        self._await_certainty(epoch, told)

    def _await_certainty(self, epoch: int, told: Told) -> None:
        outcome = self._hub.outcome(epoch)
        if outcome is None:
            return  # it ended, and that was told
        if outcome.unclaimed:
            # Some process sits between its lock and its claim. It is being killed; wait for it.
            self._hub.later(_LOOK_S, lambda: self._await_certainty(epoch, told))
        else:
            told(outcome)

    def snapshot(self, epoch: int, told: Told) -> None:
        """As Host."""
        outcome = self._hub.outcome(epoch)
        if outcome is not None:
            told(outcome)

    def stop(self, epoch: int, *, gently: bool) -> None:
        """As Host."""
        self._hub.stop_running(epoch, gently=gently)

    def open_team(
        self, swarm_id: str, team: str, shard: int, agents: Sequence[str], ready: Callable[[int], None]
    ) -> None:
        """As Host."""
        opened = self._hub.add_team(swarm_id, team, shard, agents, kept=True)
        self._open_inboxes(opened)
        self._hub.spawn_missing(opened)
        self._await_ready(opened, ready, time.monotonic() + READY_S)

    def _open_inboxes(self, team: Team) -> None:
        """Hold what waits for a team's agents; the hub that had them before may need a moment to be gone."""
        if self._hub.teams.get((team.swarm_id, team.team)) is not team:
            return  # it went elsewhere meanwhile, or is over
        try:
            self._messages.open_team(team.swarm_id, team.team, team.members)
        except OSError as error:
            log("inboxes cannot be opened yet", swarm_id=team.swarm_id, team=team.team, reason=str(error))
            self._hub.later(_RETRY_S, lambda: self._open_inboxes(team))

    def _await_ready(self, team: Team, ready: Callable[[int], None], limit_s: float) -> None:
        if team.live == len(team.members) or time.monotonic() >= limit_s or team.ending:
            ready(team.live)
        else:
            self._hub.later(_LOOK_S, lambda: self._await_ready(team, ready, limit_s))

    def hand_over(self, swarm_id: str, team: str, dropped: Callable[[], None]) -> None:
        """As Host."""
        found = self._hub.teams.get((swarm_id, team))
        if found is not None:
            for epoch in self._hub.epochs_on(found):
                self._hub.drop(epoch)
            self._hub.drop_team(found)
            self._messages.close_team(swarm_id, team, remove=False)
        dropped()

    def close_team(self, swarm_id: str, team: str, closed: Callable[[int], None]) -> None:
        """As Host."""
        found = self._hub.teams.get((swarm_id, team))
        if found is None:
            closed(0)
            return
        self._hub.stop_team(found)
        for epoch in self._hub.epochs_on(found):
            self._hub.give_up(epoch, "its swarm was shut down")
        self._await_end(found, time.monotonic() + STOP_S, closed)

    def _await_end(self, team: Team, limit_s: float, closed: Callable[[int], None]) -> None:
        if team.live and time.monotonic() < limit_s:
            self._hub.later(_LOOK_S, lambda: self._await_end(team, limit_s, closed))
            return
        self._hub.kill_team(team)
        self._hub.end_team(team)
        closed(self._messages.close_team(team.swarm_id, team.team, remove=True))

    def broadcast(self, swarm_id: str, team: str, kind: str, done: Callable[[int, int], None]) -> None:
        """As Host."""
        found = self._hub.teams.get((swarm_id, team))
        if found is None:
            done(0, 0)
            return

        def finished(broadcast: Broadcast) -> None:
            done(broadcast.sent, broadcast.delivered)

        self._hub.broadcasts.send(found, kind, limit_s=ACKNOWLEDGE_S, done=finished)

    def roll(self, swarm_id: str, team: str, told: Callable[[list[dict[str, Any]]], None]) -> None:
        """As Host."""
        found = self._hub.teams.get((swarm_id, team))
        members = [] if found is None else list(found.members.values())
        told(
            [
                {
                    "agent": member.agent,
                    "state": "up" if member.endpoint is not None else "down",
                    "pid": member.endpoint.pid if member.endpoint is not None else 0,
                    "inbox": self._messages.queued(swarm_id, member.agent),
                    "acknowledged": [f"{kind}:ack" for kind in member.acknowledged],
                }
                for member in members
            ]
        )
