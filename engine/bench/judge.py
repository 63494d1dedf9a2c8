"""How right the judge is, by simulation, and how fast; each row against its bar.

    make bench-judge      (a table, and build/bench/judge.json)

Seeded. The weeks are looked at after every bucket of five minutes, which is stricter than hourly. They
break the model on purpose: bursts, clusters, noise that wanders from host to host. Exit code 1 if a bar
is missed.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

from cfn.errors import UsageError
from cfn.judge import comparison, proof
from cfn.judge.evaluate import evaluate
from cfn.judge.judge import judge
from cfn.judge.request import read_request
from cfn.judge.sequential import ALPHA_BROKEN, first_proof
from cfn.judge.trend import trend
from cfn.simulate.counts import BUCKET_S, PER_DAY, PER_HOUR, Stream, stream
from cfn.simulate.criteria import of_table
from cfn.simulate.damage import damage, unpacked
from cfn.simulate.files import write_files
from cfn.simulate.request import SINCE_MS, simulated_request
from cfn.simulate.scenario import Scenario

TABLE = Path(__file__).parents[2] / "inventories/common/group_vars/all/stages.yml"
STAGE1 = yaml.safe_load(TABLE.read_text())["cfn_stages"]["stage1"]["production"]["criteria"]
CRITERIA = {each["name"]: each for each in STAGE1}
MARGIN = CRITERIA["error_vs_v1"]["threshold"]
ERROR_LIMIT = CRITERIA["error_rate"]["threshold"] / 100
WEEK = Scenario(hours=168)
QUERY_EVENTS = 2_000_000
QUERY_DAYS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured figure. `bar` says what must hold; `ok` whether it does."""

    name: str
    value: float
    unit: str
    samples: int
    min: float | None = None
    max: float | None = None
    bar: str = ""
    ok: bool = True


def at_most(limit: float, **row: Any) -> Row:
    """A row that must not exceed its limit."""
    return Row(bar=f"at most {limit:g}", ok=row["value"] <= limit, **row)


def at_least(limit: float, **row: Any) -> Row:
    """A row that must reach its limit."""
    return Row(bar=f"at least {limit:g}", ok=row["value"] >= limit, **row)


