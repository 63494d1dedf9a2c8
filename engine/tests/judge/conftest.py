"""A fleet that exists as files only: events and samples written as the router and the collector write
them, reduced by `cfn metrics` and judged by `cfn gate`, with the real stage table."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cfn.commands.gate import main as gate
from cfn.commands.metrics import collect
from cfn.judge.judge import judge
from cfn.judge.request import read_request
from cfn.judge.window import plan
from cfn.metrics.times import format_ms
from cfn.paths import Paths
from cfn.router.split import bucket, ordered_version

KEY = "a-key-of-the-tests"
TABLE = Path(__file__).parents[3] / "inventories/common/group_vars/all/stages.yml"
SINCE_MS = 1_700_000_000_000
FACTOR = 10_080
WINDOW_MS = 60_000
SETTLE_MS = 3_000


@dataclass(slots=True, kw_only=True)
class Behaviour:
    """How V2 and the collector behave. Times in milliseconds, shares in percent."""

    requests_per_s: float = 30.0
    v2_time_ms: float = 300.0
    undelivered_pct: float = 0.0
    failed_pct: float = 0.0
    fallback: str | None = None
    crash_at_s: float | None = None
    memory_growth_pct: float = 0.0
    tmpfs_pct: float = 12.0
    fd_count: int = 400
    collector_silent_s: tuple[float, float] | None = None
    starts_readable: bool = True
    agents: int = 10


@dataclass(slots=True)
class Fleet:
    """Hosts below `root`, for traffic that has been at `traffic_pct` since SINCE_MS."""

    root: Path
    traffic_pct: float = 10.0
    hosts: tuple[str, ...] = ("h1", "h2", "h3")
    evidence: dict[str, Any] = field(default_factory=dict)

    def tree(self, host: str) -> Paths:
        return Paths(self.root / host)

    def write(self, seconds: float, behaviour: Behaviour | None = None, *, seed: int = 1) -> "Fleet":
        """Write the files of all hosts for so many seconds since the flip."""
        for number, host in enumerate(self.hosts):
            tree = self.tree(host)
            tree.log.mkdir(parents=True, exist_ok=True)
            tree.config.parent.mkdir(parents=True, exist_ok=True)
            tree.config.write_text(f'CFN_SPLIT_KEY="{KEY}"\n')
            how = behaviour or Behaviour()
            randomness = random.Random(seed * 1000 + number)  # noqa: S311
            tree.events.write_text("".join(self._events(host, seconds, how, randomness)))
            tree.samples.write_text("".join(self._samples(host, seconds, how, randomness)))
        return self

    def _events(self, host: str, seconds: float, how: Behaviour, randomness: random.Random) -> list[str]:
        lines = [
            {
                "v": 1,
                "type": "generation",
                "time": format_ms(SINCE_MS),
                "host": host,
                "release": "1.0.0",
                "generation": 7,
                "version": "v2",
                "traffic_pct": self.traffic_pct,
                "epoch": 3,
                "split_key_sha256": hashlib.sha256(KEY.encode()).hexdigest()[:16],
                "max_agents": 100,
            }
        ]
        for number in range(int(seconds * how.requests_per_s)):
            time_ms = SINCE_MS + int(1000 * number / how.requests_per_s)
            lines.append(self._event(host, f"task-{host}-{number}", time_ms, how, randomness))
        return [json.dumps(line) + "\n" for line in lines]

    def _event(
        self, host: str, task: str, time_ms: int, how: Behaviour, randomness: random.Random
    ) -> dict[str, Any]:
        task_bucket = bucket(KEY, task)
        ordered = ordered_version("v2", self.traffic_pct, task_bucket)  # type: ignore[arg-type]
        v2 = ordered == "v2"
        undelivered = sum(v2 and randomness.random() * 100 < how.undelivered_pct for _ in range(how.agents))
        failed = sum(
            v2 and randomness.random() * 100 < how.failed_pct for _ in range(how.agents - undelivered)
        )
        done = how.agents - undelivered - failed
        return {
            "v": 1,
            "type": "coordination",
            "time": format_ms(time_ms),
            "host": host,
            "release": "1.0.0",
            "task_id": task,
            "agents": how.agents,
            "bucket": task_bucket,
            "generation": 7,
            "version": "v2",
            "traffic_pct": self.traffic_pct,
            "ordered": ordered,
            "served": ordered,
            "reason": "split",
            "fallback": how.fallback if v2 else None,
            "outcome": "done" if done == how.agents else "partial" if done else "failed",
            "states": {"done": done, "failed": failed, "undelivered": undelivered, "unknown": 0},
            "coordination_time_ms": (how.v2_time_ms if v2 else 200.0) * randomness.uniform(0.8, 1.2),
            "delivery_rate_pct": 100.0 * (how.agents - undelivered) / how.agents,
            "completion_rate_pct": 100.0 * done / how.agents,
            "error_rate_pct": 100.0 * (failed + undelivered) / how.agents,
            "total_time_ms": 400.0,
        }

    def _ended(self, at_s: float, how: Behaviour) -> int:
        """Requests in the half second before a sample."""
        return int(at_s * how.requests_per_s) - int(max(0.0, at_s - 0.5) * how.requests_per_s)

    def _samples(self, host: str, seconds: float, how: Behaviour, randomness: random.Random) -> list[str]:
        lines = []
        for number in range(int(seconds * 2)):
            at_s = number / 2
            if how.collector_silent_s and how.collector_silent_s[0] <= at_s < how.collector_silent_s[1]:
                continue
            crashed = how.crash_at_s is not None and at_s >= how.crash_at_s and host == self.hosts[-1]
            growth = 1 + how.memory_growth_pct / 100 * at_s / seconds
            sample: dict[str, Any] = {
                "v": 1,
                "host": host,
                "release": "1.0.0",
                "timestamp": (SINCE_MS + 1000 * at_s) / 1000,
                "memory_kb": int(200_000 * growth * randomness.uniform(0.99, 1.01)),
                "fd_count": how.fd_count,
                "tmpfs_pct": how.tmpfs_pct,
                "active_agents": 100,
                "v1_requests": self._ended(at_s, how),
                "v2_requests": 0,
                "generation": 7,
                "health_false_positive_pct": 0.0,
            }
            if how.starts_readable:
                sample["starts"] = {"conductor": 1 + crashed, "spawner": 1, "router": 1}
            lines.append(json.dumps(sample) + "\n")
        return lines

    def reduced(self, host: str, since_s: float, until_s: float, bucket_ms: int) -> dict[str, Any]:
        """What `cfn metrics` gives for a window in seconds since the flip."""
        since_ms, until_ms = (SINCE_MS + int(1000 * each) for each in (since_s, until_s))
        return collect(self.tree(host), since_ms, until_ms, bucket_ms, now_ms=until_ms).as_json()

    def request(self, seconds: float, *, part: str = "production", **changes: Any) -> dict[str, Any]:
        """The gate's request, `seconds` after the flip, with the evidence that `cfn metrics` gives."""
        stage = yaml.safe_load(TABLE.read_text())["cfn_stages"]["stage1"]
        step = stage[part]
        request: dict[str, Any] = {
            "v": 1,
            "environment": "lab",
            "stage": "stage1",
            "step": part,
            "asked_by": "a test",
            "now": format_ms(SINCE_MS + int(seconds * 1000)),
            "since": format_ms(SINCE_MS),
            "ordered": {"version": "v2", "traffic_pct": self.traffic_pct},
            "time_factor": FACTOR,
            "window_s": step["window_s"],
            "hosts": list(self.hosts),
            "criteria": step["criteria"],
            "triggers": stage["triggers"],
            "facts": {
                "critical_incidents": 0,
                "incidents": [],
                "attested": {"dashboards_healthy": True},
            },
        } | changes
        wanted = plan(read_request(request))
        now_ms = SINCE_MS + int(seconds * 1000)
        request["evidence"] = {
            host: collect(
                self.tree(host), wanted.since_ms, wanted.until_ms, wanted.bucket_ms, now_ms=now_ms
            ).as_json()
            for host in self.hosts
        }
        return request

    def judge(self, seconds: float, **changes: Any) -> dict[str, Any]:
        """The verdict, `seconds` after the flip."""
        return judge(read_request(json.loads(json.dumps(self.request(seconds, **changes)))))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture
def behaviour() -> type[Behaviour]:
    return Behaviour


@pytest.fixture
def run_gate() -> Callable[[list[str]], int]:
    return gate
