"""One team's part of a request, as its hub sees it: a state machine without sockets, files or clocks.

The hub reports what happened (`attached`, `claimed`, `ended`, `lost`, `judged`, ...) with the time,
and carries out the orders that come back. What a dead or silent worker did is not guessed: the hub
looks at the agent's slot in the journal and reports the verdict.

    WAITING -> RUNNING       it acknowledged, or the journal shows a claim of a living process
    WAITING -> UNDELIVERED   the slot is fenced
    WAITING, RUNNING -> DONE, FAILED   an end came from the worker or from the journal
    WAITING, RUNNING -> UNKNOWN        claimed, no end, and the process is dead
"""

import heapq
from dataclasses import dataclass, field
from enum import Enum, auto

from cfn.coordination import FINAL_STATES, AgentResult, AgentState
from cfn.engine.claims import Ended, Standing, Verdict

RESEND_S = 0.25  # for an assignment that a worker's socket did not take
LOOK_S = 0.05  # between two looks at a slot whose process has no socket here, or must die first
OVERDUE_S = 5.0  # beyond the agent's own time limit and the grace after it
MAX_INCARNATIONS = 3  # processes tried for one agent of one request before it is given up

_LEGAL = {
    AgentState.WAITING: frozenset(AgentState) - {AgentState.WAITING},
    AgentState.RUNNING: frozenset({AgentState.DONE, AgentState.FAILED, AgentState.UNKNOWN}),
}


class IllegalTransition(Exception):  # noqa: N818 - it names the event; a defect, never an answer
    """A state was to be changed in a way that the protocol does not have."""


class Do(Enum):
    """What a hub is to do about one agent."""

    SEND = auto()  # the assignment, to its worker
    SPAWN = auto()  # a process for it
    FENCE = auto()  # its slot; report the verdict with `judged`
    LOOK = auto()  # at its slot; report the verdict with `judged`
    KILL = auto()  # the process that holds its slot or its socket


@dataclass(frozen=True, slots=True)
class Order:
    """One thing to do for the agent of this index."""

    do: Do
    index: int


@dataclass(slots=True)
class _Part:
    """An agent's standing."""

    state: AgentState = AgentState.WAITING
    attached: bool = False
    sent: bool = False
    incarnations: int = 0
    killed: bool = False
    ended: Ended | None = None
    reason: str = ""


