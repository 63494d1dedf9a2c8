"""Escalations: what somebody must hear of, from the ledger and the last look's evidence. Pure.

Figures come from the stage table (`escalation`) and from cfn_severities; docs/reference/escalation.md
says where each trigger is from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cfn.errors import UsageError
from cfn.metrics import checks
from cfn.metrics.times import format_ms
from cfn.rollout.observations import Bucket, Observed
from cfn.rollout.records import attestations, facts, is_look
from cfn.rollout.steps import setback

Record = Mapping[str, Any]

RESOURCES = ("memory_kb", "fd_count", "tmpfs_pct")
FLAW = "architecture_sound"  # attested as not holding: the plan's "fundamental flaw"
SHORTAGE = "infrastructure_sufficient"  # attested as not holding: needs exceed what there is


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The limits. Times in ms; `delivery_for_s` is on the time scale already."""

    coordination_time_ms: float
    delivery_rate_pct: float
    delivery_for_s: float
    failed_retries: int
    fallbacks: int
    p1_time_ms: float
    p1_delivery_pct: float
    p2_time_ms: float
    p2_delivery_pct: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """One trigger that fired: `level` is stage or phase, `severity` P0 to P3."""

    trigger: str
    level: str
    severity: str
    reason: str

    def as_json(self) -> dict[str, str]:
        """For the ledger and the report."""
        return asdict(self)


def read_figures(stage: Mapping[str, Any], severities: Mapping[str, Any], time_factor: float) -> Figures:
    """The limits of a stage. Raises UsageError."""
    try:
        own = checks.mapping(stage.get("escalation"), "escalation")
        p1, p2 = (checks.mapping(severities.get(name), name) for name in ("P1", "P2"))
        return Figures(
            coordination_time_ms=checks.number(own.get("coordination_time_ms"), "coordination_time_ms"),
            delivery_rate_pct=checks.number(own.get("delivery_rate_pct"), "delivery_rate_pct", high=100),
            delivery_for_s=checks.number(own.get("delivery_for_s"), "delivery_for_s") / time_factor,
            failed_retries=checks.whole(own.get("failed_retries"), "failed_retries"),
            fallbacks=checks.whole(own.get("fallbacks"), "fallbacks"),
            p1_time_ms=checks.number(p1.get("coordination_time_ms"), "P1.coordination_time_ms"),
            p1_delivery_pct=checks.number(p1.get("delivery_rate_pct"), "P1.delivery_rate_pct", high=100),
            p2_time_ms=checks.number(p2.get("coordination_time_ms"), "P2.coordination_time_ms"),
            p2_delivery_pct=checks.number(p2.get("delivery_rate_pct"), "P2.delivery_rate_pct", high=100),
        )
    except ValueError as error:
        raise UsageError(f"escalation: {error}") from None


def severity(bucket: Bucket, figures: Figures) -> str | None:
    """How bad one bucket of V2 is: P0 when nothing at all was delivered, P1 and P2 by time and
    delivery; None when nothing is wrong or nothing was asked of V2."""
    delivery, time_ms = bucket.v2.rate_pct("delivery_rate_pct"), bucket.v2.times_ms.quantile(0.95)
    if delivery is None or time_ms is None:
        return None
    if delivery == 0:
        return "P0"
    if time_ms > figures.p1_time_ms or delivery < figures.p1_delivery_pct:
        return "P1"
    if time_ms > figures.p2_time_ms or delivery < figures.p2_delivery_pct:
        return "P2"
    return None


def escalations(
    records: Sequence[Record],
    stage: str,
    observed: Observed,
    results: Iterable[Mapping[str, Any]],
    figures: Figures,
    now_ms: int,
) -> list[Escalation]:
    """Every trigger that fires now. `observed` and `results` are those of the stage's last look."""
    found = [*_of_requests(observed, figures), *_of_results(results)]
    incidents = facts(records, stage, now_ms)
    if incidents["critical_incidents"]:
        names = ", ".join(incidents["incidents"])
        reason = f"a critical incident of V2 is open: {names}"
        found.append(Escalation(trigger="critical_incident", level="stage", severity="P0", reason=reason))
    return found + phase_escalations(records, [stage], figures)


