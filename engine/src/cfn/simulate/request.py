"""From counts to what a gate is asked: evidence of every host, as `cfn metrics` would have reduced it."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from cfn.metrics.arm import Arm
from cfn.metrics.evidence import Evidence, Gauge, RequestCell, SampleCell
from cfn.metrics.packing import pack
from cfn.metrics.records import Ordered
from cfn.metrics.reduce import HOST
from cfn.metrics.times import format_ms
from cfn.simulate.counts import BUCKET_S, PER_HOUR, Stream, stream
from cfn.simulate.scenario import Scenario

SINCE_MS = 1_767_225_600_000  # 2026-01-01, on a bucket
GENERATION = 7
SAMPLES_A_BUCKET = 5
_BUCKET_MS = 1_000 * BUCKET_S
_PERFECT = {"delivery_rate_pct": 100.0, "completion_rate_pct": 100.0, "error_rate_pct": 0.0}


def simulated_request(scenario: Scenario, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The gate's request at the end of a scenario. `asked` holds `criteria` and what else is not made
    up: `triggers`, `window_s`, `stage`, `step`, `facts`."""
    buckets = round(scenario.hours * PER_HOUR)
    now_ms = SINCE_MS + buckets * _BUCKET_MS
    evidence = simulated_evidence(scenario)
    return {
        "v": 1,
        "environment": "simulated",
        "stage": "simulated",
        "step": f"{scenario.traffic_pct:g}",
        "asked_by": "cfn simulate",
        "now": format_ms(now_ms),
        "since": format_ms(SINCE_MS),
        "ordered": {"version": "v2", "traffic_pct": scenario.traffic_pct},
        "hosts": sorted(evidence),
        "triggers": [],
        "release": "simulated",
        "evidence": {host: pack(each.head(), each.cells()) for host, each in evidence.items()},
        **asked,
    }


def simulated_evidence(scenario: Scenario) -> dict[str, Evidence]:
    """The evidence of every host, by name."""
    rng = np.random.default_rng(scenario.seed)
    counts = stream(scenario, rng)
    return {f"host{number + 1}": _host(scenario, counts, number, rng) for number in range(scenario.hosts)}


def _host(scenario: Scenario, counts: Stream, number: int, rng: np.random.Generator) -> Evidence:
    buckets = counts.requests.shape[0]
    evidence = Evidence(
        host=f"host{number + 1}",
        since_ms=SINCE_MS,
        until_ms=SINCE_MS + buckets * _BUCKET_MS,
        bucket_ms=_BUCKET_MS,
        releases={"simulated"},
        generations={
            GENERATION: Ordered(version="v2", traffic_pct=Decimal(str(scenario.traffic_pct)).normalize())
        },
        latest_generation=GENERATION,
    )
    evidence.events.present = evidence.samples.present = True
    for bucket in range(buckets):
        start = SINCE_MS + bucket * _BUCKET_MS
        arms = [
            _arm(
                scenario,
                int(counts.requests[bucket, number, arm]),
                int(counts.bad[bucket, number, arm]),
                (1.0, scenario.v2_time_factor)[arm],
                rng,
            )
            for arm in (0, 1)
        ]
        served = arms[0].requests + arms[1].requests
        if served:
            evidence.requests[start, GENERATION] = RequestCell(v1=arms[0], v2=arms[1])
            evidence.events.records += served
        if not _silent(scenario, bucket):
            seen = _shifted(scenario, bucket, start)
            cell = evidence.sampled.setdefault(seen, SampleCell())
            _sample(scenario, bucket, number, cell, rng)
            cell.requests_seen += served
            evidence.samples.records += SAMPLES_A_BUCKET
    evidence.arms.checked = evidence.events.records
    return evidence


def _arm(scenario: Scenario, requests: int, bad: int, factor: float, rng: np.random.Generator) -> Arm:
    arm = Arm()
    times = rng.lognormal(np.log(scenario.time_ms * factor), scenario.time_spread, requests).round(3).tolist()
    undelivered = round(bad * scenario.undelivered_share / 100)
    groups = ((requests - bad, 0), (bad - undelivered, 1), (undelivered, 2))
    for count, kind in groups:
        if count:
            arm.add(
                [times.pop() for _ in range(count)],
                agents=scenario.agents,
                outcome="done" if kind == 0 else "failed",
                fallback=None,
                rates_pct=_PERFECT if kind == 0 else _rates(kind),
            )
    return arm


def _rates(kind: int) -> dict[str, float | None]:
    delivery = 0.0 if kind == 2 else 100.0
    return {"delivery_rate_pct": delivery, "completion_rate_pct": 0.0, "error_rate_pct": 100.0}


def _silent(scenario: Scenario, bucket: int) -> bool:
    hour = bucket / PER_HOUR
    return 0 <= scenario.gap_at_h <= hour < scenario.gap_at_h + scenario.gap_h


def _shifted(scenario: Scenario, bucket: int, start: int) -> int:
    """The bucket that a sample says it is of: the clock may be wrong from some hour on."""
    if not 0 <= scenario.clock_jump_at_h <= bucket / PER_HOUR:
        return start
    shifted = start + round(scenario.clock_jump_s * 1_000 / _BUCKET_MS) * _BUCKET_MS
    last = SINCE_MS + (round(scenario.hours * PER_HOUR) - 1) * _BUCKET_MS
    return min(max(shifted, SINCE_MS), last)


def _sample(scenario: Scenario, bucket: int, number: int, cell: SampleCell, rng: np.random.Generator) -> None:
    grown = 1 + scenario.leak_pct_per_day / 100 * bucket / PER_HOUR / 24
    memory = scenario.memory_kb * grown * (1 + scenario.memory_noise * rng.standard_normal(SAMPLES_A_BUCKET))
    steady = {
        "fd_count": 420.0,
        "tmpfs_pct": 12.0,
        "active_agents": 100.0,
        "health_false_positive_pct": 0.0,
    }
    for value in memory.tolist():
        cell.samples += 1
        cell.starts_samples += 1
        cell.gauges.setdefault("memory_kb", Gauge()).add(round(max(0.0, value), 1))
        for name, level in steady.items():
            cell.gauges.setdefault(name, Gauge()).add(level)
    for name, at_h in (("conductor", scenario.restart_at_h), (HOST, scenario.reboot_at_h)):
        happened = number == 0 and at_h >= 0 and bucket == round(at_h * PER_HOUR)
        cell.restarts[name] = cell.restarts.get(name, 0) + happened
