"""A task on its way through the router: how it was routed, how it ended, and the records of that."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    sticky_key: str | None = None

    def as_facts(self, *, v1_agents: list[str] | None = None) -> dict[str, Any]:
        """What the journal keeps until the task has ended; `v1_agents` are those that V1 is about to
        run."""
        return {name: getattr(self, name) for name in self.__slots__} | {"v1_agents": v1_agents}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Job":
        """The inverse of `as_facts`, also of an older release's. Raises TypeError for other facts."""
        return cls(**{name: facts[name] for name in cls.__slots__ if name in facts})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a task ended. `coordination` is the caller's view; `own` is the ordered version's own part,
    to which the rates of the event belong. `detail` says for people what went wrong, if anything.
    `raw` is `coordination` as V2 wrote it, if nothing was added to that. `held` is True if V2 was not
    asked because the breaker was open. `phases_ms` is how long each part took; `levels` holds rates of
    LEVEL_RATES that V2 reported. Of a task that was refused nothing was started, and it may come again
    after `retry_after_s`."""

    coordination: Coordination
    own: Coordination
    served: Served
    outcome: Outcome
    fallback: Fallback | None = None
    detail: str = ""
    raw: bytes | None = None
    held: bool = False
    phases_ms: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    refused_by: Version | None = None
    retry_after_s: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets: 200 and the whole answer; 429 if V2 was too busy and 503 if V1 was, with the
    seconds after which to come again."""

    body: bytes
    status: int = 200
    retry_after_s: int = 0


def answer(job: Job, ending: Ending) -> Answer:
    """The answer to the caller. A refusal leaves the task's id free."""
    head = json.dumps(
        {
            "outcome": ending.outcome,
            "task_id": job.task_id,
            "ordered": job.ordered,
            "served": ending.served,
            "generation": job.generation,
            "reason": job.reason,
            "fallback": ending.fallback,
            "detail": ending.detail,
        }
    )
    # V2's own object is passed on as it came: making it again would be a fifth of the work.
    coordination = ending.raw or json.dumps(ending.coordination.as_json()).encode()
    body = head[:-1].encode() + b', "coordination": ' + coordination + b"}"
    if ending.outcome != "refused":
        return Answer(body)
    return Answer(body, 429 if ending.refused_by == "v2" else 503, ending.retry_after_s)


def coordination_event(
    job: Job,
    ending: Ending,
    *,
    states: Mapping[str, int],
    host: str,
    release: str,
    now_unix_s: float,
    total_s: float,
) -> dict[str, Any]:
    """The record of type `coordination` (docs/reference/records.md). `states` are those of the ending's
    coordination; `total_s` is the time since the request came, of a clock that nobody sets."""
    own = ending.own
    event: dict[str, Any] = {
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
        "held_by_breaker": ending.held,
        "outcome": ending.outcome,
        "detail": ending.detail,
        "states": states,
        "coordination_time_ms": round(own.coordination_time_ms, 3),
        "delivery_rate_pct": round(own.delivery_rate_pct, 3),
        "completion_rate_pct": round(own.completion_rate_pct, 3),
        "error_rate_pct": round(own.error_rate_pct, 3),
        "total_time_ms": round(total_s * 1000, 3),
        "phases_ms": {name: round(value, 3) for name, value in ending.phases_ms.items()},
        **ending.levels,
    }
    if job.sticky_key is not None:
        event["sticky_key"] = job.sticky_key
    return event
