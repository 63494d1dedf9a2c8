"""`cfn ledger append|show|verify`: the record of what was done and decided."""

import argparse
import json
import re
import sys
import time
from pathlib import Path

from cfn import paths
from cfn.config import parse
from cfn.errors import EXIT_DAMAGED, EXIT_DONE, CfnError, UsageError
from cfn.ledger.canonical import canonical
from cfn.ledger.chain import KINDS, Entry
from cfn.ledger.store import LedgerStore
from cfn.ledger.table import table
from cfn.metrics.checks import load_object
from cfn.metrics.times import format_ms

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
MAX_SHOWN = 100_000


def main(argv: list[str]) -> int:
    """Exit code 0 done, 2 refused, 5 another writer or a full disk, 6 the ledger cannot be trusted."""
    parser = argparse.ArgumentParser(prog="cfn ledger", description=__doc__)
    parser.add_argument("--folder", type=Path, default=paths.installed().ledger, help=argparse.SUPPRESS)
    actions = parser.add_subparsers(dest="action", required=True)
    append = actions.add_parser("append", help="add a record; its data is a JSON object on standard input")
    append.add_argument("--kind", required=True, choices=KINDS)
    append.add_argument("--stage", required=True)
    append.add_argument("--actor", required=True, help="who asked: user and controller")
    append.add_argument("--environment", help="its name; without it, the configuration's")
    append.add_argument("--json", action="store_true", help="print the whole record instead of one line")
    show = actions.add_parser("show", help="the last records as a table")
    show.add_argument("--last", type=int, default=20, metavar="N")
    show.add_argument("--json", action="store_true", help="whole records, oldest first")
    verify = actions.add_parser("verify", help="find any record changed, removed or put in")
    verify.add_argument("--head", default="", metavar="HASH", help="a head that was kept elsewhere")
    verify.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    store = LedgerStore(options.folder, lambda text: print(f"cfn ledger: {text}", file=sys.stderr))
    return {"append": _append, "show": _show, "verify": _verify}[options.action](store, options)


def _append(store: LedgerStore, options: argparse.Namespace) -> int:
    try:
        data = load_object(sys.stdin.read())
    except ValueError as error:
        raise UsageError(f"the data on standard input is refused: {error}") from None
    environment = options.environment or _environment()
    for name, value in (("stage", options.stage), ("environment", environment)):
        if not _NAME.fullmatch(value):
            raise UsageError(f"{name} {value!r} is refused: a short name in lower case is allowed")
    if not options.actor.strip() or not options.actor.isprintable() or len(options.actor) > 256:
        raise UsageError("actor must be one line of 1 to 256 characters")
    entry = Entry(
        time=format_ms(time.time_ns() // 1_000_000),
        environment=environment,
        kind=options.kind,
        stage=options.stage,
        actor=options.actor,
        data=data,
    )
    record = store.append(entry)
    print(canonical(record) if options.json else f"record {record['sequence']}, hash {record['hash']}")
    return EXIT_DONE


def _show(store: LedgerStore, options: argparse.Namespace) -> int:
    if not 1 <= options.last <= MAX_SHOWN:
        raise UsageError(f"--last {options.last} is refused: 1 to {MAX_SHOWN} is allowed")
    records = store.records(options.last)
    print(json.dumps({"records": records}, sort_keys=True) if options.json else table(records))
    return EXIT_DONE


def _verify(store: LedgerStore, options: argparse.Namespace) -> int:
    finding = store.verify(options.head)
    if options.json:
        answer = {
            "intact": not finding.problem,
            "problem": finding.problem,
            "records": finding.head.sequence,
            "head": finding.head.hash,
        }
        print(json.dumps(answer, sort_keys=True))
    elif finding.problem:
        print(f"cfn ledger: {store.path}: {finding.problem}", file=sys.stderr)
    else:
        print(f"{finding.head.sequence} records, intact; head {finding.head.hash}")
    return EXIT_DAMAGED if finding.problem and not options.json else EXIT_DONE


def _environment() -> str:
    source = paths.installed().config
    try:
        return parse(source.read_text(), source=str(source)).config.environment
    except (OSError, UnicodeDecodeError, CfnError) as error:
        raise UsageError(f"no --environment given, and {source} does not tell it: {error}") from None
