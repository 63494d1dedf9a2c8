"""Requests that have begun: their teams are given to hosts, move when hosts go, and say how they are."""

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cfn.config import Config
from cfn.engine.fleet import Fleet
from cfn.engine.log import log
from cfn.engine.loop import Loop
from cfn.engine.outcome import Outcome, TeamState
from cfn.engine.request_log import Request
from cfn.engine.swarms import Swarms
from cfn.engine.teams import LOCAL_HUB, NO_HOST, TeamOrder, TeamOutcome
from cfn.ids import MAX_ID_CHARS
from cfn.release import LabFault

_RETRY_S = 0.05  # while a host, or what it needs to begin, is not there
_SNAPSHOT_S = 1.0  # for the hosts to say how a request stands

Told = Callable[[bytes], None]


@dataclass(slots=True)
class Begun:
    """A request that has begun: its teams, and whom a revocation waits for."""

    request: Request
    swarm_id: str
    teams: list[TeamState]
    given_up: str = ""
    certain: set[str] = field(default_factory=set)  # teams of which nothing more can start
    revoking: list[Told] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Every team has ended."""
        return all(team.final is not None for team in self.teams)

    def outcome(self, snapshots: dict[str, TeamOutcome] | None = None) -> Outcome:
        """The states as of now, with what teams that have not ended said of theirs."""
        return Outcome(
            request=self.request,
            swarm_id=self.swarm_id,
            teams=self.teams,
            given_up=self.given_up,
            snapshots=snapshots or {},
            now_s=time.monotonic(),
        )


class Running:
    """All begun requests, by task id. `number` gives epochs; `completed` is called once for each, with
    those who wait for its revocation."""

    def __init__(
        self,
        loop: Loop,
        config: Callable[[], Config],
        fault: LabFault,
        fleet: Fleet,
        swarms: Swarms,
        number: Callable[[], int],
        completed: Callable[[Outcome, list[Told]], None],
    ) -> None:
        self._loop = loop
        self._config = config
        self._fault = fault
        self._fleet = fleet
        self._swarms = swarms
        self._next = number
        self._completed = completed
        self._begun: dict[str, Begun] = {}

    def __len__(self) -> int:
        return len(self._begun)

    @property
    def requests(self) -> list[Request]:
        """What was asked."""
        return [begun.request for begun in self._begun.values()]

    @property
    def agents(self) -> int:
        """The agents that they asked for."""
        return sum(begun.request.agents for begun in self._begun.values())

    def get(self, task_id: str) -> Begun | None:
        """A begun request."""
        return self._begun.get(task_id)

    def begin(self, request: Request, *, fresh: bool = False, given_up: str = "") -> None:
        """Give a request's teams to hosts. `fresh`: no worker and no claim of it can exist. `given_up`:
        start nothing, and only find out what was started before."""
        begun_ = Begun(
            request=request,
            swarm_id=swarm_of(request),
            teams=[TeamState(plan=team) for team in request.teams],
            given_up=given_up,
        )
        self._begun[request.task_id] = begun_
        for team in begun_.teams:
            self._give(begun_, team, fresh=fresh)
        self._announce(begun_)

    def _announce(self, begun_: Begun) -> None:
        """A swarm of a request's own whose agents can send messages: say where they are."""
        if begun_.request.command and not self._swarms.has(begun_.swarm_id) and not begun_.given_up:
            self._fleet.announce(begun_.swarm_id, begun_.request.teams)

    def _give(self, begun_: Begun, team: TeamState, *, fresh: bool) -> None:
        """Order a team's part from the host that has the team, under a new epoch."""
        request, plan = begun_.request, team.plan
        team.epoch = epoch = self._next()
        kept = self._swarms.keeps(begun_.swarm_id)
        if request.swarm_id and not kept:
            begun_.given_up = begun_.given_up or f"swarm {request.swarm_id} was shut down"

        def again() -> None:
            if team.epoch == epoch and team.final is None:
                self._give(begun_, team, fresh=fresh)
                self._announce(begun_)

        host = self._fleet.host_of(begun_.swarm_id, plan.team, plan.shard)
        given_up = begun_.given_up
        stand_in = host is None
        if host is None:  # its coordinator is down, and nobody else may have it
            if not given_up and time.monotonic() >= request.deadline_at_s:
                given_up = f"no acknowledgement within {request.deadline_ms} ms"
            if not given_up or self._fleet.gathering:
                team.host = NO_HOST
                self._loop.at(time.monotonic() + _RETRY_S, again)
                return
            host = self._fleet.local  # needs no worker's socket to fence, and to see what had started
        team.host = host.number
        config = self._config()
        agents = plan.agents
        order = TeamOrder(
            task_id=request.task_id,
            swarm_id=begun_.swarm_id,
            team=plan.team,
            kept=kept,
            shared=len(begun_.teams) > 1,
            key=request.key,
            epoch=epoch,
            shard=plan.shard,
            base=plan.base,
            agents=agents,
            accepted_at_s=request.accepted_at_s,
            deadline_ms=request.deadline_ms,
            command=request.command,
            timeout_ms=config.agent_timeout_ms,
            max_output_bytes=config.max_output_bytes,
            slow_ms=self._fault.slow_ms,
            lost=_lost(request.task_id, agents, self._fault.lose_pct),
            fresh=fresh,
            given_up=given_up,
        )

        def begun(at_s: float) -> None:
            if team.epoch == epoch and not team.begun_s and not stand_in:
                team.begun_s = at_s
            self._fleet.served(begun_.swarm_id, plan.team)

        def done(outcome: TeamOutcome) -> None:
            self._fleet.served(begun_.swarm_id, plan.team)
            if stand_in and outcome.started:
                team.begun_s = team.begun_s or outcome.last_ack_s  # some coordinator had taken it
            if order.kept and stand_in:  # the team itself is not here
                self._fleet.local.hand_over(begun_.swarm_id, plan.team, lambda: None)
            if team.epoch == epoch and team.final is None:
                self._team_done(begun_, team, outcome)

        def failed(reason: str) -> None:
            log("team cannot begin yet", task_id=request.task_id, team=plan.team, reason=reason)
            self._loop.at(time.monotonic() + _RETRY_S, again)

        host.begin(order, request.payload, begun=begun, done=done, failed=failed)
        if given_up and team.final is None:
            host.give_up(epoch, given_up, lambda _outcome: self._certain(begun_, team, epoch))

    def host_lost(self, number: int) -> int:
        """A host is gone: its parts of running requests go to others; how many. Their agents live on."""
        moved = 0
        for begun_ in list(self._begun.values()):
            for team in begun_.teams:
                if team.host != number:
                    continue
                if team.final is None:
                    self._give(begun_, team, fresh=False)
                    moved += 1
                elif begun_.request.command and not self._swarms.has(begun_.swarm_id):
                    team.host = LOCAL_HUB
                    self._fleet.answer_for_ended(begun_.swarm_id, team.plan.team)
            self._announce(begun_)
        return moved

    def moved(self, swarm_id: str, name: str) -> None:
        """A kept swarm's team has another host: what runs on it goes on there."""
        for begun_ in list(self._begun.values()):
            for team in begun_.teams:
                if begun_.swarm_id == swarm_id and team.plan.team == name and team.final is None:
                    self._give(begun_, team, fresh=False)

    def _team_done(self, begun_: Begun, team: TeamState, outcome: TeamOutcome) -> None:
        team.final = outcome
        self._certain(begun_, team, team.epoch)
        if begun_.complete and self._begun.pop(begun_.request.task_id, None) is not None:
            self._completed(begun_.outcome(), begun_.revoking)
            if len(begun_.teams) > 1 and not self._swarms.has(begun_.swarm_id):
                for each in begun_.teams:
                    self._fleet.local.end_workers(begun_.swarm_id, each.plan.agents)

    def revoke(self, begun_: Begun, told: Told) -> None:
        """Make sure that nothing more of a request starts, then tell its states."""
        begun_.revoking.append(told)
        self.give_up(begun_, "revoked")

    def give_up_all(self, reason: str) -> None:
        """Let nothing more of any start."""
        for begun_ in list(self._begun.values()):
            self.give_up(begun_, reason)

    def stop(self, *, gently: bool) -> None:
        """End what still runs: with SIGTERM first, or at once."""
        for begun_ in self._begun.values():
            for team in begun_.teams:
                host = self._fleet.host(team.host)
                if team.final is None and host is not None:
                    if not gently:
                        log("killed while it ran", task_id=begun_.request.task_id, team=team.plan.team)
                    host.stop(team.epoch, gently=gently)

    def give_up(self, begun_: Begun, reason: str) -> None:
        """Let nothing more of a request start."""
        begun_.given_up = begun_.given_up or reason
        for team in begun_.teams:
            if team.final is None:
                self._ask_certainty(begun_, team)
            else:
                self._certain(begun_, team, team.epoch)

    def _ask_certainty(self, begun_: Begun, team: TeamState) -> None:
        host, epoch = self._fleet.host(team.host), team.epoch
        if host is not None:
            host.give_up(epoch, begun_.given_up, lambda _outcome: self._certain(begun_, team, epoch))

    def _certain(self, begun_: Begun, team: TeamState, epoch: int) -> None:
        """Nothing more of this team can start."""
        if team.epoch != epoch:
            return
        begun_.certain.add(team.plan.team)
        if begun_.revoking and len(begun_.certain) == len(begun_.teams) and not begun_.complete:
            for told in begun_.revoking:
                self.snapshot(begun_, told)
            begun_.revoking.clear()

    def snapshot(self, begun_: Begun, told: Told) -> None:
        """Ask each host how its part stands; tell when all have said, or time is up."""
        missing = {team.plan.team for team in begun_.teams if team.final is None}
        answered: dict[str, TeamOutcome] = {}

        def finish() -> None:
            nonlocal told
            tell, told = told, lambda _raw: None
            tell(begun_.outcome(answered).as_json())

        def heard(team: TeamState) -> Callable[[TeamOutcome], None]:
            def note(outcome: TeamOutcome) -> None:
                answered[team.plan.team] = outcome
                missing.discard(team.plan.team)
                if not missing:
                    finish()

            return note

        if not missing:
            finish()
            return
        self._loop.at(time.monotonic() + _SNAPSHOT_S, finish)
        for team in begun_.teams:
            host = self._fleet.host(team.host)
            if team.final is None and host is not None:
                host.snapshot(team.epoch, heard(team))


def swarm_of(request: Request) -> str:
    """The swarm that a request runs on. Its own has the same name after a crash, so that its workers are
    found; the key makes the name of a long task id, which is cut, its own."""
    own = f"task:{request.task_id}"
    if len(own) > MAX_ID_CHARS:
        key = f":{request.key:x}"
        own = own[: MAX_ID_CHARS - len(key)] + key
    return request.swarm_id or own


def _lost(task_id: str, agents: tuple[str, ...], lose_pct: int) -> tuple[int, ...]:
    """The lab fault: which agents' deliveries vanish, the same ones at each try."""
    if not lose_pct:
        return ()
    return tuple(
        index
        for index, agent in enumerate(agents)
        if zlib.crc32(f"{task_id}/{agent}".encode()) % 100 < lose_pct
    )
