"""The figure of a criterion: one number and how much evidence it stands on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from cfn.judge.criterion import Criterion
from cfn.judge.measures import COORDINATOR_UNIT, MEASURES
from cfn.metrics.arm import MICRO, Arm
from cfn.metrics.evidence import SampleCell


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` is None without evidence; `samples` counts requests, or samples of the collector."""

    value: float | None
    samples: int


def request_figure(criterion: Criterion, arm: Arm, seconds: float) -> Figure:
    """The figure of an event metric over the requests in `arm`, which took place in `seconds`."""
    value: float | None = None
    if MEASURES[criterion.metric].statistics == {"mean": "pct"}:
        rated = arm.rates.get(criterion.metric)
        return Figure(_finite(arm.rate_pct(criterion.metric)), rated.rated if rated else 0)
    if criterion.quantile is not None:
        times = arm.times(criterion.metric)
        return Figure(_finite(times.quantile(criterion.quantile)), times.total)
    if criterion.metric == "requests":
        value = arm.requests if criterion.statistic == "count" else arm.requests / seconds
    elif arm.requests and criterion.metric == "fallbacks":
        fallbacks = sum(arm.fallbacks.values())
        value = fallbacks if criterion.statistic == "sum" else 100 * fallbacks / arm.requests
    elif arm.requests and criterion.statistic == "mean":
        value = arm.time_sum_us / 1_000 / arm.requests
    return Figure(_finite(value), arm.requests)


def bad_sum(criterion: Criterion, arm: Arm) -> tuple[float, int]:
    """For cfn.judge.proof: the sum of the requests' bad fractions, and their number. Bad is what the
    criterion wants little of: errors, what lacks to full delivery, or requests slower than its limit."""
    if criterion.quantile is not None:
        times = arm.times(criterion.metric)
        return float(times.above(criterion.threshold)), times.total
    rate = arm.rates.get(criterion.metric)
    if rate is None:
        return 0.0, 0
    total = rate.sum_micropct / MICRO / 100
    return (total if criterion.compare in ("lt", "le") else max(0.0, rate.rated - total)), rate.rated


def bad_limit(criterion: Criterion) -> float:
    """The limit on the mean bad fraction."""
    if criterion.quantile is not None:
        return round(1 - criterion.quantile, 9)
    share = criterion.threshold / 100
    return share if criterion.compare in ("lt", "le") else round(1 - share, 9)


def sample_figure(criterion: Criterion, cells: Sequence[SampleCell]) -> Figure:
    """The figure of a sample metric over one host's buckets, oldest first; those without it are skipped."""
    if criterion.metric in ("restarts", "coordinator_restarts"):
        seen = [cell for cell in cells if cell.starts_samples]
        total = sum(_restarts(criterion.metric, cell) for cell in seen)
        return Figure(float(total) if seen else None, sum(cell.starts_samples for cell in seen))
    gauges = [cell.gauges[criterion.metric] for cell in cells if criterion.metric in cell.gauges]
    samples = sum(gauge.samples for gauge in gauges)
    if not gauges:
        return Figure(None, 0)
    value: float | None
    match criterion.statistic:
        case "mean":
            value = sum(gauge.mean * gauge.samples for gauge in gauges) / samples
        case "min":
            value = min(gauge.low for gauge in gauges)
        case "max":
            value = max(gauge.high for gauge in gauges)
        case "last":
            value = gauges[-1].last
        case _:
            value = relative_range_pct([gauge.low for gauge in gauges])
    return Figure(_finite(value), samples)


def relative_range_pct(levels: Sequence[float]) -> float | None:
    """Half the spread between the 5th and 95th percentile (nearest rank) of bucket minima, in percent of
    their median: 10 means the level stayed within +-10 % but for the odd bucket. Minima, since agents
    come and go within a bucket and what they leave behind is what counts. None below 3 buckets."""
    middle = median(levels) if len(levels) >= 3 else 0.0
    if middle <= 0:
        return None
    ranked = sorted(levels)
    low = ranked[max(0, math.ceil(0.05 * len(ranked)) - 1)]
    high = ranked[math.ceil(0.95 * len(ranked)) - 1]
    return 100 * (high - low) / 2 / middle


def levels(metric: str, cells: Sequence[SampleCell]) -> list[tuple[int, float]]:
    """For a trend: the minimum of each bucket that has the gauge, by the bucket's number. Minima, since
    what grows under a leak is the level between two bursts of work."""
    return [(number, cell.gauges[metric].low) for number, cell in enumerate(cells) if metric in cell.gauges]


def _restarts(metric: str, cell: SampleCell) -> int:
    every = metric == "restarts"
    return sum(count for unit, count in cell.restarts.items() if every or unit.startswith(COORDINATOR_UNIT))


def _finite(value: float | None) -> float | None:
    """NaN and infinities are never values."""
    return value if value is not None and math.isfinite(value) else None
