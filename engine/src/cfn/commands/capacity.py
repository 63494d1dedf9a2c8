"""`cfn capacity`: read or change how many agents V2 takes and how long it keeps things, while it runs."""

import argparse
import json

from cfn import paths
from cfn.operate.capacity import DEFAULT, change, wanted


def main(argv: list[str]) -> int:
    """Exit code 0 when conductor and router report it, 1 when one does not follow, 2 for a bad value."""
    parser = argparse.ArgumentParser(prog="cfn capacity", description=__doc__)
    parser.add_argument("--agents", help="largest request that V2 takes; larger ones go to V1")
    parser.add_argument("--retention-s", help=f"seconds to keep results and answers, or {DEFAULT}")
    parser.add_argument("--check", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("--wait-s", type=float, default=10.0, help="how long they may take (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    keys = wanted(options.agents, options.retention_s)
    result = change(paths.installed(), keys, check=options.check, wait_s=options.wait_s)
    after = result["after"]
    text = f"up to {after['agents']} agents, kept for {after['retention_s']} s"
    print(json.dumps(result) if options.json else text)
    return 0
