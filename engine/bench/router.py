"""Measure the router against its bars, on daemons of its own.

    make bench-router      (a table, and build/bench/router.json)

What is measured beside a peer is measured in turn with it, so that a noisy machine is noisy for both.
"""

import argparse
import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil

from cfn.client import Client
from cfn.router.client import RouterClient
from cfn.router.flip import Order, flip
from cfn.router.split import bucket, ordered_version
from engine.bench.faults import FAULTS, with_fault
from engine.bench.http_load import connect, post
from engine.bench.rows import percentile, row, table
from engine.bench.stack import Stack, stack

Rows = list[dict[str, Any]]
SOURCES = Path(__file__).parents[1] / "src"
IDS = 100_000


@contextmanager
def under_load(
    running: Stack, rate_per_s: float, seconds: float, prefix: str, swarm: str = ""
) -> Iterator[list[dict[str, Any]]]:
    """Do the body while `cfn load` runs, in a process of its own; its account is in the list afterwards."""
    argv = [sys.executable, "-m", "cfn", "load", "--json", "--router", running.address, "--sizes", "1:1"]
    argv += [
        "--rate",
        str(rate_per_s),
        "--seconds",
        str(seconds),
        "--prefix",
        prefix,
        "--concurrency",
        "1000",
    ]
    argv += ["--swarm", swarm] if swarm else []
    reports: list[dict[str, Any]] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as load:
        try:
            time.sleep(2.0)
            yield reports
            time.sleep(1.0)
        finally:
            load.send_signal(signal.SIGINT)
            reports.append(json.loads(load.communicate()[0]))


def not_answered(report: dict[str, Any]) -> int:
    """Requests that failed, were refused or lost, or were answered twice."""
    return int(report["sent"] - report["answered_once"] + report["failed"] + report["partial"])


def split() -> Rows:
    """The share of 100,000 ids, and that nothing leaves V2 as the percentage rises."""
    buckets = [bucket("bench-key", f"task-{number}") for number in range(IDS)]
    rows = []
    before: set[int] = set()
    left = 0
    for text in ("0.5", "10", "50", "75"):
        served = {n for n, each in enumerate(buckets) if ordered_version("v2", Decimal(text), each) == "v2"}
        share = float(text) / 100
        chi_square = (len(served) - IDS * share) ** 2 / (IDS * share * (1 - share))
        p_value = math.erfc(math.sqrt(chi_square / 2))  # one degree of freedom
        rows.append(row(f"split, {text} %: chi-square p", [p_value], "", bar="> 0.001", ids=IDS))
        left += len(before - served)
        before = served
    return [*rows, row("split: ids that leave V2 as it rises", [left], "ids", bar="= 0", ids=IDS)]


