"""What is simulated: one frozen description, checked once."""

from dataclasses import dataclass, fields
from typing import Any

from cfn.errors import UsageError
from cfn.metrics import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fleet under load. Rates are per hour over all hosts, shares in percent, factors relative.

    Times `*_at_h` and lengths `*_h` count from the flip; a negative one means never.
    """

    seed: int = 1
    hosts: int = 3
    hours: float = 169.0
    requests_per_h: float = 20_000.0
    traffic_pct: float = 10.0
    agents: int = 10
    # What V1 does, and what V2 does to that.
    error_pct: float = 0.5
    v2_error_factor: float = 1.0
    undelivered_share: float = 0.0  # of the bad requests: also undelivered
    time_ms: float = 400.0
    v2_time_factor: float = 1.0
    time_spread: float = 0.4  # standard deviation of the logarithm of a coordination time
    # What no model of the judge assumes.
    daily_cycle: float = 0.6  # 0 is flat, 1 is nothing at all at night
    bursts_per_day: float = 3.0  # of errors, on both versions
    burst_factor: float = 6.0
    burst_minutes: float = 15.0
    host_noise: float = 0.0  # standard deviation of the logarithm of each host's and arm's error rate
    noise_correlation: float = 0.9  # from one bucket to the next
    clustering: float = 0.0  # correlation of errors within a bucket on a host (beta-binomial)
    drift_pct_per_day: float = 0.0  # of V2's error rate
    step_at_h: float = -1.0
    step_factor: float = 1.0  # of V2's error rate from then on
    # What the collector sees.
    memory_kb: float = 400_000.0
    memory_noise: float = 0.05
    leak_pct_per_day: float = 0.0
    gap_at_h: float = -1.0
    gap_h: float = 0.0
    restart_at_h: float = -1.0  # of a unit, by itself
    reboot_at_h: float = -1.0
    clock_jump_at_h: float = -1.0
    clock_jump_s: float = 0.0
    idle_from_h: float = -1.0  # no request any more

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Scenario":
        """The scenario in a JSON object. Raises UsageError naming the field and what is allowed."""
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise UsageError(f"unknown field {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        try:
            checked: dict[str, Any] = {name: _checked(name, each) for name, each in value.items()}
            return cls(**checked)
        except ValueError as error:
            raise UsageError(f"scenario: {error}") from None


_BOUNDS: dict[str, tuple[float, float]] = {
    "hosts": (1, 200),
    "hours": (0.5, 2_000),
    "requests_per_h": (0, 1e7),
    "traffic_pct": (0, 100),
    "agents": (1, 10_000),
    "error_pct": (0, 100),
    "undelivered_share": (0, 100),
    "time_ms": (1, 1e6),
    "daily_cycle": (0, 1),
    "noise_correlation": (0, 0.999),
    "clustering": (0, 0.99),
    "clock_jump_s": (-86_400, 86_400),
    "drift_pct_per_day": (-100, 1_000),
    "leak_pct_per_day": (-10, 1_000),
}
_WHOLE = ("seed", "hosts", "agents")


def _checked(name: str, value: object) -> float:
    low, high = _BOUNDS.get(name, (-1.0 if name.endswith("_at_h") or name == "idle_from_h" else 0.0, 1e9))
    if name in _WHOLE:
        return checks.whole(value, name, low=int(low), high=int(high))
    return checks.number(value, name, low=low, high=high)
