"""`cfn load`: send a steady, seeded stream of requests to a router and account for every one."""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Mapping

from cfn import paths
from cfn.errors import EXIT_DONE, EXIT_FAILED, UsageError
from cfn.load.account import LoadReport
from cfn.load.plan import LoadPlan, parse_sizes
from cfn.load.stream import run_async


def main(argv: list[str]) -> int:
    """Exit code 0 only if every request was answered exactly once and every agent is done."""
    options = _parser().parse_args(argv)
    if (options.requests is None) == (options.seconds is None):
        raise UsageError("one of --requests and --seconds is needed")
    requests = options.requests if options.requests is not None else round(options.rate * options.seconds)
    plan = LoadPlan(
        router=options.router,
        rate_per_s=options.rate,
        requests=requests,
        prefix=options.prefix,
        seed=options.seed,
        sizes=parse_sizes(options.sizes),
        payload=options.payload,
        swarm_id=options.swarm,
        deadline_ms=options.deadline_ms,
        concurrency=options.concurrency,
        answer_s=options.answer_s,
        allow_remote=options.allow_remote,
    )
    report = asyncio.run(_run(plan))
    print(json.dumps(report.as_json()) if options.json else _text(report))
    return EXIT_DONE if report.ok else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    installed = paths.installed()
    parser = argparse.ArgumentParser(
        prog="cfn load",
        description=__doc__,
        epilog="Ctrl-C or SIGTERM ends the sending; what was sent is still accounted for.",
    )
    parser.add_argument("--rate", type=float, required=True, metavar="R", help="requests per second")
    parser.add_argument("--seconds", type=float, metavar="S")
    parser.add_argument("--requests", type=int, metavar="N")
    parser.add_argument("--sizes", default="1:60,10:35,100:5", help="AGENTS:WEIGHT,... (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="fixes the order of sizes (default 1)")
    parser.add_argument(
        "--prefix",
        default=f"load-{time.time_ns() // 1_000_000:x}",
        help="first part of the ids; the default is new for each run",
    )
    parser.add_argument(
        "--router", default=f"unix:{installed.router_socket}", help="unix:/PATH or http://HOST:PORT"
    )
    parser.add_argument("--allow-remote", action="store_true", help="allow a router that is not on this host")
    parser.add_argument("--payload", default="", help="text that every agent reads")
    parser.add_argument("--swarm", default="", help="a kept swarm of V2's that runs all of it")
    parser.add_argument("--deadline-ms", type=int)
    parser.add_argument("--concurrency", type=int, default=256, help="most requests under way (default 256)")
    parser.add_argument(
        "--answer-s", type=float, default=120.0, help="how long to wait for one (default 120)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


async def _run(plan: LoadPlan) -> LoadReport:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    show = sys.stderr.isatty()

    def progress(line: str) -> None:
        if show:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    try:
        return await run_async(plan, progress=progress, stop=stop)
    finally:
        if show:
            print(file=sys.stderr)


def _text(report: LoadReport) -> str:
    lines = [
        f"{report.sent} of {report.planned} sent in {report.seconds:.1f} s: {report.answered_once} answered "
        f"once, {report.answered_twice} twice, {report.never} never; {report.failed} failed, "
        f"{report.partial} partial",
        f"ordered {_counts(report.by_ordered)}; served {_counts(report.by_served)}; "
        f"{report.fallbacks} fallbacks, {report.over_capacity} over capacity",
        f"share of v2: {_share(report.observed_share_pct)} observed, "
        f"{_share(report.expected_share_pct)} ordered",
        f"{report.retries} retries, {report.refused_connections} connections refused, "
        f"{report.answered_by_asking} answered by asking, "
        f"{report.late_starts} late starts (at most {report.latest_start_ms:.0f} ms)",
    ]
    for version, figures in report.latency_ms.items():
        quantiles = ", ".join(f"p{p} {figures[f'p{p}']:.1f} ms" for p in (50, 95, 99))
        lines.append(f"{version}: {quantiles}")
    return "\n".join([*lines, *(f"  {reason}" for reason in report.failures)])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing"


def _share(share_pct: float | None) -> str:
    return "unknown" if share_pct is None else f"{share_pct:g} %"
