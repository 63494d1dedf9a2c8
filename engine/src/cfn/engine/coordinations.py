"""The conductor's requests: accept, queue, run on the hub, store, tell whoever waits.

ACCEPT is journalled before "accepted" is said, COMPLETE before the outcome is told. A known task id
attaches to the running request or is answered from the store; it starts nothing.
"""

import shlex
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from cfn.config import Config
from cfn.coordination import AgentResult, AgentState, Coordination
from cfn.engine import wire
from cfn.engine.agent_process import GRACE_S
from cfn.engine.assignment import Assignment
from cfn.engine.claims import ClaimsFile, Standing
from cfn.engine.hub import Hub
from cfn.engine.log import log
from cfn.engine.requests import Coordinate, within_stage
from cfn.engine.store import Request, Store
from cfn.errors import RefusedError
from cfn.release import LabFault

MAX_RUNNING = 16
MAX_QUEUED = 256
_RETRY_S = 0.5  # while tmpfs or descriptors are exhausted
TEAM = "team-1"  # flat: everybody is in one team

Told = Callable[[Coordination], None]


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

    def __init__(self, store: Store, config: Callable[[], Config], fault: LabFault, generation: int) -> None:
        self._store = store
        self._config = config
        self._fault = fault
        self._epoch = generation << 32
        self._hub: Hub | None = None
        self._queue: deque[Request] = deque()
        self._waiting: dict[str, list[Told]] = {}
        self._replayed: set[str] = set()
        self._paused_until_s = 0.0
        self._unstored: dict[str, Coordination] = {}  # ended, and tmpfs had no room for the outcome
        self.counters = Counters()

    @property
    def hub(self) -> Hub:
        """The hub that runs requests."""
        if self._hub is None:
            raise RuntimeError("no hub yet")
        return self._hub

    def use(self, hub: Hub) -> None:
        """Run on this hub from now on."""
        self._hub = hub

    @property
    def queued(self) -> int:
        """Accepted requests that have not begun."""
        return len(self._queue)

    @property
    def open(self) -> int:
        """Accepted requests without an outcome."""
        return len(self._queue) + len(self.hub.running)

    def coordinate(self, asked: Coordinate, told: Told) -> str:
        """Accept a request, or join the one of the same id. The state to report: accepted, running
        or complete; `told` is called with the outcome, at once if it is stored.

        Raises RefusedError over a bound, OSError when tmpfs has no room; nothing was started then.
        """
        stored = self._unstored.get(asked.task_id) or self._store.result(asked.task_id)
        if stored is not None:
            self.counters.repeated += 1
            told(stored)
            return "complete"
        if self.now(asked.task_id) is not None:
            self.counters.repeated += 1
            self._waiting.setdefault(asked.task_id, []).append(told)
            return "running"
        try:
            self._check_bounds(asked)
        except RefusedError:
            self.counters.refused += 1
            raise
        request = Request(
            task_id=asked.task_id,
            agents=asked.agents,
            payload=asked.payload,
            deadline_ms=asked.deadline_ms,
            swarm_id=asked.swarm_id,
            accepted_at_s=time.monotonic(),
        )
        self._store.accept(request)
        self.counters.accepted += 1
        self._waiting[request.task_id] = [told]
        self._queue.append(request)
        self.hub.later(request.deadline_ms / 1000, self.pump)
        return "accepted"

    def forget(self, task_id: str, told: Told) -> None:
        """A caller is gone; its request goes on."""
        with suppress(ValueError):
            self._waiting.get(task_id, []).remove(told)

    def now(self, task_id: str) -> Coordination | None:
        """A request's states as of now; None if the id is unknown."""
        assignment = self.hub.assignment(task_id)
        if assignment is not None:
            return assignment.outcome(time.monotonic())
        for request in self._queue:
            if request.task_id == task_id:
                return _all(request, AgentState.WAITING, "")
        return self._unstored.get(task_id) or self._store.result(task_id)

    def revoke(self, task_id: str, told: Told) -> bool:
        """Make sure that nothing more of this request starts, then tell its states. False if unknown."""
        for request in [r for r in self._queue if r.task_id == task_id]:
            self._queue.remove(request)
            if not self._begin(request, given_up="revoked"):
                self.hub.later(_RETRY_S, lambda: self._revoke_again(task_id, told))
                return True
        if self.hub.assignment(task_id) is not None:
            self.hub.give_up_unclaimed(task_id, "revoked")
        assignment = self.hub.assignment(task_id)
        if assignment is not None and assignment.unclaimed:
            # Some process sits between its lock and its claim. It is being killed; wait for it.
            self.hub.later(0.01, lambda: self._revoke_again(task_id, told))
            return True
        known = self.now(task_id)
        if known is not None:
            told(known)
        return known is not None

    def _revoke_again(self, task_id: str, told: Told) -> None:
        self.revoke(task_id, told)

    def pump(self) -> None:
        """Begin what waits, as far as the bounds allow. Called after each turn of the loop."""
        now = time.monotonic()
        if now < self._paused_until_s:
            return
        for request in [r for r in self._queue if now >= r.deadline_at_s]:
            self._queue.remove(request)
            reason = f"no acknowledgement within {request.deadline_ms} ms: other requests were before it"
            if not self._begin(request, given_up=reason):
                return
        while self._queue:
            request = self._queue[0]
            running = self.hub.running_agents
            room = running == 0 or running + len(request.agents) <= 2 * self._config().max_agents
            if len(self.hub.running) >= MAX_RUNNING or not room:
                break
            self._queue.popleft()
            if not self._begin(request, fresh=request.task_id not in self._replayed):
                return

    def replay(self) -> None:
        """Go on with what a crash left open."""
        for request in self._store.open_requests():
            self.counters.replayed += 1
            self._replayed.add(request.task_id)
            if _touched(self._store, request):
                self._begin(request)
            else:
                self._queue.append(request)
                self.hub.later(max(0.0, request.deadline_at_s - time.monotonic()), self.pump)

    def give_up_all(self, reason: str) -> None:
        """Fence everything that is not claimed, queued or running."""
        while self._queue and self._begin(self._queue.popleft(), given_up=reason):
            pass
        for task_id in self.hub.running:
            self.hub.give_up_unclaimed(task_id, reason)

    # Inside

    def _check_bounds(self, asked: Coordinate) -> None:
        within_stage(asked.number, self._config())
        if asked.swarm_id:
            self._check_swarm(asked)
        if len(self._queue) >= MAX_QUEUED:
            raise RefusedError(f"{len(self._queue)} coordinations wait already; try again later")

    def _check_swarm(self, asked: Coordinate) -> None:
        swarm = self.hub.swarms.get(asked.swarm_id)
        if swarm is None or swarm.ending or not swarm.kept:
            raise RefusedError(f"swarm {asked.swarm_id} does not exist; init makes one")
        strangers = [agent for agent in asked.agents if agent not in swarm.members]
        if strangers:
            raise RefusedError(
                f"swarm {asked.swarm_id} has {len(swarm.members)} agents and none named {strangers[0]}"
            )

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _begin(self, request: Request, *, fresh: bool = False, given_up: str = "") -> bool:
        """Run a request on the hub. `fresh`: no worker and no claim of it can exist. `given_up`: start
        nothing, and only find out what was started before. False: not now, it waits again."""
        folder = self._store.folder(request.task_id)
        try:
            claims = ClaimsFile(folder)
        except OSError as error:  # no descriptor is free: wait for one
            log("request cannot begin yet", task_id=request.task_id, reason=str(error))
            self._queue.appendleft(request)
            self._paused_until_s = time.monotonic() + _RETRY_S
            self.hub.later(_RETRY_S, self.pump)
            return False
        config = self._config()
        hub = self.hub
        swarm = hub.swarms.get(request.swarm_id) if request.swarm_id else None
        own = swarm is None
        if swarm is None:
            # Also a kept swarm that ended meanwhile: its agents get processes for this request alone.
            swarm = hub.add_swarm(_own_swarm(request), request.agents, kept=False)
        assignment = Assignment(
            request=request,
            epoch=self._next_epoch(),
            run_limit_s=config.agent_timeout_ms / 1000 + 2 * GRACE_S,
            lost_deliveries=_lost(request, self._fault.lose_pct),
            swarm_id=swarm.swarm_id,
        )
        if given_up:
            assignment.give_up_unclaimed(given_up)
        task = wire.Task(
            task_id=request.task_id,
            folder=str(folder),
            swarm_id=swarm.swarm_id,
            team=TEAM,
            command=tuple(shlex.split(config.agent_command)),
            timeout_ms=config.agent_timeout_ms,
            max_output_bytes=config.max_output_bytes,
            slow_ms=self._fault.slow_ms,
        )
        hub.start(assignment, swarm, claims, task, fresh=fresh and own)
        return True

    def completed(self, outcome: Coordination) -> None:
        """The hub's word that a run has ended: store its outcome, then tell it. Without room for it
        the callers wait, and so does the request in the journal."""
        try:
            self._store.complete(outcome)
        except OSError as error:
            if outcome.task_id not in self._unstored:
                log("outcome cannot be stored yet", task_id=outcome.task_id, reason=str(error))
            self._unstored[outcome.task_id] = outcome
            self._end_own_swarm(outcome.swarm_id)  # its sockets may be what is missing
            self.hub.later(_RETRY_S, lambda: self.completed(outcome))
            return
        self._unstored.pop(outcome.task_id, None)
        self._replayed.discard(outcome.task_id)
        self.counters.completed += 1
        for state, number in outcome.states.items():
            self.counters.agents[state] = self.counters.agents.get(state, 0) + number
        log(
            "coordination",
            task_id=outcome.task_id,
            swarm_id=outcome.swarm_id,
            agents=outcome.agents,
            **outcome.states,
            coordination_time_ms=round(outcome.coordination_time_ms, 3),
            total_time_ms=round(outcome.total_time_ms, 3),
        )
        for told in self._waiting.pop(outcome.task_id, []):
            told(outcome)
        self._end_own_swarm(outcome.swarm_id)

    def _end_own_swarm(self, swarm_id: str) -> None:
        swarm = self.hub.swarms.get(swarm_id)
        if swarm is not None and not swarm.kept:
            self.hub.end_swarm(swarm_id)


