"""`cfn ledger append|show|verify|replay|export|anchor|anchors`: the record of what was done and decided."""

import argparse
import json
import re
import sys
import time
from itertools import islice
from pathlib import Path

from cfn import paths
from cfn.errors import EXIT_DAMAGED, EXIT_DONE, UsageError
from cfn.ledger import anchors
from cfn.ledger.canonical import canonical
from cfn.ledger.chain import KINDS, Anchor, Head
from cfn.ledger.entries import NAME, checked_entry, environment_of, store_in
from cfn.ledger.export import export, found_verdict
from cfn.ledger.store import LedgerStore
from cfn.ledger.table import table
from cfn.metrics import checks
from cfn.metrics.times import format_ms

MAX_SHOWN = 100_000
ANCHORS = "anchors"  # below the state folder


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
    show.add_argument(
        "--kind", action="append", choices=KINDS, help="only records of this kind; may be given again"
    )
    show.add_argument("--json", action="store_true", help="whole records, oldest first")
    verify = actions.add_parser("verify", help="find any record changed, removed or put in")
    verify.add_argument("--head", default="", metavar="HASH", help="a head that was kept elsewhere")
    verify.add_argument(
        "--anchors", type=Path, metavar="FILE", help="heads that hosts keep: {HOST: [{sequence, hash}]}"
    )
    verify.add_argument("--json", action="store_true")
    again = actions.add_parser("replay", help="judge again, offline, what a verdict was made from")
    again.add_argument("--sequence", type=int, metavar="N", help="one record; without it, every verdict")
    sends = actions.add_parser("export", help="a verdict as a signed file for another environment")
    sends.add_argument("--stage", required=True)
    sends.add_argument("--sequence", type=int, metavar="N", help="without it, the last PASS of the stage")
    keep = actions.add_parser("anchor", help="keep a ledger's head on this host")
    keep.add_argument("--environment", required=True)
    keep.add_argument("--sequence", required=True, type=int)
    keep.add_argument("--hash", required=True)
    keep.add_argument("--previous", metavar="HASH", help="of the record before it, which is kept too")
    kept = actions.add_parser("anchors", help="the heads that this host keeps")
    kept.add_argument("--environment", required=True)
    kept.add_argument("--last", type=int, default=MAX_SHOWN, metavar="N")
    options = parser.parse_args(argv)
    return {
        "append": _append,
        "show": _show,
        "verify": _verify,
        "replay": _replay,
        "export": _export,
        "anchor": _anchor,
        "anchors": _anchors,
    }[options.action](store_in(options.folder), options)


def _append(store: LedgerStore, options: argparse.Namespace) -> int:
    try:
        data = checks.load_object(sys.stdin.read())
    except ValueError as error:
        raise UsageError(f"the data on standard input is refused: {error}") from None
    record = store.append(
        checked_entry(
            kind=options.kind,
            stage=options.stage,
            actor=options.actor,
            environment=environment_of(options.environment),
            data=data,
        )
    )
    print(canonical(record) if options.json else f"record {record['sequence']}, hash {record['hash']}")
    return EXIT_DONE


def _show(store: LedgerStore, options: argparse.Namespace) -> int:
    if not 1 <= options.last <= MAX_SHOWN:
        raise UsageError(f"--last {options.last} is refused: 1 to {MAX_SHOWN} is allowed")
    if options.kind:
        wanted = (record for record in store.newest() if record["kind"] in options.kind)
        records = list(islice(wanted, options.last))[::-1]
    else:
        records = store.records(options.last)
    print(json.dumps({"records": records}, sort_keys=True) if options.json else table(records))
    return EXIT_DONE


def _verify(store: LedgerStore, options: argparse.Namespace) -> int:
    kept = [Anchor("somebody", options.head)] if options.head else []
    if options.anchors:
        kept += _read_anchors(options.anchors)
    finding = store.verify(kept)
    if options.json:
        answer = {
            "intact": not finding.problem,
            "problem": finding.problem,
            "records": finding.head.sequence,
            "head": finding.head.hash,
            "anchors": len(kept),
            "missing": [{"where": each.where, "hash": each.hash} for each in finding.missing],
        }
        print(json.dumps(answer, sort_keys=True))
    elif finding.problem:
        print(f"cfn ledger: {store.path}: {finding.problem}", file=sys.stderr)
    else:
        held = f", {len(kept)} heads kept elsewhere found" if kept else ""
        print(f"{finding.head.sequence} records, intact{held}; head {finding.head.hash}")
    return EXIT_DAMAGED if finding.problem and not options.json else EXIT_DONE


def _read_anchors(path: Path) -> list[Anchor]:
    try:
        value = checks.load_object(path.read_text())
        return [
            Anchor(
                host, checks.text(each.get("hash"), "hash"), checks.whole(each.get("sequence"), "sequence")
            )
            for host, heads in value.items()
            for each in (checks.mapping(head, "a head") for head in checks.sequence(heads, host))
        ]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: the heads in it are refused: {error}") from None


def _replay(store: LedgerStore, options: argparse.Namespace) -> int:
    from cfn.ledger.replay import replay  # the judge's libraries cost a start that only this needs

    outcome = replay(store.oldest(), options.sequence)
    print(outcome.text, file=sys.stderr if outcome.different else sys.stdout)
    return EXIT_DAMAGED if outcome.different else EXIT_DONE


def _export(store: LedgerStore, options: argparse.Namespace) -> int:
    record = found_verdict(store.oldest(), options.stage, options.sequence)
    print(canonical(export(record, options.folder / "signing-key")))
    return EXIT_DONE


def _anchor(_: LedgerStore, options: argparse.Namespace) -> int:
    hashes = [options.hash] if options.previous is None else [options.previous, options.hash]
    if options.sequence < 1 or not all(re.fullmatch(r"[0-9a-f]{64}", each) for each in hashes):
        raise UsageError("a head is a sequence from 1 and a hash of 64 hex digits")
    _check_name(options.environment)
    head = Head(options.sequence, options.hash)
    earlier = [Head(options.sequence - 1, each) for each in hashes[:-1] if options.sequence > 1]
    now = format_ms(time.time_ns() // 1_000_000)
    changed = anchors.keep(paths.installed().state / ANCHORS, options.environment, head, earlier, time=now)
    print(json.dumps({"changed": changed, "sequence": head.sequence, "hash": head.hash}))
    return EXIT_DONE


def _anchors(_: LedgerStore, options: argparse.Namespace) -> int:
    _check_name(options.environment)
    heads = anchors.read(paths.installed().state / ANCHORS, options.environment)[-max(1, options.last) :]
    print(json.dumps({"anchors": [{"sequence": head.sequence, "hash": head.hash} for head in heads]}))
    return EXIT_DONE


def _check_name(environment: str) -> None:
    if not NAME.fullmatch(environment):
        raise UsageError(f"environment {environment!r} is refused: a short name in lower case is allowed")
