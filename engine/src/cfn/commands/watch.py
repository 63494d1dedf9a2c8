"""`cfn watch`: one minute of the watch; cfn-watch.timer runs it on the control host.

Its plan is a JSON file (docs/reference/watch.md). Exit codes: 0 done, whatever the verdict; 1 a host was not
told that the watch ends; 2 a bad plan; 6 the ledger cannot be trusted.
"""

import argparse
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfn import paths
from cfn.engine.log import log
from cfn.errors import EXIT_DONE, EXIT_FAILED, UsageError
from cfn.ledger.entries import store_in
from cfn.metrics import checks
from cfn.rollout.plan import read_plan
from cfn.watch.ssh import Hosts, Target
from cfn.watch.tick import Watch


def main(argv: list[str]) -> int:
    """Log what was noteworthy, one line each."""
    installed = paths.installed()
    parser = argparse.ArgumentParser(
        prog="cfn watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=installed.ledger, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, default=installed.root / "etc/cfn/watch.json")
    parser.add_argument("--stop", action="store_true", help="tell the hosts that the watch ends on purpose")
    options = parser.parse_args(argv)
    try:
        raw = checks.load_object(options.plan.read_text())
        plan = read_plan(raw)
        hosts = _hosts(checks.mapping(plan.watch.get("ssh"), "watch.ssh"), plan.hosts)
    except (OSError, ValueError) as error:
        raise UsageError(f"{options.plan}: {error}; watch.yml writes it") from error
    watch = Watch(
        plan=plan,
        hosts=hosts,
        store=store_in(options.folder),
        memory_path=installed.state / "watch-memory.json",
        actor=f"cfn-watch@{socket.gethostname()}",
    )
    if options.stop:
        untold = watch.stop()
        for line in untold:
            log("watch", said=line)
        return EXIT_FAILED if untold else EXIT_DONE
    try:
        watch.tick(time.time_ns() // 1_000_000)
    finally:  # what was done is said also where it could not be recorded
        for line in watch.said:
            log("watch", said=line)
    return EXIT_DONE


def _hosts(ssh: Mapping[str, Any], names: tuple[str, ...]) -> Hosts:
    targets = checks.mapping(ssh.get("targets"), "watch.ssh.targets")
    return Hosts(
        targets={
            name: Target(
                address=checks.text(checks.mapping(targets.get(name), name).get("address"), "address"),
                port=checks.whole(targets[name].get("port", 22), "port", low=1, high=65_535),
            )
            for name in names
        },
        key=Path(checks.text(ssh.get("key"), "watch.ssh.key")),
        known_hosts=Path(checks.text(ssh.get("known_hosts"), "watch.ssh.known_hosts")),
    )
