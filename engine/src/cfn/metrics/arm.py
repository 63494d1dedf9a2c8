"""What one version did in one time bucket, as sums that add up over buckets and hosts.

Sums are whole numbers (millionths of a percent, microseconds): adding them in any order gives the
same bytes, so a verdict can be replayed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cfn.metrics import checks
from cfn.metrics.histogram import Histogram
from cfn.metrics.records import FALLBACKS, LEVEL_RATES, OUTCOMES, PERFECT_PCT, RATES

MICRO = 1_000_000
LARGE_AGENTS = 500  # the plan has a target for requests up to so many agents, and another above


@dataclass(slots=True)
class RateSum:
    """One rate over the requests that carry it: their number, the sum in millionths of a percent, and
    how many were not perfect."""

    rated: int = 0
    sum_micropct: int = 0
    bad: int = 0

    def add(self, value_pct: float, perfect_pct: float, times: int = 1) -> None:
        """Count a value so many times."""
        self.rated += times
        self.sum_micropct += round(value_pct * MICRO) * times
        self.bad += times * (value_pct != perfect_pct)

    @property
    def mean_pct(self) -> float | None:
        """Mean over requests, in percent; None without any."""
        return self.sum_micropct / MICRO / self.rated if self.rated else None


@dataclass(slots=True)
class Arm:
    """Totals over requests **ordered** to one version. A mutable accumulator.

    `outcomes`, `fallbacks` and `rates` (by the records' name) hold what occurred; `time_sum_us` the
    sum of the coordination times in microseconds. `times_ms` is of all requests, `large_times_ms` of
    those with more than LARGE_AGENTS agents.
    """

    requests: int = 0
    agents: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    rates: dict[str, RateSum] = field(default_factory=dict)
    time_sum_us: int = 0
    times_ms: Histogram = field(default_factory=Histogram)
    large_times_ms: Histogram = field(default_factory=Histogram)

    def add(
        self,
        times_ms: list[float],
        *,
        agents: int,
        outcome: str,
        fallback: str | None,
        rates_pct: Mapping[str, float | None],
    ) -> None:
        """Count requests that differ in nothing but their coordination times, one for each time."""
        count = len(times_ms)
        self.requests += count
        self.agents += agents * count
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        if fallback is not None:
            self.fallbacks[fallback] = self.fallbacks.get(fallback, 0) + count
        for rate, value in rates_pct.items():
            if value is not None:
                self.rates.setdefault(rate, RateSum()).add(value, PERFECT_PCT[rate], count)
        for value in times_ms:
            self.time_sum_us += round(value * 1_000)
            self.times_ms.add(value)
            if agents > LARGE_AGENTS:
                self.large_times_ms.add(value)

    def merge(self, other: "Arm") -> None:
        """Add another arm's totals."""
        self.requests += other.requests
        self.agents += other.agents
        self.time_sum_us += other.time_sum_us
        self.times_ms.merge(other.times_ms)
        self.large_times_ms.merge(other.large_times_ms)
        for mine, theirs in ((self.outcomes, other.outcomes), (self.fallbacks, other.fallbacks)):
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0) + value
        for rate, summed in other.rates.items():
            total = self.rates.setdefault(rate, RateSum())
            total.rated += summed.rated
            total.sum_micropct += summed.sum_micropct
            total.bad += summed.bad

    def rate_pct(self, rate: str) -> float | None:
        """Mean of a rate over the requests that carry it, in percent; None without any."""
        return self.rates[rate].mean_pct if rate in self.rates else None

    def times(self, metric: str) -> Histogram:
        """The coordination times that a metric of them is about."""
        if metric == "coordination_time_large_ms":
            return self.large_times_ms
        if metric == "coordination_time_typical_ms":
            return self.times_ms.without(self.large_times_ms)
        return self.times_ms

    def as_json(self) -> dict[str, Any]:
        """The object that evidence carries. What did not occur is left out."""
        return {
            "requests": self.requests,
            "agents": self.agents,
            "outcomes": dict(self.outcomes),
            "fallbacks": dict(self.fallbacks),
            "rates": {
                rate: [each.rated, each.sum_micropct, each.bad] for rate, each in sorted(self.rates.items())
            },
            "coordination_time_sum_us": self.time_sum_us,
            "coordination_time_ms": self.times_ms.as_json(),
            "coordination_time_large_ms": self.large_times_ms.as_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Arm":
        """The inverse of `as_json`. Raises ValueError, also when the counts contradict one another."""
        arm = cls(
            requests=checks.whole(value.get("requests"), "requests"),
            agents=checks.whole(value.get("agents"), "agents"),
            outcomes=_counts(value, "outcomes", OUTCOMES),
            fallbacks=_counts(value, "fallbacks", FALLBACKS),
            rates=_rates(checks.mapping(value.get("rates"), "rates")),
            time_sum_us=checks.whole(value.get("coordination_time_sum_us"), "coordination_time_sum_us"),
            times_ms=Histogram.from_json(checks.mapping(value.get("coordination_time_ms"), "histogram")),
            large_times_ms=Histogram.from_json(
                checks.mapping(value.get("coordination_time_large_ms"), "histogram")
            ),
        )
        if any(arm.times_ms.counts.get(key, 0) < each for key, each in arm.large_times_ms.counts.items()):
            raise ValueError("an arm has more large requests than requests")
        if arm.times_ms.total != arm.requests or sum(arm.outcomes.values()) != arm.requests:
            raise ValueError("an arm's counts do not add up to its requests")
        if sum(arm.fallbacks.values()) > arm.requests:
            raise ValueError("an arm has more fallbacks than requests")
        for rate, each in arm.rates.items():
            complete = each.rated == arm.requests if rate in RATES else each.rated <= arm.requests
            if not complete or each.sum_micropct > 100 * MICRO * each.rated:
                raise ValueError(f"an arm's {rate} does not add up to its requests")
            if not _bad_adds_up(each, PERFECT_PCT[rate]):
                raise ValueError(f"an arm's {rate} contradicts its number of bad requests")
        if arm.requests and not set(RATES) <= set(arm.rates):
            raise ValueError("an arm lacks a rate")
        return arm


def _counts(value: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> dict[str, int]:
    table = checks.mapping(value.get(name), name)
    return {
        checks.one_of(key, name, allowed): checks.whole(count, f"{name}.{key}", low=1)
        for key, count in table.items()
    }


def _rates(value: Mapping[str, Any]) -> dict[str, RateSum]:
    found = {}
    for rate, each in value.items():
        checks.one_of(rate, "rate", (*RATES, *LEVEL_RATES))
        if len(checks.sequence(each, rate)) != 3:
            raise ValueError(f"{rate} is not [rated, sum_micropct, bad]")
        rated, total, bad = (checks.whole(part, rate) for part in each)
        found[rate] = RateSum(rated=rated, sum_micropct=total, bad=bad)
    return found


def _bad_adds_up(each: RateSum, perfect_pct: float) -> bool:
    """Whether the distance of the sum from perfect can be that of `bad` imperfect requests."""
    distance = abs(round(perfect_pct * MICRO) * each.rated - each.sum_micropct)
    return each.bad <= each.rated and distance <= 100 * MICRO * each.bad
