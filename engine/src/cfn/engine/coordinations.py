"""The conductor's requests: accept, queue, give to the hosts of their teams, store, tell who waits.

ACCEPT is journalled before "accepted" is said, COMPLETE before the outcome is told. A known task id
attaches to the running request or is answered from the journal; it starts nothing.
"""

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree

from cfn.config import Config
from cfn.engine import placement
from cfn.engine.claims import Arenas, Slots
from cfn.engine.fleet import Fleet
from cfn.engine.lean.claim import output_folder
from cfn.engine.log import log
from cfn.engine.loop import Loop
from cfn.engine.outcome import Outcome, TeamState
from cfn.engine.request_log import Request, RequestLog, TeamPlan
from cfn.engine.requests import Coordinate, within_stage
from cfn.engine.swarms import Swarms
from cfn.engine.teams import NO_HOST, TeamOrder, TeamOutcome
from cfn.errors import RefusedError
from cfn.ids import MAX_ID_CHARS
from cfn.paths import Paths
from cfn.release import LabFault

MAX_RUNNING = 16
MAX_QUEUED = 256
RETRY_AFTER_S = 1  # what a refused caller is told
MAX_NAMES_BYTES = 48_000  # of the agents that a request names, in one team
_RETRY_S = 0.05  # while tmpfs, descriptors or hosts are exhausted
_SNAPSHOT_S = 1.0  # for the hosts to say how a running request stands

Told = Callable[[bytes], None]


@dataclass(slots=True)
class Counters:
    """Totals since this process started, for health."""

    accepted: int = 0
    completed: int = 0
    refused: int = 0
    replayed: int = 0
    repeated: int = 0
    agents: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    """A request that runs: its teams, who waits, and whom a revocation waits for."""

    request: Request
    swarm_id: str
    teams: list[TeamState]
    given_up: str = ""
    certain: set[str] = field(default_factory=set)  # teams of which nothing more can start
    revoking: list[Told] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return all(team.final is not None for team in self.teams)


