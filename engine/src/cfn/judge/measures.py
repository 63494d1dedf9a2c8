"""The metrics that a criterion may name: unit, where the figure comes from, and which statistics it has."""

from dataclasses import dataclass
from enum import StrEnum

from cfn.metrics.records import LEVEL_RATES, RATES


class Origin(StrEnum):
    """Where a metric is read."""

    EVENTS = "events"  # coordination events, by ordered version
    SAMPLES = "samples"  # the collector's samples
    LEDGER = "ledger"  # what people recorded: incidents and attestations
    COMPARISON = "comparison"  # V2 against V1, while both serve


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A metric. `statistics` maps each to its unit. `occasional` is a figure that is there only after
    something happened (a failover): without it a criterion waits, however well the collector works."""

    origin: Origin
    statistics: dict[str, str]
    occasional: bool = False


def _gauge(unit: str, *, occasional: bool = False) -> Measure:
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
        occasional=occasional,
    )


def _counted() -> Measure:
    return Measure(origin=Origin.SAMPLES, statistics={"sum": "count"})


_RATE = Measure(origin=Origin.EVENTS, statistics={"mean": "pct"})
_TIMES = Measure(origin=Origin.EVENTS, statistics={"p50": "ms", "p95": "ms", "p99": "ms"}, occasional=True)
_RATIO = Measure(origin=Origin.COMPARISON, statistics={"sequential": "ratio"})

MEASURES: dict[str, Measure] = {
    "coordination_time_ms": Measure(
        origin=Origin.EVENTS, statistics={"p50": "ms", "p95": "ms", "p99": "ms", "mean": "ms"}
    ),
    "coordination_time_typical_ms": _TIMES,
    "coordination_time_large_ms": _TIMES,
    **dict.fromkeys((*RATES, *LEVEL_RATES), _RATE),
    "requests": Measure(origin=Origin.EVENTS, statistics={"count": "count", "rate": "per_s"}),
    "fallbacks": Measure(origin=Origin.EVENTS, statistics={"sum": "count", "share": "pct"}),
    "memory_kb": _gauge("kb"),
    "memory_coordinator_kb": _gauge("kb"),
    "memory_worker_kb": _gauge("kb"),
    "fd_count": _gauge("count"),
    "tmpfs_pct": _gauge("pct"),
    "tmpfs_used_mb": _gauge("mb"),
    "active_agents": _gauge("count"),
    "coordinator_health": _gauge("count"),
    "coordinator_response_time_ms": _gauge("ms"),
    "queue_depth": _gauge("count"),
    "team_coordination_time_ms": _gauge("ms", occasional=True),
    "worker_imbalance_pct": _gauge("pct"),
    "failover_time_s": _gauge("s", occasional=True),
    "health_false_positive_pct": _gauge("pct"),
    "restarts": _counted(),
    "coordinator_restarts": _counted(),
    "critical_incidents": Measure(origin=Origin.LEDGER, statistics={"sum": "count"}),
    "attested": Measure(origin=Origin.LEDGER, statistics={"last": "count"}),
    "error_ratio": _RATIO,
    "nondelivery_ratio": _RATIO,
    "coordination_time_ratio": Measure(
        origin=Origin.COMPARISON, statistics={"p50": "ratio", "p95": "ratio", "mean": "ratio"}
    ),
}

# The rate whose bad requests a comparison counts.
COMPARED_RATES = {"error_ratio": "error_rate_pct", "nondelivery_ratio": "delivery_rate_pct"}

# Counters that only rise: once over the limit, no later evidence brings them back under it.
CUMULATIVE = ("fallbacks", "restarts", "coordinator_restarts")
COORDINATOR_UNIT = "coordinator"  # how the units begin whose starts are `coordinator_restarts`
