# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""The end of V1, and its way back: what hosts and ledger say, and what is to be done about it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What a playbook returned for a host, by the name that it was registered under.
Hostvars = Mapping[str, Mapping[str, Any]]
Record = Mapping[str, Any]


def standing(records: Iterable[Record]) -> dict[str, Any]:
    """What the ledger's records of V1's end come to, oldest first: `archives` (the newest of each host),
    whether V1 is `decommissioned`, and by which `record`."""
    archives: dict[str, Any] = {}
    ended: Record | None = None
    for record in records:
        if record["kind"] == "archived":
            archives |= record["data"]["archives"]
        elif record["kind"] in ("decommissioned", "restored"):
            ended = record if record["kind"] == "decommissioned" else None
    return {
        "archives": archives,
        "decommissioned": ended is not None,
        "record": ended["sequence"] if ended else None,
        "time": ended["time"] if ended else "",
    }


def end_plan(
    hosts: Sequence[str], hostvars: Hostvars, ledger: Mapping[str, Any], paths: Sequence[str], command: str
) -> dict[str, Any]:
    """How V1 is ended: `problems` of all hosts, by host, and what there is to do: whether anything is
    `needed`, the hosts to `archive` and those to `remove` V1 from; `release` is the one that they run.

    Reads `order_status` and `end_v1` of every host. A host whose router knows of no V1 any more is taken up
    where an earlier run left it: with the archive that the ledger has.
    """
    known = standing(ledger.get("records", []))
    problems: list[str] = []
    if not any(_inside(word, paths) for word in shlex.split(command)):
        problems.append(
            f"V1's command {command} lies in none of cfn_v1_paths ({', '.join(paths)}): it would be lost"
        )
    archive, remove, releases, traffic = [], [], set(), []
    for host in hosts:
        status, own = hostvars[host].get("order_status", {}), hostvars[host].get("end_v1", {})
        problems += [f"{host}: {each}" for each in _unfit(status, own, known["archives"].get(host))]
        said = status.get("status") or {}
        releases.add(said.get("release"))
        traffic.append(said.get("traffic_pct"))
        if said.get("v1_enabled", True):
            archive.append(host)
        if said.get("v1_enabled", True) or own.get("left"):
            remove.append(host)
    if len(releases) > 1 and not problems:
        problems.append(f"the hosts run different releases: {', '.join(sorted(map(str, releases)))}")
    return {
        "problems": problems,
        "text": "\n".join(["V1 is not decommissioned. Nothing was changed on any host.", *problems]),
        "needed": bool(remove) or not known["decommissioned"],
        "archive": archive,
        "remove": remove,
        "release": next(iter(releases), None),
        "standing": known,
    }


def _unfit(status: Mapping[str, Any], own: Mapping[str, Any], archive: object) -> list[str]:
    """What keeps V1 from ending on a host."""
    if status.get("unreachable") or not status:
        return [f"unreachable, or not in this run: {_one_line(status.get('msg', 'no answer'))}"]
    if not status.get("installed"):
        return ["no release is installed: V2 does not serve here"]
    said = status["status"]
    problems = []
    if (said["version"], said["traffic_pct"]) != ("v2", 100):
        problems.append(f"it runs {said['version']} at {said['traffic_pct']} %; V2 at 100 % is required")
    problems += [
        f"{part} is not well: {said[part]}" for part in ("engine", "router") if said[part] != "running"
    ]
    if said.get("config_problem"):
        problems.append(f"the configuration: {said['config_problem']}")
    breaker = said.get("breaker") or {}
    if breaker.get("state", "closed") != "closed":
        problems.append(f"the breaker is {breaker['state']}: {breaker.get('reason', '')}; close it first")
    if own.get("failed") or "left" not in own:
        return [*problems, _one_line(own.get("msg", "its V1 could not be read"))]
    if said.get("v1_enabled", True) and own["missing"]:
        problems.append(f"{', '.join(own['missing'])} is missing: what of V1 is not there cannot be archived")
    if not said.get("v1_enabled", True) and archive is None:
        problems.append("its router knows of no V1, and the ledger of no archive of it: restore V1 by hand")
    return problems


def _inside(word: str, paths: Sequence[str]) -> bool:
    return any(word == path or word.startswith(f"{path}/") for path in paths)


