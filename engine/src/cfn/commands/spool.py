"""`cfn spool add|show|join`: records of ways back that found no control host.

`add` keeps a line on this host; `join`, on the control host, appends to the ledger what it has not heard
of yet from the lines of all hosts (docs/reference/ways-back.md).
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cfn import paths
from cfn.errors import EXIT_DONE, CfnError, UsageError
from cfn.ledger.chain import Entry
from cfn.ledger.entries import checked_entry, environment_of, store_in
from cfn.ledger.joining import Known, unjoined
from cfn.metrics import checks
from cfn.metrics.times import format_ms
from cfn.watch import spool


def main(argv: list[str]) -> int:
    """Exit code 0 when the line is on disk, or the ledger has all; 2 for what is malformed."""
    installed = paths.installed()
    parser = argparse.ArgumentParser(
        prog="cfn spool", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=installed.ledger, help=argparse.SUPPRESS)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("add", help="keep a record: {id, stage, actor, data} on standard input")
    actions.add_parser("show", help="the lines of this host")
    join = actions.add_parser("join", help="append what is new: {HOST: [LINE, ...]} on standard input")
    join.add_argument("--environment")
    join.add_argument("--stage", required=True, help="of what guards did, which know no stage")
    join.add_argument("--actor", required=True)
    options = parser.parse_args(argv)
    if options.action == "show":
        print(json.dumps({"lines": spool.lines(installed)}))
    elif options.action == "add":
        _add(installed, _read())
    else:
        print(json.dumps({"records": _join(options, _read())}))
    return EXIT_DONE


def _read() -> dict[str, Any]:
    try:
        return checks.load_object(sys.stdin.read())
    except ValueError as error:
        raise UsageError(f"the JSON object on standard input is refused: {error}") from None


def _add(installed: paths.Paths, back: dict[str, Any]) -> None:
    try:
        for name in ("id", "stage", "actor"):
            checks.text(back.get(name), name)
        text = checks.text(checks.mapping(back.get("data"), "data").get("text"), "data.text")
        line = {"time": format_ms(time.time_ns() // 1_000_000), "reason": text, "back": back}
        spool.add(installed, line)
    except ValueError as error:
        raise UsageError(f"the record is refused: {error}") from None
    except OSError as error:
        raise CfnError(f"{spool.place(installed)}: {error}") from error
    print(json.dumps({"time": line["time"]}))


def _join(options: argparse.Namespace, spooled: dict[str, Any]) -> list[dict[str, Any]]:
    if not any(spooled.values()):
        return []
    environment = environment_of(options.environment)

    def joined(newest: Iterator[dict[str, Any]]) -> list[Entry]:
        known = Known()
        for record in reversed(list(newest)):
            known.take_in(record)
        return [
            checked_entry(
                kind="rolled_back",
                stage=each.stage or options.stage,
                actor=each.actor or options.actor,
                environment=environment,
                data=each.data,
            )
            for each in unjoined(spooled, known)
        ]

    return store_in(options.folder).append_all(joined)
