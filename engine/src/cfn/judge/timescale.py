"""The time scale of the lab: a week in a minute, by one visible factor.

Only times are divided. Evidence is not: `min_samples`, `coverage`, thresholds and alpha stay.
Floors keep what real processes need; with them a window is never shorter than ten buckets.
"""

from dataclasses import dataclass, replace

from cfn.errors import UsageError
from cfn.judge.criterion import Criterion

FLOOR_INTERVAL_S = 0.5  # one reading of all processes costs some 10 ms
FLOOR_BUCKET_S = 2.0  # four samples
FLOOR_SETTLE_S = 3.0  # a flip takes effect within a second; its first coordinations end after that
FLOOR_WINDOW_BUCKETS = 10
FLOOR_BLIND_S = 10.0  # some buckets: one that is late is not blindness
FLOOR_CADENCE_S = 2.0  # nothing new is to be seen before the next bucket


@dataclass(frozen=True, slots=True)
class TimeScale:
    """`factor` 1 is real time, 10080 makes a minute of a week."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.factor <= 1_000_000:
            raise UsageError(f"time factor {self.factor:g} is refused: 1 to 1000000 is allowed")

    @property
    def shortened(self) -> bool:
        """Whether a verdict on this scale is worth nothing outside the lab."""
        return self.factor > 1

    def note(self) -> str:
        """What every verdict on a shortened scale says; empty in real time."""
        if not self.shortened:
            return ""
        return f"judged on a time scale of 1:{self.factor:g}; worth nothing outside the lab"

    def interval_s(self, interval_s: float) -> float:
        """The collector's interval."""
        return self._scaled(interval_s, FLOOR_INTERVAL_S)

    def bucket_s(self, bucket_s: float) -> float:
        """The length of a bucket."""
        return self._scaled(bucket_s, FLOOR_BUCKET_S)

    def settle_s(self, settle_s: float) -> float:
        """The time after a change that is left out; none stays none."""
        return self._scaled(settle_s, FLOOR_SETTLE_S)

    def cadence_s(self, cadence_s: float) -> float:
        """The time between two looks."""
        return self._scaled(cadence_s, FLOOR_CADENCE_S)

    def blind_limit_s(self, limit_s: float) -> float:
        """How long hosts may be unseen while V2 serves."""
        return self._scaled(limit_s, FLOOR_BLIND_S)

    def window_s(self, window_s: float, bucket_s: float) -> float:
        """The length of a window whose unscaled buckets are `bucket_s` long."""
        return self._scaled(window_s, FLOOR_WINDOW_BUCKETS * self.bucket_s(bucket_s))

    def criterion(self, criterion: Criterion) -> Criterion:
        """The criterion with its times on this scale."""
        return replace(
            criterion,
            bucket_s=self.bucket_s(criterion.bucket_s),
            settle_s=self.settle_s(criterion.settle_s),
            window_s=self.window_s(criterion.window_s, criterion.bucket_s),
        )

    def _scaled(self, seconds: float, floor_s: float) -> float:
        # A time that is shorter than the floor already, in real time, is left as it is.
        return round(max(seconds / self.factor, min(floor_s, seconds)), 3)
