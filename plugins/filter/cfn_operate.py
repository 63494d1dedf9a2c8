# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""What operations on running hosts derive from the stage table, the ledger and the hosts' answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

Hostvars = Mapping[str, Mapping[str, Any]]

# Records that say which stage an environment is in.
OF_A_STAGE = ("started", "deployed", "flipped", "holding", "verdict")
STRESSES = (
    "rapid_cycles",
    "cascade",
    "memory_pressure",
    "descriptor_pressure",
    "message_storm",
    "concurrent",
)
LENGTHS_S = {"m": 60, "h": 3600, "d": 86400}


def stage_in_force(records: Iterable[Mapping[str, Any]], table: Mapping[str, Any], named: str = "") -> str:
    """The stage that is named, else that of the newest record of one. Raises AnsibleFilterError."""
    stages = [stage for stage, figures in table.items() if "config" in figures]
    if named:
        if named not in stages:
            raise AnsibleFilterError(
                f"stage={named} is refused: {', '.join(stages)} are allowed. Nothing was touched."
            )
        return named
    found = [
        record["stage"] for record in records if record["kind"] in OF_A_STAGE and record["stage"] in stages
    ]
    if not found:
        raise AnsibleFilterError(
            "the ledger names no stage that was started here: say which one is meant with -e stage=NAME"
        )
    return str(found[-1])


def soak_order(table: Mapping[str, Any], stage: str, soak: Mapping[str, Any], length: str) -> dict[str, Any]:
    """What a soak of this stage is: `seconds`, `rate_per_s`, `sizes`. `length` is 90m, 8h or 3d; empty for
    the stage's longest. Raises AnsibleFilterError naming what is allowed."""
    runs = table[stage].get("soak", [])
    usual = ", ".join(f"{run['run_s'] // 3600}h" for run in runs)
    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", str(length))
    if length and not match:
        raise AnsibleFilterError(
            f"length={length} is refused: minutes, hours or days are allowed, as in 90m, 8h, 3d "
            f"({stage} asks for {usual}). Nothing was touched."
        )
    seconds = int(match[1]) * LENGTHS_S[match[2]] if match else max(run["run_s"] for run in runs)
    if seconds > soak["max_s"]:
        raise AnsibleFilterError(
            f"length={length} is refused: at most {soak['max_s'] // 86400}d is allowed. Nothing was touched."
        )
    fits = [run["agents"] for run in runs if run["run_s"] == seconds]
    agents = max(fits or [run["agents"] for run in runs])
    return {
        "seconds": seconds,
        "rate_per_s": round(1 / soak["every_s"], 6),
        "sizes": f"{soak['sizes']},{agents}:{soak['whole_weight']}",
    }


