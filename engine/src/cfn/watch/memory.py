"""What the watch remembers from one minute to the next; lost, it is made again from the ledger."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cfn.config_follower import write_atomically
from cfn.errors import RefusedError
from cfn.ledger.joining import Known
from cfn.ledger.store import LedgerStore
from cfn.metrics import checks
from cfn.metrics.times import parse_ms
from cfn.rollout.records import is_look
from cfn.rollout.standing import flip_of

MODE = 0o640
VERSION = 1

Record = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Memory:
    """`sequence` and `hash` are of the last record that was read; `flip_ms`, `flip_pct` and `looks_ms` are
    of the stage's last flip; `known` is what was joined from the hosts' spools; `back` is the last way back
    while nothing was flipped since; `people` are the records of attestations and incidents. Times in ms
    since 1970."""

    stage: str
    sequence: int = 0
    hash: str = ""
    flip_ms: int | None = None
    flip_pct: float = 0.0
    looks_ms: list[int] = field(default_factory=list)
    blind_since_ms: int | None = None
    last_word: str = ""
    missed_told: int = 0
    known: dict[str, Any] = field(default_factory=dict)
    back: dict[str, Any] = field(default_factory=dict)
    people: list[dict[str, Any]] = field(default_factory=list)

    def catch_up(self, store: LedgerStore) -> None:
        """Read what the ledger has more than is remembered; once all of it, then the newest only."""
        self.take_in(reversed(self.unread(store.newest())))

    def unread(self, newest: Iterable[Record]) -> list[Record]:
        """The records that are not read yet, newest first; of another ledger all, and what is remembered of
        this one is forgotten."""
        fresh: list[Record] = []
        for record in newest:
            if (record["sequence"], record["hash"]) == (self.sequence, self.hash):
                return fresh
            fresh.append(record)
        self._forget()
        return fresh

    def _forget(self) -> None:
        """Only what is not of the ledger stays."""
        new = Memory(stage=self.stage, blind_since_ms=self.blind_since_ms, last_word=self.last_word)
        for each in fields(self):
            setattr(self, each.name, getattr(new, each.name))

    def take_in(self, records: Iterable[Record]) -> None:
        """Go on with records, oldest first."""
        for record in records:
            self.sequence, self.hash = record["sequence"], record["hash"]
            if record["kind"] in ("attested", "incident"):
                self.people.append({name: record[name] for name in ("kind", "stage", "data")})
            self._take_in_back(record)
            if record["stage"] != self.stage:
                continue
            flip = flip_of(record)
            if flip is not None and (flip[1] or self.flip_ms is None):
                self.flip_ms, self.flip_pct, self.looks_ms = parse_ms(record["time"]), flip[0], []
                self.missed_told = 0
            elif is_look(record) and self.flip_ms is not None:
                self.looks_ms.append(parse_ms(record["time"]))

    def _take_in_back(self, record: Record) -> None:
        """What was taken back, and what came from a spool, whatever the stage was."""
        known = Known(**self.known)
        known.take_in(record)
        self.known = asdict(known)
        flip = flip_of(record)
        if record["kind"] == "rolled_back" and record["data"].get("epoch"):
            self.back = {name: record["data"].get(name) for name in ("epoch", "to_pct", "pending", "text")}
        elif flip is not None and flip[1]:
            self.back = {}

    def keep(self, path: Path) -> None:
        """Write it. Raises RefusedError when the disk refuses."""
        try:
            write_atomically(path, json.dumps({"v": VERSION, **asdict(self)}) + "\n", mode=MODE)
        except OSError as error:
            raise RefusedError(f"{path}: cannot be written: {error}; make room on this disk") from error


def recall(path: Path, stage: str) -> Memory:
    """What was kept for this stage; nothing if it is another's, damaged or gone."""
    try:
        value = checks.load_object(path.read_text())
        if value.pop("v") != VERSION or value["stage"] != stage:
            return Memory(stage=stage)
        return Memory(**value)
    except (OSError, ValueError, KeyError, TypeError):
        return Memory(stage=stage)
