"""A sample from what could be read. Pure: what could not be read is absent, never 0."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cfn.collector.probes import Coordinator
from cfn.collector.tail import Ended

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What one round of reading gave; None for what did not answer.

    `processes` and `host` are fields of the sample as they are; `ended` are the coordinations since the
    sample before, or None without an events file.
    """

    time_s: float
    host_name: str
    release: str
    tmpfs: tuple[float, float] | None = None
    active_agents: int | None = None
    generation: int | None = None
    queue_depth: int | None = None
    inbox_messages: int | None = None
    router_in_flight: int | None = None
    v1_waiting: int | None = None
    failover_time_s: float | None = None
    memory_growth_rate: float | None = None
    health_false_positive_pct: float | None = None
    watch_age_s: float | None = None
    starts: Mapping[str, int] | None = None
    coordinators: Sequence[Coordinator] | None = None
    ended: Sequence[Ended] | None = None
    processes: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    detail: bool = False


_AS_READ = (
    "active_agents", "generation", "queue_depth", "inbox_messages", "router_in_flight", "v1_waiting",
    "failover_time_s", "memory_growth_rate", "health_false_positive_pct", "watch_age_s",
)  # fmt: skip


def sample(readings: Readings) -> dict[str, Any]:
    """The record of docs/reference/records.md."""
    record: dict[str, Any] = {
        "v": RECORD_VERSION,
        "host": readings.host_name,
        "release": readings.release,
        "timestamp": round(readings.time_s, 3),
        "starts": dict(readings.starts) if readings.starts else None,
        **readings.processes,
        **readings.host,
    }
    for name in _AS_READ:
        value = getattr(readings, name)
        record[name] = round(value, 3) if isinstance(value, float) else value
    if readings.tmpfs is not None:
        record["tmpfs_pct"], record["tmpfs_used_mb"] = (round(each, 3) for each in readings.tmpfs)
    if readings.coordinators is not None:
        record |= _coordinators(readings.coordinators)
    if readings.ended is not None:
        record |= _requests(readings.ended)
    if readings.detail:
        record["detail"] = _detail(readings)
    return {key: value for key, value in record.items() if value is not None}


def _coordinators(listed: Sequence[Coordinator]) -> dict[str, Any]:
    """How many are up, and the worst of them; agents within how much of their mean."""
    up = [each for each in listed if each.state == "up"]
    times = [each.response_time_ms for each in up if each.response_time_ms is not None]
    agents = [each.agents for each in up if each.agents is not None]
    fields: dict[str, Any] = {"coordinator_health": len(up)}
    if times:
        fields["coordinator_response_time_ms"] = round(max(times), 3)
    if agents and sum(agents):
        mean = sum(agents) / len(agents)
        fields["worker_imbalance_pct"] = round(100 * max(abs(each - mean) for each in agents) / mean, 3)
    return fields


def _requests(ended: Sequence[Ended]) -> dict[str, Any]:
    """Counts of both versions, and the figures of V2 if it had any request."""
    split = [each for each in ended if each.event.reason == "split"]
    v2 = [each for each in split if each.event.ordered == "v2"]
    figures: dict[str, Any] = {
        "v1_requests": len(split) - len(v2),
        "v2_requests": len(v2),
        "fallbacks": sum(each.event.fallback is not None for each in v2),
    }
    if split:
        figures["v2_share_pct"] = round(100 * len(v2) / len(split), 3)
        figures["v1_share_pct"] = round(100 - figures["v2_share_pct"], 3)
    if not v2:
        return figures
    times = sorted(each.event.coordination_time_ms for each in v2)
    for name, share in (("", 0.5), ("_p95", 0.95), ("_p99", 0.99)):
        figures[f"coordination_time{name}"] = round(nearest_rank(times, share), 3)
    for index, name in enumerate(("delivery_rate", "completion_rate", "error_rate")):
        figures[name] = round(sum(each.event.rates_pct[index] for each in v2) / len(v2), 3)
    for index, name in enumerate(("mesh_delivery_rate", "worker_delivery_rate")):
        known = [value for each in v2 if (value := each.event.level_rates_pct[index]) is not None]
        if known:
            figures[name] = round(sum(known) / len(known), 3)
    teams = [each.team_coordination_time_ms for each in v2 if each.team_coordination_time_ms is not None]
    if teams:
        figures["team_coordination_time_ms"] = round(max(teams), 3)
    return figures


def _detail(readings: Readings) -> dict[str, Any]:
    """What only a fresh flip is worth: every coordinator, and the slowest coordinations by name."""
    slowest = sorted(readings.ended or (), key=lambda each: -each.event.coordination_time_ms)[:5]
    return {
        "coordinators": [
            {
                "id": each.name,
                "state": each.state,
                "agents": each.agents,
                "queue_depth": each.queue_depth,
                "response_time_ms": each.response_time_ms,
            }
            for each in readings.coordinators or ()
        ],
        "slowest": [
            {
                "task_id": each.event.task_id,
                "ordered": each.event.ordered,
                "agents": each.event.agents,
                "coordination_time_ms": each.event.coordination_time_ms,
                "outcome": each.event.outcome,
                "fallback": each.event.fallback,
            }
            for each in slowest
        ],
    }


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; of a sorted, non-empty list."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
