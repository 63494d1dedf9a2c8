"""`cfn soak`: a long, steady load through the router that outlives whoever started it, and its account."""

import argparse
import json
import sys
from typing import Any

from cfn import paths
from cfn.errors import EXIT_DONE, EXIT_FAILED, UsageError
from cfn.operate import checks, soak
from cfn.operate.engine_client import unique


def main(argv: list[str]) -> int:
    """Exit code 0 when it runs or went well, 1 when its account has a problem, 5 if another one runs."""
    parser = argparse.ArgumentParser(
        prog="cfn soak", description=__doc__, epilog="start reads limits from standard input, as JSON."
    )
    parser.add_argument("action", choices=("start", "status", "stop", "run"), help="run: its unit does this")
    parser.add_argument("--seconds", type=int, metavar="S", help="its length")
    parser.add_argument("--rate", type=float, metavar="R", help="requests per second")
    parser.add_argument("--sizes", help="AGENTS:WEIGHT,... as of cfn load")
    parser.add_argument("--check", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    here = paths.installed()
    if options.action == "run":
        order = soak.order_of(here)
        result = soak.run(here, order, checks.limits_of(order.limits))
        print(json.dumps({"soak": order.soak, "ok": result["ok"], "problems": result["problems"]}))
        return EXIT_DONE
    if options.action == "start":
        found = soak.start(here, _order(options), check=options.check)
    elif options.action == "stop":
        found = soak.stop(here, check=options.check)
    else:
        found = {"changed": False, **soak.status(here)}
    print(json.dumps(found) if options.json else _text(found))
    return (
        EXIT_FAILED if found["state"] == "lost" or (found["result"] or {}).get("ok") is False else EXIT_DONE
    )


def _order(options: argparse.Namespace) -> soak.Order:
    if None in (options.seconds, options.rate, options.sizes) or options.seconds < 1:
        raise UsageError("start needs --seconds, --rate and --sizes")
    try:
        limits = json.load(sys.stdin)
    except ValueError as error:
        raise UsageError(f"limits on standard input are no JSON: {error}") from None
    checks.limits_of(limits)
    return soak.Order(
        soak=unique("soak"),
        seconds=options.seconds,
        rate_per_s=options.rate,
        sizes=options.sizes,
        limits=limits,
    )


def _text(found: dict[str, Any]) -> str:
    lines = [f"soak: {found['state']}" + (f", {found['progress']}" if found["progress"] else "")]
    if found["result"]:
        lines += found["result"]["problems"] or ["every request was answered once and in full"]
    return "\n".join(lines)
