"""A task on its way through the router: how it was routed, how it ended, and the records of that."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cfn.coordination import Coordination
from cfn.router.clock import utc_text
from cfn.router.decision import Fallback, Outcome, Reason, Served
from cfn.router.split import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How a task was routed. `arrived_unix_s` is seconds since 1970; `generation`, `version`,
    `traffic_pct` and `bucket` are what the split was decided on, and stay so while the configuration
    moves on."""

    task_id: str
    agents: int
    bucket: int
    generation: int
    version: str
    traffic_pct: int | float
    ordered: Version
    reason: Reason
    arrived_unix_s: float

    def as_facts(self, *, v1_agents: list[str] | None = None) -> dict[str, Any]:
        """What the journal keeps until the task has ended; `v1_agents` are those that V1 is about to
        run."""
        return asdict(self) | {"v1_agents": v1_agents}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Job":
        """The inverse of `as_facts`. Raises KeyError for facts of another shape."""
        return cls(**{name: facts[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a task ended. `coordination` is the caller's view; `own` is the ordered version's own part,
    to which the rates of the event belong. `detail` says for people what went wrong, if anything."""

    coordination: Coordination
    own: Coordination
    served: Served
    outcome: Outcome
    fallback: Fallback | None = None
    detail: str = ""


def answer(job: Job, ending: Ending) -> bytes:
    """The body of the answer to the caller. The outcome comes first: see `is_refusal`."""
    return json.dumps(
        {
            "outcome": ending.outcome,
            "task_id": job.task_id,
            "ordered": job.ordered,
            "served": ending.served,
            "generation": job.generation,
            "reason": job.reason,
            "fallback": ending.fallback,
            "detail": ending.detail,
            "coordination": ending.coordination.as_json(),
        }
    ).encode()


def is_refusal(body: bytes) -> bool:
    """Whether a kept answer says that the task was refused, without reading all of it."""
    return body.startswith(b'{"outcome": "refused"')


def coordination_event(
    job: Job, ending: Ending, *, host: str, release: str, now_unix_s: float
) -> dict[str, Any]:
    """The record of type `coordination` (docs/reference/records.md)."""
    own = ending.own
    return {
        "v": 1,
        "type": "coordination",
        "time": utc_text(now_unix_s),
        "host": host,
        "release": release,
        "task_id": job.task_id,
        "agents": job.agents,
        "bucket": job.bucket,
        "generation": job.generation,
        "version": job.version,
        "traffic_pct": job.traffic_pct,
        "ordered": job.ordered,
        "served": ending.served,
        "reason": job.reason,
        "fallback": ending.fallback,
        "outcome": ending.outcome,
        "detail": ending.detail,
        "states": ending.coordination.states,
        "coordination_time_ms": round(own.coordination_time_ms, 3),
        "delivery_rate_pct": round(own.delivery_rate_pct, 3),
        "completion_rate_pct": round(own.completion_rate_pct, 3),
        "error_rate_pct": round(own.error_rate_pct, 3),
        "total_time_ms": round(max(0.0, now_unix_s - job.arrived_unix_s) * 1000, 3),
    }
