"""Reading one line of the events and samples files: a checked record, or the kind of its damage.

The format is docs/reference/records.md. A field that is missing, of the wrong type or out of range
makes the whole record damaged: a value that looks odd is never repaired into one that counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, cast

from cfn.metrics import checks
from cfn.metrics.histogram import LARGEST
from cfn.metrics.times import parse_ms

RECORD_VERSION = 1
OUTCOMES = ("done", "partial", "failed", "refused")
FALLBACKS = ("error", "time", "delivery")
RATES = ("delivery_rate_pct", "completion_rate_pct", "error_rate_pct")
# Carried by events of the hybrid topology only.
LEVEL_RATES = ("mesh_delivery_rate_pct", "worker_delivery_rate_pct")
# What a rate is when nothing is wrong.
PERFECT_PCT = dict.fromkeys((*RATES, *LEVEL_RATES), 100.0) | {"error_rate_pct": 0.0}
GAUGES = (
    "memory_kb",
    "fd_count",
    "tmpfs_pct",
    "active_agents",
    "coordination_time",
    "coordination_time_p95",
    "delivery_rate",
    "coordinator_health",
    "coordinator_response_time_ms",
    "failover_time_s",
    "health_false_positive_pct",
    "memory_coordinator_kb",
    "memory_growth_rate",
    "memory_worker_kb",
    "queue_depth",
    "team_coordination_time_ms",
    "tmpfs_used_mb",
    "worker_imbalance_pct",
)
MAX_UNITS = 64
_SIGNED_GAUGES = ("memory_growth_rate",)
_PERCENT_GAUGES = ("tmpfs_pct", "delivery_rate", "health_false_positive_pct")
_VERSIONS = ("v1", "v2")

Version = Literal["v1", "v2"]


class DamagedLineError(ValueError):
    """A line that is no record. `kind` is counted: garbage, not_finite, unknown_version, invalid."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """A configuration in force: which version, with how much traffic on V2."""

    version: Version
    traffic_pct: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStarted:
    """A configuration came into force on this host."""

    time_ms: int
    generation: int
    config: Ordered
    split_key_sha256: str
    max_agents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinated:
    """One coordination that ended. `split_on` is what its bucket is the bucket of: its sticky key, else
    its task's id. `rates_pct` is in the order of RATES, `level_rates_pct` in that of LEVEL_RATES, None
    where the topology has no such level."""

    time_ms: int
    release: str
    task_id: str
    split_on: str
    agents: int
    bucket: int
    generation: int
    config: Ordered
    ordered: Version
    reason: str
    fallback: str | None
    outcome: str
    coordination_time_ms: float
    rates_pct: tuple[float, float, float]
    level_rates_pct: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One sample of the collector: the gauges it could read, starts by unit if it could, how many
    requests of the split it saw end since the sample before (None if it could not see), and when the
    host booted."""

    time_ms: int
    release: str
    gauges: Mapping[str, float] = field(default_factory=dict)
    starts: Mapping[str, int] = field(default_factory=dict)
    requests: int | None = None
    boot_time_s: float | None = None


def gauge_range(name: str) -> tuple[float, float]:
    """The values that a gauge can have."""
    return -1e15 if name in _SIGNED_GAUGES else 0.0, 100.0 if name in _PERCENT_GAUGES else 1e15


def read_event(line: bytes) -> GenerationStarted | Coordinated:
    """The record in a line of the events file. Raises DamagedLineError."""
    value = _load(line)
    try:
        kind = checks.one_of(value.get("type"), "type", ("generation", "coordination"))
        return _generation(value) if kind == "generation" else _coordination(value)
    except ValueError as error:
        raise _damaged(error) from None


