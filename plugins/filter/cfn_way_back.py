# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""The ways back: what may be taken back and to where, whether a step suffices, and how it ended."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# What a playbook returned for a host, by the name that it was registered under.
Hostvars = Mapping[str, Mapping[str, Any]]

EPOCHS_UP = 2  # a stage that is overtaken holds the next epoch in its hand
FLOOR_STEP_S = 12.0  # on the lab's time scale: a flip settles in 3 s, and a bucket lasts 2 s
BLIND = ("NO_DATA", "ERROR")
BUCKETS = 3  # of a guardrail that asks for more in succession than a step has


def decided_s(_now: object) -> float:
    """When this playbook was typed, in seconds since 1970: a way back is timed from the decision."""
    parent = multiprocessing.parent_process()  # templates are rendered in workers
    pid = parent.pid if parent is not None and parent.pid is not None else os.getpid()
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        age_s = 0.0
    return round(time.time() - age_s, 3)


def standing(hostvars: Hostvars, host: str) -> dict[str, Any]:
    """What a host's `back_standing` said; empty where it said nothing."""
    return dict(hostvars[host].get("back_standing", {}).get("standing") or {})


def reached(hosts: Iterable[str], hostvars: Hostvars) -> list[str]:
    """The hosts that answered."""
    answers = {host: hostvars[host].get("back_standing") for host in hosts}
    return [host for host, answer in answers.items() if answer and not answer.get("unreachable")]


def v2_pct(before: Mapping[str, Any] | None) -> float:
    """V2's share of a state; none where nothing is known to run."""
    return float(before["traffic_pct"] or 0) if before and before["version"] == "v2" else 0.0


def plan(
    hosts: Iterable[str], hostvars: Hostvars, figures: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The way back from how the hosts stand (`back_standing`).

    `figures` are the stage's own; `asked`: to (empty, v1, or a share of the stage's way), whole (walk all
    of it, whatever the guardrails say), force, decided_s, control (the control hosts). Returns `refused`
    (why nothing may be touched), `steps` (shares of V2, 0 being V1), `hosts` (those that answered),
    `unreached`, `epoch` (of the first step), `warnings`, and `judge` (where the guardrails are judged).
    Raises AnsibleFilterError for a destination that is none.
    """
    hosts = list(hosts)
    answering = reached(hosts, hostvars)
    known = {host: standing(hostvars, host) for host in answering}
    now_pct = max((v2_pct(each.get("before")) for each in known.values()), default=0.0)
    controls = reached(asked["control"], hostvars)
    epochs = [int(each["before"]["epoch"] or 0) for each in known.values() if each.get("before")]
    return {
        "refused": _refusal(known, asked["force"]),
        "steps": _steps(figures["objectives"]["rollback_to_pct"], now_pct, asked),
        "hosts": answering,
        "unreached": {
            host: _one_line(hostvars[host].get("back_standing", {}).get("msg", "no answer"))
            for host in hosts
            if host not in answering
        },
        "epoch": max([int(float(asked["decided_s"])), *(epoch + EPOCHS_UP for epoch in epochs)]),
        "warnings": _overload(known),
        "judge": [*controls, *answering, *hosts][0],
        "facts_known": bool(controls),
        "from_pct": now_pct,
    }


def _steps(ways: list[float], now_pct: float, asked: Mapping[str, Any]) -> list[float]:
    to = str(asked["to"])
    allowed = [f"{pct:g}" for pct in ways if pct]
    if to == "":
        return [pct for pct in ways if pct < now_pct] or [0]
    if to == "v1":
        return [0]
    if to not in allowed:
        raise AnsibleFilterError(
            f"to={to} is refused: {', '.join(['v1', *allowed])} are allowed here. Nothing was touched."
        )
    if float(to) >= now_pct:
        raise AnsibleFilterError(
            f"to={to} is refused: {now_pct:g} % is in force, and a way back only lowers. Nothing was touched."
        )
    return [float(to)]


def _refusal(known: Mapping[str, Mapping[str, Any]], force: bool) -> str:
    """V1 must work wherever V2 does; where V2's engine is dead, it is not what holds anything up."""
    lines = []
    for host, each in known.items():
        v1 = each.get("v1", {"works": True})
        if v1.get("decommissioned") or (not v1["works"] and not force and each.get("engine") == "running"):
            lines.append(f"{host}: {each.get('refused') or v1['problem']}")
    if not lines:
        return ""
    return "\n".join(["V1 cannot take the traffic. Nothing was touched on any host.", *lines])


