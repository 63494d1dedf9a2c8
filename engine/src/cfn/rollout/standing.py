"""Where a stage stands by its ledger: since when it runs as it does, its looks, and what is due. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from cfn.metrics.times import format_ms, parse_ms
from cfn.rollout.cadence import due, read_cadence
from cfn.rollout.escalation import Escalation, escalations
from cfn.rollout.observations import Observed, observe
from cfn.rollout.plan import Plan
from cfn.rollout.records import is_look

Record = Mapping[str, Any]


def of_stage(records: Sequence[Record], stage: str) -> list[Record]:
    """The records of one stage."""
    return [record for record in records if record["stage"] == stage]


def flip_of(record: Record) -> tuple[float, bool] | None:
    """V2's share after a flip, and whether any host was changed; None of another record. A run that had
    nothing to flip began nothing."""
    if record["kind"] != "flipped":
        return None
    hosts = record["data"].get("hosts")
    if not isinstance(hosts, dict):
        return float(record["data"].get("traffic_pct", 0)), True
    shares = [float(host["after"]["traffic_pct"]) for host in hosts.values() if host.get("after")]
    return max(shares, default=0.0), any(host.get("changed") for host in hosts.values())


def last_flip(records: Sequence[Record], stage: str) -> tuple[Record, float] | None:
    """The record of the last flip that changed any host (of the first, if none did), and V2's share."""
    found = None
    for record in of_stage(records, stage):
        flip = flip_of(record)
        if flip is not None and (flip[1] or found is None):
            found = (record, flip[0])
    return found


def last_verdict(records: Sequence[Record], stage: str) -> Record | None:
    """The last verdict of a stage."""
    verdicts = [record for record in of_stage(records, stage) if is_look(record)]
    return verdicts[-1] if verdicts else None


def looks_due(records: Sequence[Record], plan: Plan, stage: str, now_ms: int) -> dict[str, Any]:
    """When the next look of a stage is due, and which were missed, since its last flip."""
    flip = last_flip(records, stage)
    if flip is None:
        times = dict.fromkeys(("since", "next", "intensive_until", "closely_until"))
        return {**times, "due": False, "missed": [], "missed_count": 0, "looks": 0}
    record, traffic = flip
    since_ms = parse_ms(record["time"])
    looks = [
        parse_ms(each["time"])
        for each in of_stage(records, stage)
        if is_look(each) and parse_ms(each["time"]) >= since_ms
    ]
    found = due(read_cadence(plan.window(stage), traffic, plan.scale), since_ms, looks, now_ms)
    return {
        "since": format_ms(since_ms),
        "due": found.now_due,
        "next": format_ms(found.next_ms),
        "every_s": found.every_s,
        "missed": [format_ms(each) for each in found.missed],
        "missed_count": found.missed_count,
        "intensive_until": format_ms(found.intensive_until_ms),
        "closely_until": format_ms(found.closely_until_ms),
        "looks": len(looks),
    }


def escalations_of(records: Sequence[Record], plan: Plan, stage: str, now_ms: int) -> list[Escalation]:
    """Every escalation of a stage, by its last look's evidence."""
    verdict = last_verdict(records, stage)
    observed = observe(verdict["data"]["request"]) if verdict else Observed((), 0, ())
    results = verdict["data"]["verdict"]["results"] if verdict else []
    return escalations(records, stage, observed, results, plan.figures(stage), now_ms)
