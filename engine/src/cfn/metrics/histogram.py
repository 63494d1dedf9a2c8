"""A histogram with logarithmic buckets: quantiles within 1 %, merged without loss.

Bucket i counts the values in (g^(i-1), g^i], with g = (1 + a) / (1 - a) and a the relative error;
its representative is 2 g^i / (g + 1), at most a away from every value in it (DDSketch: Masson, Rim,
Lee, VLDB 2019). Adding histograms of several hosts is exact, so a fleet's quantile is as good as a
host's, which averaged quantiles never are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cfn.metrics import checks

RELATIVE_ERROR = 0.01

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)
SMALLEST = 0.001  # below one microsecond, in milliseconds, values count as zero
LARGEST = 1e9  # eleven days, in milliseconds; no coordination lasts longer


@dataclass(slots=True)
class Histogram:
    """Counts by bucket index, and of zeros. A mutable accumulator; `merge` never changes its argument."""

    zeros: int = 0
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many values were added."""
        return self.zeros + sum(self.counts.values())

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, 0 to LARGEST, so many times. The caller has checked that it is finite."""
        if value < SMALLEST:
            self.zeros += times
            return
        index = math.ceil(math.log(value) / _LOG_GAMMA)
        self.counts[index] = self.counts.get(index, 0) + times

    def merge(self, other: "Histogram") -> None:
        """Add the counts of another histogram."""
        self.zeros += other.zeros
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count

    def without(self, part: "Histogram") -> "Histogram":
        """What is left of these values without `part` of them."""
        left = {index: count - part.counts.get(index, 0) for index, count in self.counts.items()}
        return Histogram(self.zeros - part.zeros, {index: count for index, count in left.items() if count})

    def quantile(self, share: float) -> float | None:
        """The value below which `share` of the values lie, by nearest rank; None of an empty one."""
        total = self.total
        if total == 0:
            return None
        rank = max(1, math.ceil(share * total))
        seen = self.zeros
        if rank <= seen:
            return 0.0
        last = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            last = index
            if rank <= seen:
                break
        return float(2.0 * _GAMMA**last / (_GAMMA + 1.0))

    def above(self, limit: float) -> int:
        """How many values lie above `limit`; those in the limit's own bucket count if most of it does."""
        if limit < SMALLEST:
            return self.total - self.zeros
        return sum(
            count for index, count in self.counts.items() if 2.0 * _GAMMA**index / (_GAMMA + 1.0) > limit
        )

    def as_json(self) -> dict[str, Any]:
        """The object that evidence carries."""
        return {"zeros": self.zeros, "counts": {str(key): self.counts[key] for key in sorted(self.counts)}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Histogram":
        """The inverse of `as_json`. Raises ValueError."""
        counts = {
            checks.whole(int(key), "bucket index", low=-2_000, high=2_000): checks.whole(
                count, "count", low=1
            )
            for key, count in checks.mapping(value.get("counts"), "counts").items()
        }
        return cls(zeros=checks.whole(value.get("zeros"), "zeros"), counts=counts)
