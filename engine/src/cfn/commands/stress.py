"""`cfn stress`: stress this host within bounds, and hold what came of it against limits."""

import argparse
import json
import signal
import sys
from typing import Any, NoReturn

from cfn import paths
from cfn.errors import EXIT_DONE, EXIT_FAILED, UsageError
from cfn.operate import checks
from cfn.operate.stress import ADVICE, COUNTS, STRESSES, clean, stress


def main(argv: list[str]) -> int:
    """Exit code 0 when every figure is within its limit, 1 when one is not, 5 where it is refused."""
    parser = argparse.ArgumentParser(
        prog="cfn stress",
        description=__doc__,
        epilog='Standard input: {"bounds": {...}, "limits": {metric: {"compare": ..., "threshold": ...}}}',
    )
    parser.add_argument("scenario", choices=(*STRESSES, "clean"), help="clean: end what one left")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    here = paths.installed()
    if options.scenario == "clean":
        left = clean(here)
        print(json.dumps(left) if options.json else f"ended {left['swarms']}, started {left['started']}")
        return EXIT_DONE
    # Its end by systemd, too, is to end what it began.
    signal.signal(signal.SIGTERM, _ended)
    bounds, limits = _read()
    try:
        figures = stress(here, options.scenario, bounds)
    except SystemExit:  # at any moment, also while a swarm was being ended
        clean(here)
        raise
    held = {name: found for name, found in figures.items() if name not in COUNTS}
    result = {
        "stress": options.scenario,
        "figures": figures,
        **checks.verdict(checks.hold(held, limits, ADVICE)),
    }
    print(json.dumps(result) if options.json else "\n".join(result["summary"]))
    return EXIT_DONE if result["ok"] else EXIT_FAILED


def _read() -> tuple[dict[str, float], dict[str, checks.Limit]]:
    try:
        value: dict[str, Any] = json.load(sys.stdin)
        bounds = {str(name): float(bound) for name, bound in value["bounds"].items()}
        return bounds, checks.limits_of(value["limits"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"standard input: an object with bounds and limits is needed ({error})") from None


def _ended(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit("cfn stress: it was ended before its time")  # no CfnError, which is handled on the way
