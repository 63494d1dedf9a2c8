"""What a verdict's own evidence says, bucket by bucket over all hosts: for escalations and reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cfn.metrics.arm import Arm
from cfn.metrics.evidence import Evidence, Gauge


@dataclass(slots=True, kw_only=True)
class Bucket:
    """One time bucket of the fleet: requests by ordered version, and each gauge by host."""

    start_ms: int
    v1: Arm = field(default_factory=Arm)
    v2: Arm = field(default_factory=Arm)
    gauges: dict[str, dict[str, Gauge]] = field(default_factory=dict)
    restarts: int = 0

    @property
    def v2_share_pct(self) -> float | None:
        """V2's share of the requests; None without any."""
        total = self.v1.requests + self.v2.requests
        return 100 * self.v2.requests / total if total else None

    def worst(self, gauge: str) -> float | None:
        """The largest value of a gauge on any host; None where no host has it."""
        values = [each.high for each in self.gauges.get(gauge, {}).values()]
        return max(values, default=None)


@dataclass(frozen=True, slots=True)
class Observed:
    """The buckets of a window in order, and the hosts whose evidence could not be read."""

    buckets: tuple[Bucket, ...]
    bucket_ms: int
    unread: tuple[str, ...]

    def total(self, version: str) -> Arm:
        """All requests that were ordered to a version."""
        merged = Arm()
        for bucket in self.buckets:
            merged.merge(bucket.v2 if version == "v2" else bucket.v1)
        return merged


def observe(request: Mapping[str, Any]) -> Observed:
    """The evidence of a gate's request, all generations together."""
    buckets: dict[int, Bucket] = {}
    bucket_ms, unread = 0, []
    for host, raw in sorted(request.get("evidence", {}).items()):
        try:
            evidence = Evidence.from_json(raw)
        except (ValueError, TypeError, AttributeError):
            unread.append(host)
            continue
        bucket_ms = evidence.bucket_ms
        for start in range(evidence.since_ms, evidence.until_ms, evidence.bucket_ms):
            buckets.setdefault(start, Bucket(start_ms=start))
        for (start, _), cell in evidence.requests.items():
            buckets[start].v1.merge(cell.v1)
            buckets[start].v2.merge(cell.v2)
        for start, sample in evidence.sampled.items():
            buckets[start].restarts += sum(sample.restarts.values())
            for name, gauge in sample.gauges.items():
                buckets[start].gauges.setdefault(name, {})[host] = gauge
    return Observed(tuple(buckets[start] for start in sorted(buckets)), bucket_ms, tuple(unread))
