# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""What the order of steps and the lock are asked with, from the inventory and the hosts' answers."""

from __future__ import annotations

import base64
import multiprocessing
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

Hostvars = Mapping[str, Mapping[str, Any]]

DECOMMISSION = "decommission"


def steps(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every step of production in order, and the end of V1 after all of them."""
    found = [
        {"stage": stage, "name": str(pct), "traffic_pct": pct}
        for stage, figures in table.items()
        for pct in figures["production"]["steps_pct"]
    ]
    return [*found, {"stage": DECOMMISSION, "name": "v1", "traffic_pct": 100}]


def step_asked(table: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """The question whether a step may start.

    `step`: environment, kind, stage, traffic_pct, release, table_sha256, now, requires (what the
    environment asks for), order (the ages), attestations by stage, time_factor, current (see
    `running`), staging_verdict (an export, or null), allowed_signers, override_by, override_reason,
    resume_by, resume_reason.
    """
    requires, order = step["requires"], step["order"]
    items = step["attestations"].get(step["stage"], []) if requires["attestations"] else []
    return {
        "environment": step["environment"],
        "kind": step["kind"],
        "stage": step["stage"],
        "traffic_pct": float(step["traffic_pct"]),
        "release": step["release"],
        "stage_table_sha256": step["table_sha256"],
        "now": step["now"],
        "steps": steps(table),
        "rules": {
            "staging_verdict": bool(requires["staging_verdict"]),
            "previous_step": bool(requires["previous_step"]),
            "verdict_max_age_s": order["verdict_max_age_s"],
            "retry_staging_s": order["retry_staging_s"],
            "attestation_max_age_s": order["attestation_max_age_s"],
            "attestations": list(items),
            "time_factor": step["time_factor"],
        },
        "current": step["current"],
        "staging_verdict": step["staging_verdict"],
        "allowed_signers": step["allowed_signers"],
        "override_by": step["override_by"],
        "override_reason": step["override_reason"],
        "resume_by": step["resume_by"],
        "resume_reason": step["resume_reason"],
    }


def running(hosts: Iterable[str], hostvars: Hostvars) -> list[dict[str, Any]]:
    """What every host runs, of `order_status`: host, version, traffic, release and breaker. A host that did
    not answer runs V1, which nothing is lowered from."""
    answers = {host: hostvars[host].get("order_status", {}).get("status") or {} for host in hosts}
    return [
        {
            "host": host,
            "version": answer.get("version") or "v1",
            "traffic_pct": answer.get("traffic_pct") or 0,
            "release": answer.get("release") or "",
            "breaker": answer.get("breaker"),
        }
        for host, answer in answers.items()
    ]


def run_id(_actor: object) -> dict[str, str]:
    """This run of a playbook: `controller`, and `run`, which no other run of it ever has."""
    parent = multiprocessing.parent_process()  # templates are rendered in workers
    pid = parent.pid if parent is not None and parent.pid is not None else os.getpid()
    return {"controller": socket.gethostname(), "run": f"{pid}.{_started(pid)}.{_boot()}"}


def dead_run(lock: Mapping[str, Any] | None) -> str:
    """The run that holds a lock, if it was one of this machine that is over; else an empty text."""
    if not lock or lock["controller"] != socket.gethostname():
        return ""
    try:
        pid, started, boot = lock["run"].split(".", 2)
        alive = boot == _boot() and started == _started(int(pid))
    except ValueError:
        return ""
    return "" if alive else str(lock["run"])


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot: with its id, it is never given twice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "gone"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def plan(table: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a rollout, as docs/reference/order.md describes it.

    `environment`: environment, kind, stage, time_factor, table_sha256, severities, attestations, hosts,
    and as wanted watch and anchors.
    """
    own = ("environment", "kind", "stage", "time_factor", "table_sha256", "severities", "hosts")
    return {
        "v": 1,
        "table": table,
        "attested_at_the_end": environment["attestations"]["epic"],
        "watch": environment.get("watch", {}),
        "anchors": environment.get("anchors", {}),
        **{name: environment[name] for name in own},
    }


def anchors(hosts: Iterable[str], hostvars: Hostvars) -> dict[str, Any]:
    """The heads of the ledger that each host keeps, of `report_anchors`; without hosts that keep none."""
    kept = {host: hostvars[host].get("report_anchors", {}).get("anchors") for host in hosts}
    return {host: heads for host, heads in kept.items() if heads}


def watch_targets(hosts: Iterable[str], hostvars: Hostvars) -> dict[str, Any]:
    """Where the control host reaches each host: `watch_address` and `watch_port`, or as Ansible does."""
    return {
        host: {
            "address": hostvars[host].get("watch_address") or hostvars[host].get("ansible_host") or host,
            "port": int(hostvars[host].get("watch_port") or hostvars[host].get("ansible_port") or 22),
        }
        for host in hosts
    }


def known_hosts(hosts: Iterable[str], hostvars: Hostvars, before: str = "") -> str:
    """The lines of a known_hosts file, by inventory name, from what each host's `watch_host_key` was. A host
    that did not answer keeps the line that it has `before` (base64, as it was read)."""
    kept = {line.split(" ", 1)[0]: line for line in base64.b64decode(before).decode().splitlines()}
    keys = {host: hostvars[host].get("watch_host_key", {}).get("content") for host in hosts}
    lines = [
        f"{host} {' '.join(base64.b64decode(key).decode().split()[:2])}" if key else kept.get(host, "")
        for host, key in keys.items()
    ]
    return "".join(f"{line}\n" for line in lines if line)


# What attest.yml can record, by the variable that names it, and what each needs beside it.
_ATTEST = {
    "attest": ("attested", ("by",)),
    "incident": ("incident", ("by", "severity", "attributed_to", "text")),
    "learned": ("learned", ("by",)),
}


def attestation(given: Mapping[str, Any], now: str) -> dict[str, Any]:
    """`kind` and `data` of the record that the extra variables of attest.yml ask for.

    Raises AnsibleFilterError naming what is missing.
    """
    named = [name for name in _ATTEST if given.get(name)]
    if len(named) != 1:
        raise AnsibleFilterError(
            "name one of -e attest=NAME, -e incident=ID and -e learned=TEXT; "
            f"found {' and '.join(named) or 'none'}. Nothing was recorded."
        )
    kind, needed = _ATTEST[named[0]]
    missing = [name for name in needed if not given.get(name)]
    if missing:
        wanted = " ".join(f"-e {name}=..." for name in missing)
        raise AnsibleFilterError(f"{named[0]} needs {wanted} too. Nothing was recorded.")
    by = str(given["by"])
    if kind == "attested":
        said = given.get("holds")
        word = "true" if said in (None, "") else str(said).lower()
        if word not in ("true", "yes", "false", "no"):
            raise AnsibleFilterError(f"holds={word} is refused: true and false are allowed")
        return {
            "kind": kind,
            "data": {
                "item": str(given["attest"]),
                "holds": word in ("true", "yes"),
                "by": by,
                "note": str(given.get("note") or ""),
            },
        }
    if kind == "learned":
        return {"kind": kind, "data": {"text": str(given["learned"]), "by": by}}
    return {
        "kind": kind,
        "data": {
            "incident": str(given["incident"]),
            "severity": str(given["severity"]),
            "attributed_to": str(given["attributed_to"]),
            "state": str(given.get("state") or "open"),
            "started": str(given.get("started") or now),
            "text": str(given["text"]),
            "by": by,
        },
    }


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "cfn_step_asked": step_asked,
            "cfn_running": running,
            "cfn_run_id": run_id,
            "cfn_dead_run": dead_run,
            "cfn_attestation": attestation,
            "cfn_plan": plan,
            "cfn_anchors": anchors,
            "cfn_watch_targets": watch_targets,
            "cfn_known_hosts": known_hosts,
        }
