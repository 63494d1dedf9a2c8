"""The metrics that a criterion may name: unit, where the figure comes from, and which statistics it has."""

from dataclasses import dataclass
from enum import StrEnum

from cfn.metrics.records import RATES


class Origin(StrEnum):
    """Where a metric is read."""

    EVENTS = "events"  # coordination events, by ordered version
    SAMPLES = "samples"  # the collector's samples
    LATER = "later"  # named by the stage table, not in the records of version 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A metric. `units` are those that a criterion may give for each of its statistics."""

    origin: Origin
    statistics: dict[str, str]  # statistic: unit


def _gauge(unit: str) -> Measure:
    return Measure(
        origin=Origin.SAMPLES,
        statistics={
            "mean": unit,
            "min": unit,
            "max": unit,
            "last": unit,
            "relative_range": "pct",
            "slope": "pct_per_window",
        },
    )


def _later(**statistics: str) -> Measure:
    return Measure(origin=Origin.LATER, statistics=statistics)


_RATE = Measure(origin=Origin.EVENTS, statistics={"mean": "pct"})

MEASURES: dict[str, Measure] = {
    "coordination_time_ms": Measure(
        origin=Origin.EVENTS, statistics={"p50": "ms", "p95": "ms", "p99": "ms", "mean": "ms"}
    ),
    **dict.fromkeys(RATES, _RATE),
    "requests": Measure(origin=Origin.EVENTS, statistics={"count": "count", "rate": "per_s"}),
    "fallbacks": Measure(origin=Origin.EVENTS, statistics={"sum": "count", "share": "pct"}),
    "memory_kb": _gauge("kb"),
    "fd_count": _gauge("count"),
    "tmpfs_pct": _gauge("pct"),
    "active_agents": _gauge("count"),
    "restarts": Measure(origin=Origin.SAMPLES, statistics={"sum": "count"}),
    # What later versions of the records will carry. A criterion on one of these is never PASS.
    "coordinator_health": _later(min="count"),
    "coordinator_restarts": _later(sum="count"),
    "critical_incidents": _later(sum="count"),
    "dashboards_healthy": _later(last="count"),
    "failover_time_s": _later(max="s"),
    "health_false_positive_pct": _later(share="pct"),
    "memory_coordinator_kb": _later(max="kb"),
    "memory_worker_kb": _later(max="kb"),
    "mesh_delivery_rate_pct": _later(mean="pct"),
    "runbooks_attested": _later(last="count"),
    "tmpfs_used_mb": _later(max="mb"),
    "v1_restoration_attested": _later(last="count"),
    "v2_v1_time_ratio": _later(mean="ratio"),
    "worker_delivery_rate_pct": _later(mean="pct"),
    "worker_imbalance_pct": _later(max="pct"),
}

# Counters that only rise: once over the limit, no later evidence brings them back under it.
CUMULATIVE = ("fallbacks", "restarts")
