"""`cfn coordinators`: list them; drain, fail over, restart or bring back one, and say how long that took."""

import argparse
import json
from typing import Any

from cfn import paths
from cfn.errors import EXIT_DONE, EXIT_FAILED, UsageError
from cfn.operate import coordinators as known
from cfn.operate.engine_client import health
from cfn.operate.hands import act


def main(argv: list[str]) -> int:
    """Exit code 0 when it is as ordered, 1 when that took too long or failed, 2 for one that does not
    exist, 3 when the engine does not answer, 5 for a flat topology or the last healthy one."""
    parser = argparse.ArgumentParser(prog="cfn coordinators", description=__doc__)
    parser.add_argument("action", choices=("list", *known.ACTIONS))
    parser.add_argument("number", type=int, nargs="?", metavar="ID")
    parser.add_argument("--agents", type=int, help="agents to watch meanwhile (default: all), 0: none")
    parser.add_argument("--within-s", type=float, default=30.0, help="until all are served (default 30)")
    parser.add_argument("--check", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    here = paths.installed()
    if (options.action == "list") != (options.number is None):
        raise UsageError("list takes no ID; every other action takes one")
    if options.agents is not None and options.agents < 0:
        raise UsageError(f"--agents {options.agents} is refused; a whole number from 0 is needed")
    if options.action == "list":
        result = _list(health(here))
    else:
        result = act(
            here,
            options.number,
            options.action,
            agents=options.agents,
            within_s=options.within_s,
            check=options.check,
        )
    print(json.dumps(result) if options.json else _text(result))
    return EXIT_DONE if result["held"] else EXIT_FAILED


def _list(found: dict[str, Any]) -> dict[str, Any]:
    rows = known.listed(found)
    return {
        "topology": found["topology"],
        "changed": False,
        "held": True,
        "coordinators": [each.as_json() for each in rows],
        "imbalance_pct": known.imbalance_pct(rows),
        "failover_time_s": found.get("failover_time_s"),
    }


def _text(result: dict[str, Any]) -> str:
    rows = result.get("coordinators") or result.get("after") or []
    lines = [
        f"coordinator {row['id']}  {row['state']}, {row['agents'] or 0} agents, {row['failovers']} failovers"
        for row in rows
    ]
    if result.get("served_s") is not None:
        lines.append(
            f"{result['action']} of coordinator {result['coordinator']}: the last worker was served again "
            f"after {result['served_s']:.2f} s, allowed {result['within_s']:g} s"
        )
    return "\n".join(lines) or f"no coordinators: the topology is {result['topology']}"