def _overload(known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"{host}: V1 bears about {each['v1']['capacity_per_s']:g} coordinations a second, and "
        f"{each['v1']['demand_per_s']:g} are asked for: take load off it"
        for host, each in known.items()
        if each.get("v1", {}).get("bears_all") is False
    ]


def target(before: Mapping[str, Any] | None, pct: float) -> dict[str, Any]:
    """What a host is ordered at a step: V2's share lowered, and never raised."""
    share = min(float(pct), v2_pct(before))
    if share <= 0:
        return {"version": "v1"}
    return {"version": "v2", "percent": f"{share:g}"}


def look_s(figures: Mapping[str, Any], time_factor: object, looks: object) -> float:
    """The time before each look of a step, on the environment's time scale."""
    step_s = float(figures["objectives"].get("rollback_step_s", 0))
    return round(max(step_s / float(str(time_factor)), min(FLOOR_STEP_S, step_s)) / int(str(looks)), 1)


def answers(hosts: Iterable[str], hostvars: Hostvars) -> dict[str, dict[str, Any]]:
    """The hosts' answers under the names that the gate's request knows them by."""
    return {
        host: {
            "gate_status": hostvars[host].get("back_status", {}),
            "gate_metrics": hostvars[host].get("back_metrics", {}),
        }
        for host in hosts
    }


def request(
    gate: Mapping[str, Any], figures: Mapping[str, Any], rules: Mapping[str, Any], facts_known: bool
) -> dict[str, Any]:
    """The gate's request narrowed to what a step is judged by: the stage's guardrails alone, in buckets
    that fit into it. A guardrail that asks for hours of trouble in succession asks for BUCKETS here.

    `rules`: bucket_s and settle_s. Without the ledger (`facts_known` false) criteria on incidents are held.
    """
    step_s = figures["objectives"].get("rollback_step_s", 0)
    narrowed = {
        **gate,
        "criteria": [],
        "triggers": [_fitted(each, rules) for each in gate["triggers"]],
        "window_s": max(step_s, 10 * rules["bucket_s"]),
    }
    return narrowed if facts_known else {**narrowed, "facts": None}


def _fitted(trigger: Mapping[str, Any], rules: Mapping[str, Any]) -> dict[str, Any]:
    settle_s = min(trigger.get("settle_s", rules["settle_s"]), rules["settle_s"])
    fitted = {**trigger, "bucket_s": rules["bucket_s"], "settle_s": settle_s}
    per = trigger.get("per", {})
    if per.get("kind") == "consecutive" and per["n"] > BUCKETS:
        fitted["per"] = {"kind": "consecutive", "n": BUCKETS}
    return fitted


def persists(verdict: Mapping[str, Any] | None, last: bool) -> bool:
    """Whether the trouble goes on after a look: a broken guardrail at any, blindness at the last one."""
    word = (verdict or {}).get("verdict", "ERROR")
    return word == "FAIL" or (bool(last) and word in BLIND)


def step_taken(
    steps: list[Mapping[str, Any]], pct: float, verdict: Mapping[str, Any] | None, now_s: float
) -> list[Mapping[str, Any]]:
    """The steps with one more: its share, when it was over, and what the last look said."""
    word = "" if not pct else (verdict or {}).get("verdict", "ERROR")
    reasons = list((verdict or {}).get("reasons", []))[:3] if pct else []
    return [*steps, {"to_pct": pct, "at_s": round(now_s, 1), "guardrails": word, "reasons": reasons}]


