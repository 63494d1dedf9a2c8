"""What a report says, as one JSON object. Pure, over the ledger's records and the plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from cfn.ledger.table import summary
from cfn.metrics.arm import Arm
from cfn.metrics.times import format_ms, parse_ms
from cfn.rollout.observations import Bucket, Observed, observe
from cfn.rollout.outcome import EPIC, outcome
from cfn.rollout.plan import Plan
from cfn.rollout.records import attestations, incidents
from cfn.rollout.standing import escalations_of, last_verdict, looks_due, of_stage
from cfn.rollout.steps import overrides_in_force

Record = Mapping[str, Any]

REPORT_VERSION = 1
MAX_POINTS = 240  # of a chart; more are merged, which histograms allow without loss
GAUGES = ("memory_kb", "fd_count", "tmpfs_pct", "active_agents", "coordinator_health")


def report(
    records: Sequence[Record],
    plan: Plan,
    stages: Sequence[str],
    ledger: Mapping[str, Any],
    now_ms: int,
) -> dict[str, Any]:
    """The report of `stages`, as of `now_ms`. `ledger` is what verification found: intact, problem,
    records, head, anchors and hosts. The whole rollout is asked for by all of its stages."""
    sections = [_stage(records, plan, stage, now_ms) for stage in stages]
    whole = set(stages) >= set(plan.stages)
    return {
        "v": REPORT_VERSION,
        "generated": format_ms(now_ms),
        "environment": plan.environment,
        "hosts": list(plan.hosts),
        "time_scale": {"factor": plan.time_factor, "note": plan.scale.note()},
        "title": "The whole rollout" if whole else ", ".join(each["title"] for each in sections),
        "outcome": _outcome(records, plan) if whole else None,
        "stages": sections,
        "stage_table_sha256": plan.table_sha256,
        "ledger": dict(ledger),
    }


def _outcome(records: Sequence[Record], plan: Plan) -> dict[str, Any]:
    figures = {stage: plan.figures(stage) for stage in plan.stages}
    return outcome(records, plan.stages, plan.attested_at_the_end, figures).as_json()


def _stage(records: Sequence[Record], plan: Plan, stage: str, now_ms: int) -> dict[str, Any]:
    own = of_stage(records, stage)
    record = last_verdict(records, stage)
    verdict = record["data"]["verdict"] if record else None
    observed = observe(record["data"]["request"]) if record else Observed((), 0, ())
    return {
        "stage": stage,
        "title": f"{stage.replace('stage', 'Stage ').capitalize()}: {plan.judged(stage).get('title', stage)}",
        "verdict": _verdict(record, verdict),
        "criteria": _criteria(verdict),
        "versions": {version: _version(observed.total(version)) for version in ("v1", "v2")},
        "series": series(observed),
        "unread": list(observed.unread),
        "looks": looks_due(records, plan, stage, now_ms),
        "verdicts": [
            {"time": each["time"], "verdict": each["data"]["verdict"]["verdict"], "record": each["sequence"]}
            for each in own
            if each["kind"] == "verdict"
        ],
        "escalations": [] if stage == EPIC else [
            each.as_json() for each in escalations_of(records, plan, stage, now_ms)
        ],
        "incidents": [
            {"incident": each.incident, "severity": each.severity, "attributed_to": each.attributed_to,
             "state": each.state, "started": each.started, "text": each.text}
            for each in incidents(records)
            if each.stage == stage
        ],
        "overrides": [
            {"by": each["data"]["override_by"], "reason": each["data"]["override_reason"],
             "time": each["time"], "overridden": each["data"]["overridden"]}
            for each in overrides_in_force(records, stage)
        ],
        "attestations": [
            {"item": item, "holds": each["data"]["holds"], "by": each["data"]["by"],
             "note": each["data"]["note"], "time": each["time"]}
            for item, each in sorted(attestations(records, stage).items())
        ],
        "learned": [
            {"text": each["data"]["text"], "by": each["data"]["by"], "time": each["time"]}
            for each in own
            if each["kind"] == "learned"
        ],
        "timeline": [
            {"time": each["time"], "kind": each["kind"], "actor": each["actor"],
             "record": each["sequence"], "what": summary(each["data"])}
            for each in own
        ],
    }  # fmt: skip


def _verdict(record: Record | None, verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    if record is None or verdict is None:
        return {"verdict": "NOT JUDGED", "reasons": ["the gate was not asked about this stage yet"]}
    wanted = ("verdict", "reasons", "step", "release", "since", "ordered", "observed", "ask_again_at",
              "missing", "hosts", "judge_version", "asked_by")  # fmt: skip
    own = {name: verdict[name] for name in wanted if name in verdict}
    return own | {"time": record["time"], "record": record["sequence"], "hash": record.get("hash", "")}


def _criteria(verdict: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    wanted = ("name", "layer", "verdict", "dry_run", "metric", "statistic", "observed", "samples", "compare",
              "threshold", "unit", "per", "reason", "scope", "where")  # fmt: skip
    results = verdict["results"] if verdict else []
    return [{name: each[name] for name in wanted if name in each} for each in results]


def _version(arm: Arm) -> dict[str, Any]:
    """One version's requests of the window; percentiles within the histogram's 1 %."""
    return {
        "requests": arm.requests,
        "p50_ms": _rounded(arm.times_ms.quantile(0.5)),
        "p95_ms": _rounded(arm.times_ms.quantile(0.95)),
        "p99_ms": _rounded(arm.times_ms.quantile(0.99)),
        "delivery_rate_pct": _rounded(arm.rate_pct("delivery_rate_pct")),
        "completion_rate_pct": _rounded(arm.rate_pct("completion_rate_pct")),
        "error_rate_pct": _rounded(arm.rate_pct("error_rate_pct")),
        "fallbacks": sum(arm.fallbacks.values()),
    }


def series(observed: Observed) -> dict[str, Any]:
    """The window bucket by bucket, merged to at most MAX_POINTS; null where there was nothing."""
    step = max(1, -(-len(observed.buckets) // MAX_POINTS))
    groups = [observed.buckets[at : at + step] for at in range(0, len(observed.buckets), step)]
    return {
        "bucket_s": observed.bucket_ms * step / 1_000,
        "points": [_point(group) for group in groups],
    }


def _point(group: Sequence[Bucket]) -> dict[str, Any]:
    versions = {"v1": Arm(), "v2": Arm()}
    for bucket in group:
        versions["v1"].merge(bucket.v1)
        versions["v2"].merge(bucket.v2)
    total = versions["v1"].requests + versions["v2"].requests
    gauges = {
        name: max((value for bucket in group if (value := bucket.worst(name)) is not None), default=None)
        for name in GAUGES
    }
    return {
        "time": format_ms(group[0].start_ms),
        "time_s": group[0].start_ms / 1_000,
        "v1": _version(versions["v1"]),
        "v2": _version(versions["v2"]),
        "v2_share_pct": _rounded(100 * versions["v2"].requests / total) if total else None,
        "restarts": sum(bucket.restarts for bucket in group),
        **{name: _rounded(value) for name, value in gauges.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def window_s(section: Mapping[str, Any]) -> float:
    """How long a section's charts reach, in seconds."""
    points = section["series"]["points"]
    if not points:
        return 0.0
    span = (parse_ms(points[-1]["time"]) - parse_ms(points[0]["time"])) / 1_000
    return float(span + section["series"]["bucket_s"])
