"""A scenario as the files of its hosts: every event and every sample, line by line."""

import hashlib
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from cfn.metrics.tally import Hasher
from cfn.metrics.times import format_ms
from cfn.paths import Paths
from cfn.router.split import BUCKETS, ordered_version
from cfn.simulate.counts import BUCKET_S, PER_HOUR, Stream, stream
from cfn.simulate.request import GENERATION, SAMPLES_A_BUCKET, SINCE_MS
from cfn.simulate.scenario import Scenario

SPLIT_KEY = "simulated-split-key"
_BUCKET_MS = 1_000 * BUCKET_S


def write_files(scenario: Scenario, folder: Path, *, since_ms: int = SINCE_MS) -> list[str]:
    """Write each host's configuration, events and samples below `folder`; returns the hosts' names."""
    rng = np.random.default_rng(scenario.seed)
    counts = stream(scenario, rng)
    names = [f"host{number + 1}" for number in range(scenario.hosts)]
    for number, name in enumerate(names):
        tree = Paths(folder / name)
        tree.log.mkdir(parents=True)
        tree.config.parent.mkdir(parents=True)
        tree.config.write_text(f'CFN_SPLIT_KEY="{SPLIT_KEY}"\n')
        with tree.events.open("w") as file:
            for record in _events(scenario, counts, number, since_ms, rng):
                file.write(json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n")
        with tree.samples.open("w") as file:
            for record in _samples(scenario, counts, number, since_ms, rng):
                file.write(json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n")
    return names


def _events(
    scenario: Scenario, counts: Stream, number: int, since_ms: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    share = Decimal(str(scenario.traffic_pct))
    common = {
        "v": 1, "host": f"host{number + 1}", "release": "simulated", "generation": GENERATION,
        "version": "v2", "traffic_pct": scenario.traffic_pct,
    }  # fmt: skip
    yield common | {
        "type": "generation",
        "time": format_ms(since_ms),
        "epoch": 1,
        "split_key_sha256": hashlib.sha256(SPLIT_KEY.encode()).hexdigest()[:16],
        "max_agents": 10_000,
    }
    task = _tasks(number, share)
    for bucket in range(counts.requests.shape[0]):
        requests = counts.requests[bucket, number]
        orders = [
            (arm, place < counts.bad[bucket, number, arm]) for arm in (0, 1) for place in range(requests[arm])
        ]
        order = rng.permutation(len(orders))
        moments = np.sort(rng.integers(0, _BUCKET_MS, len(orders)))
        times = rng.lognormal(np.log(scenario.time_ms), scenario.time_spread, len(orders)).tolist()
        for place, moment, time_ms in zip(order.tolist(), moments.tolist(), times, strict=True):
            arm, bad = orders[place]
            version = ("v1", "v2")[arm]
            task_id, task_bucket = next(task[version])
            factor = (1.0, scenario.v2_time_factor)[arm]
            undelivered = bad and rng.random() * 100 < scenario.undelivered_share
            failed = 0 if undelivered or not bad else scenario.agents
            lost = scenario.agents if undelivered else 0
            yield common | {
                "type": "coordination",
                "time": format_ms(since_ms + bucket * _BUCKET_MS + moment),
                "task_id": task_id,
                "agents": scenario.agents,
                "bucket": task_bucket,
                "ordered": version,
                "served": version,
                "reason": "split",
                "fallback": None,
                "outcome": "failed" if bad else "done",
                "states": {
                    "done": scenario.agents - failed - lost, "failed": failed, "undelivered": lost,
                    "unknown": 0,
                },
                "coordination_time_ms": round(time_ms * factor, 3),
                "delivery_rate_pct": 0.0 if undelivered else 100.0,
                "completion_rate_pct": 0.0 if bad else 100.0,
                "error_rate_pct": 100.0 if bad else 0.0,
                "total_time_ms": 500.0,
            }  # fmt: skip


def _tasks(number: int, share: Decimal) -> dict[str, Iterator[tuple[str, int]]]:
    """Endless task ids with their buckets, by the version that the split orders them to."""
    hasher = Hasher(SPLIT_KEY)

    def ids(version: str) -> Iterator[tuple[str, int]]:
        count = 0
        while True:
            count += 1
            task_id = f"task-{number}-{version}-{count}"
            bucket = hasher.number(task_id) % BUCKETS
            if ordered_version("v2", share, bucket) == version:
                yield task_id, bucket

    return {"v1": ids("v1"), "v2": ids("v2")}


def _samples(
    scenario: Scenario, counts: Stream, number: int, since_ms: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    interval_ms = _BUCKET_MS // SAMPLES_A_BUCKET
    starts = {"conductor": 1, "spawner": 1, "router": 1}
    boot_s = since_ms / 1_000 - 86_400
    for sample in range(counts.requests.shape[0] * SAMPLES_A_BUCKET):
        bucket, part = divmod(sample, SAMPLES_A_BUCKET)
        hour = sample / SAMPLES_A_BUCKET / PER_HOUR
        if 0 <= scenario.gap_at_h <= hour < scenario.gap_at_h + scenario.gap_h:
            continue
        moment_ms = since_ms + sample * interval_ms
        if 0 <= scenario.clock_jump_at_h <= hour:
            moment_ms += round(scenario.clock_jump_s * 1_000)
        crashed = number == 0 and 0 <= scenario.restart_at_h <= hour
        rebooted = number == 0 and 0 <= scenario.reboot_at_h <= hour
        grown = 1 + scenario.leak_pct_per_day / 100 * hour / 24
        # What ended in the bucket before was seen by its end.
        seen = counts.requests[bucket - 1, number] if bucket and part == 0 else (0, 0)
        yield {
            "v": 1,
            "host": f"host{number + 1}",
            "release": "simulated",
            "timestamp": moment_ms / 1_000,
            "memory_kb": round(scenario.memory_kb * grown * (1 + scenario.memory_noise * rng.normal())),
            "fd_count": 420,
            "tmpfs_pct": 12.0,
            "active_agents": 100,
            "health_false_positive_pct": 0.0,
            "generation": GENERATION,
            "v1_requests": int(seen[0]),
            "v2_requests": int(seen[1]),
            "starts": starts | {"conductor": 2} if crashed else starts,
            "boot_time_s": boot_s + (scenario.reboot_at_h * 3_600 + 90_000 if rebooted else 0),
        }