def latency(pairs: int) -> Rows:
    """A request through the router and one to the conductor, in turn; warm, so that little else varies."""

    async def ask() -> tuple[list[float], list[float]]:
        through, direct = [], []
        caller = await connect(str(running.paths.router_socket))
        with Client(running.paths.conductor_socket) as conductor:
            for number in range(pairs):
                began_s = time.perf_counter()
                await caller.send(post(f"through-{number}", "warm"))
                middle_s = time.perf_counter()
                question = {"verb": "coordinate", "task_id": f"direct-{number}", "agents": 1}
                conductor.final(question | {"swarm_id": "warm"})
                through.append((middle_s - began_s) * 1000)
                direct.append((time.perf_counter() - middle_s) * 1000)
        return through[pairs // 10 :], direct[pairs // 10 :]

    with stack() as running:
        warm(running)
        through, direct = asyncio.run(ask())
    rows = []
    for percent, bar in ((50, "< 1"), (99, "< 3")):
        there, here = percentile(direct, percent), percentile(through, percent)
        more = {"through_ms": round(here, 3), "direct_ms": round(there, 3), "samples": len(direct)}
        rows.append(row(f"added latency, p{percent}", [here - there], "ms", bar=bar, **more))
    return rows


def warm(running: Stack) -> None:
    """Keep a swarm of one agent."""
    with Client(running.paths.conductor_socket) as client:
        client.final({"verb": "init", "agents": 1, "swarm_id": "warm"})


def throughput(seconds: float) -> Rows:
    """Requests per second at 1-agent coordinations, the best of some concurrencies whose p99 is in the
    bar, and where the processors' time went."""
    rows: Rows = []
    with stack() as running:
        for name, swarm, bar in (("a new process each", "", "> 500"), ("a warm swarm", "warm", "> 2000")):
            if swarm:
                warm(running)
            rows += _best(running, f"throughput, {name}", swarm, bar, seconds)
    with stack() as running:
        running.kill("conductor")
        running.paths.conductor_socket.unlink(missing_ok=True)
        path = str(running.paths.conductor_socket)
        running.daemons["conductor"] = subprocess.Popen([sys.executable, "-m", "engine.bench.peer", path])
        time.sleep(1.0)
        rows += _best(running, "throughput, an engine that only answers", "", "", seconds)
    return rows


def _best(running: Stack, name: str, swarm: str, bar: str, seconds: float) -> Rows:
    tried = []
    requests = 500
    for concurrency in (2, 4, 8, 16):
        found = _load(running, concurrency, requests, swarm)
        requests = max(200, round(found["per_s"] * seconds))
        tried.append((concurrency, _load(running, concurrency, requests, swarm)))
    within = [each for each in tried if percentile(each[1]["latencies_ms"], 99) < 50] or tried
    concurrency, best = max(within, key=lambda each: float(each[1]["per_s"]))
    p99_ms = percentile(best["latencies_ms"], 99)
    spent = {who: round(value, 1) for who, value in best["spent_us"].items()}
    more = {"concurrency": concurrency, "cpu_us_per_request": spent, "not_done": best["not_done"]}
    rows = [row(name, [best["per_s"]], "requests/s", bar=bar, **more)]
    rows.append(row(f"{name}: p99", [p99_ms], "ms", bar="< 50" if bar else "", concurrency=concurrency))
    rows.append(row(f"{name}: cpu of the router", [spent["router"]], "us/request", cpu_us_per_request=spent))
    return rows


def _load(running: Stack, concurrency: int, requests: int, swarm: str) -> dict[str, Any]:
    prefix = f"load-{time.time_ns()}"
    argv = [sys.executable, "-m", "engine.bench.http_load", str(running.paths.router_socket)]
    before = {name: _cpu_s(daemon.pid) for name, daemon in running.daemons.items()}
    done = subprocess.run(
        [*argv, str(concurrency), str(requests), prefix, *([swarm] if swarm else [])],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    spent = {name: _cpu_s(daemon.pid) - before[name] for name, daemon in running.daemons.items()}
    spent["caller"] = found["cpu_s"]
    found["spent_us"] = {name: value / requests * 1e6 for name, value in spent.items()}
    return found


def _cpu_s(pid: int) -> float:
    """Of a process, its ended children, and those that live."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children():
        with_child = child.cpu_times()
        total += with_child.user + with_child.system
    return float(total)


def flips(number: int, many: int) -> Rows:
    """A flip under 200 requests/s: until every request is under the new order. Then very many."""
    with stack() as running:
        running.configure(COORDINATION_VERSION="v1", V1_COMMAND=_quick_v1(running))
        warm(running)  # so that the load costs no processes, and the flip alone is measured
        client = RouterClient(running.address, timeout_s=30)
        seconds, late = [], 0
        with under_load(running, 200, 2 + number * 1.5, "flip", "warm") as reports:
            for n in range(number):
                order = Order(version="v2", percent=str(10 + 80 * (n % 2)), epoch=n + 1)
                began_s = time.time()
                done = flip(running.paths.config, order, client, check=False, wait_s=30)
                confirmed_s = time.time()
                seconds.append(confirmed_s - began_s)
                time.sleep(0.4)
                late += _under_older(running, done["after"]["generation"], confirmed_s)
        failed = not_answered(reports[0])
        rows = [
            row("flip under 200/s: until the new share holds", seconds, "s", bar="< 1"),
            row("flip under 200/s: slowest", [max(seconds)], "s", bar="< 1"),
            row("flip under 200/s: requests under the old order afterwards", [late], "requests", bar="= 0"),
            row(
                "flip under 200/s: failed or lost",
                [failed],
                "requests",
                bar="= 0",
                sent=reports[0]["sent"],
                examples=reports[0]["failures"],
            ),
        ]
        router = psutil.Process(running.daemons["router"].pid)
        memory_mb: list[float] = []
        with under_load(running, 50, 60 + many * 2.0, "flips", "warm") as reports:
            for n in range(many):
                order = Order(version=("v1", "v2")[n % 2], percent="50", epoch=number + n + 1)
                flip(running.paths.config, order, client, check=False, wait_s=30)
                memory_mb.append(router.memory_info().rss / 2**20)
        failed = not_answered(reports[0])
        tenth = max(1, many // 10)
        growth = max(memory_mb[-tenth:]) - max(memory_mb[tenth : 3 * tenth])
        rows.append(
            row(
                f"{many} flips: failed or lost",
                [failed],
                "requests",
                bar="= 0",
                sent=reports[0]["sent"],
                examples=reports[0]["failures"],
            )
        )
        rows.append(
            row(
                f"{many} flips: growth of memory from the second tenth on",
                [growth],
                "MB",
                bar="< 8",
                answers_kept=reports[0]["sent"],
                first_mb=round(memory_mb[0], 1),
                last_mb=round(memory_mb[-1], 1),
            )
        )
    return rows


def _under_older(running: Stack, generation: int, since_unix_s: float) -> int:
    """Requests that came after `since_unix_s` and were routed under an older generation."""
    late = 0
    for line in running.paths.events.read_text().splitlines()[-400:]:
        event = json.loads(line)
        if event["type"] == "coordination" and event["generation"] < generation:
            ended = time.mktime(time.strptime(event["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
            came = ended + float(event["time"][19:23]) - event["total_time_ms"] / 1000
            late += came > since_unix_s + 0.005
    return late


def _quick_v1(running: Stack) -> Path:
    """A V1 that costs little, so that the load measures the router: true to the contract, without work."""
    path = running.paths.root / "quick-v1"
    path.write_text('#!/bin/sh\necho "delivery_rate=100.0 agents_coordinated=$1 coordination_time_ms=1"\n')
    path.chmod(0o755)
    return path


def restarts(number: int) -> Rows:
    """Restarts and upgrades of the router under 200 requests/s: each starts from another folder."""
    with stack() as running:
        other = running.paths.root / "other-release"
        shutil.copytree(SOURCES, other)
        with under_load(running, 200, 2 + 3.0 * number, "restart") as reports:
            for n in range(number):
                running.daemons["router"].terminate()
                running.daemons["router"].wait()
                running.start("router", source=(SOURCES, other)[n % 2])
                running.wait_ready()
                time.sleep(0.5)
        report = reports[0]
        more = {
            "sent": report["sent"],
            "retried": report["retries"],
            "fallbacks": report["fallbacks"],
            "examples": report["failures"],
        }
        return [
            row(
                f"{number} restarts: refused connections",
                [report["refused_connections"]],
                "",
                bar="= 0",
                **more,
            ),
            row(f"{number} restarts: failed or lost", [not_answered(report)], "requests", bar="= 0", **more),
        ]


def breaker() -> Rows:
    """From an open breaker to V1: the next request."""
    with stack() as running:
        client = RouterClient(running.address)
        others, milliseconds = 0, []
        for n in range(20):
            client.move_breaker("open", reason="bench", by="bench")
            began_s = time.perf_counter()
            _, answer = client.coordinate({"task_id": f"held-{n}", "agents": 1}, answer_s=10)
            milliseconds.append((time.perf_counter() - began_s) * 1000)
            others += answer["served"] != "v1"
            client.move_breaker("closed", reason="bench", by="bench")
            _, answer = client.coordinate({"task_id": f"free-{n}", "agents": 1}, answer_s=10)
            others += answer["served"] != "v2"
    return [
        row("open breaker: next requests that V1 did not serve", [others], "requests", bar="= 0", tried=20),
        row("open breaker: that request, with V1's process", milliseconds, "ms"),
    ]


def faults(requests: int) -> Rows:
    """Each fault in the middle of a load, and what became of every agent."""
    rows = []
    with stack() as running:
        for seed, (name, fault) in enumerate(FAULTS.items(), 1):
            report = with_fault(
                running, fault, requests=requests, rate_per_s=50, seed=seed, prefix=f"fault-{seed}"
            )
            unanswered = report.load.sent - report.load.answered_once
            more = {
                "requests": report.load.sent,
                "agents": report.agents_asked,
                "states": report.states,
                "fallbacks": report.load.fallbacks,
                "what": report.detail,
            }
            died = 1 if "worker" in name else 0
            unknown = report.states.get("unknown", 0)
            rows += [
                row(f"{name}: callers without an answer", [unanswered], "callers", bar="= 0", **more),
                row(f"{name}: agents run twice", [report.ran_twice], "agents", bar="= 0", **more),
                row(f"{name}: agents unaccounted for", [report.unaccounted], "agents", bar="= 0", **more),
                row(f"{name}: unknown beyond those that died", [max(0, unknown - died)], "agents", bar="= 0"),
                row(
                    f"{name}: answers that the file contradicts", [len(report.contradictions)], "", bar="= 0"
                ),
            ]
    return rows


def sections(quick: bool) -> dict[str, Callable[[], Rows]]:
    """What is measured, by name; `quick` is for a look, not for figures."""
    return {
        "split": split,
        "latency": lambda: latency(400 if quick else 4_000),
        "throughput": lambda: throughput(0.5 if quick else 4.0),
        "flips": lambda: flips(3 if quick else 20, 20 if quick else 1_000),
        "restarts": lambda: restarts(2 if quick else 10),
        "breaker": breaker,
        "faults": lambda: faults(60 if quick else 1_000),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the rows. Exit code 1 if a bar is not reached."""
    parser = argparse.ArgumentParser(description="Measure the router against its bars.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="small samples: a look, no figures")
    parser.add_argument("--only", choices=sections(quick=False), action="append")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    rows: Rows = []
    for name, measure in sections(options.quick).items():
        if options.only is None or name in options.only:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            rows += measure()
    print(f"load of the machine: {os.getloadavg()[0]:.2f}")
    print(table(rows))
    (options.output / "router.json").write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(line.get("reached", True) for line in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
