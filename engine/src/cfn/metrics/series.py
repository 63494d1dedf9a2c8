"""The series that a Prometheus holds of one host: what the collector exposes, and what is read again.

Names carry base units. Counters begin at the collector's start; all of them come from one moment, so
that they add up in every scrape.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from cfn.metrics.arm import LARGE_AGENTS, RateSum
from cfn.metrics.records import (
    FALLBACKS,
    LEVEL_RATES,
    OUTCOMES,
    PERFECT_PCT,
    RATES,
    Coordinated,
    GenerationStarted,
    Ordered,
)

VERSIONS = ("v1", "v2")
# A quarter apart, and every limit of the stage table is a bound, so that it is judged exactly.
BOUNDS_S = (
    0.001, 0.00125, 0.0016, 0.002, 0.0025, 0.0032, 0.004, 0.005, 0.00625, 0.008, 0.01, 0.0125, 0.016,
    0.02, 0.025, 0.032, 0.04, 0.05, 0.0625, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.32, 0.4, 0.5, 0.625, 0.8,
    1.0, 1.25, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 6.25, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0,
    60.0, 80.0, 100.0, 120.0,
)  # fmt: skip

COORDINATIONS = "cfn_coordinations"
AGENTS = "cfn_coordination_agents"
FALLBACK = "cfn_fallbacks"
DURATION = "cfn_coordination_duration_seconds"
LARGE_DURATION = "cfn_coordination_large_duration_seconds"
OUTSIDE = "cfn_coordinations_outside_split"
CHECKED = "cfn_split_checked"
MISMATCHES = "cfn_split_mismatches"
COUNTED_SINCE = "cfn_counted_since_timestamp_seconds"
CONFIGURATION = "cfn_configuration_info"
SAMPLED_AT = "cfn_sample_timestamp_seconds"
BOOTED_AT = "cfn_host_boot_timestamp_seconds"
UNIT_STARTS = "cfn_unit_starts"


def rate_series(rate: str) -> tuple[str, str, str]:
    """The counters of one rate: the sum of its ratios, the requests that carry it, and those of them
    that are not perfect."""
    name = f"cfn_coordination_{rate.removesuffix('_rate_pct')}"
    return f"{name}_ratio_sum", f"{name}_rated", f"{name}_imperfect"


@dataclass(frozen=True, slots=True)
class Shown:
    """A gauge of the samples: its series and label, and what a value is multiplied by to be shown."""

    series: str
    scale: float = 1.0
    label: tuple[str, str] | None = None


_MS, _PCT, _KB, _MB = 0.001, 0.01, 1_024.0, 1_048_576.0

GAUGE_SERIES = {
    "memory_kb": Shown("cfn_memory_bytes", _KB),
    "memory_growth_rate": Shown("cfn_memory_growth_bytes_per_minute", _KB),
    "memory_coordinator_kb": Shown("cfn_coordinator_memory_max_bytes", _KB),
    "memory_worker_kb": Shown("cfn_worker_memory_max_bytes", _KB),
    "fd_count": Shown("cfn_open_fds"),
    "tmpfs_pct": Shown("cfn_tmpfs_used_ratio", _PCT),
    "tmpfs_used_mb": Shown("cfn_tmpfs_used_bytes", _MB),
    "active_agents": Shown("cfn_active_agents"),
    "coordination_time": Shown("cfn_coordination_time_seconds", _MS, ("quantile", "0.5")),
    "coordination_time_p95": Shown("cfn_coordination_time_seconds", _MS, ("quantile", "0.95")),
    "delivery_rate": Shown("cfn_delivery_ratio", _PCT, ("level", "all")),
    "coordinator_health": Shown("cfn_coordinators_up"),
    "coordinator_response_time_ms": Shown("cfn_coordinator_response_time_seconds", _MS),
    "failover_time_s": Shown("cfn_failover_time_seconds"),
    "health_false_positive_pct": Shown("cfn_health_false_positive_ratio", _PCT),
    "queue_depth": Shown("cfn_queue_depth"),
    "team_coordination_time_ms": Shown("cfn_team_coordination_time_seconds", _MS),
    "worker_imbalance_pct": Shown("cfn_worker_imbalance_ratio", _PCT),
}


@dataclass(slots=True)
class _Durations:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        total, buckets = 0, []
        for bound, count in zip((*BOUNDS_S, float("inf")), self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
        return buckets


@dataclass(slots=True)
class _Version:
    agents: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    rates: dict[str, RateSum] = field(
        default_factory=lambda: {rate: RateSum() for rate in (*RATES, *LEVEL_RATES)}
    )
    durations: _Durations = field(default_factory=_Durations)
    large: _Durations = field(default_factory=_Durations)


class Totals(Collector):
    """The counters over coordinations, and since when they count. Fed by one thread, and read by any."""

    def __init__(self, registry: CollectorRegistry | None = None, *, since_s: float) -> None:
        self._since_s = since_s
        self._lock = threading.Lock()
        self._versions = {version: _Version() for version in VERSIONS}
        self._fallbacks = dict.fromkeys(FALLBACKS, 0)
        self._outside = self._checked = self._mismatches = self._generation = 0
        self._config: Ordered | None = None
        if registry is not None:
            registry.register(self)

    def put_in_force(self, record: GenerationStarted) -> None:
        """A configuration came into force."""
        with self._lock:
            self._configured(record.generation, record.config)

    def add(self, event: Coordinated, *, as_ordered: bool) -> None:
        """Count a coordination; `as_ordered` says whether its version is what is recomputed."""
        with self._lock:
            self._configured(event.generation, event.config)
            self._checked += 1
            self._mismatches += not as_ordered
            if event.reason == "over_capacity":
                self._outside += 1
                return
            version = self._versions[event.ordered]
            version.agents += event.agents
            version.outcomes[event.outcome] += 1
            rates = zip((*RATES, *LEVEL_RATES), (*event.rates_pct, *event.level_rates_pct), strict=True)
            for rate, value in rates:
                if value is not None:
                    version.rates[rate].add(value, PERFECT_PCT[rate])
            version.durations.add(event.coordination_time_ms * _MS)
            if event.agents > LARGE_AGENTS:
                version.large.add(event.coordination_time_ms * _MS)
            if event.fallback is not None:
                self._fallbacks[event.fallback] += 1

    def _configured(self, generation: int, config: Ordered) -> None:
        if generation >= self._generation:
            self._generation, self._config = generation, config

    def collect(self) -> Iterable[Metric]:
        """All families, of one moment."""
        with self._lock:
            return list(self._families())

    def _families(self) -> Iterable[Metric]:
        counts = CounterMetricFamily(
            COORDINATIONS, "Coordinations within the split that ended.", labels=["ordered", "outcome"]
        )
        agents = CounterMetricFamily(AGENTS, "Agents of these coordinations.", labels=["ordered"])
        for name, version in self._versions.items():
            agents.add_metric([name], version.agents)
            for outcome, count in version.outcomes.items():
                counts.add_metric([name, outcome], count)
        yield counts
        yield agents
        for rate in (*RATES, *LEVEL_RATES):
            yield from self._rate(rate)
        causes = CounterMetricFamily(FALLBACK, "Coordinations that V1 was called in for.", labels=["cause"])
        for cause, count in self._fallbacks.items():
            causes.add_metric([cause], count)
        yield causes
        yield self._histogram(DURATION, "From the request to the last acknowledgement.", "durations")
        yield self._histogram(LARGE_DURATION, f"The same, above {LARGE_AGENTS} agents.", "large")
        yield CounterMetricFamily(OUTSIDE, "Coordinations outside the split.", value=self._outside)
        yield CounterMetricFamily(CHECKED, "Events whose version was recomputed.", value=self._checked)
        yield CounterMetricFamily(MISMATCHES, "Of these, not as ordered.", value=self._mismatches)
        yield GaugeMetricFamily(COUNTED_SINCE, "When these counters began at 0.", value=self._since_s)
        if self._config is not None:
            info = GaugeMetricFamily(
                CONFIGURATION,
                "Generation in force, and its configuration.",
                labels=["version", "traffic_pct"],
            )
            info.add_metric([self._config.version, format(self._config.traffic_pct, "f")], self._generation)
            yield info

    def _rate(self, rate: str) -> Iterable[Metric]:
        names = rate_series(rate)
        texts = (f"Sum of the ratios of {rate}.", f"Coordinations with a {rate}.", f"Imperfect {rate}.")
        families = [
            CounterMetricFamily(name, text, labels=["ordered"])
            for name, text in zip(names, texts, strict=True)
        ]
        for name, version in self._versions.items():
            summed = version.rates[rate]
            for family, value in zip(
                families, (summed.sum_micropct / 1e8, summed.rated, summed.bad), strict=True
            ):
                family.add_metric([name], value)
        return families

    def _histogram(self, name: str, text: str, which: str) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["ordered"])
        for version, totals in self._versions.items():
            durations: _Durations = getattr(totals, which)
            family.add_metric([version], durations.cumulative(), durations.sum_s)
        return family
