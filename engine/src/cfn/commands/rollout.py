"""`cfn rollout may-start|due|facts|escalations|outcome`: decisions over the environment's ledger.

Each but `facts` reads a JSON object: the step that is asked for, or the plan (docs/reference/order.md).
Exit codes: 0 done and allowed, 2 malformed, 5 the step may not start, 6 the ledger cannot be trusted.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfn import paths
from cfn.errors import EXIT_DONE, EXIT_REFUSED, UsageError
from cfn.ledger.entries import checked_entry, environment_of, store_in
from cfn.ledger.export import read_export
from cfn.ledger.store import LedgerStore
from cfn.metrics import checks
from cfn.metrics.times import read_argument
from cfn.rollout.outcome import outcome
from cfn.rollout.plan import Plan, read_plan
from cfn.rollout.records import facts
from cfn.rollout.standing import escalations_of, looks_due
from cfn.rollout.steps import may_start, read_asked

Record = Mapping[str, Any]


def main(argv: list[str]) -> int:
    """Print the answer as one JSON object."""
    parser = argparse.ArgumentParser(
        prog="cfn rollout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=paths.installed().ledger, help=argparse.SUPPRESS)
    actions = parser.add_subparsers(dest="action", required=True)
    start = actions.add_parser("may-start", help="may a step start; what is missing if it may not")
    start.add_argument("--record", metavar="ACTOR", help="append an override, and a verdict from elsewhere")
    fact = actions.add_parser("facts", help="what gates read from the ledger")
    fact.add_argument("--stage", required=True)
    fact.add_argument("--since", required=True)
    for name, text in (
        ("due", "when the next look is due, which were missed"),
        ("escalations", "what somebody must hear of; --record appends what is new"),
        ("outcome", "COMPLETE, INCOMPLETE or PIVOT; --record appends it"),
    ):
        each = actions.add_parser(name, help=text)
        each.add_argument("--plan", type=Path, metavar="FILE", help="without it, standard input")
        each.add_argument("--record", metavar="ACTOR")
    options = parser.parse_args(argv)
    store = store_in(options.folder)
    records = list(store.oldest())
    now_ms = time.time_ns() // 1_000_000
    if options.action == "may-start":
        return _may_start(store, records, options)
    if options.action == "facts":
        _print(facts(records, options.stage, read_argument(options.since)))
        return EXIT_DONE
    plan = read_plan(_load(options.plan))
    if options.action == "due":
        _print(looks_due(records, plan, plan.stage, now_ms))
    elif options.action == "escalations":
        _print({"escalations": _escalate(store, records, plan, options.record, now_ms)})
    else:
        _print(_outcome(store, records, plan, options.record))
    return EXIT_DONE


def _may_start(store: LedgerStore, records: Sequence[Record], options: argparse.Namespace) -> int:
    value = _load(None)
    asked = read_asked(value)
    exported = value.get("staging_verdict")
    staging: Record | None
    if exported:
        signers = checks.text(value.get("allowed_signers", ""), "allowed_signers")
        staging = read_export(checks.mapping(exported, "staging_verdict"), signers)
    else:
        staging = _imported(records, asked.stage)
    decision = may_start(records, asked, staging)
    if options.record:
        name = {"stage": asked.stage, "actor": options.record, "environment": asked.environment}
        if exported and staging is not None and _hash_of(_imported(records, asked.stage)) != staging["hash"]:
            store.append(checked_entry(kind="imported", **name, data={"record": dict(staging)}))
        if decision.override is not None:
            store.append(checked_entry(kind="override", **name, data=decision.override))
        if decision.resumed is not None and decision.allowed:
            store.append(checked_entry(kind="holding", **name, data=decision.resumed))
    _print(decision.as_json())
    return EXIT_DONE if decision.allowed else EXIT_REFUSED


def _imported(records: Sequence[Record], stage: str) -> Record | None:
    """The last verdict of elsewhere that was taken in for a stage; its signature was checked then."""
    found = [
        each["data"]["record"] for each in records if each["kind"] == "imported" and each["stage"] == stage
    ]
    return found[-1] if found else None


def _hash_of(record: Record | None) -> str:
    return record["hash"] if record is not None else ""


def _escalate(
    store: LedgerStore, records: Sequence[Record], plan: Plan, actor: str | None, now_ms: int
) -> list[dict[str, str]]:
    found = [each.as_json() for each in escalations_of(records, plan, plan.stage, now_ms)]
    if actor:
        told = [
            each["data"] for each in records if each["kind"] == "escalated" and each["stage"] == plan.stage
        ]
        for each in found:
            if each not in told:
                store.append(_entry(plan, "escalated", actor, each))
    return found


def _outcome(store: LedgerStore, records: Sequence[Record], plan: Plan, actor: str | None) -> dict[str, Any]:
    figures = {stage: plan.figures(stage) for stage in plan.stages}
    found = outcome(records, plan.stages, plan.attested_at_the_end, figures).as_json()
    if actor:
        store.append(_entry(plan, "outcome", actor, found, stage="epic"))
    return found


def _entry(plan: Plan, kind: str, actor: str, data: Mapping[str, Any], stage: str = "") -> Any:
    return checked_entry(
        kind=kind,
        stage=stage or plan.stage,
        actor=actor,
        environment=environment_of(plan.environment),
        data=data,
    )


def _load(path: Path | None) -> dict[str, Any]:
    source = str(path) if path else "standard input"
    try:
        return checks.load_object(path.read_text() if path else sys.stdin.read())
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: {error}") from error


def _print(value: object) -> None:
    print(json.dumps(value, sort_keys=True))
