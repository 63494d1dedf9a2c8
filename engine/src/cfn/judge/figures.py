"""The figure of a criterion: one number and how much evidence it stands on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from cfn.judge.criterion import Criterion
from cfn.metrics.arm import MICRO, Arm
from cfn.metrics.evidence import SampleCell
from cfn.metrics.records import RATES

_MAX_SLOPE_POINTS = 200  # pairs grow with the square; more points change a robust slope little


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` is None without evidence; `samples` counts requests, or samples of the collector."""

    value: float | None
    samples: int


def request_figure(criterion: Criterion, arm: Arm, seconds: float) -> Figure:
    """The figure of an event metric over the requests in `arm`, which took place in `seconds`."""
    value: float | None = None
    if criterion.metric in RATES:
        value = arm.rate_pct(criterion.metric)
    elif criterion.metric == "requests":
        value = arm.requests if criterion.statistic == "count" else arm.requests / seconds
    elif arm.requests and criterion.metric == "fallbacks":
        fallbacks = sum(arm.fallbacks.values())
        value = fallbacks if criterion.statistic == "sum" else 100 * fallbacks / arm.requests
    elif arm.requests and criterion.statistic == "mean":
        value = arm.time_sum_us / 1_000 / arm.requests
    elif arm.requests:
        value = arm.times_ms.quantile(int(criterion.statistic[1:]) / 100)
    return Figure(_finite(value), arm.requests)


def bad_fraction(criterion: Criterion, arm: Arm) -> tuple[float, float]:
    """For cfn.judge.proof: the sum of the requests' bad fractions, and the limit on their mean. Bad is
    what the criterion wants little of: errors, or what lacks to full delivery."""
    total = arm.rate_sums[criterion.metric] / MICRO / 100
    if criterion.compare in ("lt", "le"):
        return total, criterion.threshold / 100
    return max(0.0, arm.requests - total), 1 - criterion.threshold / 100


def sample_figure(criterion: Criterion, cells: Sequence[SampleCell]) -> Figure:
    """The figure of a sample metric over one host's buckets, oldest first; those without it are skipped."""
    if criterion.metric == "restarts":
        seen = [cell for cell in cells if cell.starts_samples]
        total = sum(sum(cell.restarts.values()) for cell in seen)
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
        case "relative_range":
            value = relative_range_pct([gauge.low for gauge in gauges])
        case _:
            points = [(index, cell.gauges[criterion.metric].low) for index, cell in enumerate(cells)
                      if criterion.metric in cell.gauges]  # fmt: skip
            value = slope_pct_per_window(points, len(cells))
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


def slope_pct_per_window(points: Sequence[tuple[int, float]], buckets: int) -> float | None:
    """Theil-Sen slope (median of the slopes of all pairs) times the window's length, in percent of the
    median. Of bucket minima: what grows under a leak is the level between two bursts of work. None
    below 3 buckets."""
    middle = median(value for _, value in points) if len(points) >= 3 else 0.0
    if middle <= 0:
        return None
    step = math.ceil(len(points) / _MAX_SLOPE_POINTS)
    chosen = points[::step]
    slopes = [
        (late - early) / (later - earlier)
        for index, (earlier, early) in enumerate(chosen)
        for later, late in chosen[index + 1 :]
    ]
    return 100 * median(slopes) * buckets / middle if slopes else None


def _finite(value: float | None) -> float | None:
    """NaN and infinities are never values."""
    return value if value is not None and math.isfinite(value) else None
