# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""How a stage walks through its hosts: batches, what failed where, and the state that hosts go back to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Hostvars = Mapping[str, Mapping[str, Any]]

# Keys of the configuration that a flip owns: a way back of files must not touch them.
_TRAFFIC_KEYS = ("CFN_COORDINATION_VERSION", "CFN_TRAFFIC_PERCENTAGE", "CFN_EPOCH")
_TRAFFIC = ("version", "traffic_pct", "epoch")


def batch(hosts: Sequence[str], host: str, sizes: Sequence[Any]) -> int:
    """The number, from 1, of the batch that a host belongs to; 0 if it is none of `hosts`.

    A size is a number of hosts or a share of all of them, of at least one; the last takes all the rest.
    """
    if host not in hosts:
        return 0
    position, end = hosts.index(host), 0
    for number, size in enumerate(sizes, start=1):
        text = str(size)
        end += max(1, len(hosts) * int(text[:-1]) // 100) if text.endswith("%") else int(text)
        if position < end:
            return number
    return len(sizes)


# What a host answers with once a step has begun to change it, by the name that it is registered under.
_ENTERED = ("v1_install", "traffic_flip")


# What says that a deployment changed something that runs.
_DEPLOYED = ("engine_release", "engine_config", "engine_limits", "engine_units")


def failure(result: Mapping[str, Any], task: str, step: str) -> dict[str, str]:
    """What a failed task found, for ledger and person: `step`, `task`, `found`."""
    found = " ".join(str(result.get("msg") or result.get("stderr") or "it does not say why").split())
    if result.get("timedout"):
        found = f"no end within its deadline of {result['timedout']['period']} s"
    return {"step": step, "task": task.rpartition(" : ")[2], "found": found}


def failures(
    hosts: Iterable[str], hostvars: Hostvars, alive: Iterable[str], step: str
) -> dict[str, dict[str, str]]:
    """Every host that failed so far, and in what: those that kept a `stage_failure`, those that earlier
    steps lost (`stage_failures` of localhost), and those that no longer take part (`alive`)."""
    found = dict(hostvars["localhost"].get("stage_failures") or {})
    answering = set(alive)
    for host in hosts:
        own = hostvars[host].get("stage_failure")
        if host in found:
            continue
        if own:
            found[host] = dict(own)
        elif host not in answering:
            found[host] = {"step": step, "task": "", "found": "it does not answer any more (unreachable)"}
    return found


def deployed(hosts: Iterable[str], hostvars: Hostvars) -> bool:
    """Whether this run has changed what any host runs, beside its traffic."""
    return any(hostvars[host].get(name, {}).get("changed", False) for host in hosts for name in _DEPLOYED)


def drifting(hosts: Iterable[str], hostvars: Hostvars) -> list[str]:
    """The hosts that a deployment has something to change on, or may have: those that could not say too."""
    return [host for host in hosts if hostvars[host].get("engine_drift", {}).get("drift") != []]


def config_before(text: str, now: Mapping[str, Any]) -> str:
    """A configuration as it was, with the traffic that is in force now: `version`, `traffic_pct`, `epoch`."""
    for key, name in zip(_TRAFFIC_KEYS, _TRAFFIC, strict=True):
        text = re.sub(rf"(?m)^(export +)?{key}=.*$", f'{key}="{now[name]}"', text)
    return text


def units_of(text: str) -> list[str]:
    """The engine's units that a configuration asks for, in the order in which they start."""
    count = 0
    if _value(text, "CFN_TOPOLOGY") == "hybrid":
        count = int(_value(text, "CFN_COORDINATORS") or 7)
    coordinators = [f"cfn-coordinator@{number}.service" for number in range(1, count + 1)]
    return [
        "cfn-workers.service",
        "cfn-coordination.service",
        *coordinators,
        "cfn-metrics.service",
        "cfn-cleanup.timer",
    ]


def _value(text: str, key: str) -> str:
    found = re.findall(rf"(?m)^(?:export +)?{key}=[\"']?([^\"'#\s]*)", text)
    return str(found[-1]) if found else ""


def back_to(
    before: Mapping[str, Any], now: Mapping[str, Any], rollback_to_pct: Sequence[float]
) -> dict[str, str]:
    """Where a host's traffic goes after a FAIL: `version` and `percent`.

    What it had before the run if that is less for V2; else the stage's next lower share. 0 is V1.
    """
    in_force = _share(now)
    earlier = _share(before)
    lower = [float(pct) for pct in rollback_to_pct if float(pct) < in_force]
    target = earlier if earlier < in_force else max(lower, default=0.0)
    return {"version": "v2" if target else "v1", "percent": f"{target:g}"}


def _share(state: Mapping[str, Any]) -> float:
    return float(state.get("traffic_pct") or 0) if state.get("version") == "v2" else 0.0


def outcome(
    hosts: Iterable[str],
    hostvars: Hostvars,
    failed: Mapping[str, Mapping[str, str]],
    stage: str,
    verdict: str = "",
    whole: bool = True,
) -> dict[str, Any]:
    """What went wrong and what was done about it, for ledger and person. Of a run that is not `whole`, by
    tags, nothing is taken back.

    `failed` (by host: step, task, found), `hosts` (what each that was touched has now: version,
    traffic_pct, release, problem), `not_taken_back` (host to reason), and all of it as `text`.
    """
    text = [f"{stage} was not reached." if failed else f"{stage}: FAIL at its first look.\n{verdict}"]
    for host, what in failed.items():
        task = f', task "{what["task"]}"' if what["task"] else ""
        text.append(f"- {host} failed in {what['step']}{task}: {what['found']}")
    if not whole:
        text.append("- only a part of the stage was run (--tags), so nothing was taken back")
    done: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for host in hosts if whole else ():
        state = hostvars[host]
        if not any(name in state for name in _ENTERED):
            text.append(f"- {host} was not touched")
            continue
        now, problem = state.get("takeback_done") or {}, str(state.get("takeback_problem") or "")
        before = (state.get("order_status") or {}).get("status") or {}
        release = str(before.get("release") or "")
        traffic = f"{now.get('version', 'v1')} at {now.get('traffic_pct', 0):g} %"
        if problem or not now:
            missing[host] = problem or "it does not answer (unreachable)"
            text.append(f"- {host} was NOT taken back: {missing[host]}")
        elif failed:
            had = f"release {release}" if release else "nothing before; the engine stays, without traffic"
            text.append(f"- {host} was taken back: {had}; {traffic}")
        else:
            text.append(f"- {host}: traffic is back to {traffic}; the release stays, to be looked at")
        done[host] = {**{name: now.get(name) for name in _TRAFFIC}, "release": release, "problem": problem}
    if failed:
        text.append(f"Type next: mend {' and '.join(failed)}, then the same command again.")
    else:
        text.append("Find the cause (ansible-playbook report.yml), then begin with the step before.")
    text += [
        f"{host} needs a hand: ansible-playbook status.yml says what it runs; on it, "
        "cfn traffic --version v1 sends everything to V1."
        for host in missing
    ]
    return {"failed": dict(failed), "hosts": done, "not_taken_back": missing, "text": "\n".join(text)}


def ladder(smoke: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A stage's smoke tests as one ladder whose steps name their version; V1 first."""
    return [dict(step) | {"version": version} for version in ("v1", "v2") for step in smoke[version]]


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "cfn_batch": batch,
            "cfn_failure": failure,
            "cfn_failures": failures,
            "cfn_deployed": deployed,
            "cfn_drifting": drifting,
            "cfn_config_before": config_before,
            "cfn_units_of": units_of,
            "cfn_back_to": back_to,
            "cfn_stage_outcome": outcome,
            "cfn_ladder": ladder,
        }