def end_epoch(hosts: Iterable[str], hostvars: Hostvars, plan: Mapping[str, Any]) -> int:
    """The epoch of V1's end: higher than any host's, except where a run before brought it to all."""
    epochs = [(hostvars[host]["order_status"]["status"] or {}).get("epoch") or 0 for host in hosts]
    return max(epochs) + (1 if plan["archive"] else 0)


def archives(hosts: Iterable[str], hostvars: Hostvars) -> dict[str, Any]:
    """Name, digest and number of files of each host's archive, of `v1_archive_made`."""
    made = {host: hostvars[host]["v1_archive_made"] for host in hosts}
    return {host: {name: each[name] for name in ("name", "sha256", "files")} for host, each in made.items()}


def archive_of(host: str, hostvars: Hostvars, plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name and digest of a host's archive: of this run, or of the one that it goes on from."""
    own = host in plan["archive"]
    found: Mapping[str, Any] = (
        hostvars[host]["v1_archive_made"] if own else plan["standing"]["archives"][host]
    )
    return found


def end_text(archived: Mapping[str, Any], folder: str, plan: Mapping[str, Any] | None = None) -> str:
    """How it stands after V1's end: where its archives are, and what brings it back. With the `plan` of a run
    that had nothing to do, since when."""
    known = plan["standing"] if plan and not plan["needed"] else None
    when = (
        f"is decommissioned since {known['time']} (record {known['record']})"
        if known
        else "is decommissioned"
    )
    lines = [f"V1 {when}: V2 serves everything, and nothing falls back. Its archives, in {folder} and on the "
             "control host in /var/lib/cfn-v1-archive:"]  # fmt: skip
    lines += [f"{host}: {each['name']}, SHA-256 {each['sha256']}" for host, each in sorted(archived.items())]
    return "\n".join([*lines, "V1 comes back with: ansible-playbook restore_v1.yml"])


def attested(result: Mapping[str, Any], by: str) -> dict[str, Any]:
    """The data of the record that attests the rehearsal of V1's restoration."""
    return {
        "item": "restoration_tested",
        "holds": not result["unproved"] and result["within"],
        "by": by,
        "note": result["text"],
    }


def restore_text(result: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    """The last words of V1's restoration; what the control host could not record is said. `recorded` is empty
    after a dry run."""
    if not recorded:
        return str(result["text"])
    if recorded.get("record"):
        return f"{result['text']}\nledger record {recorded['record']['sequence']}"
    return (
        f"{result['text']}\nNOT RECORDED: {_one_line(recorded.get('msg', 'the control host has no ledger'))}"
    )


def made(archived: Mapping[str, Any], folder: str) -> dict[str, str]:
    """The archive that a rehearsal has just made, as `source` names one."""
    file = f"{folder}/{archived['name']}"
    return {"file": file, "sha256": archived["sha256"], "from": "this run", "problem": ""}


def source(host: str, ledger: Mapping[str, Any], folder: str, asked: str) -> dict[str, str]:
    """Which archive V1 is restored from on a host, on the controller: `file`, `sha256` to hold it against,
    and `from` where that is known; or the `problem`. `asked` is a file that somebody named; else it is the
    newest archive of the host."""
    known = standing(ledger.get("records", []))["archives"]
    if asked:
        name = asked.rpartition("/")[2]
        recorded = [each["sha256"] for each in known.values() if each["name"] == name]
        if recorded:
            return {"file": asked, "sha256": recorded[0], "from": "the ledger", "problem": ""}
        digest = name.removesuffix(".tar.gz").rpartition("-")[2]
        problem = (
            ""
            if re.fullmatch("[0-9a-f]{12}", digest)
            else f"{name} is in no record of the ledger, and does not carry its digest "
            "(v1-HOST-DIGEST.tar.gz): there is nothing to hold it against"
        )
        return {"file": asked, "sha256": digest, "from": "the file's name", "problem": problem}
    if host not in known:
        read = "" if "records" in ledger else "; the ledger could not be read"
        problem = f"the ledger has no archive of V1 of {host}{read}: name one, -e archive=FILE"
        return {"file": "", "sha256": "", "from": "", "problem": problem}
    file = f"{folder}/{known[host]['name']}"
    return {"file": file, "sha256": known[host]["sha256"], "from": "the ledger", "problem": ""}


def source_problems(hosts: Iterable[str], hostvars: Hostvars) -> str:
    """What is wrong with the archives, of `v1_source` and `v1_source_checked`; empty if nothing is."""
    bad = []
    for host in hosts:
        checked = hostvars[host].get("v1_source_checked") or {}
        missing = {"problem": f"{host}: its archive could not be made, as is said above"}
        said = hostvars[host].get("v1_source", missing)["problem"]
        found = (
            ""
            if checked.get("rc") == 0 or checked.get("skipped")
            else checked.get("stderr") or checked.get("msg") or "not verified"
        )
        bad.append(said or found)
    named = sorted({_one_line(each) for each in bad if each})
    return "\n".join(["V1 is not restored. Nothing was touched.", *named]) if named else ""


def restore_epoch(hosts: Iterable[str], hostvars: Hostvars, traffic: str) -> int:
    """The epoch of V1's return, of `restore_status`: higher than any host's, except where all is as it is
    asked for, so that a second run changes nothing."""
    answers = [hostvars[host].get("restore_status", {}).get("status") or {} for host in hosts]
    there = [answer for answer in answers if answer]
    highest = max((answer.get("epoch") or 0 for answer in there), default=0)
    done = [
        answer.get("v1_enabled", True)
        and answer.get("epoch") == highest
        and (traffic == "keep" or answer.get("version") == "v1")
        for answer in there
    ]
    return highest if all(done) else highest + 1


def restore_outcome(
    hosts: Iterable[str], hostvars: Hostvars, started_s: float, now_s: float, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """On which hosts V1 is proved, on which not and why, and the seconds it took; for ledger and person.

    `asked`: `traffic` (v1 or keep), `rehearse`, and `objectives` of the whole rollout. Reads of each host
    `restore_status`, `v1_source`, `v1_archive_there_s`, `restore_proved` and `restore_failure`.
    """
    proved, unproved, alone, retrieved = [], {}, [], []
    for host in hosts:
        own = hostvars[host]
        status = own.get("restore_status") or {}
        if own.get("restore_proved"):
            proved.append(host)
        else:
            why = own.get("restore_failure") or status.get("msg") or "no answer"
            unproved[host] = _one_line(why)
        if not status.get("installed") and host in proved:
            alone.append(host)
        retrieved.append(float(own.get("v1_archive_there_s") or now_s))
    limits = asked["objectives"]
    seconds = round(now_s - started_s, 1)
    retrieved_s = round(max(retrieved, default=now_s) - started_s, 1)
    within = seconds <= limits["v1_restored_s"] and retrieved_s <= limits["v1_archive_retrieved_s"]
    what = (
        "V1's restoration was rehearsed"
        if asked["rehearse"]
        else {"v1": "V1 serves again", "keep": "V1 is there again, and V2 keeps the traffic"}[
            asked["traffic"]
        ]
    )
    lines = [
        f"{what}: proved by a real coordination on {len(proved)} of {len(proved) + len(unproved)} hosts, "
        f"{seconds:g} s after the decision ({limits['v1_restored_s']} s are allowed), the archives there "
        f"after {retrieved_s:g} s ({limits['v1_archive_retrieved_s']} s).{'' if within else ' TOO SLOW.'}"
    ]
    lines += [f"{host}: no release is installed, so V1 is proved by itself, past a router" for host in alone]
    lines += [f"{host}: NOT PROVED: {why}" for host, why in unproved.items()]
    if asked["check"]:
        lines = [f"Predicted: {what}. Nothing was changed."]
    return {
        "seconds": seconds,
        "retrieved_s": retrieved_s,
        "objective_s": limits["v1_restored_s"],
        "within": within,
        "traffic": asked["traffic"],
        "proved": proved,
        "unproved": unproved,
        "archives": {
            host: {"name": file.rpartition("/")[2], "sha256": hostvars[host]["v1_source"]["sha256"]}
            for host, file in ((host, hostvars[host]["v1_source"]["file"]) for host in hosts)
        },
        "text": "\n".join(lines),
    }


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "cfn_v1_standing": standing,
            "cfn_v1_end_plan": end_plan,
            "cfn_v1_end_epoch": end_epoch,
            "cfn_v1_archives": archives,
            "cfn_v1_archive_of": archive_of,
            "cfn_v1_end_text": end_text,
            "cfn_v1_attested": attested,
            "cfn_v1_restore_text": restore_text,
            "cfn_v1_made": made,
            "cfn_v1_source": source,
            "cfn_v1_source_problems": source_problems,
            "cfn_v1_restore_epoch": restore_epoch,
            "cfn_v1_restore_outcome": restore_outcome,
        }
