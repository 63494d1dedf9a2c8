"""The conductor's kept swarms: made by `init`, ended by `shutdown`, with guests.

A swarm is one file in tmpfs, so that a restarted conductor knows it; its workers live on meanwhile, and
are found by the hosts of its teams.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Generic, TypeVar

from cfn.engine import placement
from cfn.engine.clients import Client
from cfn.engine.external import ExternalAgent
from cfn.engine.files import replace
from cfn.engine.fleet import Fleet
from cfn.engine.hosts import ACKNOWLEDGE_S, READY_S, STOP_S
from cfn.engine.hub import Hub
from cfn.engine.log import log
from cfn.engine.loop import Loop
from cfn.engine.request_log import TeamPlan
from cfn.engine.requests import Coordinate
from cfn.errors import RefusedError, UsageError

MAX_SWARMS = 8
_RETRY_S = 0.05
_SPARE_S = 1.5  # beyond what a host takes at most, before it is not waited for any more

T = TypeVar("T")
Ready = Callable[[str, int, str], None]
Ended = Callable[[int, int], None]


@dataclass(slots=True, kw_only=True)
class KeptSwarm:
    """A swarm that outlives its requests. `hybrid`: the teams' coordinators are agents too. `closing`:
    whom to tell that a team has closed, by its name, while the swarm is ending."""

    swarm_id: str
    teams: tuple[TeamPlan, ...]
    hybrid: bool
    ending: bool = False
    closing: dict[str, Callable[[int], None]] = field(default_factory=dict)

    @property
    def agents(self) -> int:
        """Agents that it was made with, coordinators too."""
        return sum(team.size + self.hybrid for team in self.teams)


class Swarms:
    """All kept swarms; the newest is the current one, which is meant when none is named. `moved` is
    called when a team has gone to another host, `ended` when a swarm is gone."""

    def __init__(
        self,
        folder: Path,
        loop: Loop,
        fleet: Fleet,
        hub: Hub,
        generation: int,
        moved: Callable[[str, str], None],
        ended: Callable[[], None],
    ) -> None:
        self._folder = folder / "swarms"
        self._loop = loop
        self._fleet = fleet
        self._hub = hub
        self._generation = generation
        self._moved = moved
        self._ended = ended
        self._made = 0
        self._guests: dict[Client, ExternalAgent] = {}
        self._swarms: dict[str, KeptSwarm] = {}
        self._folder.mkdir(mode=0o750, exist_ok=True)
        for file in sorted(self._folder.glob("*.json"), key=lambda f: f.stat().st_mtime_ns):
            swarm = _read(json.loads(file.read_text()))
            self._swarms[swarm.swarm_id] = swarm

    @property
    def all(self) -> list[KeptSwarm]:
        """The kept swarms that are not ending, oldest first."""
        return [swarm for swarm in self._swarms.values() if not swarm.ending]

    @property
    def ids(self) -> list[str]:
        """The names of all kept swarms, ending ones too."""
        return list(self._swarms)

    def has(self, swarm_id: str) -> bool:
        """Whether there is a kept swarm of this name, ending or not."""
        return swarm_id in self._swarms

    def keeps(self, swarm_id: str) -> bool:
        """Whether the teams of this swarm outlive a request: it is kept, and is not ending."""
        swarm = self._swarms.get(swarm_id)
        return swarm is not None and not swarm.ending

    def named(self, swarm_id: str) -> KeptSwarm:
        """A swarm, the current one for an empty name. Raises RefusedError."""
        found = [swarm for swarm in self.all if swarm_id in ("", swarm.swarm_id)]
        if not found:
            raise RefusedError(f"no swarm {swarm_id}".rstrip() + "; message-bus.sh init N makes one")
        return found[-1]

    def initialise(self, agents: int, swarm_id: str, ready: Ready) -> None:
        """Make a swarm. `ready` is told its id, the live agents and a reason if some are missing."""
        if len(self.all) >= MAX_SWARMS:
            raise RefusedError(f"{MAX_SWARMS} swarms exist, their bound; shutdown ends one")
        if not swarm_id:
            self._made += 1
            swarm_id = f"swarm-{self._generation}-{self._made}"
        if swarm_id in self._swarms or swarm_id.startswith("task:"):
            raise RefusedError(f"swarm {swarm_id} exists already, or its name is reserved")
        coordinators = self._fleet.coordinators_for(agents)
        swarm = KeptSwarm(
            swarm_id=swarm_id,
            teams=tuple(placement.numbered(agents, coordinators)),
            hybrid=coordinators > 0,
        )
        value = {
            "swarm_id": swarm_id,
            "hybrid": swarm.hybrid,
            "teams": [asdict(team) for team in swarm.teams],
        }
        replace(self._folder / f"{swarm_id}.json", json.dumps(value))
        self._swarms[swarm_id] = swarm
        log("swarm made", swarm_id=swarm_id, agents=agents, teams=len(swarm.teams))

        def gathered(live: dict[str, int]) -> None:
            alive = sum(live.values()) + swarm.hybrid * len(live)
            missing = swarm.agents - alive
            reason = f"{missing} agents are not there after {READY_S:.0f} s" if missing else ""
            ready(swarm_id, alive, reason)

        gather = _Gather(self._loop, [team.team for team in swarm.teams], READY_S + _SPARE_S, gathered)
        for team in swarm.teams:
            self._open(swarm, team, gather.heard(team.team))

    def _open(self, swarm: KeptSwarm, team: TeamPlan, ready: Callable[[int], None]) -> None:
        """Have a team on its host, as soon as there is one."""
        if swarm.ending:
            return
        host = self._fleet.host_of(swarm.swarm_id, team.team, team.shard)
        if host is None:
            self._loop.at(time.monotonic() + _RETRY_S, lambda: self._open(swarm, team, ready))
        else:
            host.open_team(swarm.swarm_id, team.team, team.shard, team.agents, ready)
            self._announce(swarm)

    def _announce(self, swarm: KeptSwarm) -> None:
        guests = self._hub.teams.get((swarm.swarm_id, placement.GUESTS))
        names = () if guests is None else tuple(guests.members)
        self._fleet.announce(swarm.swarm_id, () if swarm.ending else swarm.teams, names)

    # Hosts

    def restore(self) -> None:
        """Open the teams again that a crash of the conductor left, wherever they are."""
        for swarm in self.all:
            self._announce(swarm)
            for team in swarm.teams:
                self._open(swarm, team, _nobody)

    def host_lost(self) -> None:
        """Open the teams of a lost coordinator elsewhere; its workers live on."""
        for swarm in self.all:
            for team in swarm.teams:
                if self._fleet.placed(swarm.swarm_id, team.team) is None:
                    self._open(swarm, team, self._served(swarm, team))
        for swarm in [swarm for swarm in self._swarms.values() if swarm.ending]:
            self._close_lost(swarm)

    def balance(self) -> None:
        """Bring teams to where they belong: home if that coordinator takes teams, elsewhere if not."""
        for swarm in self.all:
            for team in swarm.teams:
                at = self._fleet.placed(swarm.swarm_id, team.team)
                target = self._fleet.choose(team.shard)
                if at is None or target is None or target == at:
                    continue
                if target == team.shard or at not in self._fleet.healthy:
                    self._move(swarm, team, target)

    def _move(self, swarm: KeptSwarm, team: TeamPlan, target: int) -> None:
        def moved() -> None:
            self._open(swarm, team, self._served(swarm, team))
            self._moved(swarm.swarm_id, team.team)
            log("team moved", swarm_id=swarm.swarm_id, team=team.team, coordinator=target)

        self._fleet.move(swarm.swarm_id, team.team, target, moved)

    def _served(self, swarm: KeptSwarm, team: TeamPlan) -> Callable[[int], None]:
        return lambda _live: self._fleet.served(swarm.swarm_id, team.team)

    # Requests

    def plan(self, asked: Coordinate) -> tuple[list[TeamPlan], bool]:
        """The teams of a request on a kept swarm, and whether their coordinators count as agents.
        Raises RefusedError for a swarm or agents that are not there."""
        swarm = self._swarms.get(asked.swarm_id)
        if swarm is None or swarm.ending:
            raise RefusedError(f"swarm {asked.swarm_id} does not exist; init makes one")
        if asked.named:
            return self._plan_named(swarm, asked.named), False
        hybrid = swarm.hybrid and asked.number > len(swarm.teams)
        workers = asked.number - hybrid * len(swarm.teams)
        plans = []
        for team in swarm.teams:
            count = max(0, min(team.count, workers - (team.first - 1)))
            if count or hybrid:
                plans.append(changed(team, count=count))
        if sum(plan.size for plan in plans) != workers:
            raise RefusedError(f"swarm {swarm.swarm_id} has {swarm.agents} agents, not {asked.number}")
        return plans, hybrid

    def _plan_named(self, swarm: KeptSwarm, agents: Sequence[str]) -> list[TeamPlan]:
        homes = {agent: team for team in swarm.teams for agent in team.agents}
        guests = self._hub.teams.get((swarm.swarm_id, placement.GUESTS))
        parts: dict[tuple[str, int], list[str]] = {}
        for agent in agents:
            team = homes.get(agent)
            if team is not None:
                parts.setdefault((team.team, team.shard), []).append(agent)
            elif guests is not None and agent in guests.members:
                parts.setdefault((placement.GUESTS, 0), []).append(agent)
            else:
                raise RefusedError(f"swarm {swarm.swarm_id} has {swarm.agents} agents and none named {agent}")
        return [
            TeamPlan(team=name, shard=shard, base=0, named=tuple(part))
            for (name, shard), part in parts.items()
        ]

    def broadcast(self, swarm: KeptSwarm, kind: str, body: bytes, done: Callable[[int, int], None]) -> None:
        """Send to all; `done` is told how many were sent and how many acknowledged."""
        names = self._team_names(swarm)
        label = _label(kind, body)

        def gathered(heard: dict[str, tuple[int, int]]) -> None:
            sent = delivered = 0
            sizes = {team.team: team.size for team in swarm.teams}
            for name in names:
                asked, acknowledged = heard.get(name, (0, 0))
                sent += max(asked, sizes.get(name, 0))  # a hub that has just lost the team knows of nobody
                delivered += acknowledged
                if swarm.hybrid and name in sizes:
                    sent += 1
                    delivered += name in heard and asked >= sizes[name]
            done(sent, delivered)

        gather = _Gather(self._loop, names, ACKNOWLEDGE_S + _SPARE_S, gathered)
        for name in names:
            host = self._fleet.host_at(swarm.swarm_id, name)
            if host is not None:
                heard = gather.heard(name)
                host.broadcast(swarm.swarm_id, name, label, _pair(heard))

    def status(self, swarm: KeptSwarm, told: Callable[[list[dict[str, Any]]], None]) -> None:
        """Each agent's standing, coordinators first."""
        names = self._team_names(swarm)

        def gathered(rolls: dict[str, list[dict[str, Any]]]) -> None:
            rows: list[dict[str, Any]] = []
            for team in swarm.teams if swarm.hybrid else ():
                state = "up" if team.team in rolls else "down"
                agent = placement.coordinator_agent(team.team)
                rows.append({"agent": agent, "state": state, "pid": 0, "inbox": 0, "acknowledged": []})
            for name in names:
                rows += rolls.get(name, [])
            told(rows)

        gather = _Gather(self._loop, names, _SPARE_S, gathered)
        for name in names:
            host = self._fleet.host_at(swarm.swarm_id, name)
            if host is not None:
                host.roll(swarm.swarm_id, name, gather.heard(name))

    def _team_names(self, swarm: KeptSwarm) -> list[str]:
        guests = [placement.GUESTS] if (swarm.swarm_id, placement.GUESTS) in self._hub.teams else []
        return [team.team for team in swarm.teams] + guests

    # Agents from outside

    def join(self, swarm: KeptSwarm, agent: str, client: Client, *, as_text: bool) -> None:
        """Take a connection in as an agent. Raises RefusedError when the name is taken."""
        guests = self._hub.add_team(swarm.swarm_id, placement.GUESTS, 0, (), kept=True)
        if self._hub.knows(swarm.swarm_id, agent) or any(agent in team.agents for team in swarm.teams):
            raise RefusedError(f"swarm {swarm.swarm_id} has an agent {agent} already")
        if client in self._guests:
            raise UsageError("this connection is an agent already")
        guest = ExternalAgent(self._hub, swarm.swarm_id, agent, client, as_text=as_text)
        self._guests[client] = guest
        client.on_close.append(lambda: self._left(client))
        guest.joined()
        if client not in self._guests:  # it was gone already
            return
        self._hub.add_guest(guests, agent, guest)
        self._announce(swarm)
        self._fleet.messages.open_team(swarm.swarm_id, placement.GUESTS, guests.members)
        self._fleet.messages.add_agent(swarm.swarm_id, placement.GUESTS, agent)
        log("agent joined", swarm_id=swarm.swarm_id, agent=agent)

    def said(self, client: Client, value: Mapping[str, Any]) -> None:
        """What an agent that joined says about a task."""
        guest = self._guests.get(client)
        if guest is None:
            raise UsageError("join first")
        guest.said(value)
        client.pending -= 1

    def _left(self, client: Client) -> None:
        guest = self._guests.pop(client, None)
        if guest is not None:
            log("agent left", swarm_id=guest.swarm_id, agent=guest.agent)
            self._hub.lost(guest.swarm_id, guest.agent, guest)
            self._fleet.messages.remove_agent(guest.swarm_id, placement.GUESTS, guest.agent)
            swarm = self._swarms.get(guest.swarm_id)
            if swarm is not None:
                self._announce(swarm)

    # The end

    def shutdown(self, swarm: KeptSwarm, ended: Ended) -> None:
        """End a swarm: its agents stop, what they run is terminated, then killed. `ended` is told the
        number of agents and of messages that nobody took."""
        swarm.ending = True
        names = self._team_names(swarm)

        def gathered(undrained: dict[str, int]) -> None:
            if self._swarms.pop(swarm.swarm_id, None) is not None:
                log(
                    "swarm ended",
                    swarm_id=swarm.swarm_id,
                    agents=swarm.agents,
                    undrained=sum(undrained.values()),
                )
                (self._folder / f"{swarm.swarm_id}.json").unlink(missing_ok=True)
                for name in names:
                    self._fleet.forget(swarm.swarm_id, name)
                self._fleet.announce(swarm.swarm_id, ())
                self._ended()
            ended(swarm.agents, sum(undrained.values()))

        gather = _Gather(self._loop, names, STOP_S + _SPARE_S, gathered)
        for name in names:
            host = self._fleet.host_at(swarm.swarm_id, name)
            swarm.closing[name] = gather.heard(name)
            if host is not None:
                host.close_team(swarm.swarm_id, name, swarm.closing[name])
        self._close_lost(swarm)

    def _close_lost(self, swarm: KeptSwarm) -> None:
        """Nobody has these teams of an ending swarm: their workers go when the swarm does."""
        for name in [name for name in swarm.closing if self._fleet.host_at(swarm.swarm_id, name) is None]:
            swarm.closing.pop(name)(0)