def _of_requests(observed: Observed, figures: Figures) -> Iterable[Escalation]:
    served = [bucket for bucket in observed.buckets if bucket.v2.requests]
    if not served:
        return
    last = served[-1]
    time_ms = last.v2.times_ms.quantile(0.95) or 0.0
    at = format_ms(last.start_ms)
    worst = severity(last, figures)
    if time_ms > figures.coordination_time_ms:
        yield Escalation(
            trigger="coordination_time",
            level="stage",
            severity=worst or "P3",
            reason=(
                f"p95 of {time_ms:.0f} ms in the bucket of {at}, above {figures.coordination_time_ms:g} ms"
            ),
        )
    low = 0
    for bucket in reversed(served):
        if (bucket.v2.rate_pct("delivery_rate_pct") or 0.0) >= figures.delivery_rate_pct:
            break
        low = last.start_ms + observed.bucket_ms - bucket.start_ms
    if low >= figures.delivery_for_s * 1_000 and low:
        yield Escalation(
            trigger="delivery_rate",
            level="stage",
            severity=worst or "P2",
            reason=(
                f"below {figures.delivery_rate_pct:g} % in every bucket with requests for "
                f"{low / 3_600_000:.2g} hours, until {at}"
            ),
        )
    if worst in ("P0", "P1"):
        yield Escalation(
            trigger="degraded",
            level="stage",
            severity=worst,
            reason=(
                f"p95 of {time_ms:.0f} ms and {last.v2.rate_pct('delivery_rate_pct'):.1f} % delivered in the "
                f"bucket of {at}"
            ),
        )


def _of_results(results: Iterable[Mapping[str, Any]]) -> Iterable[Escalation]:
    broken = [each for each in results if each["layer"] == "guardrail" and each["verdict"] == "FAIL"]
    for each in broken:
        if each["metric"] in RESOURCES:
            trigger = "resource_exhaustion"
        elif each["metric"] == "coordinator_health":
            trigger = "coordinator_cascade"
        else:
            continue
        reason = f"{each['name']}: {each['reason']}"
        yield Escalation(trigger=trigger, level="stage", severity="P1", reason=reason)


def failed_attempts(records: Iterable[Record], stage: str) -> int:
    """How often in succession a stage was entered and ended in a FAIL or a rollback; a PASS ends the
    count. A FAIL and the rollback that follows it are one."""
    failed, running = 0, True
    for record in records:
        if record["stage"] != stage:
            continue
        if record["kind"] == "flipped":
            running = True
        elif setback(record) and running:
            failed, running = failed + 1, False
        elif is_look(record) and record["data"]["verdict"]["verdict"] == "PASS":
            failed = 0
    return failed


def phase_escalations(records: Sequence[Record], stages: Iterable[str], figures: Figures) -> list[Escalation]:
    """The triggers that put the whole plan in question; two of them are also what makes a PIVOT."""

    def phase(trigger: str, reason: str) -> Escalation:
        return Escalation(trigger=trigger, level="phase", severity="P1", reason=reason)

    found = []
    for stage in stages:
        failed = failed_attempts(records, stage)
        if failed > figures.failed_retries:
            found.append(
                phase("failed_retries", f"{stage} failed {failed} times in succession, {failed - 1} retries")
            )
        back = sum(record["kind"] == "rolled_back" and record["stage"] == stage for record in records)
        if back > figures.fallbacks:
            limit = figures.fallbacks
            found.append(phase("fallbacks", f"{stage} was taken back {back} times; {limit} are allowed"))
        attested = attestations(records, stage)
        for item, trigger in ((FLAW, "architecture_flaw"), (SHORTAGE, "infrastructure")):
            record = attested.get(item)
            if record is not None and not record["data"]["holds"]:
                data = record["data"]
                found.append(phase(trigger, f"attested by {data['by']} in {stage}: {data['note']}"))
    return found
