"""Follow the events file from where it last stood, over rotations and restarts."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cfn.config_follower import write_atomically
from cfn.metrics.records import Coordinated, DamagedLineError, read_event

MAX_BYTES_A_TURN = 8_388_608  # some 15,000 events; what is more waits for the next sample


@dataclass(frozen=True, slots=True)
class Ended:
    """A coordination that ended, and the time of its slowest team where it had any."""

    event: Coordinated
    team_coordination_time_ms: float | None = None


class EventTail:
    """Reads what was appended to `path` since the last call.

    The place is kept in `state`, so that a restart neither counts events twice nor leaves any out.
    On the first start, reading begins at the end. Not for threads.
    """

    def __init__(self, path: Path, state: Path) -> None:
        self._path = path
        self._state = state
        self._inode, self._offset = self._kept()

    def read(self) -> list[Ended] | None:
        """The coordinations since the last call; None while there is no events file.

        Damaged lines are left to the gate, which counts them. Raises OSError when an existing file
        cannot be read.
        """
        found: list[Ended] = []
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if self._inode is None:
                    self._inode, self._offset = status.st_ino, status.st_size
                elif status.st_ino != self._inode:
                    if not self._finish_rotated(found):
                        self._keep()
                        return found
                    self._inode, self._offset = status.st_ino, 0
                elif status.st_size < self._offset:
                    self._offset = 0  # truncated in place
                self._offset = _read_from(file, self._offset, found)
        except FileNotFoundError:
            if self._inode is None:
                self._inode, self._offset = -1, 0  # a file that appears later is read from its begin
            return None
        self._keep()
        return found

    def _finish_rotated(self, found: list[Ended]) -> bool:
        """More of the file that was current before, if it is path.1 now. False: the next turn goes on."""
        with suppress(OSError), self._path.with_name(f"{self._path.name}.1").open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino == self._inode:
                left = status.st_size - self._offset
                self._offset = _read_from(file, self._offset, found)
                return left <= MAX_BYTES_A_TURN
        return True

    def _kept(self) -> tuple[int | None, int]:
        try:
            value = json.loads(self._state.read_text())
            return int(value["inode"]), int(value["offset"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, 0

    def _keep(self) -> None:
        with suppress(OSError):  # at worst a restart begins at the end of the file
            self._state.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            text = json.dumps({"inode": self._inode, "offset": self._offset})
            write_atomically(self._state, text, mode=0o640)


def _read_from(file: BinaryIO, offset: int, found: list[Ended]) -> int:
    """Add the coordinations in whole lines from `offset` on; returns the offset of the first byte that
    was not used. A line that is still being written waits."""
    file.seek(offset)
    data = file.read(MAX_BYTES_A_TURN)
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == MAX_BYTES_A_TURN:
        return offset + len(data)  # no event is that long; leave it behind
    for line in data[:end].splitlines():
        with suppress(DamagedLineError):
            record = read_event(line)
            if isinstance(record, Coordinated):
                found.append(_ended(record, line))
    return offset + end


def _ended(event: Coordinated, line: bytes) -> Ended:
    if b'"teams"' not in line:
        return Ended(event)
    teams = json.loads(line).get("teams")
    listed = [team for team in teams if isinstance(team, dict)] if isinstance(teams, list) else []
    times = [_number(team.get("coordination_time_ms")) for team in listed]
    return Ended(event, max((each for each in times if each is not None), default=None))


def _number(value: Any) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
