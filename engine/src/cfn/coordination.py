"""The outcome of one coordination, in the one shape that engine, router, V1 and clients share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cfn.errors import DamagedError


class AgentState(StrEnum):
    """How a (task, agent) stands. All but the first two are final, and each ends in exactly one."""

    WAITING = "waiting"  # not claimed yet
    RUNNING = "running"  # claimed, no result yet
    DONE = "done"
    FAILED = "failed"  # it ran, and ended nonzero, by a signal, or out of time
    UNDELIVERED = "undelivered"  # never started, and never will be
    UNKNOWN = "unknown"  # claimed, and its process died before a result


FINAL_STATES = (AgentState.DONE, AgentState.FAILED, AgentState.UNDELIVERED, AgentState.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult:
    """One agent's part. `exit_code` is None unless it ran to an end; negative for a signal."""

    agent: str
    state: AgentState
    exit_code: int | None = None
    output: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamPart:
    """What one coordinator had of a coordination: its own agent and its workers."""

    team: str
    coordinator: int
    agents: int
    coordination_time_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hybrid:
    """How a coordination went over the mesh. Both rates are shares of those asked, in percent."""

    mesh_delivery_rate_pct: float
    worker_delivery_rate_pct: float
    teams: Sequence[TeamPart]


class Tally(Counter[str]):
    """How many agents are in which state, and the rates that follow."""

    @property
    def agents(self) -> int:
        """All of them."""
        return self.total()

    @property
    def complete(self) -> bool:
        """Whether every agent is in a final state."""
        return not self[AgentState.WAITING] and not self[AgentState.RUNNING]

    @property
    def delivery_rate_pct(self) -> float:
        """Share of agents that claimed the task."""
        return self.share(self.agents - self[AgentState.UNDELIVERED] - self[AgentState.WAITING])

    @property
    def completion_rate_pct(self) -> float:
        """Share of agents that are done."""
        return self.share(self[AgentState.DONE])

    @property
    def error_rate_pct(self) -> float:
        """Share of agents that are undelivered, unknown or failed."""
        states = (AgentState.UNDELIVERED, AgentState.UNKNOWN, AgentState.FAILED)
        return self.share(sum(self[state] for state in states))

    def share(self, count: int) -> float:
        """A count as percent of all agents."""
        return 100.0 * count / self.agents if self.agents else 0.0


def as_head(
    task_id: str,
    swarm_id: str,
    tally: Tally,
    *,
    coordination_time_ms: float,
    total_time_ms: float,
    hybrid: Hybrid | None,
) -> dict[str, Any]:
    """What sockets, HTTP and files carry of a coordination, but for the agents' own results."""
    head: dict[str, Any] = {
        "task_id": task_id,
        "swarm_id": swarm_id,
        "state": "complete" if tally.complete else "running",
        "agents": tally.agents,
        "states": {str(state): tally[state] for state in FINAL_STATES},
        "coordination_time_ms": round(coordination_time_ms, 3),
        "total_time_ms": round(total_time_ms, 3),
        "delivery_rate_pct": tally.delivery_rate_pct,
        "completion_rate_pct": tally.completion_rate_pct,
        "error_rate_pct": tally.error_rate_pct,
    }
    if hybrid is not None:
        head["mesh_delivery_rate_pct"] = hybrid.mesh_delivery_rate_pct
        head["worker_delivery_rate_pct"] = hybrid.worker_delivery_rate_pct
        head["teams"] = [
            {
                "team": part.team,
                "coordinator": part.coordinator,
                "agents": part.agents,
                "coordination_time_ms": round(part.coordination_time_ms, 3),
            }
            for part in hybrid.teams
        ]
    return head


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordination:
    """A coordination as asked for, with the agents' states as known now.

    `coordination_time_ms` runs from the request to the last acknowledgement, or to the deadline;
    `total_time_ms` to the last result. Both on the monotonic clock of the process that measured.
    `hybrid` is there if coordinators had a part in it.
    """

    task_id: str
    coordination_time_ms: float
    total_time_ms: float
    results: Sequence[AgentResult] = field(default_factory=tuple)
    swarm_id: str = ""
    hybrid: Hybrid | None = None

    @property
    def tally(self) -> Tally:
        """The agents by state."""
        return Tally(str(result.state) for result in self.results)

    @property
    def agents(self) -> int:
        """How many agents were asked for."""
        return len(self.results)

    @property
    def complete(self) -> bool:
        """Whether every agent is in a final state."""
        return self.tally.complete

    def count(self, *states: AgentState) -> int:
        """How many agents are in one of `states`."""
        return sum(result.state in states for result in self.results)

    @property
    def states(self) -> dict[str, int]:
        """The number of agents in each final state."""
        tally = self.tally
        return {str(state): tally[state] for state in FINAL_STATES}

    @property
    def never_started(self) -> list[str]:
        """The agents that V1 may run instead."""
        return [result.agent for result in self.results if result.state is AgentState.UNDELIVERED]

    @property
    def delivery_rate_pct(self) -> float:
        """Share of agents that claimed the task."""
        return self.tally.delivery_rate_pct

    @property
    def completion_rate_pct(self) -> float:
        """Share of agents that are done."""
        return self.tally.completion_rate_pct

    @property
    def error_rate_pct(self) -> float:
        """Share of agents that are undelivered, unknown or failed."""
        return self.tally.error_rate_pct

    def as_json(self) -> dict[str, Any]:
        """The object that sockets, HTTP and files carry."""
        head = as_head(
            self.task_id,
            self.swarm_id,
            self.tally,
            coordination_time_ms=self.coordination_time_ms,
            total_time_ms=self.total_time_ms,
            hybrid=self.hybrid,
        )
        return {**head, "results": [as_result(result) for result in self.results]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Coordination":
        """The inverse of `as_json`. Raises DamagedError; what can be derived is not read."""
        try:
            return cls(
                task_id=str(value["task_id"]),
                swarm_id=str(value.get("swarm_id", "")),
                coordination_time_ms=float(value["coordination_time_ms"]),
                total_time_ms=float(value["total_time_ms"]),
                hybrid=_hybrid_from(value),
                results=tuple(
                    AgentResult(
                        agent=str(part["agent"]),
                        state=AgentState(part["state"]),
                        exit_code=part.get("exit_code"),
                        output=str(part.get("output", "")),
                        reason=str(part.get("reason", "")),
                    )
                    for part in value["results"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"not a coordination: {error!r}") from error


def as_result(result: AgentResult) -> dict[str, Any]:
    """One agent's part as `as_json` has it."""
    return {
        "agent": result.agent,
        "state": str(result.state),
        "exit_code": result.exit_code,
        "output": result.output,
        "reason": result.reason,
    }


def _hybrid_from(value: Mapping[str, Any]) -> Hybrid | None:
    if "teams" not in value:
        return None
    return Hybrid(
        mesh_delivery_rate_pct=float(value["mesh_delivery_rate_pct"]),
        worker_delivery_rate_pct=float(value["worker_delivery_rate_pct"]),
        teams=tuple(
            TeamPart(
                team=str(part["team"]),
                coordinator=int(part["coordinator"]),
                agents=int(part["agents"]),
                coordination_time_ms=float(part["coordination_time_ms"]),
            )
            for part in value["teams"]
        ),
    )