class Coordinations:
    """All open requests. `config` is asked for each time, since it changes."""

    def __init__(
        self,
        paths: Paths,
        loop: Loop,
        config: Callable[[], Config],
        fault: LabFault,
        generation: int,
        fleet: Fleet,
        swarms: Swarms,
        arenas: Arenas,
    ) -> None:
        self._loop = loop
        self._config = config
        self._fault = fault
        self._number = generation << 32  # of epochs and keys alike
        self._fleet = fleet
        self._swarms = swarms
        self._arenas = arenas
        self._outputs = paths.outputs
        self._log = RequestLog(paths.shm / "requests")
        self._slots = Slots()
        self._queue: deque[Request] = deque()
        self._open: dict[str, _Open] = {}
        self._waiting: dict[str, list[Told]] = {}
        self._replayed: set[str] = set()
        self._unstored: dict[str, Outcome] = {}  # ended, and tmpfs had no room for the outcome
        self._paused_until_s = 0.0
        self.counters = Counters()

    @property
    def queued(self) -> int:
        """Accepted requests that have not begun."""
        return len(self._queue)

    @property
    def open(self) -> int:
        """Accepted requests without an outcome."""
        return len(self._queue) + len(self._open)

    @property
    def swarms(self) -> list[str]:
        """The swarms of requests that have not ended."""
        return [open_.swarm_id for open_ in self._open.values()] + list(map(_swarm_of, self._queue))

    @property
    def running_agents(self) -> int:
        """Agents of the requests that have begun."""
        return sum(open_.request.agents for open_ in self._open.values())

    # What callers ask

    def coordinate(self, asked: Coordinate, told: Told) -> str:
        """Accept a request, or join the one of the same id. The state to report: accepted, running
        or complete; `told` is called with the outcome (JSON), at once if it is stored.

        Raises RefusedError over a bound, OSError when tmpfs has no room; nothing was started then.
        """
        stored = self.stored(asked.task_id)
        if stored is not None:
            self.counters.repeated += 1
            told(stored)
            return "complete"
        waiting = self._waiting.get(asked.task_id)
        if waiting is not None:
            self.counters.repeated += 1
            waiting.append(told)
            return "running"
        try:
            request = self._plan(asked)
        except RefusedError:
            self.counters.refused += 1
            raise
        request = self._accept(request)
        self.counters.accepted += 1
        self._waiting[request.task_id] = [told]
        self._queue.append(request)
        self._loop.at(request.deadline_at_s, self.pump)
        return "accepted"

    def forget(self, task_id: str, told: Told) -> None:
        """A caller is gone; its request goes on."""
        with suppress(ValueError):
            self._waiting.get(task_id, []).remove(told)

    def stored(self, task_id: str) -> bytes | None:
        """The outcome of a request that has ended, as JSON. Raises DamagedError."""
        unstored = self._unstored.get(task_id)
        return unstored.as_json() if unstored is not None else self._log.outcome(task_id)

    def now(self, task_id: str, told: Told) -> bool:
        """Tell a request's states as of now, soon. False if the id is unknown."""
        stored = self.stored(task_id)
        if stored is not None:
            told(stored)
            return True
        for request in self._queue:
            if request.task_id == task_id:
                told(_untouched(request).as_json())
                return True
        open_ = self._open.get(task_id)
        if open_ is None:
            return False
        self._snapshot(open_, told)
        return True

    def revoke(self, task_id: str, told: Told) -> bool:
        """Make sure that nothing more of this request starts, then tell its states. False if unknown."""
        stored = self.stored(task_id)
        if stored is not None:
            told(stored)
            return True
        for request in [request for request in self._queue if request.task_id == task_id]:
            self._queue.remove(request)
            self._begin(request, given_up="revoked")
        open_ = self._open.get(task_id)
        if open_ is None:
            stored = self.stored(task_id)
            if stored is not None:
                told(stored)
            return stored is not None
        open_.revoking.append(told)
        self._give_up(open_, "revoked")
        return True

    def pump(self) -> None:
        """Begin what waits, as far as the bounds allow. Called after each turn of the loop."""
        now = time.monotonic()
        if not self._queue or now < self._paused_until_s:
            return
        for request in [request for request in self._queue if now >= request.deadline_at_s]:
            self._queue.remove(request)
            reason = f"no acknowledgement within {request.deadline_ms} ms: other requests were before it"
            self._begin(request, given_up=reason)
        while self._queue and self._room_for(self._queue[0]):
            request = self._queue.popleft()
            self._begin(request, fresh=request.task_id not in self._replayed)

    def replay(self) -> None:
        """Go on with what a crash left open: at once with what had begun, since its agents may run."""
        for request in self._log.open_requests:
            self.counters.replayed += 1
            self._number = max(self._number, request.key)
            self._replayed.add(request.task_id)
            self._waiting[request.task_id] = []
            for team in request.teams:
                self._slots.note(team.shard, team.base, team.size)
            self._queue.append(request)
            self._loop.at(request.deadline_at_s, self.pump)

    def give_up_all(self, reason: str) -> None:
        """Let nothing more start, queued or running."""
        while self._queue:
            self._begin(self._queue.popleft(), given_up=reason)
        for open_ in list(self._open.values()):
            self._give_up(open_, reason)

    def stop_running(self, *, gently: bool) -> None:
        """End what still runs: with SIGTERM first, or at once."""
        for open_ in self._open.values():
            for team in open_.teams:
                host = self._fleet.host(team.host)
                if team.final is None and host is not None:
                    if not gently:
                        log("killed while it ran", task_id=open_.request.task_id, team=team.plan.team)
                    host.stop(team.epoch, gently=gently)

    def sweep(self, retention_s: float) -> int:
        """Remove what has outlived its retention; how many segments of the journal went."""
        return self._log.sweep(time.time() - retention_s)

    @property
    def keys(self) -> list[int]:
        """The keys of requests that have not ended."""
        return [request.key for request in self._log.open_requests]

    @property
    def stored_bytes(self) -> int:
        """The size of the journal."""
        return self._log.stored_bytes

    # Accepting

    def _plan(self, asked: Coordinate) -> Request:
        config = self._config()
        within_stage(asked.number, config)
        if len(self._queue) >= MAX_QUEUED:
            raise RefusedError(
                f"{len(self._queue)} coordinations wait already, the bound; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        coordinators = self._fleet.coordinators_for(asked.number)
        if asked.swarm_id:
            teams, hybrid = self._swarms.plan(asked)
        elif asked.named:
            teams, hybrid = placement.named(asked.named, coordinators), False
        else:
            teams, hybrid = placement.numbered(asked.number, coordinators), bool(coordinators)
        if any(sum(map(len, team.named)) > MAX_NAMES_BYTES for team in teams):
            raise RefusedError(f"the agents' names are longer than {MAX_NAMES_BYTES} bytes in one team")
        return Request(
            task_id=asked.task_id,
            key=self._next(),
            teams=tuple(teams),
            hybrid=hybrid,
            payload=asked.payload,
            command=asked.command,
            deadline_ms=asked.deadline_ms,
            swarm_id=asked.swarm_id,
            accepted_at_s=asked.arrived_s,
        )

    def _accept(self, request: Request) -> Request:
        """Take the request's slots and journal it. Raises OSError without room; nothing is left then."""
        taken: list[TeamPlan] = []
        try:
            for team in request.teams:
                base = self._slots.take(team.shard, team.size)
                taken.append(replace(team, base=base))
                self._arenas.shard(team.shard).open_slots(base, team.size, request.key)
            request = replace(request, teams=tuple(taken))
            self._log.accept(request)
        except OSError:
            self._release(taken)
            raise
        return request

    def _release(self, teams: Iterable[TeamPlan]) -> None:
        for team in teams:
            if team.size:
                self._slots.release(team.shard, team.base)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _room_for(self, request: Request) -> bool:
        running = self.running_agents
        room = running == 0 or running + request.agents <= 2 * self._config().max_agents
        return room and len(self._open) < MAX_RUNNING

    # Running

    def _begin(self, request: Request, *, fresh: bool = False, given_up: str = "") -> None:
        """Give a request's teams to hosts. `fresh`: no worker and no claim of it can exist. `given_up`:
        start nothing, and only find out what was started before."""
        open_ = _Open(
            request=request,
            swarm_id=_swarm_of(request),
            teams=[TeamState(plan=team) for team in request.teams],
            given_up=given_up,
        )
        self._open[request.task_id] = open_
        for team in open_.teams:
            self._give(open_, team, fresh=fresh)
        self._announce(open_)

    def _announce(self, open_: _Open) -> None:
        """A swarm of a request's own whose agents can send messages: say where they are."""
        if open_.request.command and not self._swarms.has(open_.swarm_id) and not open_.given_up:
            self._fleet.announce(open_.swarm_id, open_.request.teams)

    def _give(self, open_: _Open, team: TeamState, *, fresh: bool) -> None:
        """Order a team's part from the host that has the team, under a new epoch."""
        request, plan = open_.request, team.plan
        team.epoch = epoch = self._next()

        def again() -> None:
            if team.epoch == epoch and team.final is None:
                self._give(open_, team, fresh=fresh)

        host = self._fleet.host_of(open_.swarm_id, plan.team, plan.shard)
        given_up = open_.given_up
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
            swarm_id=open_.swarm_id,
            team=plan.team,
            kept=self._swarms.has(open_.swarm_id),
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

        def done(outcome: TeamOutcome) -> None:
            if stand_in and outcome.started:
                team.begun_s = team.begun_s or outcome.last_ack_s  # some coordinator had taken it
            if order.kept and stand_in:  # the team itself is not here
                self._fleet.local.hand_over(open_.swarm_id, plan.team, lambda: None)
            if team.epoch == epoch and team.final is None:
                self._team_done(open_, team, outcome)

        def failed(reason: str) -> None:
            log("team cannot begin yet", task_id=request.task_id, team=plan.team, reason=reason)
            self._loop.at(time.monotonic() + _RETRY_S, again)

        host.begin(order, request.payload, begun=begun, done=done, failed=failed)
        if given_up and team.final is None:
            host.give_up(epoch, given_up, lambda _outcome: self._certain(open_, team, epoch))

    def host_lost(self, number: int) -> int:
        """A host is gone: its parts of running requests go to others; how many. Their agents live on."""
        moved = 0
        for open_ in list(self._open.values()):
            for team in open_.teams:
                if team.host == number and team.final is None:
                    self._give(open_, team, fresh=False)
                    moved += 1
            self._announce(open_)
        return moved

    def moved(self, swarm_id: str, name: str) -> None:
        """A kept swarm's team has another host: what runs on it goes on there."""
        for open_ in list(self._open.values()):
            for team in open_.teams:
                if open_.swarm_id == swarm_id and team.plan.team == name and team.final is None:
                    self._give(open_, team, fresh=False)

    def _team_done(self, open_: _Open, team: TeamState, outcome: TeamOutcome) -> None:
        team.final = outcome
        self._certain(open_, team, team.epoch)
        if open_.complete:
            self._complete(open_)

    def _give_up(self, open_: _Open, reason: str) -> None:
        open_.given_up = open_.given_up or reason
        for team in open_.teams:
            if team.final is None:
                self._ask_certainty(open_, team)
            else:
                self._certain(open_, team, team.epoch)

    def _ask_certainty(self, open_: _Open, team: TeamState) -> None:
        host, epoch = self._fleet.host(team.host), team.epoch
        if host is not None:
            host.give_up(epoch, open_.given_up, lambda _outcome: self._certain(open_, team, epoch))

    def _certain(self, open_: _Open, team: TeamState, epoch: int) -> None:
        """Nothing more of this team can start."""
        if team.epoch != epoch:
            return
        open_.certain.add(team.plan.team)
        if open_.revoking and len(open_.certain) == len(open_.teams) and not open_.complete:
            for told in open_.revoking:
                self._snapshot(open_, told)
            open_.revoking.clear()

    def _snapshot(self, open_: _Open, told: Told) -> None:
        """Ask each host how its part stands; tell when all have said, or time is up."""
        missing = {team.plan.team for team in open_.teams if team.final is None}
        answered: dict[str, TeamOutcome] = {}

        def finish() -> None:
            nonlocal told
            tell, told = told, lambda _raw: None
            tell(self._outcome(open_, answered).as_json())

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
        for team in open_.teams:
            host = self._fleet.host(team.host)
            if team.final is None and host is not None:
                host.snapshot(team.epoch, heard(team))

    # The end

    def _outcome(self, open_: _Open, snapshots: dict[str, TeamOutcome]) -> Outcome:
        return Outcome(
            request=open_.request,
            swarm_id=open_.swarm_id,
            teams=open_.teams,
            given_up=open_.given_up,
            snapshots=snapshots,
            now_s=time.monotonic(),
        )

    def _complete(self, open_: _Open) -> None:
        if self._open.pop(open_.request.task_id, None) is None:
            return
        self._waiting.setdefault(open_.request.task_id, []).extend(open_.revoking)
        self._store(self._outcome(open_, {}))

    def _store(self, outcome: Outcome) -> None:
        """Store an outcome, then tell it. Without room for it the callers wait, and so does the request
        in the journal."""
        task_id = outcome.request.task_id
        raw = outcome.as_json()
        try:
            self._log.complete(task_id, raw)
        except OSError as error:
            if task_id not in self._unstored:
                log("outcome cannot be stored yet", task_id=task_id, reason=str(error))
            self._unstored[task_id] = outcome
            self._loop.at(time.monotonic() + _RETRY_S, lambda: self._store(outcome))
            return
        self._unstored.pop(task_id, None)
        self._replayed.discard(task_id)
        self._release(outcome.request.teams)
        if any(team.final is not None and team.final.long_outputs for team in outcome.teams):
            self._forget_outputs(outcome.request.key)
        self.counters.completed += 1
        for state, number in outcome.tally.items():
            self.counters.agents[state] = self.counters.agents.get(state, 0) + number
        log(
            "coordination",
            task_id=task_id,
            swarm_id=outcome.swarm_id,
            agents=outcome.tally.agents,
            **{str(state): number for state, number in outcome.tally.items()},
            coordination_time_ms=round(outcome.coordination_time_ms, 3),
            total_time_ms=round(outcome.total_time_ms, 3),
        )
        for told in self._waiting.pop(task_id, []):
            told(raw)
        if not self._swarms.has(outcome.swarm_id):
            for team in outcome.teams:
                self._fleet.forget(outcome.swarm_id, team.plan.team)
            if outcome.request.command:
                self._fleet.announce(outcome.swarm_id, ())

    def _forget_outputs(self, key: int) -> None:
        with suppress(OSError):
            rmtree(Path(output_folder(str(self._outputs), key)))


def _swarm_of(request: Request) -> str:
    """The swarm that a request runs on. Its own has the same name after a crash, so that its workers are
    found; the key makes the name of a long task id, which is cut, its own."""
    own = f"task:{request.task_id}"
    if len(own) > MAX_ID_CHARS:
        key = f":{request.key:x}"
        own = own[: MAX_ID_CHARS - len(key)] + key
    return request.swarm_id or own


def _untouched(request: Request) -> Outcome:
    """A request that waits: nobody has anything of it."""
    teams = [TeamState(plan=team) for team in request.teams]
    return Outcome(request=request, swarm_id=request.swarm_id, teams=teams, now_s=time.monotonic())


def _lost(task_id: str, agents: tuple[str, ...], lose_pct: int) -> tuple[int, ...]:
    """The lab fault: which agents' deliveries vanish, the same ones at each try."""
    if not lose_pct:
        return ()
    return tuple(
        index
        for index, agent in enumerate(agents)
        if zlib.crc32(f"{task_id}/{agent}".encode()) % 100 < lose_pct
    )
