"""What one version did in one time bucket, as sums that add up over buckets and hosts.

Sums are whole numbers (millionths of a percent, microseconds): adding them in any order gives the
same bytes, so a verdict can be replayed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cfn.metrics import checks
from cfn.metrics.histogram import Histogram
from cfn.metrics.records import FALLBACKS, OUTCOMES, RATES, Coordinated

MICRO = 1_000_000


@dataclass(slots=True)
class Arm:
    """Totals over requests **ordered** to one version. A mutable accumulator.

    `rate_sums` holds, for each rate of the records, the sum over requests in millionths of a
    percent; `time_sum_us` the sum of the coordination times in microseconds.
    """

    requests: int = 0
    agents: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    fallbacks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FALLBACKS, 0))
    rate_sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RATES, 0))
    time_sum_us: int = 0
    times_ms: Histogram = field(default_factory=Histogram)

    def add(self, event: Coordinated) -> None:
        """Count one coordination."""
        self.requests += 1
        self.agents += event.agents
        self.outcomes[event.outcome] += 1
        if event.fallback is not None:
            self.fallbacks[event.fallback] += 1
        for rate, value in zip(RATES, event.rates_pct, strict=True):
            self.rate_sums[rate] += round(value * MICRO)
        self.time_sum_us += round(event.coordination_time_ms * 1_000)
        self.times_ms.add(event.coordination_time_ms)

    def merge(self, other: "Arm") -> None:
        """Add another arm's totals."""
        self.requests += other.requests
        self.agents += other.agents
        self.time_sum_us += other.time_sum_us
        self.times_ms.merge(other.times_ms)
        for mine, theirs in (
            (self.outcomes, other.outcomes),
            (self.fallbacks, other.fallbacks),
            (self.rate_sums, other.rate_sums),
        ):
            for key, value in theirs.items():
                mine[key] += value

    def rate_pct(self, rate: str) -> float | None:
        """Mean of a rate over requests, in percent; None without requests."""
        return self.rate_sums[rate] / MICRO / self.requests if self.requests else None

    def as_json(self) -> dict[str, Any]:
        """The object that evidence carries."""
        return {
            "requests": self.requests,
            "agents": self.agents,
            "outcomes": dict(self.outcomes),
            "fallbacks": dict(self.fallbacks),
            "rate_sums_micropct": dict(self.rate_sums),
            "coordination_time_sum_us": self.time_sum_us,
            "coordination_time_ms": self.times_ms.as_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Arm":
        """The inverse of `as_json`. Raises ValueError, also when the counts contradict one another."""

        def counts(field_name: str, keys: tuple[str, ...]) -> dict[str, int]:
            table = checks.mapping(value.get(field_name), field_name)
            return {key: checks.whole(table.get(key), f"{field_name}.{key}") for key in keys}

        arm = cls(
            requests=checks.whole(value.get("requests"), "requests"),
            agents=checks.whole(value.get("agents"), "agents"),
            outcomes=counts("outcomes", OUTCOMES),
            fallbacks=counts("fallbacks", FALLBACKS),
            rate_sums=counts("rate_sums_micropct", RATES),
            time_sum_us=checks.whole(value.get("coordination_time_sum_us"), "coordination_time_sum_us"),
            times_ms=Histogram.from_json(checks.mapping(value.get("coordination_time_ms"), "histogram")),
        )
        if arm.times_ms.total != arm.requests or sum(arm.outcomes.values()) != arm.requests:
            raise ValueError("an arm's counts do not add up to its requests")
        if any(total > 100 * MICRO * arm.requests for total in arm.rate_sums.values()):
            raise ValueError("an arm's rates add up to more than 100 % a request")
        return arm
