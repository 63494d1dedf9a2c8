"""The conductor's requests: accept, queue, begin (running.py), store, tell who waits.

ACCEPT is journalled before "accepted" is said, COMPLETE before the outcome is told. A known task id
attaches to the running request or is answered from the journal; it starts nothing.
"""

import time
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
from cfn.engine.running import Running, Told, swarm_of
from cfn.engine.swarms import Swarms
from cfn.errors import RefusedError
from cfn.paths import Paths
from cfn.release import LabFault

MAX_RUNNING = 16
MAX_QUEUED = 256
RETRY_AFTER_S = 1  # what a refused caller is told
MAX_NAMES_BYTES = 48_000  # of the agents that a request names, in one team
_RETRY_S = 0.05  # while tmpfs has no room for an outcome


@dataclass(slots=True)
class Counters:
    """Totals since this process started, for health."""

    accepted: int = 0
    completed: int = 0
    refused: int = 0
    replayed: int = 0
    repeated: int = 0
    agents: dict[str, int] = field(default_factory=dict)


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
        self._number = generation << 32  # of epochs and keys alike
        self._fleet = fleet
        self._swarms = swarms
        self._arenas = arenas
        self._outputs = paths.outputs
        self._log = RequestLog(paths.shm / "requests")
        self._slots = Slots()
        self._queue: deque[Request] = deque()
        self._waiting: dict[str, list[Told]] = {}
        self._replayed: set[str] = set()
        self._unstored: dict[str, Outcome] = {}  # ended, and tmpfs had no room for the outcome
        self._running = Running(loop, config, fault, fleet, swarms, self._next, self._completed)
        self.counters = Counters()

    @property
    def queued(self) -> int:
        """Accepted requests that have not begun."""
        return len(self._queue)

    @property
    def open(self) -> int:
        """Accepted requests without an outcome."""
        return len(self._queue) + len(self._running)

    @property
    def own_swarms(self) -> list[str]:
        """The swarms that requests which have not ended have for themselves."""
        open_requests = (*self._running.requests, *self._queue)
        return [swarm_of(request) for request in open_requests if not request.swarm_id]

    @property
    def running_agents(self) -> int:
        """Agents of the requests that have begun."""
        return self._running.agents

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
        begun = self._running.get(task_id)
        if begun is None:
            return False
        self._running.snapshot(begun, told)
        return True

    def revoke(self, task_id: str, told: Told) -> bool:
        """Make sure that nothing more of this request starts, then tell its states. False if unknown."""
        stored = self.stored(task_id)
        if stored is not None:
            told(stored)
            return True
        for request in [request for request in self._queue if request.task_id == task_id]:
            self._queue.remove(request)
            self._running.begin(request, given_up="revoked")
        begun = self._running.get(task_id)
        if begun is None:
            stored = self.stored(task_id)
            if stored is not None:
                told(stored)
            return stored is not None
        self._running.revoke(begun, told)
        return True

    def pump(self) -> None:
        """Begin what waits, as far as the bounds allow. Called after each turn of the loop."""
        now = time.monotonic()
        if not self._queue:
            return
        for request in [request for request in self._queue if now >= request.deadline_at_s]:
            self._queue.remove(request)
            reason = f"no acknowledgement within {request.deadline_ms} ms: other requests were before it"
            self._running.begin(request, given_up=reason)
        while self._queue and self._room_for(self._queue[0]):
            request = self._queue.popleft()
            self._running.begin(request, fresh=request.task_id not in self._replayed)

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
            self._running.begin(self._queue.popleft(), given_up=reason)
        self._running.give_up_all(reason)

    def stop_running(self, *, gently: bool) -> None:
        """End what still runs: with SIGTERM first, or at once."""
        self._running.stop(gently=gently)

    def host_lost(self, number: int) -> int:
        """A host is gone: its parts of running requests go to others; how many."""
        return self._running.host_lost(number)

    def moved(self, swarm_id: str, team: str) -> None:
        """A kept swarm's team has another host."""
        self._running.moved(swarm_id, team)

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
        return room and len(self._running) < MAX_RUNNING

    # The end

    def _completed(self, outcome: Outcome, revoking: list[Told]) -> None:
        self._waiting.setdefault(outcome.request.task_id, []).extend(revoking)
        self._store(outcome)

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


def _untouched(request: Request) -> Outcome:
    """A request that waits: nobody has anything of it."""
    teams = [TeamState(plan=team) for team in request.teams]
    return Outcome(request=request, swarm_id=request.swarm_id, teams=teams, now_s=time.monotonic())
