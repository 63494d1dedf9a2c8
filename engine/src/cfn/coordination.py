"""The outcome of one coordination, in the one shape that engine, router, V1 and clients share."""

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
class Coordination:
    """A coordination as asked for, with the agents' states as known now.

    `coordination_time_ms` runs from the request to the last acknowledgement, or to the deadline;
    `total_time_ms` to the last result. Both on the monotonic clock of the process that measured.
    """

    task_id: str
    coordination_time_ms: float
    total_time_ms: float
    results: Sequence[AgentResult] = field(default_factory=tuple)
    swarm_id: str = ""

    @property
    def agents(self) -> int:
        """How many agents were asked for."""
        return len(self.results)

    @property
    def complete(self) -> bool:
        """Whether every agent is in a final state."""
        return all(result.state in FINAL_STATES for result in self.results)

    def count(self, *states: AgentState) -> int:
        """How many agents are in one of `states`."""
        return sum(result.state in states for result in self.results)

    @property
    def states(self) -> dict[str, int]:
        """The number of agents in each final state."""
        return {str(state): self.count(state) for state in FINAL_STATES}

    @property
    def never_started(self) -> list[str]:
        """The agents that V1 may run instead."""
        return [result.agent for result in self.results if result.state is AgentState.UNDELIVERED]

    @property
    def delivery_rate_pct(self) -> float:
        """Share of agents that claimed the task."""
        return self._share(self.agents - self.count(AgentState.UNDELIVERED, AgentState.WAITING))

    @property
    def completion_rate_pct(self) -> float:
        """Share of agents that are done."""
        return self._share(self.count(AgentState.DONE))

    @property
    def error_rate_pct(self) -> float:
        """Share of agents that are undelivered, unknown or failed."""
        return self._share(self.count(AgentState.UNDELIVERED, AgentState.UNKNOWN, AgentState.FAILED))

    def _share(self, count: int) -> float:
        return 100.0 * count / self.agents if self.agents else 0.0

    def as_json(self) -> dict[str, Any]:
        """The object that sockets, HTTP and files carry."""
        return {
            "task_id": self.task_id,
            "swarm_id": self.swarm_id,
            "state": "complete" if self.complete else "running",
            "agents": self.agents,
            "states": self.states,
            "coordination_time_ms": round(self.coordination_time_ms, 3),
            "total_time_ms": round(self.total_time_ms, 3),
            "delivery_rate_pct": self.delivery_rate_pct,
            "completion_rate_pct": self.completion_rate_pct,
            "error_rate_pct": self.error_rate_pct,
            "results": [
                {
                    "agent": result.agent,
                    "state": str(result.state),
                    "exit_code": result.exit_code,
                    "output": result.output,
                    "reason": result.reason,
                }
                for result in self.results
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Coordination":
        """The inverse of `as_json`. Raises DamagedError; what can be derived is not read."""
        try:
            return cls(
                task_id=str(value["task_id"]),
                swarm_id=str(value.get("swarm_id", "")),
                coordination_time_ms=float(value["coordination_time_ms"]),
                total_time_ms=float(value["total_time_ms"]),
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