@dataclass(slots=True)
class Assignment:
    """A team's agents under one epoch. `lost_deliveries` are indices that a lab fault never reaches.
    Times are seconds on the monotonic clock."""

    agents: tuple[str, ...]
    epoch: int
    deadline_at_s: float
    deadline_ms: int
    run_limit_s: float
    lost_deliveries: frozenset[int] = frozenset()
    last_ack_s: float = 0.0
    last_end_s: float = 0.0
    _parts: list[_Part] = field(init=False)
    _open: int = field(init=False)
    _unclaimed: int = field(init=False)
    _looks: dict[int, float] = field(init=False, default_factory=dict)  # when slots are looked at (again)
    _claims: list[tuple[float, int]] = field(init=False, default_factory=list)  # a heap: the oldest first
    _given_up: str = ""  # why what is not claimed is to be fenced
    _deadline_passed: bool = False

    def __post_init__(self) -> None:
        self._parts = [_Part() for _ in self.agents]
        self._open = self._unclaimed = len(self._parts)

    # What a hub asks

    @property
    def complete(self) -> bool:
        """Every agent is in a final state."""
        return self._open == 0

    @property
    def unclaimed(self) -> int:
        """Agents that may still start."""
        return self._unclaimed

    def state(self, index: int) -> AgentState:
        """An agent's state."""
        return self._parts[index].state

    def results(self) -> list[AgentResult]:
        """The agents as of now."""
        return list(map(_result, self.agents, self._parts))

    # What happens

    def begin(self) -> list[Order]:
        """A new request for a swarm that does not exist yet: nothing can be in the journal."""
        for part in self._parts:
            part.incarnations = 1
        return [Order(Do.SPAWN, index) for index in range(len(self._parts))]

    def attached(self, index: int, *, asked: bool = False) -> list[Order]:
        """A worker of this agent can be reached. `asked`: it was born with the assignment."""
        part = self._parts[index]
        part.attached, part.sent = True, asked
        self._looks.pop(index, None)
        if asked or part.state in FINAL_STATES or index in self.lost_deliveries:
            return []
        return [Order(Do.SEND, index)]

    def sent(self, index: int, now_s: float, *, taken: bool) -> None:
        """The worker's socket took the assignment, or it is to be sent again."""
        self._parts[index].sent = taken
        if not taken:
            self._looks[index] = now_s + RESEND_S

    def claimed(self, index: int, epoch: int, now_s: float) -> None:
        """The worker acknowledged."""
        if epoch == self.epoch and self._parts[index].state is AgentState.WAITING:
            self._running(index, now_s)

    def ended(self, index: int, epoch: int, ended: Ended, now_s: float) -> None:
        """The worker answered. A late or repeated answer changes nothing."""
        if epoch == self.epoch and self._parts[index].state not in FINAL_STATES:
            self._end(index, ended, now_s)

    def refused(self, index: int, epoch: int) -> list[Order]:
        """The worker may not start it: the slot says why."""
        if epoch != self.epoch or self._parts[index].state in FINAL_STATES:
            return []
        return [Order(Do.LOOK, index)]

    def missing(self, index: int) -> list[Order]:
        """No worker can be reached (at the start, after its end, after a restart of the hub)."""
        part = self._parts[index]
        part.attached = part.sent = False
        if part.state in FINAL_STATES:
            return []
        return [Order(Do.LOOK, index)]

    def spawning_failed(self, index: int, reason: str) -> list[Order]:
        """No process could be made for it."""
        part = self._parts[index]
        if part.state is not AgentState.WAITING:
            return []
        part.reason = reason
        part.incarnations = MAX_INCARNATIONS
        return [Order(Do.FENCE, index)]

    def judged(self, index: int, verdict: Verdict, now_s: float) -> list[Order]:
        """What the agent's slot says, after FENCE or LOOK."""
        part = self._parts[index]
        if part.state in FINAL_STATES:
            return []
        match verdict.standing:
            case Standing.ENDED:
                if verdict.ended is None:
                    raise IllegalTransition(f"agent {self.agents[index]}: an end without an end")
                self._end(index, verdict.ended, now_s)
            case Standing.FENCED:
                self._settle(index, AgentState.UNDELIVERED, now_s)
                if self._deadline_passed and part.attached and part.sent:
                    return [Order(Do.KILL, index)]  # it was asked and said nothing: it hangs
            case Standing.ORPHANED:
                part.reason = "its process died before it gave a result"
                self._settle(index, AgentState.UNKNOWN, now_s)
            case Standing.RUNNING:
                if part.state is AgentState.WAITING:  # its time runs since its claim, whoever was its hub
                    self._running(index, now_s, verdict.since_s)
                if not part.attached:
                    self._looks[index] = now_s + LOOK_S
            case Standing.LOCKED:
                self._looks[index] = now_s + LOOK_S
                if self._given_up:
                    return [Order(Do.KILL, index)]
            case Standing.UNCLAIMED:
                return self._unstarted(index)
        return []

    def give_up_unclaimed(self, reason: str) -> list[Order]:
        """Fence whatever is not claimed: the deadline, a revocation or a shutdown."""
        self._given_up = self._given_up or reason
        return [
            Order(Do.FENCE, index)
            for index, part in enumerate(self._parts)
            if part.state is AgentState.WAITING
        ]

    def tick(self, now_s: float) -> list[Order]:
        """What is due: the deadline, looks and resends, agents far beyond their time limit."""
        orders: list[Order] = []
        if now_s >= self.deadline_at_s and self._unclaimed and not self._given_up:
            self._deadline_passed = True
            orders += self.give_up_unclaimed(f"no acknowledgement within {self.deadline_ms} ms")
        for index in [index for index, due_s in self._looks.items() if due_s <= now_s]:
            del self._looks[index]
            part = self._parts[index]
            if part.state in FINAL_STATES:
                continue
            if part.state is AgentState.WAITING and self._given_up:
                orders.append(Order(Do.FENCE, index))
            elif part.attached and not part.sent:
                orders.append(Order(Do.SEND, index))
            else:
                orders.append(Order(Do.LOOK, index))
        while self._claims and now_s >= self.overdue_s(self._claims[0][0]):
            _, index = heapq.heappop(self._claims)
            part = self._parts[index]
            if part.state is AgentState.RUNNING and not part.killed:
                part.killed = True
                self._looks[index] = now_s + LOOK_S
                orders.append(Order(Do.KILL, index))
        return orders

    def next_s(self) -> float | None:
        """When `tick` has something to do next; None when nothing is left."""
        if self.complete:
            return None
        times = [] if self._given_up or not self._unclaimed else [self.deadline_at_s]
        times += self._looks.values()
        while self._claims and self._parts[self._claims[0][1]].state is not AgentState.RUNNING:
            heapq.heappop(self._claims)
        if self._claims:
            times.append(self.overdue_s(self._claims[0][0]))
        return min(times, default=None)

    def overdue_s(self, claimed_s: float) -> float:
        """When an agent that was claimed then is far beyond its own time limit."""
        return claimed_s + self.run_limit_s + OVERDUE_S

    # Inside

    def _unstarted(self, index: int) -> list[Order]:
        part = self._parts[index]
        if self._given_up:
            return [Order(Do.FENCE, index)]
        if part.attached:
            return []
        if part.incarnations >= MAX_INCARNATIONS:
            part.reason = part.reason or f"{part.incarnations} processes died before they started it"
            return [Order(Do.FENCE, index)]
        part.incarnations += 1
        return [Order(Do.SPAWN, index)]

    def _running(self, index: int, now_s: float, since_s: float = 0.0) -> None:
        self._move(index, AgentState.RUNNING)
        heapq.heappush(self._claims, (since_s or now_s, index))
        self.last_ack_s = now_s
        self._unclaimed -= 1

    def _end(self, index: int, ended: Ended, now_s: float) -> None:
        part = self._parts[index]
        part.ended, part.reason = ended, ended.text
        if part.state is AgentState.WAITING:
            self.last_ack_s = now_s
        self._settle(index, ended.state, now_s)

    def _settle(self, index: int, state: AgentState, now_s: float) -> None:
        part = self._parts[index]
        if state is AgentState.UNDELIVERED:
            part.reason = part.reason or self._given_up or "it was given up before this hub had it"
        if part.state is AgentState.WAITING:
            self._unclaimed -= 1
        self._move(index, state)
        self._open -= 1
        self.last_end_s = now_s
        if state in (AgentState.UNDELIVERED, AgentState.UNKNOWN) and not self.last_ack_s:
            self.last_ack_s = now_s

    def _move(self, index: int, state: AgentState) -> None:
        part = self._parts[index]
        if state not in _LEGAL.get(part.state, frozenset()):
            raise IllegalTransition(f"agent {self.agents[index]}: {part.state} to {state}")
        part.state = state


def _result(agent: str, part: _Part) -> AgentResult:
    ended = part.ended
    return AgentResult(
        agent=agent,
        state=part.state,
        exit_code=None if ended is None else ended.exit_code,
        output="" if ended is None else ended.output.decode(errors="replace"),
        reason=part.reason,
    )
