"""A sample from what could be read. Pure: what could not be read is absent, never 0."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfn.metrics.records import Coordinated

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What one round of reading gave; None for what did not answer.

    `coordinations` are those that ended since the sample before, or None without an events file.
    """

    time_s: float
    host: str
    release: str
    memory_kb: int | None = None
    fd_count: int | None = None
    tmpfs_pct: float | None = None
    active_agents: int | None = None
    generation: int | None = None
    starts: Mapping[str, int] | None = None
    coordinations: Sequence[Coordinated] | None = None


def sample(readings: Readings) -> dict[str, Any]:
    """The record of docs/reference/records.md."""
    record: dict[str, Any] = {
        "v": RECORD_VERSION,
        "host": readings.host,
        "release": readings.release,
        "timestamp": round(readings.time_s, 3),
        "memory_kb": readings.memory_kb,
        "fd_count": readings.fd_count,
        "tmpfs_pct": None if readings.tmpfs_pct is None else round(readings.tmpfs_pct, 3),
        "active_agents": readings.active_agents,
        "generation": readings.generation,
        "starts": dict(readings.starts) if readings.starts else None,
    }
    if readings.coordinations is not None:
        record |= _requests(readings.coordinations)
    return {key: value for key, value in record.items() if value is not None}


def _requests(coordinations: Sequence[Coordinated]) -> dict[str, Any]:
    """Counts of both versions, and the figures of V2 if it had any request."""
    split = [each for each in coordinations if each.reason == "split"]
    v2 = [each for each in split if each.ordered == "v2"]
    figures: dict[str, Any] = {"v1_requests": len(split) - len(v2), "v2_requests": len(v2)}
    if v2:
        times = sorted(each.coordination_time_ms for each in v2)
        figures["coordination_time"] = round(nearest_rank(times, 0.5), 3)
        figures["coordination_time_p95"] = round(nearest_rank(times, 0.95), 3)
        figures["delivery_rate"] = round(sum(each.rates_pct[0] for each in v2) / len(v2), 3)
    return figures


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; of a sorted, non-empty list."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
