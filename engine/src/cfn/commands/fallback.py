"""`cfn fallback`: everything on this host to V1, at once, and proof that V1 serves.

What fallback_v1.yml runs on every host, and what to type on one that it cannot reach.
"""

import argparse
import json
import time
from typing import Any

from cfn import paths
from cfn.commands.status import read as read_status
from cfn.errors import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED
from cfn.router.client import RouterClient
from cfn.router.fallback import Asked, fall_back, found, refusal


def main(argv: list[str]) -> int:
    """Exit code 0 when V1 is proved (with --check: when it works), 1 when it is not, 5 when the traffic
    stays because V1 does not work or was decommissioned."""
    installed = paths.installed()
    parser = argparse.ArgumentParser(
        prog="cfn fallback", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="try V1 beside the router, and change nothing")
    parser.add_argument("--force", action="store_true", help="go even if V1 does not work and V2 does")
    parser.add_argument("--epoch", type=int, default=0, help="the least epoch; without it, the time")
    parser.add_argument("--agents", type=int, default=10, help="of the coordinations that prove V1")
    parser.add_argument("--within-ms", type=int, default=5_000, help="how long each of them may take")
    parser.add_argument("--delivery-pct", type=float, default=95.0, help="what it must deliver and complete")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    asked = Asked(
        agents=options.agents,
        within_ms=options.within_ms,
        delivery_pct=options.delivery_pct,
        epoch=options.epoch or int(time.time()),
        force=options.force,
    )
    standing = found(installed, asked, read_status(installed))
    answer: dict[str, Any] = {**standing, "refused": refusal(standing, asked)}
    if not options.check and not answer["refused"]:
        answer |= fall_back(installed, asked, standing, RouterClient(f"unix:{installed.router_socket}"))
    print(json.dumps(answer) if options.json else words(answer))
    if answer["refused"]:
        return EXIT_REFUSED
    return EXIT_DONE if answer.get("proved", answer["v1"]["works"]) else EXIT_FAILED


def words(answer: dict[str, Any]) -> str:
    """The answer as a person reads it."""
    if answer["refused"]:
        return str(answer["refused"])
    if "proved" not in answer:
        v1 = answer["v1"]
        return "V1 works; nothing was changed" if v1["works"] else f"V1 does not work: {v1['problem']}"
    if answer["proved"]:
        return f"V1 serves, proved by a real coordination; epoch {answer['epoch']}"
    return f"V1 is ordered (epoch {answer['epoch']}), but NOT PROVED: {answer['problem']}"
