"""`cfn trial`: one of the trials that disturb nobody, its figures held against limits from standard input."""

import argparse
import json
import sys

from cfn import paths
from cfn.errors import EXIT_DONE, EXIT_FAILED, UsageError
from cfn.operate import checks
from cfn.operate.trials import ADVICE, TRIALS


def main(argv: list[str]) -> int:
    """Exit code 0 when every figure is within its limit, 1 when one is not, 5 in a flat topology."""
    parser = argparse.ArgumentParser(
        prog="cfn trial",
        description=__doc__,
        epilog='Limits: {"worker_imbalance_pct": {"compare": "le", "threshold": 10, "unit": "pct"}, ...}',
    )
    parser.add_argument("trial", choices=tuple(TRIALS))
    parser.add_argument("--agents", type=int, required=True, metavar="N", help="size of its swarm")
    parser.add_argument("--rounds", type=int, default=10, help="coordinations of mesh_reliability (10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if options.agents < 1 or options.rounds < 1:
        raise UsageError("--agents and --rounds: a whole number from 1 is needed")
    try:
        limits = checks.limits_of(json.load(sys.stdin))
    except ValueError as error:
        raise UsageError(f"limits on standard input are no JSON: {error}") from None
    figures = TRIALS[options.trial](paths.installed(), options.agents, options.rounds)
    result = {"trial": options.trial, **checks.verdict(checks.hold(figures, limits, ADVICE))}
    print(json.dumps(result) if options.json else "\n".join(result["summary"]))
    return EXIT_DONE if result["ok"] else EXIT_FAILED