def outcome(hosts: Iterable[str], hostvars: Hostvars, way: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    """How a way back ended, for ledger and person.

    `way`: id, stage, decided_s, objective_s, to_pct (0: V1, proved by `back_proof` or by what
    `back_standing` proved), epoch, steps (as taken), warnings. A host that was not reached is in
    `pending`: it is dealt with when it answers again.
    """
    hosts = list(hosts)
    pending = [host for host in hosts if host not in reached(hosts, hostvars)]
    unproved = {host: why for host in hosts if (why := _unproved(hostvars[host], float(way["to_pct"])))}
    proved = [host for host in hosts if host not in unproved]
    seconds = round(float(way.get("ended_s") or now_s) - float(way["decided_s"]), 1)
    objective_s = float(way["objective_s"])
    met = bool(proved) and set(unproved) <= set(pending) and seconds <= objective_s
    ordered = [int(standing(hostvars, host).get("epoch") or 0) for host in hosts]
    ended = {
        "id": way["id"],
        "to_pct": float(way["to_pct"]),
        "epoch": max(int(way["epoch"]), *ordered),
        "seconds": seconds,
        "objective_s": objective_s,
        "met": met,
        "proved": proved,
        "unproved": unproved,
        "pending": pending,
        "steps": list(way.get("steps", [])),
        "flips": {host: _flip(hostvars[host]) for host in hosts},
    }
    lines = _words(ended, float(way["decided_s"])) + list(way.get("warnings", []))
    if way.get("check"):
        to = f"{ended['to_pct']:g} % on V2" if ended["to_pct"] else "V1"
        lines = [f"Predicted: everything back to {to}. Nothing was changed.", *way.get("warnings", [])]
    return {**ended, "text": "\n".join(lines)}


def _unproved(answers: Mapping[str, Any], to_pct: float) -> str:
    """Why a host is not proved to be where it should; empty if it is."""
    first = answers.get("back_standing") or {"msg": "it was not asked"}
    if first.get("unreachable"):
        return f"unreachable: {_one_line(first.get('msg'))}"
    if first.get("installed") is False:
        return "no release is installed there"
    if "back_flip" not in answers:  # one call did all of it
        found = first.get("standing") or {}
        return "" if found.get("proved") else _one_line(first.get("msg") or "it was not proved")
    for name in ("back_flip", "back_proof") if to_pct == 0 else ("back_flip",):
        answer = answers.get(name) or {"msg": "it was not tried"}
        if "msg" in answer or answer.get("skipped"):  # what a task that worked returns has no message
            return _one_line(answer.get("msg", "it was not tried"))
    return ""


def _flip(answers: Mapping[str, Any]) -> dict[str, Any]:
    """What a host's flip found and left."""
    first = answers.get("back_standing", {}).get("standing") or {}
    flip = answers.get("back_flip", first)
    return {
        "before": first.get("before"),
        **{key: flip.get(key) for key in ("changed", "after", "confirmed", "seconds")},
    }


def _words(ended: Mapping[str, Any], decided: float) -> list[str]:
    """An outcome as lines that a person reads; the first one says it all."""
    of = f"{len(ended['proved'])} of {len(ended['proved']) + len(ended['unproved'])} hosts"
    met = "met" if ended["met"] else "NOT met"
    if ended["to_pct"]:
        what = f"V2 stays at {ended['to_pct']:g} % on {of}: no guardrail is broken there"
    else:
        what = f"V1 serves, proved by a real coordination on {of}"
    lines = [
        f"{what}, {ended['seconds']:g} s after the decision; the objective of {ended['objective_s']:g} s is "
        f"{met}."
    ]
    lines += [_step_words(each, decided) for each in ended["steps"] if each["to_pct"]]
    lines += [f"{host}: NOT PROVED: {why}" for host, why in ended["unproved"].items()]
    if ended["pending"]:
        lines.append(
            f"{', '.join(ended['pending'])} could not be reached. The watch takes it back when it answers "
            "again, its own guard when it hears nothing of the watch for too long, and this playbook when it "
            f"is run again. On the host itself: sudo /opt/cfn/current/bin/cfn fallback --epoch "
            f"{ended['epoch']}"
        )
    return lines


def _step_words(step: Mapping[str, Any], decided: float) -> str:
    """What a step came to."""
    reasons = f": {'; '.join(step['reasons'])}" if step["guardrails"] in ("FAIL", *BLIND) else ""
    return (
        f"{step['to_pct']:g} % until {step['at_s'] - decided:.0f} s after the decision, guardrails "
        f"{step['guardrails']}{reasons}"
    )


def stage_of(hosts: Iterable[str], hostvars: Hostvars, table: Mapping[str, Any]) -> str:
    """The stage that the hosts run, by the agents that they are configured for (`back_standing`); the
    first one where nothing is known."""
    stages = {
        name: figures["config"]["CFN_MAX_AGENTS"] for name, figures in table.items() if "config" in figures
    }
    agents = max((standing(hostvars, host).get("max_agents") or 0 for host in hosts), default=0)
    return next((name for name, most in stages.items() if most >= agents), list(stages)[-1])


def release_before(hosts: Iterable[str], hostvars: Hostvars, named: str) -> str:
    """The release that all hosts go back to, of `release_known`, or the one that is named.

    Raises AnsibleFilterError where there is none, hosts differ, or one has not the one that is named.
    """
    known = {host: hostvars[host].get("release_known", {}) for host in hosts}
    found = {host: (each["version"], each["previous"]) for host, each in known.items() if each.get("version")}
    previous = {str(before) for _, before in found.values()}
    if named:
        without = [host for host in found if named not in known[host].get("kept", [])]
        if without or not found:
            have = [f"{host}: {', '.join(known[host].get('kept', [])) or 'none'}" for host in without]
            raise AnsibleFilterError(
                "\n".join(
                    [
                        f"release={named} is refused: not every host has it. Nothing was touched.",
                        *(have or ["no host answered"]),
                    ]
                )
            )
        return named
    if len(previous) == 1 and "" not in previous:
        return previous.pop()
    lines = [f"{host}: {now} in force, before it {before or 'none'}" for host, (now, before) in found.items()]
    raise AnsibleFilterError(
        "\n".join(
            [
                "There is no one release to go back to. Nothing was touched.",
                *(lines or ["no host answered"]),
                "Name one of those in /opt/cfn/releases: -e release=VERSION",
            ]
        )
    )


def release_outcome(
    hosts: Iterable[str], hostvars: Hostvars, way: Mapping[str, Any], now_s: float
) -> dict[str, Any]:
    """How going back to a release ended. `way`: id, release, decided_s, objective_s."""
    tasks = ("back_standing", "release_switched", "release_units", "release_restarted", "release_smoke")
    unproved = {}
    for host in hosts:
        asked = [hostvars[host].get(name) or {} for name in tasks]
        bad = [answer for answer in asked if answer.get("unreachable") or "msg" in answer]
        if bad or not asked[-1]:
            unproved[host] = _one_line(bad[0].get("msg") if bad else "it was not tried")
    pending = [host for host in hosts if host not in reached(hosts, hostvars)]
    proved = [host for host in hosts if host not in unproved]
    seconds = round(now_s - float(way["decided_s"]), 1)
    met = bool(proved) and set(unproved) <= set(pending) and seconds <= float(way["objective_s"])
    known = (hostvars[host].get("release_known", {}).get("version") for host in hosts)
    lines = [
        f"Release {way['release']} is in force again, proved by its smoke test on {len(proved)} of "
        f"{len(proved) + len(unproved)} hosts, {seconds:g} s after the decision; the objective of "
        f"{float(way['objective_s']):g} s is {'met' if met else 'NOT met'}."
    ]
    lines += [f"{host}: NOT PROVED: {why}" for host, why in unproved.items()]
    if way.get("check"):
        lines = [f"Predicted: release {way['release']} in force on all hosts. Nothing was changed."]
    return {
        "id": way["id"],
        "release": way["release"],
        "from_release": next((name for name in known if name), ""),
        "seconds": seconds,
        "objective_s": float(way["objective_s"]),
        "met": met,
        "proved": proved,
        "unproved": unproved,
        "text": "\n".join(lines),
    }


def rehearsed(results: Mapping[str, Mapping[str, Any]], off: str, dead: str) -> dict[str, Any]:
    """What a rehearsal measured, for ledger and person: `results` are the outcomes of the planned way back,
    of the fall back with V2 dead on `dead` and `off` out of reach (empty: none), and of its second run."""
    alone = results["fallback"]
    named = [off] if off else []
    right = list(alone["pending"]) == named and sorted(alone["unproved"]) == named
    met = right and all(each["met"] for each in results.values()) and not results["again"]["unproved"]
    words = {
        "planned": "planned, all the way to V1",
        "fallback": f"fall back, V2 dead on {dead}" + (f", {off} out of reach" if off else ""),
        "again": "fall back again, everybody in reach",
    }
    lines = [f"The way back was rehearsed: {'all of it holds' if met else 'IT DOES NOT HOLD'}."]
    lines += [
        f"{words[name]}: {each['seconds']:g} s, objective {each['objective_s']:g} s, on "
        f"{len(each['proved'])} of {len(each['proved']) + len(each['unproved'])} hosts"
        for name, each in results.items()
    ]
    kept = ("seconds", "objective_s", "met", "proved", "unproved", "pending", "steps")
    return {
        "met": met,
        "off": off,
        "dead": dead,
        **{name: {key: each[key] for key in kept} for name, each in results.items()},
        "text": "\n".join(lines),
    }


def left_behind(hosts: Iterable[str], hostvars: Hostvars, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each host that the last way back did not reach and that still gives V2 more, of
    `status_result` and the ledger's records."""
    decisions = [record for record in records if record["kind"] in ("rolled_back", "flipped")]
    if not decisions or decisions[-1]["kind"] != "rolled_back" or not decisions[-1]["data"].get("epoch"):
        return []
    last = decisions[-1]
    lines = []
    for host in hosts:
        status = hostvars[host].get("status_result", {}).get("status") or {}
        state = {"version": status.get("version"), "traffic_pct": status.get("traffic_pct")}
        behind = int(status.get("epoch") or 0) < int(last["data"]["epoch"])
        if behind and v2_pct(state) > float(last["data"].get("to_pct") or 0):
            lines.append(
                f"{host} still gives V2 {v2_pct(state):g} %, against the way back of {last['time']} (ledger "
                f"record {last['sequence']}). To V1: ansible-playbook fallback_v1.yml"
            )
    return lines


def spooled(hosts: Iterable[str], hostvars: Hostvars, name: str) -> dict[str, Any]:
    """For each host the lines of its spool, from its status as registered under `name`; without hosts
    that have none."""
    found = {host: (hostvars[host].get(name, {}).get("status") or {}).get("spooled") for host in hosts}
    return {host: lines for host, lines in found.items() if lines}


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "cfn_decided_s": decided_s,
            "cfn_back_plan": plan,
            "cfn_back_target": target,
            "cfn_back_look_s": look_s,
            "cfn_back_answers": answers,
            "cfn_back_request": request,
            "cfn_back_persists": persists,
            "cfn_back_step_taken": step_taken,
            "cfn_back_outcome": outcome,
            "cfn_back_stage": stage_of,
            "cfn_release_before": release_before,
            "cfn_release_outcome": release_outcome,
            "cfn_rehearsed": rehearsed,
            "cfn_left_behind": left_behind,
            "cfn_spooled": spooled,
        }