class _Gather(Generic[T]):
    """Waits for what each host says of its team; `done` is told what came, once, in time or late."""

    def __init__(
        self, loop: Loop, names: Sequence[str], limit_s: float, done: Callable[[dict[str, T]], None]
    ) -> None:
        self._missing = set(names)
        self._heard: dict[str, T] = {}
        self._done: Callable[[dict[str, T]], None] | None = done
        self._timer = loop.at(time.monotonic() + limit_s, self._finish)
        if not names:
            self._finish()

    def heard(self, name: str) -> Callable[[T], None]:
        """What to call with this team's word."""

        def note(value: T) -> None:
            self._heard[name] = value
            self._missing.discard(name)
            if not self._missing:
                self._finish()

        return note

    def _finish(self) -> None:
        done, self._done = self._done, None
        self._timer.cancel()
        if done is not None:
            done(self._heard)


def _pair(heard: Callable[[tuple[int, int]], None]) -> Callable[[int, int], None]:
    return lambda sent, delivered: heard((sent, delivered))


def _nobody(_live: int) -> None:
    """Nobody waits for this team."""


def _read(value: Mapping[str, Any]) -> KeptSwarm:
    teams = tuple(TeamPlan(**{**team, "named": tuple(team["named"])}) for team in value["teams"])
    return KeptSwarm(swarm_id=str(value["swarm_id"]), hybrid=bool(value["hybrid"]), teams=teams)


def _label(kind: str, body: bytes) -> str:
    """How `status` names a message: its type, and its body when that is one short word."""
    text = body.decode(errors="replace")
    short = 0 < len(text) <= 32 and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)
    return f"{kind}:{text}" if short else kind
