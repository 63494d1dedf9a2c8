# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Texts that a person reads: what is wrong with the hosts, how things stand, what to type next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# What a playbook returned for a host, by the name that it was registered under.
Hostvars = Mapping[str, Mapping[str, Any]]

ADVICE = {
    "PASS": "the window is full and every criterion holds",
    "FAIL": "go back: ansible-playbook rollback_{stage}.yml",
    "INCONCLUSIVE": "hold, and ask again: ansible-playbook gate.yml -e stage={stage}",
    "NO_DATA": "hold; find out why the collector is silent: systemctl status cfn-metrics",
    "ERROR": "hold; mend what the reasons name, and ask again: ansible-playbook gate.yml -e stage={stage}",
}


def preflight_report(
    hosts: Iterable[str], hostvars: Hostvars, stage: str, now_s: float, clock_skew_s: float
) -> str:
    """The problems of all hosts, by host; empty if there are none. Unreachable is a problem, and so is a
    clock that differs by more than `clock_skew_s` from the controller's, whose time is `now_s`."""
    lines: list[str] = []
    for host in hosts:
        result = hostvars[host].get("preflight_result", {})
        if result.get("unreachable"):
            problems = [f"unreachable: {_one_line(result.get('msg'))}"]
        elif "problems" not in result:
            problems = [f"the checks did not run: {_one_line(result.get('msg', 'no result'))}"]
        else:
            problems = [*result["problems"], *_clock_problems(result, now_s, clock_skew_s)]
        lines += [f"{host}: {problem}" for problem in problems]
    if not lines:
        return ""
    return "\n".join([f"Not fit for {stage}. Nothing was changed on any host.", *lines])


def _clock_problems(result: Mapping[str, Any], now_s: float, allowed_s: float) -> list[str]:
    """The host read its clock somewhere between the question and now: what a slow way or a busy host may
    explain is no skew."""
    least_s = result["host_time_s"] - now_s
    most_s = result["host_time_s"] - float(result["controller_time_s"])
    if least_s <= allowed_s and most_s >= -allowed_s:
        return []
    found_s = least_s if least_s > allowed_s else -most_s
    return [
        f"clock_skew_s: found at least {found_s:.3g} s, required at most {allowed_s:g} s; "
        "start time synchronisation on the host"
    ]


def status_table(hosts: Iterable[str], hostvars: Hostvars, ledger: Mapping[str, Any]) -> str:
    """One row a host, then the last verdict and what to type next."""
    rows = [["host", "release", "topology", "agents", "version", "traffic", "observed", "since", "engine"]]
    versions = set()
    for host in hosts:
        result = hostvars[host].get("status_result", {})
        if not result.get("installed"):
            word = "unreachable" if result.get("unreachable") else "not installed"
            rows.append([host, word, *["-"] * (len(rows[0]) - 2)])
            continue
        status = result["status"]
        versions.add(status["version"])
        observed = status["observed_share_pct"]
        rows.append(
            [
                host,
                status["release"],
                status["topology"] or "-",
                f"up to {status['max_agents']}" if status["max_agents"] else "-",
                status["version"] or "-",
                f"{status['traffic_pct']:g} %" if status["traffic_pct"] is not None else "-",
                "-" if observed is None else f"{observed:g} %",
                (status["since"] or "-")[:19].replace("T", " "),
                "running" if status["engine"] == "running" else "NOT RUNNING",
            ]
        )
    records = ledger.get("records", [])
    return "\n".join([table(rows), "", *last_decisions(records), f"next: {next_step(versions, records)}"])


def last_decisions(records: list[Mapping[str, Any]]) -> list[str]:
    """The last verdict and the last rollback of the ledger, a line each."""
    lines = []
    for kind, words in (("verdict", "last verdict"), ("rolled_back", "last rollback")):
        found = [record for record in records if record["kind"] == kind]
        if found:
            record = found[-1]
            what = (
                record["data"]["verdict"]["verdict"]
                if kind == "verdict"
                else record["data"]["text"].splitlines()[0]
            )
            lines.append(
                f"{words}: {what} ({record['stage']}, {record['time']}, ledger record {record['sequence']})"
            )
    return lines or ["last verdict: none"]


def next_step(versions: set[str], records: list[Mapping[str, Any]]) -> str:
    """What an operator would type now."""
    kinds = ("verdict", "rolled_back", "flipped", "decommissioned", "restored")
    decisions = [record for record in records if record["kind"] in kinds]
    if decisions and decisions[-1]["kind"] == "decommissioned":
        return "nothing; V1 is archived, and ansible-playbook restore_v1.yml brings it back"
    if versions != {"v2"}:
        return "ansible-playbook stage1.yml -e traffic=10"
    if not decisions:
        return "ansible-playbook gate.yml"
    last = decisions[-1]
    if last["kind"] != "verdict":
        return f"ansible-playbook gate.yml -e stage={last['stage']}"
    return gate_advice(last["data"]["verdict"], last["stage"])


def gate_advice(verdict: Mapping[str, Any], stage: str) -> str:
    """What a verdict means for the operator."""
    return ADVICE[verdict["verdict"]].format(stage=stage)


def stage_summary(verdict: Mapping[str, Any], stage: str, traffic: object) -> str:
    """The last words of a stage's playbook."""
    look = f"First look: {verdict['verdict']}; {gate_advice(verdict, stage)}"
    return f"{stage}: HOLDING at {traffic} % on V2.\n{look}"


def table(rows: list[list[str]]) -> str:
    """Rows of cells as aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "cfn_preflight_report": preflight_report,
            "cfn_status_table": status_table,
            "cfn_gate_advice": gate_advice,
            "cfn_stage_summary": stage_summary,
        }
