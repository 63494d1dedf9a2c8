# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""An incident: what was asked, which stage it is in, what was found, and the words that are said of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ansible.errors import AnsibleFilterError

# What a playbook returned for a host, by the name that it was registered under.
Hostvars = Mapping[str, Mapping[str, Any]]

# What is done first, by severity.
WAY_BACK = {"P0": "fallback", "P1": "rollback", "P2": "", "P3": ""}
ATTRIBUTIONS = ("v1", "v2", "neither", "unknown")
STAGES = ("stage1", "stage2", "stage3")
SHOWN_CHARS = 200


def asked(given: Mapping[str, Any], groups: Mapping[str, list[str]], now_s: float) -> dict[str, Any]:
    """The incident that the extra variables ask for: id, severity, times, what to do first.

    Raises AnsibleFilterError naming everything that is missing or refused, before anything is touched.
    """
    words = {name: str(value).strip() for name, value in given.items()}
    problems = [
        f"severity={words['severity']} is refused: P0, P1, P2 and P3 are allowed"
        if words["severity"]
        else "-e severity=P0|P1|P2|P3 is missing"
    ] if words["severity"] not in WAY_BACK else []  # fmt: skip
    problems += [f"-e {name}=... is missing" for name in ("by", "text") if not words[name]]
    attributed = words["attributed_to"] or "unknown"
    if attributed not in ATTRIBUTIONS:
        problems.append(f"attributed_to={attributed} is refused: {', '.join(ATTRIBUTIONS)} are allowed")
    if words["stage"] and words["stage"] not in STAGES:
        problems.append(f"stage={words['stage']} is refused: {', '.join(STAGES)} are allowed")
    name = words["incident"] or datetime.fromtimestamp(now_s, UTC).strftime("INC-%Y%m%d-%H%M%S")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or ".." in name:
        problems.append(f"incident={name} is refused: letters, digits, '.', '_' and '-' are allowed")
    started_s = now_s
    if words["started"]:
        try:
            started_s = datetime.fromisoformat(words["started"].replace("Z", "+00:00")).timestamp()
        except ValueError:
            problems.append(f"started={words['started']} is refused: as in 2026-01-31T12:00:00Z")
    if started_s > now_s:
        problems.append(f"started={words['started']} is refused: it is in the future")
    if not groups.get("cfn"):
        problems.append("no host in the group cfn of this inventory")
    if len(groups.get("control", [])) != 1:
        problems.append(f"{len(groups.get('control', []))} hosts in the group control: exactly one is needed")
    if problems:
        raise AnsibleFilterError(f"{'; '.join(problems)}. Nothing was touched.")
    return {
        "incident": name,
        "severity": words["severity"],
        "by": words["by"],
        "text": words["text"],
        "attributed_to": attributed,
        "state": "open",
        "started": _rfc3339(started_s),
        "started_s": started_s,
        "asked": _rfc3339(now_s),
        "way_back": WAY_BACK[words["severity"]],
    }


def stage_of(
    hosts: Iterable[str], hostvars: Hostvars, given: str, ledger: Mapping[str, Any], table: Mapping[str, Any]
) -> str:
    """The stage that an incident belongs to: the one named; else that of the ledger's last flip; else the
    one to which the largest share in force on any host belongs (`traffic_before`, or `back_standing` of a
    way back that has moved it since)."""
    if given:
        return given
    records = ledger.get("records") or []
    flips = [record["stage"] for record in records if record["kind"] in ("started", "flipped")]
    if flips and flips[-1] in STAGES:
        return str(flips[-1])
    answers = [
        (hostvars[host].get("back_standing", {}).get("standing") or {}).get("before")
        or hostvars[host].get("traffic_before", {}).get("before")
        for host in hosts
    ]
    share = max(
        (float(answer["traffic_pct"]) for answer in answers if answer and answer["version"] == "v2"),
        default=0.0,
    )
    return next((stage for stage in STAGES if share <= table[stage]["traffic"]["max_pct"]), STAGES[-1])