# Layers 2 and 3 over simulated weeks


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one stream: the bucket after which it failed, and whether it passed at its end."""

    failed_at: int | None
    passed: bool

    @property
    def hours_to_fail(self) -> float:
        """At an hourly look, with the settling time before the first bucket."""
        return math.inf if self.failed_at is None else math.ceil((self.failed_at + 2) / PER_HOUR)


def outcome(counts: Stream) -> Outcome:
    """The error rate of one stream, by the limit and by the comparison, exactly as the judge weighs it."""
    bad, requests = counts.bad.astype(float), counts.requests.astype(float)
    fleet_bad, fleet = bad.sum(axis=1), requests.sum(axis=1)
    shared = proof.shared(fleet_bad[:, 0], fleet[:, 0], ERROR_LIMIT)
    own, served = (np.where(shared, 0.0, each[:, 1]) for each in (fleet_bad, fleet))
    found = (
        first_proof(comparison.log_e_worse(bad, requests, MARGIN), ALPHA_BROKEN),
        first_proof(proof.log_e_above(own, served, ERROR_LIMIT), ALPHA_BROKEN),
    )
    failed = min((each for each in found if each is not None), default=None)
    total_bad, total = float(fleet_bad[:, 1].sum()), int(fleet[:, 1].sum())
    kept = proof.kept(proof.log_e_below(total_bad, total, ERROR_LIMIT))
    return Outcome(failed, failed is None and kept)


def outcomes(scenario: Scenario, count: int) -> list[Outcome]:
    """So many streams of a scenario, each of its own seed."""
    return [outcome(stream(replace(scenario, seed=scenario.seed + number))) for number in range(count)]


def share_pct(found: list[Outcome], of: Callable[[Outcome], bool]) -> dict[str, Any]:
    """The share of some outcomes, in percent, with its 95 % interval (Wilson)."""
    count, hits = len(found), sum(map(of, found))
    middle, spread = (hits + 1.92) / (count + 3.84), 1.96 / (count + 3.84)
    half = spread * math.sqrt(hits * (count - hits) / count + 0.96)
    return {
        "value": round(100 * hits / count, 3),
        "unit": "%",
        "samples": count,
        "min": round(100 * max(0.0, middle - half), 3),
        "max": round(100 * min(1.0, middle + half), 3),
    }


def right_by_simulation(weeks: int) -> Iterator[Row]:
    """The first four rows of the promises."""
    failed: Callable[[Outcome], bool] = lambda each: each.failed_at is not None  # noqa: E731
    passed: Callable[[Outcome], bool] = lambda each: each.passed  # noqa: E731
    equal = outcomes(WEEK, weeks)
    yield at_most(1, name="healthy V2, bursts shared: false FAIL in a week", **share_pct(equal, failed))
    yield at_least(99, name="equal V2 at 0.5 % errors: PASS at the week's end", **share_pct(equal, passed))
    noisy = outcomes(replace(WEEK, host_noise=0.3, seed=10_001), weeks)
    yield at_most(4, name="healthy V2, noise 30 % of hosts and arms: false FAIL", **share_pct(noisy, failed))
    clustered = outcomes(replace(WEEK, clustering=0.005, seed=20_001), weeks)
    yield at_most(4, name="healthy V2, errors in clusters: false FAIL", **share_pct(clustered, failed))
    twice = replace(WEEK, v2_error_factor=2.0, seed=30_001)
    found = outcomes(twice, weeks)
    yield at_most(
        2.5, name="V2 with 2x errors, 10 %: false PASS at the week's end", **share_pct(found, passed)
    )
    hours = sorted(each.hours_to_fail for each in found)
    yield at_most(
        4, name="V2 with 2x errors, 20,000/h, 10 %: median hours to FAIL", value=hours[len(hours) // 2],
        unit="h", samples=len(hours), min=hours[0], max=hours[-1],
    )  # fmt: skip
    alone = replace(twice, traffic_pct=100.0, bursts_per_day=0.0, seed=40_001)
    for per_h, name in ((288 / 24, "one in 5 min"), (2_000, "2,000/h")):
        found = outcomes(replace(alone, requests_per_h=per_h, hours=72), weeks)
        row = share_pct(found, passed)
        yield at_most(2.5, name=f"V2 with 2x errors and no V1, {name}: false PASS", **row)


# The whole judge on the stage table


def whole(scenario: Scenario, kind: str) -> dict[str, Any]:
    """The verdict of the whole judge at the end of a scenario, with every criterion of stage 1."""
    return judge(read_request(simulated_request(scenario, of_table(TABLE, "stage1", kind))))


def whole_judge(count: int) -> Iterator[Row]:
    """Verdicts with all criteria and triggers."""
    cadence = Scenario(
        hours=72.5, requests_per_h=12, traffic_pct=100, error_pct=0, daily_cycle=0, memory_noise=0.02
    )
    cases = (
        ("perfect V2, one coordination in 5 min, staging: PASS", cadence, "staging", "PASS"),
        ("equal V2, week at 10 %, whole table: PASS", replace(WEEK, hours=169), "production", "PASS"),
        ("2x errors, 8 h, whole table: FAIL", Scenario(hours=8, v2_error_factor=2), "production", "FAIL"),
        ("idle for a day: held", Scenario(hours=30, idle_from_h=6), "production", "INCONCLUSIVE"),
    )
    for name, scenario, kind, wanted in cases:
        number = count if scenario.hours < 100 else max(3, count // 5)
        found = [whole(replace(scenario, seed=seed), kind) for seed in range(1, number + 1)]
        hits = sum(each["verdict"] == wanted for each in found)
        yield at_least(100, name=name, value=100 * hits / number, unit="%", samples=number)
    dead = replace(Scenario(hours=30, idle_from_h=6), gap_at_h=29, gap_h=9)
    found = [whole(replace(dead, seed=seed), "production") for seed in range(1, count + 1)]
    hits = sum(each["verdict"] == "NO_DATA" and each["advice"] == "fall_back" for each in found)
    yield at_least(
        100, name="idle, and the collector dead for an hour: falls back", value=100 * hits / count, unit="%",
        samples=count,
    )  # fmt: skip


# Damage


def damages(count: int) -> Iterator[Row]:
    """A healthy request, damaged in so many ways."""
    scenario = Scenario(hours=1.5, hosts=2, bursts_per_day=0, error_pct=0.1)
    asked = of_table(TABLE, "stage1", "production") | {"window_s": 5_100}
    healthy = json.dumps(unpacked(simulated_request(scenario, asked)))
    if judge(read_request(json.loads(healthy)))["verdict"] != "PASS":
        raise SystemExit("the undamaged request does not pass: this bench would show nothing")
    passed = 0
    for seed in range(count):
        request = json.loads(healthy)
        damage(request, random.Random(seed))  # noqa: S311
        passed += verdict_of(request) == "PASS"
    yield at_most(0, name="random damages that pass", value=passed, unit="count", samples=count)
    raised = 0
    for seed in range(100):
        broken = fails_at(random.Random(seed), evaluate)  # noqa: S311
        with mock.patch("cfn.judge.judge.evaluate", broken):
            raised += verdict_of(json.loads(healthy)) != "ERROR"
    yield at_most(
        0, name="exceptions in the judge that are no ERROR", value=raised, unit="count", samples=100
    )


def verdict_of(request: Mapping[str, Any]) -> str:
    """The verdict, or "refused"."""
    try:
        return str(judge(read_request(request))["verdict"])
    except UsageError:
        return "refused"


def fails_at(randomness: random.Random, real: Any) -> Any:
    """An evaluation that raises at one call that is counted."""
    left = [randomness.randrange(8)]

    def broken(criterion: Any, *arguments: Any) -> Any:
        left[0] -= not criterion.dry_run
        if left[0] < 0:
            raise ZeroDivisionError("on purpose")
        return real(criterion, *arguments)

    return broken


# Trends


def leaks(count: int) -> Iterator[Row]:
    """Memory over three days, five samples a bucket with 5 % noise each."""
    limit, rng = 0.5, np.random.default_rng(1)
    days = np.arange(3 * PER_DAY) / PER_DAY

    def proved(growth_pct: float) -> float:
        level = 400_000 * (1 + growth_pct / 100 * days)
        hits = 0
        for _ in range(count):
            minima = (level[:, None] * (1 + rng.normal(0, 0.05, (len(days), 5)))).min(axis=1)
            found = trend(list(enumerate(minima.tolist())), len(days))
            hits += found is not None and found.low_pct > limit
        return 100 * hits / count

    yield at_least(
        99, name="leak of 1 % a day over 3 days: found", value=proved(1.0), unit="%", samples=count
    )
    yield at_most(1, name="no leak: called one", value=proved(0.0), unit="%", samples=count)


# Speed


def query(events: int) -> Iterator[Row]:
    """Two weeks of one host: cold, with nothing remembered, and again as the next look would."""
    with tempfile.TemporaryDirectory(prefix="cfn-bench-") as folder:
        hours = QUERY_DAYS * 24
        scenario = Scenario(
            hosts=1, hours=hours, requests_per_h=events / hours, traffic_pct=50, daily_cycle=0.3
        )
        root = Path(folder) / "fleet"
        write_files(scenario, root)
        written = sum(1 for _ in (root / "host1/var/log/cfn/coordination-events.jsonl").open())
        for name in ("cold", "again"):
            runs = [metrics(root / "host1", hours) for _ in range(1 if name == "cold" else 3)]
            seconds, memory = sorted(run[0] for run in runs), max(run[1] for run in runs)
            title = f"two weeks of minute samples and {written:,} events, one query, {name}"
            measured: dict[str, Any] = {
                "value": seconds[len(seconds) // 2], "unit": "s", "samples": len(runs),
                "min": seconds[0], "max": seconds[-1],
            }  # fmt: skip
            yield at_most(5, name=title, **measured)
            yield at_most(150, name=f"{title}: memory of all processes", value=memory, unit="MB", samples=1)


def metrics(root: Path, hours: int, output: Path | None = None) -> tuple[float, float]:
    """Seconds and megabytes (proportional, of the process and its helpers) of one `cfn metrics`."""
    until_s = SINCE_MS // 1_000 + hours * 3_600
    argv = [
        sys.executable, "-m", "cfn", "metrics", "--packed", "--bucket-s", str(BUCKET_S),
        "--since", str(SINCE_MS // 1_000), "--until", str(until_s),
    ]  # fmt: skip
    began = time.monotonic()
    with (output or root / "evidence.json").open("wb") as file:
        process = subprocess.Popen(argv, env=os.environ | {"CFN_ROOT": str(root)}, stdout=file)
        most = 0.0
        while process.poll() is None:
            most = max(most, proportional_mb(process.pid))
            time.sleep(0.25)  # to look costs some milliseconds of what is measured
    if process.returncode:
        raise SystemExit(f"cfn metrics ended with {process.returncode}")
    return round(time.monotonic() - began, 2), round(most, 1)


def proportional_mb(pid: int) -> float:
    """Memory of a process and its children, pages that they share counted once."""
    total = 0
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        pids = [pid, *map(int, children.read_text().split())]
        for each in pids:
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    except (OSError, ValueError):
        return 0.0  # it ended meanwhile
    return total / 1_024


def twenty_hosts() -> Iterator[Row]:
    """A week of twenty hosts: every host's query, on this one machine, and the gate over all of them."""
    hosts, hours = 20, 168
    with tempfile.TemporaryDirectory(prefix="cfn-bench-") as folder:
        root = Path(folder) / "fleet"
        names = write_files(Scenario(hosts=hosts, hours=hours, requests_per_h=1_000), root)
        began = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda name: metrics(root / name, hours), names))
        reduced = time.monotonic() - began
        asked = of_table(TABLE, "stage1", "production")
        frame = simulated_request(Scenario(hosts=1, hours=1), asked)
        now = simulated_request(Scenario(hosts=1, hours=hours, requests_per_h=0), asked)["now"]
        evidence = {name: json.loads((root / name / "evidence.json").read_text()) for name in names}
        request = frame | {"now": now, "hosts": names, "evidence": evidence}
        (root / "request.json").write_text(json.dumps(request))
        size_mb = (root / "request.json").stat().st_size / 1e6
        argv = [sys.executable, "-m", "cfn", "gate", "--json", "--request", str(root / "request.json")]
        verdict = json.loads(subprocess.run(argv, capture_output=True, text=True, check=False).stdout)
        total = time.monotonic() - began
        counted = sum(not each["dry_run"] for each in verdict["results"])
        title = f"20 hosts, a week, {counted} criteria, files, one machine ({verdict['verdict']})"
        yield at_most(20, name=title, value=round(total, 1), unit="s", samples=1)
        yield Row(name="of it, the hosts' queries", value=round(reduced, 1), unit="s", samples=hosts)
        yield Row(
            name="size of the request, which the ledger keeps", value=round(size_mb, 2), unit="MB", samples=1
        )


def main() -> int:
    """Run everything, print each row as it comes, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for judge.json")
    parser.add_argument("--weeks", type=int, default=1_000, help="simulated weeks for each row")
    parser.add_argument("--damages", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=QUERY_EVENTS)
    options = parser.parse_args()
    parts = (
        right_by_simulation(options.weeks), whole_judge(20), leaks(300), query(options.events),
        twenty_hosts(), damages(options.damages),
    )  # fmt: skip
    rows: list[Row] = []
    for part in parts:
        for row in part:
            rows.append(row)
            of = "" if row.min is None else f" ({row.min:g} to {row.max:g})"
            mark = " " if row.ok else "!"
            print(f"{mark} {row.value:>9g} {row.unit:<5} {row.name}{of}; {row.bar or 'shown'}", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "judge.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    missed = [row.name for row in rows if not row.ok]
    if missed:
        print(f"missed: {'; '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