def read_sample(line: bytes) -> Sampled:
    """The record in a line of the samples file. Raises DamagedLineError."""
    value = _load(line)
    try:
        gauges = {
            name: checks.number(value[name], name, low=gauge_range(name)[0], high=gauge_range(name)[1])
            for name in GAUGES
            if name in value
        }
        starts = checks.mapping(value.get("starts", {}), "starts")
        if len(starts) > MAX_UNITS:
            raise ValueError(f"starts names {len(starts)} units; {MAX_UNITS} are allowed")
        return Sampled(
            time_ms=round(checks.number(value.get("timestamp"), "timestamp", high=2.5e11) * 1_000),
            release=checks.text(value.get("release"), "release"),
            gauges=gauges,
            starts={unit[:64]: checks.whole(count, f"starts.{unit}") for unit, count in starts.items()},
            requests=_requests(value),
            boot_time_s=checks.number(value["boot_time_s"], "boot_time_s")
            if "boot_time_s" in value
            else None,
        )
    except ValueError as error:
        raise _damaged(error) from None


def read_config(value: Mapping[str, Any]) -> Ordered:
    """The `version` and `traffic_pct` of a record. Raises ValueError."""
    version = checks.one_of(value.get("version"), "version", _VERSIONS)
    traffic = value.get("traffic_pct")
    if isinstance(traffic, str):
        traffic = float(traffic)
    share = checks.number(traffic, "traffic_pct", high=100.0)
    return Ordered(version=cast(Version, version), traffic_pct=Decimal(str(share)).normalize())


def _load(line: bytes) -> dict[str, Any]:
    try:
        value = checks.load_object(line)
    except checks.NotFiniteError as error:
        raise DamagedLineError("not_finite", str(error)) from None
    except ValueError as error:
        raise DamagedLineError("garbage", str(error)) from None
    version = value.get("v")
    if isinstance(version, bool) or version != RECORD_VERSION:
        raise DamagedLineError("unknown_version", f"v is {version!r}")
    return value


def _requests(value: Mapping[str, Any]) -> int | None:
    counts = [checks.whole(value[name], name) for name in ("v1_requests", "v2_requests") if name in value]
    return sum(counts) if len(counts) == 2 else None


def _damaged(error: ValueError) -> DamagedLineError:
    kind = "not_finite" if isinstance(error, checks.NotFiniteError) else "invalid"
    return DamagedLineError(kind, str(error))


def _generation(value: Mapping[str, Any]) -> GenerationStarted:
    return GenerationStarted(
        time_ms=parse_ms(checks.text(value.get("time"), "time")),
        generation=checks.whole(value.get("generation"), "generation", low=1),
        config=read_config(value),
        split_key_sha256=checks.text(value.get("split_key_sha256"), "split_key_sha256"),
        max_agents=checks.whole(value.get("max_agents"), "max_agents"),
    )


def _coordination(value: Mapping[str, Any]) -> Coordinated:
    fallback = value.get("fallback")
    rates = [checks.number(value.get(rate), rate, high=100.0) for rate in RATES]
    levels = [_optional_pct(value, rate) for rate in LEVEL_RATES]
    states = checks.mapping(value.get("states"), "states")
    agents = checks.whole(value.get("agents"), "agents")
    if sum(checks.whole(count, "states") for count in states.values()) != agents:
        raise ValueError("states do not add up to agents")
    return Coordinated(
        time_ms=parse_ms(checks.text(value.get("time"), "time")),
        release=checks.text(value.get("release"), "release"),
        task_id=checks.text(value.get("task_id"), "task_id"),
        split_on=checks.text(value.get("sticky_key", value.get("task_id")), "sticky_key"),
        agents=agents,
        bucket=checks.whole(value.get("bucket"), "bucket", high=9_999),
        generation=checks.whole(value.get("generation"), "generation", low=1),
        config=read_config(value),
        ordered=cast(Version, checks.one_of(value.get("ordered"), "ordered", _VERSIONS)),
        reason=checks.one_of(value.get("reason"), "reason", ("split", "over_capacity")),
        fallback=None if fallback is None else checks.one_of(fallback, "fallback", FALLBACKS),
        outcome=checks.one_of(value.get("outcome"), "outcome", OUTCOMES),
        coordination_time_ms=checks.number(
            value.get("coordination_time_ms"), "coordination_time_ms", high=LARGEST
        ),
        rates_pct=(rates[0], rates[1], rates[2]),
        level_rates_pct=(levels[0], levels[1]),
    )


def _optional_pct(value: Mapping[str, Any], rate: str) -> float | None:
    return None if value.get(rate) is None else checks.number(value[rate], rate, high=100.0)