def record(incident: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger keeps of it, as docs/reference/records.md says."""
    names = ("incident", "severity", "attributed_to", "state", "started", "text", "by")
    return {name: incident[name] for name in names}


def way_back(incident: Mapping[str, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    """What the way back came to, of `back_result`, or `back_way` if it was refused: `text`, and `proved`,
    which is true where none was asked."""
    if not incident["way_back"]:
        return {"text": f"No traffic was moved: {incident['severity']} is watched.", "proved": True}
    refused = (answers.get("back_way") or {}).get("refused")
    if refused:
        return {"text": f"NOT TAKEN BACK. {refused}", "proved": False}
    result = answers.get("back_result")
    if not result:
        return {"text": f"The {incident['way_back']} said nothing of how it went.", "proved": False}
    return {"text": str(result["text"]), "proved": not result.get("unproved")}


def findings(hosts: Iterable[str], hostvars: Hostvars) -> list[dict[str, Any]]:
    """What each host's bundle says, in words; a host without one says why."""
    return [_finding(host, hostvars[host].get("incident_bundle", {}), hostvars[host]) for host in hosts]


def _finding(host: str, bundle: Mapping[str, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    facts = bundle.get("facts")
    fetched = answers.get("incident_fetched", {})
    if facts is None or fetched.get("failed"):
        problem = fetched if fetched.get("failed") else bundle
        word = "cannot be reached" if problem.get("unreachable") else "no bundle"
        return {
            "host": host,
            "problem": f"{word}: {_one_line(problem.get('msg', 'no answer'))}",
            "missing": [],
        }
    units = facts["units"]
    bad = {name: unit for name, unit in units.items() if unit["state"].startswith(("failed", "activating"))}
    restarts = {name: unit["restarts"] for name, unit in units.items() if unit["restarts"]}
    return {
        "host": host,
        "problem": "",
        "release": facts["release"] or "none installed",
        "traffic": f"{facts['version'] or 'unknown'} at {_shown(facts['traffic_pct'], '%')}",
        "engine": facts["engine"] or "unknown",
        "router": facts["router"] or "unknown",
        "breaker": " ".join(filter(None, (facts["breaker"] or "unknown", facts["breaker_reason"]))),
        "configuration": facts["config_problem"] or "in force",
        "units": ", ".join(f"{name} {unit['state']}" for name, unit in bad.items()) or "none failed",
        "restarts": ", ".join(f"{name} {count}" for name, count in restarts.items()) or "none",
        "memory": f"{_shown(facts['memory_available_mb'], 'MB')} available, "
        f"engine {_shown(facts['memory_kb'], 'kB')} in {facts['processes']} processes",
        "fd_count": _shown(facts["fd_count"], ""),
        "tmpfs": _shown(facts["tmpfs_pct"], "%"),
        "file": (fetched.get("dest") or "").rpartition("/")[2],
        "bytes": bundle["bytes"],
        "sha256": bundle["sha256"],
        "missing": [_one_line(each) for each in bundle["missing"]],
    }


def timeline(ledger: Mapping[str, Any], since: str) -> list[str]:
    """The ledger's records from a time on, a line each, oldest first."""
    return [
        " ".join(
            [record["time"], record["kind"], f"({record['stage']}, by {record['actor']})", _gist(record)]
        )
        for record in ledger.get("records") or []
        if record["time"] >= since
    ]


def _gist(record: Mapping[str, Any]) -> str:
    data = record["data"]
    if record["kind"] == "verdict":
        return str(data["verdict"]["verdict"])
    for name in ("text", "reason", "override_reason", "purpose", "note"):
        if data.get(name):
            return _one_line(data[name])
    return ""


def since(incident: Mapping[str, Any], window_s: float) -> dict[str, Any]:
    """From when on things are of interest: `s` since 1970, and `time`."""
    since_s = float(incident["started_s"]) - float(window_s)
    return {"s": since_s, "time": _rfc3339(since_s)}


def untold(answer: Mapping[str, Any]) -> list[str]:
    """Whom a `notify_result` did not reach, and why; also where the hooks could not be called at all."""
    return [*(answer.get("unsent") or []), *([_one_line(answer["msg"])] if answer.get("msg") else [])]


def last_words(
    incident: Mapping[str, Any],
    back: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> str:
    """What a person reads at the end. `facts`: report, recorded, unsent, stage, watch."""
    lines = [f"{incident['incident']}, {incident['severity']}: {back['text']}"]
    lines += [f"{each['host']}: {each['problem']}" for each in found if each["problem"]]
    bundles = sum(not each["problem"] for each in found)
    lines.append(f"bundles of {bundles} of {len(found)} hosts, secrets removed")
    lines += [f"not told: {each}" for each in facts["unsent"]]
    if not facts["recorded"]:
        lines.append(
            f"NOT IN THE LEDGER: once the control host answers, {attest_command(incident, facts['stage'])}"
        )
    lines.append(f"watch: {facts['watch']}")
    lines.append(f"fill in: {facts['report']}")
    return "\n".join(lines)


def attest_command(incident: Mapping[str, Any], stage: str, state: str = "open") -> str:
    """What to type to record the incident by hand, or to close it."""
    given = json.dumps({**record(incident), "state": state}, ensure_ascii=False)
    return f"ansible-playbook attest.yml -e stage={stage} -e {shlex.quote(given)}"


def watch_decision(
    incident: Mapping[str, Any], hosts: Iterable[str], hostvars: Hostvars, control: str
) -> dict[str, Any]:
    """Whether the watch is to be started (`start`), and how it stands, in words (`text`)."""
    bundle = hostvars[control].get("incident_bundle", {})
    units = (bundle.get("facts") or {}).get("units", {})
    if units.get("cfn-watch.timer", {}).get("state", "").startswith("active"):
        return {"start": False, "text": "runs, and goes on"}
    if incident["way_back"]:
        return {"start": False, "text": "does not run; start it with the stage: watch.yml"}
    silent = [host for host in hosts if not hostvars[host].get("incident_bundle", {}).get("facts")]
    if silent or not bundle.get("facts"):
        return {
            "start": False,
            "text": f"NOT STARTED: {', '.join(silent) or control} cannot be reached; then watch.yml",
        }
    if not all(hostvars[host]["incident_bundle"]["facts"]["installed"] for host in [*hosts, control]):
        return {"start": False, "text": "not started: no release is in force"}
    return {"start": True, "text": "is started now"}


def _rfc3339(time_s: float) -> str:
    moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=round(time_s * 1000))
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _shown(value: object, unit: str) -> str:
    if value is None:
        return "unknown"
    return f"{value:g} {unit}".strip() if isinstance(value, float) else f"{value} {unit}".strip()


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:SHOWN_CHARS]


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "cfn_incident": asked,
            "cfn_incident_stage": stage_of,
            "cfn_incident_record": record,
            "cfn_incident_way_back": way_back,
            "cfn_incident_findings": findings,
            "cfn_incident_timeline": timeline,
            "cfn_incident_since": since,
            "cfn_incident_untold": untold,
            "cfn_incident_last_words": last_words,
            "cfn_incident_attest": attest_command,
            "cfn_incident_watch": watch_decision,
        }
