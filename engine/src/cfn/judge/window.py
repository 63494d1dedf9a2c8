"""Which buckets a criterion looks at: whole ones, after the settling time, back from now."""

from dataclasses import dataclass

from cfn.judge.criterion import Criterion
from cfn.judge.request import Request

MAX_BUCKETS = 20_000  # of one query, as `cfn metrics` has it; ten weeks of 5-minute buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The buckets in [start_ms, end_ms). `full_at_ms` is when the window will have its whole length."""

    start_ms: int
    end_ms: int
    bucket_ms: int
    full_at_ms: int

    @property
    def full(self) -> bool:
        """Whether the window has its whole length."""
        return self.end_ms >= self.full_at_ms

    @property
    def starts(self) -> range:
        """The start of each bucket; empty while everything is still settling."""
        return range(self.start_ms, self.end_ms, self.bucket_ms)


def window_of(criterion: Criterion, since_ms: int, now_ms: int) -> Window:
    """The window of a criterion (on its scale) for traffic that has been as it is since `since_ms`.

    It has the criterion's length, back from now; that of one that `grows` begins when the traffic had
    settled, MAX_BUCKETS ago at most. A sum that nothing is left to settle for begins with the bucket of the
    change itself, lest a crash at once is never counted; a gauge of that bucket may be from before it.
    """
    bucket_ms = round(criterion.bucket_s * 1_000)
    length_ms = max(1, round(criterion.window_s * 1_000) // bucket_ms) * bucket_ms
    settled_ms = since_ms + round(criterion.settle_s * 1_000)
    whole_ms = -(-settled_ms // bucket_ms) * bucket_ms
    counts = criterion.statistic == "sum" and not criterion.settle_s
    first_ms = settled_ms // bucket_ms * bucket_ms if counts else whole_ms
    end_ms = now_ms // bucket_ms * bucket_ms
    longest_ms = max(length_ms, MAX_BUCKETS * bucket_ms) if criterion.grows else length_ms
    start_ms = max(first_ms, end_ms - longest_ms)
    return Window(
        start_ms=start_ms,
        end_ms=max(start_ms, end_ms),
        bucket_ms=bucket_ms,
        full_at_ms=whole_ms + length_ms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to ask `cfn metrics` of each host for, in milliseconds."""

    since_ms: int
    until_ms: int
    bucket_ms: int


def plan(request: Request) -> Plan:
    """The union of all windows; at least one bucket, so that hosts answer while traffic settles."""
    windows = [
        window_of(each, request.since_ms, request.now_ms) for each in (*request.criteria, *request.triggers)
    ]
    until_ms = request.now_ms // request.bucket_ms * request.bucket_ms
    since_ms = min(*(window.start_ms for window in windows), until_ms - request.bucket_ms)
    return Plan(since_ms=since_ms, until_ms=until_ms, bucket_ms=request.bucket_ms)
