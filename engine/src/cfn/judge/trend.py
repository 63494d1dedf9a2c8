"""Trends: does a level grow over the window, beyond what noise explains?

Theil-Sen (`scipy.stats.theilslopes`): the median of the slopes of all pairs, with Sen's confidence
interval (JASA 1968), which takes the points for independent. Levels of a process are not, so the
interval is widened by sqrt((1 + r) / (1 - r)), r the correlation of successive residuals: the loss of
effective samples under first-order autocorrelation (Bayley, Hammersley 1946). Looked at once, when the
window is full.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_POINTS = 500  # pairs grow with the square; beyond it, successive points become their median
CONFIDENCE = 0.99  # one-sided, that the slope is at least `low`
MIN_POINTS = 8
_MOST_CORRELATED = 0.99


@dataclass(frozen=True, slots=True)
class Trend:
    """Growth over the whole window in percent of the median level, and the lower end of its one-sided
    confidence interval."""

    slope_pct: float
    low_pct: float
    points: int


def trend(points: Sequence[tuple[int, float]], buckets: int) -> Trend | None:
    """The trend of (bucket number, level) points in a window of so many buckets; None below MIN_POINTS
    or without a positive level."""
    from scipy.stats import theilslopes  # a second of imports that most looks do not need

    if len(points) < MIN_POINTS:
        return None
    step = math.ceil(len(points) / MAX_POINTS)
    whole = len(points) // step * step
    table = np.array(points[:whole], dtype=float).reshape(-1, step, 2)
    when, level = table[:, :, 0].mean(axis=1), np.median(table[:, :, 1], axis=1)
    middle = float(np.median(level))
    if middle <= 0:
        return None
    if float(np.ptp(level)) == 0:
        return Trend(0.0, 0.0, len(points))
    found = theilslopes(level, when, alpha=2 * CONFIDENCE - 1)
    residuals = level - found.intercept - found.slope * when
    widened = _widening(residuals)
    scale = 100 * buckets / middle
    low = found.slope - (found.slope - found.low_slope) * widened
    return Trend(float(found.slope * scale), float(low * scale), len(points))


def _widening(residuals: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
    spread = float((residuals**2).sum())
    if spread == 0:
        return 1.0
    correlation = float((residuals[1:] * residuals[:-1]).sum()) / spread
    correlation = min(max(correlation, 0.0), _MOST_CORRELATED)
    return math.sqrt((1 + correlation) / (1 - correlation))
