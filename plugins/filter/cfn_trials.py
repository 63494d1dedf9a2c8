# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""What trials and failovers derive from the stage table and the hosts' answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

Hostvars = Mapping[str, Mapping[str, Any]]

TRIED = ("load_balance", "mesh_reliability", "resource_analysis", "teams")


def limits(
    table: Mapping[str, Any], stage: str, more: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """For each metric that some criterion names its compare, threshold and unit: the stage's own criteria
    first, staging's before production's, then the other stages'; and `more`, which the table lacks."""
    found: dict[str, dict[str, Any]] = {}
    for name in [stage, *(each for each in table if each != stage)]:
        for kind in ("staging", "production"):
            for each in table[name].get(kind, {}).get("criteria", []):
                fields = {key: each[key] for key in ("compare", "threshold", "unit")}
                if each["statistic"] in ("max", "mean"):
                    found.setdefault(each["metric"], fields)
    return found | {metric: dict(fields) for metric, fields in (more or {}).items()}


def topology(table: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """How many coordinators and agents a stage has; no coordinators in a flat one."""
    config = table[stage]["config"]
    hybrid = config["CFN_TOPOLOGY"] == "hybrid"
    return {
        "hybrid": hybrid,
        "coordinators": int(config.get("CFN_COORDINATORS", 7)) if hybrid else 0,
        "agents": int(config["CFN_MAX_AGENTS"]),
    }


def coordinator_id(value: object) -> int:
    """A coordinator's number as it was typed. Raises AnsibleFilterError."""
    if not re.fullmatch(r"[1-9][0-9]?", str(value)):
        raise AnsibleFilterError(
            f"coordinator={value} is refused: a number is needed, -e coordinator=3. Nothing was touched."
        )
    return int(str(value))


def chosen_hosts(hosts: Sequence[str], named: str = "") -> list[str]:
    """The host that is named, else all. Raises AnsibleFilterError."""
    if named and named not in hosts:
        raise AnsibleFilterError(
            f"host={named} is refused: {', '.join(hosts)} run the engine. Nothing was touched."
        )
    return [named] if named else list(hosts)


def failover_choice(hosts: Sequence[str], hostvars: Hostvars, number: int) -> dict[str, str]:
    """Which host's coordinator is meant, and whether it is `planned` (it is up) or `dead`.

    Of several hosts the one on which it is not up, if there is just one; one that does not answer may be
    meant as well. Raises AnsibleFilterError naming what was found.
    """
    states: dict[str, str] = {}
    silent = []
    for host in hosts:
        answer = hostvars[host].get("failover_listed") or {}
        rows = {row["id"]: row["state"] for row in answer.get("coordinators", [])}
        problem = " ".join(str(answer.get("msg") or "it did not answer").split())
        if answer.get("topology") == "flat":
            problem = "its topology is flat, so that it has no coordinators; stages 2 and 3 have"
        elif rows and number not in rows:
            problem = f"coordinator {number} does not exist; there are {', '.join(map(str, rows))}"
        elif not rows:
            silent.append(host)
        states[host] = rows.get(number) or f"refused: {problem}"
    known = {host: state for host, state in states.items() if not state.startswith("refused: ")}
    down = [host for host, state in known.items() if state not in ("up", "draining")]
    meant = down if len(down) == 1 else [*known, *silent]
    if len(meant) != 1 or meant == silent:
        found = "; ".join(f"{host}: {state}" for host, state in states.items())
        word = "which host is meant? -e host=NAME. " if known else ""
        raise AnsibleFilterError(f"coordinator {number}: {word}{found}. Nothing was touched.")
    return {"host": meant[0], "way": "dead" if meant[0] in down else "planned"}


def failover_record(
    steps: Sequence[Mapping[str, Any]],
    host: str,
    coordinator: int,
    way: str,
    reason: str,
    proofs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """One failover for the ledger: which, how, why, and the longest time until all were served again.

    `steps` are answers of cfn_coordinator, `proofs` those of the trials that verified it.
    """
    bad = [step for step in [*steps, *proofs] if step.get("failed")]
    times = [step["served_s"] for step in steps if step.get("served_s") is not None]
    served_s = max(times, default=None)
    return {
        "host": host,
        "coordinator": coordinator,
        "way": way,
        "reason": reason,
        "served_s": served_s,
        "back_s": max((step["back_s"] for step in steps if step.get("back_s") is not None), default=None),
        "ok": not bad,
        "text": " ".join(str(bad[0].get("msg", "no answer")).split())
        if bad
        else f"coordinator {coordinator} of {host}, {way}: every worker was served again"
        + ("" if served_s is None else f" within {served_s} s"),
    }


def trial_lines(hosts: Iterable[str], hostvars: Hostvars) -> list[str]:
    """What every trial found on every host, one line for each figure."""
    return [
        f"{host}: {line}"
        for host in hosts
        for trial in TRIED
        for line in (hostvars[host].get(f"trial_{trial}") or {}).get("summary", [])
    ]


def trial_record(hosts: Iterable[str], hostvars: Hostvars) -> dict[str, Any]:
    """The figures of every trial on every host, for the ledger."""
    return {
        host: {
            check["name"]: check["found"]
            for trial in TRIED
            for check in (hostvars[host].get(f"trial_{trial}") or {}).get("checks", [])
        }
        for host in hosts
    }


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "cfn_limits": limits,
            "cfn_topology": topology,
            "cfn_coordinator_id": coordinator_id,
            "cfn_chosen_hosts": chosen_hosts,
            "cfn_failover_choice": failover_choice,
            "cfn_failover_record": failover_record,
            "cfn_trial_lines": trial_lines,
            "cfn_trial_record": trial_record,
        }
