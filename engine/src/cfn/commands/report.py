"""`cfn report`: the report of a stage, or of the whole rollout, from the environment's ledger.

The plan is a JSON object, on standard input or in a file (docs/reference/order.md), with `anchors` in
it where hosts keep the ledger's head. Exit codes: 0 written, 2 refused, 6 the ledger cannot be trusted
(the report is written nevertheless, and says so first of all).
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfn import paths
from cfn.config_follower import write_atomically
from cfn.errors import EXIT_DAMAGED, EXIT_DONE, RefusedError, UsageError
from cfn.ledger.chain import Anchor
from cfn.ledger.entries import store_in
from cfn.ledger.store import LedgerStore
from cfn.metrics import checks
from cfn.report.data import report
from cfn.report.page import page
from cfn.rollout.plan import read_plan

MODE = 0o644
WHOLE = "all"


def main(argv: list[str]) -> int:
    """Write the files that are asked for, or print the JSON."""
    parser = argparse.ArgumentParser(
        prog="cfn report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=paths.installed().ledger, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, metavar="FILE", help="without it, standard input")
    parser.add_argument("--stage", help=f"a stage, or {WHOLE}; without it, the plan's own")
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--both", action="store_true", help="print both as one JSON object: html and json")
    options = parser.parse_args(argv)
    raw = _load(options.plan)
    plan = read_plan(raw)
    store = store_in(options.folder)
    ledger = _verified(store, raw)
    stage = options.stage or plan.stage
    stages = list(plan.table) if stage == WHOLE else [stage]
    records = store.trusted()
    found = report(records, plan, stages, ledger, time.time_ns() // 1_000_000)
    text = json.dumps(found, sort_keys=True, indent=1) + "\n"
    if options.both:
        print(json.dumps({"html": page(found), "json": text, "intact": ledger["intact"]}))
        return EXIT_DONE
    for path, content in ((options.html, page(found)), (options.json, text)):
        if path is not None:
            _write(path, content)
    if options.html is None and options.json is None:
        print(text, end="")
    return EXIT_DONE if ledger["intact"] else EXIT_DAMAGED


def _verified(store: LedgerStore, raw: Mapping[str, Any]) -> dict[str, Any]:
    try:
        anchors = checks.mapping(raw.get("anchors", {}), "anchors")
        kept = [
            Anchor(
                host, checks.text(head.get("hash"), "hash"), checks.whole(head.get("sequence"), "sequence")
            )
            for host, heads in anchors.items()
            for head in checks.sequence(heads, host)
        ]
    except (ValueError, AttributeError) as error:
        raise UsageError(f"anchors: {error}") from None
    finding = store.verify(kept)
    return {
        "intact": not finding.problem,
        "problem": finding.problem,
        "records": finding.head.sequence,
        "head": finding.head.hash,
        "anchors": len(kept),
        "hosts": sorted(anchors),
    }


def _load(path: Path | None) -> dict[str, Any]:
    source = str(path) if path else "standard input"
    try:
        return checks.load_object(path.read_text() if path else sys.stdin.read())
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: {error}") from error


def _write(path: Path, content: str) -> None:
    try:
        write_atomically(path, content, mode=MODE)
    except OSError as error:
        raise RefusedError(f"{path}: cannot be written: {error}") from error