def _own_swarm(request: Request) -> str:
    """The name of a request's own swarm: the same after a crash, so that its workers are found.
    It can be longer than an identifier; it never crosses a boundary inwards."""
    return f"task:{request.task_id}"


def _lost(request: Request, lose_pct: int) -> frozenset[int]:
    """The lab fault: which agents' deliveries vanish, the same ones at each try."""
    if not lose_pct:
        return frozenset()
    return frozenset(
        index
        for index, agent in enumerate(request.agents)
        if zlib.crc32(f"{request.task_id}/{agent}".encode()) % 100 < lose_pct
    )


def _all(request: Request, state: AgentState, reason: str) -> Coordination:
    waited_ms = (time.monotonic() - request.accepted_at_s) * 1000
    return Coordination(
        task_id=request.task_id,
        coordination_time_ms=waited_ms,
        total_time_ms=waited_ms,
        results=tuple(AgentResult(agent=a, state=state, reason=reason) for a in request.agents),
        swarm_id=request.swarm_id,
    )


def _touched(store: Store, request: Request) -> bool:
    """Whether any agent of a request was claimed or fenced."""
    claims = ClaimsFile(store.folder(request.task_id))
    try:
        indices = range(len(request.agents))
        return any(claims.judge(index).standing is not Standing.UNCLAIMED for index in indices)
    finally:
        claims.close()
