# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""What a rollout derives from the hosts' answers: the next epoch, records, the gate's request."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

# What a playbook returned for a host, by the name that it was registered under.
Hostvars = Mapping[str, Mapping[str, Any]]

BLIND_LIMIT_S = 900  # where the stage's objectives name none


def step(table: Mapping[str, Any], stage: str, kind: str, traffic: object) -> dict[str, Any]:
    """The step of a stage that a percentage belongs to: its `name` and `traffic_pct`.

    `kind` is that of the environment: in staging all of a synthetic load may go to V2. Null asks for
    the table's own percentage. Raises AnsibleFilterError naming the value and what is allowed.
    """
    allowed = table[stage]["traffic"]
    steps = table[stage][kind]["steps_pct"]
    low, high = (1, 100) if kind == "staging" else (allowed["min_pct"], allowed["max_pct"])
    default = steps[0] if kind == "staging" else allowed["default_pct"]
    value = str(default if traffic is None else traffic)
    if not re.fullmatch(r"[0-9]{1,3}([.][0-9]{1,2})?", value) or not low <= float(value) <= high:
        raise AnsibleFilterError(
            f"traffic={value} is refused: {stage} takes a percentage from {low} to {high}, "
            "with at most two decimals. Nothing was touched."
        )
    name = next((str(pct) for pct in steps if float(value) <= pct), str(steps[-1]))
    return {"name": "staging" if kind == "staging" else name, "traffic_pct": value}


def next_epoch(hosts: Iterable[str], hostvars: Hostvars, traffic_pct: object = None) -> int:
    """One more than the highest epoch that any host answered with in `traffic_before` or `order_status`.

    With `traffic_pct`: if every host is at that share of V2 already, under one epoch, that epoch, so
    that a run that has nothing to flip changes nothing.
    """
    answers = [_traffic_before(hostvars[host]) for host in hosts]
    states = {
        (answer["version"], float(answer["traffic_pct"]), int(answer["epoch"])) if answer else None
        for answer in answers
    }
    highest = max((state[2] for state in states if state), default=0)
    if traffic_pct is not None and states == {("v2", float(str(traffic_pct)), highest)}:
        return highest
    return highest + 1


def _traffic_before(answers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a host said of its traffic before it was changed; None if it said nothing."""
    found = answers.get("traffic_before", {}).get("before") or answers.get("order_status", {}).get("status")
    return found if found and found.get("epoch") is not None else None


def flip_records(hosts: Iterable[str], hostvars: Hostvars) -> dict[str, Any]:
    """For each host what its flip found and left, for the ledger."""
    wanted = ("changed", "before", "after", "confirmed", "seconds")
    flips = {host: hostvars[host].get("traffic_flip", {}) for host in hosts}
    return {host: {key: flip.get(key) for key in wanted} for host, flip in flips.items()}


def gate_request(
    hosts: list[str], hostvars: Hostvars, stage: str, table: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """What the judge is asked, from each host's `gate_status` and, once reduced, `gate_metrics`.

    `environment`: name, kind (staging or production), time_factor, asked_by, now (RFC 3339),
    attestations (whether anybody is asked for them; else criteria on them are shown, not counted), and
    for a look at a past window since and ordered. The window begins when the last host got its present
    traffic and release. A host whose answer is missing is missing from the evidence, and the judge says
    so.
    """
    answers = {host: hostvars[host].get("gate_status", {}).get("status") or {} for host in hosts}
    since = [
        max(answer["since"], answer.get("release_since") or "")
        for answer in answers.values()
        if answer.get("since")
    ]
    ordered = _ordered(answers.values())
    judged = table[stage][environment["kind"]]
    past = environment.get("since") or ""
    evidence = {host: found for host in hosts if (found := _evidence(hostvars[host], host))}
    releases = sorted({answer["release"] for answer in answers.values() if answer.get("release")})
    return {
        "environment": environment["name"],
        "stage": stage,
        "step": _step_name(table, stage, environment["kind"], ordered.get("traffic_pct")),
        "asked_by": environment["asked_by"],
        "now": environment["now"],
        "since": past or max(since, default=environment["now"]),
        "retrospective": bool(past),
        "ordered": environment.get("ordered")
        or {"version": ordered.get("version", "v1"), "traffic_pct": ordered.get("traffic_pct", 0)},
        "hosts": hosts,
        "release": ", ".join(releases),
        "stage_table_sha256": table_sha256(table),
        "time_factor": environment["time_factor"],
        "window_s": judged["window_s"],
        "blind_limit_s": table[stage]["objectives"].get("blind_limit_s", BLIND_LIMIT_S),
        "criteria": [_asked(each, environment.get("attestations", True)) for each in judged["criteria"]],
        "triggers": table[stage]["triggers"],
        "evidence": evidence,
    }


def _ordered(answers: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The answer whose traffic most hosts have; of as many, the one that has been so for longest: who was
    changed by hand is the exception, not the order."""
    known = [answer for answer in answers if answer.get("version")]
    counts = Counter((answer["version"], answer.get("traffic_pct")) for answer in known)
    return min(
        known,
        key=lambda each: (-counts[each["version"], each.get("traffic_pct")], each.get("since") or ""),
        default={},
    )


def _evidence(answers: Mapping[str, Any], host: str) -> Any:
    """What a host's files or a Prometheus said of it, or why they did not; None if nothing was said."""
    asked = [answers.get(name, {}) for name in ("gate_metrics", "gate_series")]
    found = asked[0].get("evidence") or asked[1].get("evidence_by_host", {}).get(host)
    if found:
        return found
    said = [each["msg"] for each in asked if each.get("msg") and not each.get("unreachable")]
    return {"error": str(said[0])} if said else None


def _asked(criterion: Mapping[str, Any], attestations: object) -> dict[str, Any]:
    """The criterion, a dry run where it waits for people who are not asked."""
    silent = criterion["metric"] == "attested" and not attestations
    return dict(criterion) | ({"dry_run": True} if silent else {})


def _step_name(table: Mapping[str, Any], stage: str, kind: str, traffic: object) -> str:
    """The name of the step in force, or its percentage where that belongs to another stage."""
    try:
        return str(step(table, stage, kind, traffic)["name"])
    except (AnsibleFilterError, KeyError):  # the whole rollout moves no traffic of its own
        return str(traffic)


def table_sha256(table: Mapping[str, Any]) -> str:
    """What tells one stage table from another, in verdicts and in the order of steps."""
    text = json.dumps(table, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "cfn_step": step,
            "cfn_next_epoch": next_epoch,
            "cfn_flip_records": flip_records,
            "cfn_gate_request": gate_request,
            "cfn_table_sha256": table_sha256,
        }
