"""The watch's decisions. Pure: what to judge, and what a verdict means for the traffic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfn.metrics.times import format_ms, parse_ms
from cfn.rollout.plan import Plan

BLIND_LIMIT_S = 900  # where the stage's objectives name none


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What the hosts run, from their statuses: the share of V2 that is ordered, since when on the last
    host, and the highest epoch. `silent` are the hosts that did not answer."""

    version: str
    traffic_pct: float
    since_ms: int
    releases: tuple[str, ...]
    epoch: int
    silent: tuple[str, ...]

    @property
    def v2_pct(self) -> float:
        """V2's share."""
        return self.traffic_pct if self.version == "v2" else 0.0


def fleet(answers: Mapping[str, Mapping[str, Any]], now_ms: int) -> Fleet | None:
    """What runs, or None if no host answered. Hosts that differ are the judge's to find: the largest
    share is what is watched for."""
    statuses = {
        host: each["status"] for host, each in answers.items() if each.get("status", {}).get("version")
    }
    if not statuses:
        return None
    most = max(statuses.values(), key=lambda each: (each["version"] == "v2", each["traffic_pct"] or 0))
    times = [
        parse_ms(text)
        for each in statuses.values()
        for text in (each.get("since"), each.get("release_since"))
        if text
    ]
    return Fleet(
        version=most["version"],
        traffic_pct=float(most["traffic_pct"] or 0),
        since_ms=max(times, default=now_ms),
        releases=tuple(sorted({each["release"] for each in statuses.values() if each.get("release")})),
        epoch=max(each.get("epoch") or 0 for each in statuses.values()),
        silent=tuple(sorted(set(answers) - set(statuses))),
    )


def step_name(plan: Plan, stage: str, traffic_pct: float) -> str:
    """The name of the step that a share of traffic belongs to."""
    if plan.kind == "staging":
        return "staging"
    steps = plan.window(stage)["steps_pct"]
    return next((str(pct) for pct in steps if traffic_pct <= pct), f"{traffic_pct:g}")


def request(
    plan: Plan,
    running: Fleet,
    facts: Mapping[str, Any],
    *,
    asked_by: str,
    now_ms: int,
    guardrails_only: bool,
    guardrail_window_s: float,
) -> dict[str, Any]:
    """What the judge is asked, with the ledger's facts and still without evidence: everything when a look
    is due; else the guardrails, over a window that is no longer than what they act on at once."""
    stage = plan.stage
    figures = plan.window(stage)
    triggers: Sequence[Mapping[str, Any]] = plan.judged(stage).get("triggers", [])
    window_s = figures["window_s"]
    if guardrails_only:
        window_s = min(window_s, guardrail_window_s)
    return {
        "environment": plan.environment,
        "stage": stage,
        "step": step_name(plan, stage, running.traffic_pct),
        "asked_by": asked_by,
        "now": format_ms(now_ms),
        "since": format_ms(running.since_ms),
        "ordered": {"version": running.version, "traffic_pct": running.traffic_pct},
        "hosts": list(plan.hosts),
        "release": ", ".join(running.releases),
        "stage_table_sha256": plan.table_sha256,
        "time_factor": plan.time_factor,
        "window_s": window_s,
        "criteria": [] if guardrails_only else [_asked(each, plan) for each in figures["criteria"]],
        "triggers": [dict(each) for each in triggers],
        "evidence": {},
        "facts": dict(facts),
        "blind_limit_s": plan.judged(stage).get("objectives", {}).get("blind_limit_s", BLIND_LIMIT_S),
    }


def _asked(criterion: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The criterion, a dry run where it waits for people who are not asked."""
    silent = criterion["metric"] == "attested" and not plan.watch.get("attestations", True)
    return dict(criterion) | ({"dry_run": True} if silent else {})


def step_down(plan: Plan, running: Fleet) -> float:
    """The share to go back to after a FAIL: the next of the stage's own way back that is lower than
    what is in force; 0 is V1."""
    ways = plan.judged(plan.stage).get("objectives", {}).get("rollback_to_pct", [0])
    return float(next((pct for pct in ways if pct < running.v2_pct), 0))


def left_behind(back: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The hosts that a way back did not reach, which answer now and still give V2 more than it ordered,
    under an older epoch."""
    statuses = {host: answers.get(host, {}).get("status") or {} for host in back.get("pending") or ()}
    return tuple(
        host
        for host, each in statuses.items()
        if each.get("version") == "v2"
        and float(each.get("traffic_pct") or 0) > float(back.get("to_pct") or 0)
        and int(each.get("epoch") or 0) < int(back["epoch"])
    )


def blind_too_long(blind_since_ms: int | None, now_ms: int, blind_limit_s: float) -> bool:
    """Whether nothing could be seen for longer than is allowed."""
    return blind_since_ms is not None and now_ms - blind_since_ms > blind_limit_s * 1_000
