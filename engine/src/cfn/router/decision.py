"""The router's decisions, without any I/O: where a task goes, whether V1 is called in and for which
agents, and how the parts become one answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from cfn.config import Config
from cfn.coordination import AgentResult, AgentState, Coordination
from cfn.router.split import Version, bucket, ordered_version

Reason = Literal["split", "over_capacity", "override"]
Fallback = Literal["error", "time", "delivery"]
Served = Literal["v1", "v2", "both", "none"]
Outcome = Literal["done", "partial", "failed", "refused"]
# What a hybrid engine says of its two levels, beside the rates of the whole.
LEVEL_RATES = ("mesh_delivery_rate_pct", "worker_delivery_rate_pct")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the split sends a task."""

    bucket: int
    ordered: Version
    reason: Reason


def route(
    config: Config,
    task_id: str,
    agents: int,
    *,
    sticky_key: str | None = None,
    override: Version | None = None,
) -> Route:
    """The split, of the sticky key if there is one; outside it a request larger than the stage allows,
    which goes to V1, and one whose version a tester chose."""
    task_bucket = bucket(config.split_key, sticky_key or task_id)
    if agents > config.max_agents:
        return Route(bucket=task_bucket, ordered="v1", reason="over_capacity")
    if override is not None:
        return Route(bucket=task_bucket, ordered=override, reason="override")
    version: Version = "v2" if config.coordination_version == "v2" else "v1"
    ordered = ordered_version(version, config.traffic_pct, task_bucket)
    return Route(bucket=task_bucket, ordered=ordered, reason="split")


class V2End(StrEnum):
    """How V2's first part of a task ended."""

    ANSWERED = "answered"  # every agent is final
    NOT_ACCEPTED = "not_accepted"  # absent, or it refused for now: nothing was started, for certain
    REFUSED = "refused"  # it refused this task as it is: the same
    OVERLOADED = "overloaded"  # its queue is full: the same, and later may help
    HELD = "held"  # not asked: the breaker is open
    REVOKED = "revoked"  # out of time; what was unclaimed is undelivered, for certain
    LOST = "lost"  # out of reach after the task was sent: nothing is certain


@dataclass(frozen=True, slots=True, kw_only=True)
class V2Result:
    """What V2 made of a task; `detail` says why, for people, unless it simply answered. `raw` is the
    coordination as V2 wrote it, where it is the last word; `levels` holds those of LEVEL_RATES that it
    reported; `retry_after_s` goes with OVERLOADED."""

    end: V2End
    coordination: Coordination
    detail: str = ""
    raw: bytes | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    retry_after_s: int = 0

    @property
    def untouched(self) -> bool:
        """Whether V2 started nothing and never will, since it did not take the task."""
        return self.end in (V2End.NOT_ACCEPTED, V2End.REFUSED, V2End.OVERLOADED, V2End.HELD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether V1 is called in (`fallback` is not None) and for which agents; `refuse` if the caller has
    to come again instead."""

    fallback: Fallback | None = None
    agents: Sequence[str] = ()
    whole: bool = False
    refuse: bool = False
    detail: str = ""


def decide(result: V2Result, config: Config, *, v1_takes_list: bool, v1_free: bool) -> Decision:
    """V1 runs the agents that never started on V2, and no other: an agent that V2 claimed may have
    had its effect. So a V2 that was slow but claimed everything reruns nothing.

    What an overloaded V2 refuses, V1 runs only if it has a free slot for it at once (`v1_free`): its
    queue is kept for what nobody else can serve.
    """
    never_started = result.coordination.never_started
    cause = _cause(result, config)
    if result.end is V2End.OVERLOADED and not (v1_free and config.fallback_enabled and config.v1_enabled):
        return Decision(refuse=True, detail=result.detail)
    if not never_started or cause is None:
        return Decision(detail=result.detail)
    if not config.v1_enabled:
        return Decision(detail=_join(result.detail, "there is no V1 (CFN_V1_ENABLED is false)"))
    if not config.fallback_enabled and result.end is not V2End.HELD:
        return Decision(detail=_join(result.detail, "CFN_FALLBACK_ENABLED is false"))
    whole = len(never_started) == result.coordination.agents
    if not whole and not v1_takes_list:
        return Decision(
            detail=_join(result.detail, "V1 takes no list of agents and V2 started some: nothing is rerun")
        )
    return Decision(fallback=cause, agents=never_started, whole=whole, detail=result.detail)


def _cause(result: V2Result, config: Config) -> Fallback | None:
    if result.untouched:
        return "error"
    if result.end is V2End.REVOKED:
        return "time"
    if result.end is V2End.ANSWERED and result.coordination.delivery_rate_pct < config.fallback_delivery_pct:
        return "delivery"
    return None


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def served_by(result: V2Result, decision: Decision, *, v1_ran: bool) -> Served:
    """Which version did the work that the answer to a V2 task reports."""
    v2_ran = not result.untouched and not decision.whole
    if v1_ran:
        return "both" if v2_ran else "v1"
    return "v2" if v2_ran else "none"


def merge(v2: Coordination, v1: Coordination) -> Coordination:
    """The caller's view: V1's result for each agent that V1 ran, V2's for the others, and the later
    of the two ends. Both times count from the request."""
    rescued = {result.agent: result for result in v1.results}
    return replace(
        v2,
        coordination_time_ms=max(v2.coordination_time_ms, v1.coordination_time_ms),
        total_time_ms=max(v2.total_time_ms, v1.total_time_ms),
        results=tuple(rescued.get(result.agent, result) for result in v2.results),
    )


def outcome_of(coordination: Coordination) -> Outcome:
    """`done` if every agent is done, `failed` if none is."""
    done = coordination.count(AgentState.DONE)
    if done == coordination.agents:
        return "done"
    return "partial" if done else "failed"


def uniform(
    task_id: str, agents: Sequence[str], state: AgentState, reason: str, *, elapsed_ms: float
) -> Coordination:
    """A coordination whose agents all stand alike."""
    return Coordination(
        task_id=task_id,
        coordination_time_ms=elapsed_ms,
        total_time_ms=elapsed_ms,
        results=tuple(AgentResult(agent=agent, state=state, reason=reason) for agent in agents),
    )


def settle(coordination: Coordination, reason: str) -> Coordination:
    """Nothing more will be heard of this task: what is not final is unknown."""
    if coordination.complete:
        return coordination
    return replace(
        coordination,
        results=tuple(
            replace(result, state=AgentState.UNKNOWN, reason=reason)
            if result.state in (AgentState.WAITING, AgentState.RUNNING)
            else result
            for result in coordination.results
        ),
    )
