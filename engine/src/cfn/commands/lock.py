"""`cfn lock show|take|release|break`: the lock of a rollout, in the environment's ledger.

Exit codes: 0 done, 2 malformed, 5 another run holds it (who, since when, how to break it is said).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cfn import paths
from cfn.errors import EXIT_DONE, UsageError
from cfn.ledger.chain import Entry
from cfn.ledger.entries import checked_entry, environment_of, store_in
from cfn.metrics.checks import load_object
from cfn.rollout.lock import breaking, held, releasing, taking


def main(argv: list[str]) -> int:
    """Print who holds the lock now."""
    parser = argparse.ArgumentParser(
        prog="cfn lock", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=paths.installed().ledger, help=argparse.SUPPRESS)
    parser.add_argument("--environment", help="its name; without it, the configuration's")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("show", help="who holds it, since when")
    take = actions.add_parser("take", help="take it; run, controller and purpose as JSON on standard input")
    release = actions.add_parser("release", help="give it back")
    release.add_argument("--run", required=True)
    breaks = actions.add_parser("break", help="end another run's lock")
    breaks.add_argument("--reason", required=True)
    for action in actions.choices.values():  # it is typed before the action, or at the end
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object")
    for each in (take, release, breaks):
        each.add_argument("--actor", required=True, help="who asks")
        each.add_argument("--stage", default="rollout")
    options = parser.parse_args(argv)
    store = store_in(options.folder)
    now_ms = time.time_ns() // 1_000_000
    if options.action == "take":
        asked = _asked()
        _append(options, "locked", lambda newest: taking(newest, asked, now_ms)[1])
    elif options.action == "release":
        _append(options, "unlocked", lambda newest: releasing(newest, options.run, now_ms))
    elif options.action == "break":
        _append(options, "unlocked", lambda newest: breaking(newest, options.reason, now_ms))
    lock = held(store.newest(), now_ms)
    if options.json:
        print(json.dumps({"lock": lock.as_json() if lock else None}, sort_keys=True))
    else:
        print(lock.words if lock else "nobody holds the lock")
    return EXIT_DONE


def _append(
    options: argparse.Namespace, kind: str, data: Callable[[Iterator[dict[str, Any]]], dict[str, Any]]
) -> None:
    environment = environment_of(options.environment)

    def entry(newest: Iterator[dict[str, Any]]) -> Entry:
        return checked_entry(
            kind=kind, stage=options.stage, actor=options.actor, environment=environment, data=data(newest)
        )

    store_in(options.folder).append_all(lambda newest: [entry(newest)])


def _asked() -> dict[str, Any]:
    try:
        return load_object(sys.stdin.read())
    except ValueError as error:
        raise UsageError(f"the lock that is asked for, on standard input, is refused: {error}") from None
