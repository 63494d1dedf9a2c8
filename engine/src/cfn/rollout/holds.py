"""What holds a rollout although its gate would let it go on. Pure, over the ledger and the hosts' answers.

A pause that somebody ordered, an open breaker, and a host that somebody (or its own guard) sent to V1 after
it had been flipped to V2: a stage passes none of them unless somebody says who resumes, and why.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

HELD, RESUMED = "held", "resumed"


def holds(records: Iterable[Record], current: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each hold in words, empty if there is none.

    `current`: of each host `host`, `version`, and as far as known `breaker` (`state`, `since`, `reason`).
    """
    records = list(records)
    found = _ordered(records)
    ordered = _on_v2(records)
    for each in current:
        breaker = each.get("breaker") or {}
        if breaker.get("state") in ("open", "half_open"):
            found.append(
                f"the breaker of {each['host']} is {breaker['state']} since {breaker.get('since')}: "
                f"{breaker.get('reason')}"
            )
        elif each["version"] == "v1" and each["host"] in ordered:
            found.append(
                f"{each['host']} is on V1 by hand, or by its own guard: the ledger has it on V2 "
                f"(record {ordered[each['host']]}) and no rollback since"
            )
    return found


def _ordered(records: Sequence[Record]) -> list[str]:
    """The pause in force, if there is one."""
    for record in reversed(records):
        if record["kind"] == "holding" and "state" in record["data"]:
            data = record["data"]
            if data["state"] == HELD:
                return [f"{data['by']} holds it since {record['time']}: {data['reason']}"]
            break
    return []


def _on_v2(records: Sequence[Record]) -> dict[str, int]:
    """The hosts whose last change was to V2, by the ledger, and that change's record."""
    found: dict[str, int] = {}
    for record in records:
        if record["kind"] == "rolled_back":
            found = {}
        elif record["kind"] == "restored" and record["data"]["traffic"] == "v1":
            for host in record["data"]["proved"]:
                found.pop(host, None)
        elif record["kind"] in ("flipped", "failed"):
            for host, state in (record["data"].get("hosts") or {}).items():
                version = (state.get("after") or state).get("version")
                if version == "v2":
                    found[host] = record["sequence"]
                elif version == "v1":
                    found.pop(host, None)
    return found
