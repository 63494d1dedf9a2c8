"""The states of the protocol as they show from outside: claims, the journal, the daemons' logs."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cfn.engine.lean import records
from cfn.engine.lean.records import RECORD_BYTES
from cfn.engine.request_log import _records
from engine.tests.engine.harness import Engine

from .report import SEEN_S, Report, Slot, Task


class View:
    """Looks, and changes nothing."""

    def __init__(self, engine: Engine, report: Report) -> None:
        self._engine = engine
        self._report = report
        self._plans: dict[str, tuple[int, list[Slot]]] = {}
        self._read: dict[Path, int] = {}

    def slots(self, task: Task) -> list[tuple[Slot, records.Record | None]]:
        """The task's slots as of now; none before it was accepted."""
        if not task.slots:
            self._follow()
            task.key, task.slots = self._plans.get(task.task_id, (0, []))
        found = []
        raws: dict[int, bytes] = {}
        for slot in task.slots:
            if slot.shard not in raws:
                raws[slot.shard] = (self._engine.paths.claims / str(slot.shard)).read_bytes()
            at = slot.number * RECORD_BYTES
            record = records.decode(raws[slot.shard][at : at + RECORD_BYTES])
            found.append((slot, record if record is not None and record.key == task.key else None))
        return found

    def _follow(self) -> None:
        """Read what the conductor has accepted since the last look."""
        with self._report.lock:
            for path in sorted((self._engine.paths.shm / "requests").glob("*.log")):
                known = self._read.get(path, 0)
                if path.stat().st_size > known:
                    for request, ends in accepted_in(path, known):
                        self._read[path] = ends
                        if request is not None:
                            slots = [
                                Slot(team["shard"], team["base"] + index)
                                for team in request["teams"]
                                for index in range(len(team["named"]) or team["count"])
                            ]
                            self._plans[request["task_id"]] = (request["key"], slots)

    def until(self, task: Task, seen: Callable[[list[int]], bool]) -> bool:
        """Wait until the kinds of the task's slots satisfy; False when it was answered or time is up."""
        limit = time.monotonic() + SEEN_S
        while time.monotonic() < limit and task.answer is None:
            with suppress(OSError):
                found = self.slots(task)
                if found and seen([record.kind if record is not None else 0 for _, record in found]):
                    return True
            time.sleep(0.0005)
        return False

    def event(self, name: str, event: str, since: int) -> bool:
        """Wait for an event in a daemon's log after an offset."""
        limit = time.monotonic() + SEEN_S
        needle = f'"event": "{event}"'.encode()
        while time.monotonic() < limit:
            with suppress(OSError), self._engine.logged(name).open("rb") as log:
                log.seek(since)
                if needle in log.read():
                    return True
            time.sleep(0.0005)
        return False


def accepted_in(path: Path, at: int) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """The whole records of a segment from an offset: an accepted request or None, and where it ends."""
    with path.open("rb") as file:
        file.seek(at)
        raw = file.read()
    for kind, head, _, ends in _records(raw):
        yield (head if kind == 1 else None), at + ends