def soak_limits(limits: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a soak's end is held against, of the stage's limits."""
    wanted = (
        "delivery_rate_pct",
        "memory_coordinator_kb",
        "memory_worker_kb",
        "fd_count",
        "tmpfs_used_mb",
    )
    return {metric: limits[metric] for metric in wanted if metric in limits}


def soak_unrecorded(
    hosts: Iterable[str], hostvars: Hostvars, records: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The accounts of `soak_found` that the ledger lacks, by host."""
    recorded = {
        account.get("soak")
        for record in records
        if record["kind"] == "soaked"
        for account in record["data"].get("hosts", {}).values()
    }
    answers = {host: (hostvars[host].get("soak_found") or {}).get("soak") or {} for host in hosts}
    return {
        host: answer["result"] | {"order": answer["order"]}
        for host, answer in answers.items()
        if answer.get("result") and answer["soak"] not in recorded
    }


def soak_lines(hosts: Iterable[str], hostvars: Hostvars) -> list[str]:
    """How the soak of every host stands, or went."""
    lines = []
    for host in hosts:
        answer = hostvars[host].get("soak_now") or {}
        found = answer.get("soak") or {}
        result = found.get("result")
        if not found:
            lines.append(f"{host}: no answer: {' '.join(str(answer.get('msg', '')).split())}")
        elif result:
            load = result["load"]
            last = ", ".join(
                f"{name} {value:.12g} ({result['growth'].get(name, 0):+.12g})"
                for name, value in result["last"].items()
                if value is not None
            )
            lines.append(
                f"{host}: {found['state']}, {'PASS' if result['ok'] else 'FAIL'}: {load['answered_once']} of "
                f"{load['sent']} requests answered once, delivery {load['delivery_rate_pct']} %; at the end "
                f"(since the start) {last}"
            )
            lines += [f"{host}: {problem}" for problem in result["problems"]]
        elif found["state"] == "lost":
            lines.append(f"{host}: lost: it ended without an account, as at a reboot. Start it again.")
        else:
            progress = f", {found['progress']}" if found["progress"] else ""
            lines.append(f"{host}: {found['state']}{progress}")
    return lines


def stress_bounds(
    table: Mapping[str, Any], stage: str, stress: Mapping[str, Any], full: object
) -> dict[str, dict[str, Any]]:
    """The bounds of every scenario; those of the stage table where `full` and it has some."""
    bounds = {name: dict(each) for name, each in stress["bounds"].items()}
    figures = table[stage].get("stress", {})
    if full and figures:
        bounds["rapid_cycles"] |= {"every_s": figures["coordination_every_s"], "run_s": figures["run_s"]}
        bounds["cascade"] |= {"coordinators": figures["coordinators_shut_down"]}
        for each in bounds.values():
            each["agents"] = table[stage]["config"]["CFN_MAX_AGENTS"]
    return bounds


def stress_limits_s(bounds: Mapping[str, Mapping[str, Any]], least_s: int) -> dict[str, int]:
    """After how long systemd ends each scenario: two minutes beyond its time, `least_s` at least."""
    return {name: max(int(least_s), int(each.get("run_s", 0)) + 120) for name, each in bounds.items()}


def stress_found(answers: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of every scenario that ran on a host, or why it failed; by scenario."""
    found = {}
    for name in STRESSES:
        answer = answers.get(f"stress_{name}") or {}
        if answer and "skipped" not in answer:
            figures = dict(answer.get("figures") or {})
            why = {"failed": " ".join(str(answer["msg"]).split())} if answer.get("failed") else {}
            found[name] = figures | why
    return found


def stress_lines(answers: Mapping[str, Any]) -> list[str]:
    """What every scenario found, in a line each."""
    return [
        f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items())
        for name, figures in stress_found(answers).items()
    ]


def stress_allowed(environment: str, kind: str, named: str) -> str:
    """The environment, if it may be stressed: production only if it is named exactly. Raises
    AnsibleFilterError."""
    if (kind == "production" or named) and named != environment:
        raise AnsibleFilterError(
            f"{environment} is {kind}: it is stressed only by name, -e stress_environment={environment}"
            f"{f' (found {named})' if named else ''}. Nothing was touched."
        )
    return environment


def capacity_asked(
    table: Mapping[str, Any],
    stage: str,
    agents: str,
    retention_s: str,
    default_retention_s: object = "default",
) -> dict[str, Any]:
    """What capacity.yml orders: `agents` and `retention_s`, null for what stays. `default` is the stage's
    number of agents, and the inventory's or the engine's own retention. Raises AnsibleFilterError."""
    most = int(table[stage]["config"]["CFN_MAX_AGENTS"])
    if not agents and not retention_s:
        raise AnsibleFilterError("-e agents=N or -e retention_s=S is needed, or default for either.")
    wanted = str(most) if agents == "default" else agents
    if wanted and not (re.fullmatch(r"[1-9][0-9]{0,4}", wanted) and int(wanted) <= most):
        raise AnsibleFilterError(
            f"agents={agents} is refused: 1 to {most} are allowed in {stage}, or default. More is the next "
            "stage. Nothing was touched."
        )
    if retention_s not in ("", "default") and not re.fullmatch(r"[1-9][0-9]{0,7}", retention_s):
        raise AnsibleFilterError(
            f"retention_s={retention_s} is refused: seconds from 1 are allowed, or default. "
            "Nothing was touched."
        )
    return {
        "agents": int(wanted) if wanted else None,
        "retention_s": (str(default_retention_s) if retention_s == "default" else retention_s) or None,
    }


def capacity_lines(hosts: Iterable[str], hostvars: Hostvars) -> list[str]:
    """What every host takes and keeps now, or why it is not known."""
    lines = []
    for host in hosts:
        now = hostvars[host].get("capacity_now") or {}
        if "after" not in now:
            lines.append(f"{host}: NOT CHANGED: {' '.join(str(now.get('msg', 'no answer')).split())}")
            continue
        was, after = now["before"], now["after"]
        lines.append(
            f"{host}: up to {after['agents']} agents (was {was['agents']}), larger requests go to V1; "
            f"kept for {after['retention_s']} s (was {was['retention_s']}); "
            + (f"in force after {now['seconds']:g} s" if now["confirmed"] else "predicted")
        )
    return lines


def answers(hosts: Iterable[str], hostvars: Hostvars, name: str, keys: Sequence[str]) -> dict[str, Any]:
    """Of what each host registered under a name, these keys, for the ledger."""
    found = {host: hostvars[host].get(name) or {} for host in hosts}
    return {host: {key: answer.get(key) for key in keys} for host, answer in found.items()}


def differing(hosts: Iterable[str], hostvars: Hostvars, name: str) -> list[str]:
    """The hosts on which what was registered under a name changed something."""
    return [host for host in hosts if (hostvars[host].get(name) or {}).get("changed")]


def cleanup_lines(hosts: Iterable[str], hostvars: Hostvars, check: object) -> list[str]:
    """What was removed on every host, or would be."""
    lines = []
    for host in hosts:
        answer = hostvars[host].get("cleanup_done") or {}
        if "removed" not in answer:
            lines.append(f"{host}: no answer: {' '.join(str(answer.get('msg', '')).split())}")
            continue
        counts = ", ".join(f"{count} {kind}" for kind, count in answer["removed"].items())
        lines.append(
            f"{host}: {'would remove' if check else 'removed'} {counts}; {answer['freed_bytes']} bytes "
            f"older than {answer['retention_s']} s"
        )
    return lines


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "cfn_stage_in_force": stage_in_force,
            "cfn_soak_order": soak_order,
            "cfn_soak_limits": soak_limits,
            "cfn_soak_unrecorded": soak_unrecorded,
            "cfn_soak_lines": soak_lines,
            "cfn_stress_bounds": stress_bounds,
            "cfn_stress_limits_s": stress_limits_s,
            "cfn_stress_found": stress_found,
            "cfn_stress_lines": stress_lines,
            "cfn_stress_allowed": stress_allowed,
            "cfn_capacity_asked": capacity_asked,
            "cfn_capacity_lines": capacity_lines,
            "cfn_answers": answers,
            "cfn_differing": differing,
            "cfn_cleanup_lines": cleanup_lines,
        }
