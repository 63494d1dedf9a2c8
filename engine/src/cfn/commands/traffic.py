"""`cfn traffic`: read or flip version and percentage, confirmed by the running router; move its breaker."""

import argparse
import getpass
import json

from cfn import paths
from cfn.errors import UsageError
from cfn.router.client import RouterClient
from cfn.router.flip import Order, flip


def main(argv: list[str]) -> int:
    """Exit code 0 when the router reports what was ordered; 1 when it does not follow, 2 for a bad
    value, 3 when it does not answer, 5 for an older epoch, or for more of V2 while the breaker is open."""
    installed = paths.installed()
    parser = argparse.ArgumentParser(prog="cfn traffic", description=__doc__)
    parser.add_argument("--version", choices=("v1", "v2"), help="the coordination version to order")
    parser.add_argument("--percent", help="share of V2, 0 to 100, at most two decimals")
    parser.add_argument(
        "--epoch", type=int, help="number of the change; one lower than the file's is refused"
    )
    parser.add_argument(
        "--v1",
        choices=("enabled", "disabled"),
        help="disabled is V1's end: V2 serves everything, and nothing falls back",
    )
    parser.add_argument("--breaker", choices=("open", "closed"), help="hold V1, or end that; needs --reason")
    parser.add_argument("--reason", default="", help="why the breaker is moved, for the record")
    parser.add_argument("--by", default="", help="who moves it (default: this user)")
    parser.add_argument("--check", action="store_true", help="say what would change, and change nothing")
    parser.add_argument(
        "--wait-s", type=float, default=10.0, help="how long the router may take (default 10)"
    )
    parser.add_argument(
        "--router", default=f"unix:{installed.router_socket}", help="where the router answers"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if bool(options.breaker) != bool(options.reason.strip()):
        raise UsageError("--breaker and --reason belong together: say why the breaker is moved")
    order = Order(
        version=options.version,
        percent=options.percent,
        v1_enabled=None if options.v1 is None else options.v1 == "enabled",
        epoch=options.epoch,
        breaker=options.breaker,
        reason=options.reason,
        by=options.by or getpass.getuser(),
    )
    router = RouterClient(options.router)
    result = flip(installed.config, order, router, check=options.check, wait_s=options.wait_s)
    if options.json:
        print(json.dumps(result))
        return 0
    before, after = result["before"], result["after"]
    print(f"{after['version']} at {after['traffic_pct']} %, epoch {after['epoch']}", end="")
    if result["changed"]:
        print(f" (was {before['version']} at {before['traffic_pct']} %)", end="")
    if after["breaker"] not in (None, "closed") or before["breaker"] != after["breaker"]:
        print(f", breaker {after['breaker']}", end="")
    if not after["v1_enabled"]:
        print(", without V1", end="")
    if options.check:
        print(", predicted" if result["changed"] else ", nothing to change")
    elif result["confirmed"]:
        print(f", confirmed by generation {after['generation']} in {result['seconds']:.2f} s")
    else:
        print(", not confirmed: the router does not report it")
    if after["version"] == "v1" and result["v1"]["bears_all"] is False:
        print(
            f"V1 bears about {result['v1']['capacity_per_s']:g} coordinations a second, and "
            f"{result['v1']['demand_per_s']:g} are asked for: some will wait, and then be refused"
        )
    return 0
