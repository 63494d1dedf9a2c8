"""What hosts did while nobody could record it, joined to the ledger once. Pure.

A line of a host's spool has the host's own `time`. A guard's says that it fell back by itself, with its
`reason`; that of a way back has `back`: the record that its control host could not take, with an `id`,
the same on every host that it reached.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]
Lines = Mapping[str, Iterable[Mapping[str, Any]]]


@dataclass(slots=True)
class Known:
    """What the ledger has: for each host the time of its newest line, and the ids of records."""

    until: dict[str, str] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)

    def take_in(self, record: Record) -> None:
        """Go on with a record of the ledger."""
        if record["kind"] != "rolled_back":
            return
        data = record["data"]
        if isinstance(data.get("id"), str) and data["id"] not in self.ids:
            self.ids.append(data["id"])
        hosts = data.get("hosts")
        for host, done in hosts.items() if isinstance(hosts, dict) else ():
            if isinstance(done, dict) and isinstance(done.get("time"), str):
                self.until[host] = max(self.until.get(host, ""), done["time"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A record of kind rolled_back to append; `stage` and `actor` are "" where the lines name none."""

    stage: str
    actor: str
    data: dict[str, Any]


def unjoined(spooled: Lines, known: Known) -> list[Joined]:
    """What is not in the ledger yet, and `known` from now on. What guards did by themselves is one
    record: they fell back for the same reason."""
    alone: dict[str, Any] = {}
    backs: dict[str, Joined] = {}
    for host, lines in spooled.items():
        for line in lines:
            time = str(line.get("time"))
            if time <= known.until.get(host, ""):
                continue
            known.until[host] = time
            back = line.get("back")
            if not isinstance(back, dict):
                alone[host] = dict(line)
            elif str(back.get("id")) not in known.ids:
                _note(backs, back, host, time)
    known.ids += backs
    found = list(backs.values())
    if alone:
        text = "\n".join(
            f"{host} fell back to V1 by itself at {each.get('time')}: {each.get('reason')}"
            for host, each in alone.items()
        )
        found.append(
            Joined(stage="", actor="", data={"to_pct": 0, "spooled": True, "hosts": alone, "text": text})
        )
    return found


def _note(backs: dict[str, Joined], back: Mapping[str, Any], host: str, time: str) -> None:
    """The record of a way back, with every host that kept it."""
    name = str(back.get("id"))
    data = back.get("data")
    if name not in backs:
        backs[name] = Joined(
            stage=str(back.get("stage") or ""),
            actor=str(back.get("actor") or ""),
            data={**(data if isinstance(data, dict) else {}), "id": name, "spooled": True, "hosts": {}},
        )
    backs[name].data["hosts"][host] = {"time": time}
