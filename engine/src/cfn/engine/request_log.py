"""The conductor's journal: what was accepted, and how it ended. Append-only segments in tmpfs.

    requests/<number>.log    records: magic, kind, bytes of head, bytes of body, CRC-32 | head (JSON) | body

ACCEPT is written before anybody is told "accepted", COMPLETE before an outcome is told. A record
that a crash tore has never been told of: it is cut off at the next start. A segment goes when the
newest record in it is older than the retention, or when all of them need more than their bound; the
oldest goes first, and what is still open in it is written again into the newest.

One process writes (the conductor, under its lock). No fsync: tmpfs has no disk.
"""

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cfn.engine.log import log
from cfn.errors import DamagedError

SEGMENT_BYTES = 4 << 20
MAX_BYTES = 32 << 20  # of all segments together

_MAGIC = b"CFNR"
_HEADER = struct.Struct("<4sB3xIII")
_ACCEPT, _COMPLETE, _COMPRESSED = 1, 2, 3
_COMPRESS_FROM_BYTES = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamPlan:
    """A team's share of a request: its agents, `count` numbered ones from `first` or those `named`, and
    where their slots begin. A team without agents is a coordinator alone."""

    team: str
    shard: int
    base: int
    first: int = 1
    count: int = 0
    named: tuple[str, ...] = ()

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents' ids."""
        return self.named or tuple(
            [f"agent-{number}" for number in range(self.first, self.first + self.count)]
        )

    @property
    def size(self) -> int:
        """How many agents."""
        return len(self.named) or self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One accepted coordination. Times are seconds on the monotonic clock, which all processes of
    a host share and which ends with tmpfs, at a reboot. `swarm_id` is empty for a swarm of its own.
    `hybrid`: each team's coordinator is an agent too. `command` is what agents run; empty: an echo."""

    task_id: str
    key: int
    teams: tuple[TeamPlan, ...]
    hybrid: bool
    payload: bytes
    command: tuple[str, ...]
    deadline_ms: int
    swarm_id: str
    accepted_at_s: float

    @property
    def deadline_at_s(self) -> float:
        """When what is not claimed will be given up."""
        return self.accepted_at_s + self.deadline_ms / 1000

    @property
    def agents(self) -> int:
        """How many agents were asked for, coordinators too."""
        return sum(team.size + self.hybrid for team in self.teams)


@dataclass(slots=True)
class _Segment:
    number: int
    path: Path
    size: int = 0
    newest_s: float = 0.0  # seconds since 1970: retention is about days
    open: set[str] = field(default_factory=set)
    complete: set[str] = field(default_factory=set)


class RequestLog:
    """The journal below `folder`, which must exist. Raises OSError when it cannot be read."""

    def __init__(
        self, folder: Path, *, max_bytes: int = MAX_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._accepted: dict[str, tuple[_Segment, Request]] = {}
        self._outcomes: dict[str, tuple[_Segment, int, int, int]] = {}  # offset, bytes and kind of the body
        self._descriptor = -1
        for path in sorted(folder.glob("*.log")):
            self._load(path)
        if self._segments:
            self._descriptor = _opened(self._segments[-1].path)
        else:
            self._begin_segment()

    def accept(self, request: Request) -> None:
        """Journal a request. From the return of this call on it will end, whoever dies.

        Raises OSError when tmpfs has no room; nothing is left then.
        """
        self._append(_ACCEPT, _accept_head(request), request.payload)
        segment = self._segments[-1]
        segment.open.add(request.task_id)
        self._accepted[request.task_id] = (segment, request)

    def complete(self, task_id: str, outcome: bytes) -> None:
        """Store an outcome (JSON). Raises OSError without room; the request stays open then."""
        kind, body = _COMPLETE, outcome
        if len(outcome) >= _COMPRESS_FROM_BYTES:
            kind, body = _COMPRESSED, zlib.compress(outcome, 1)
        head = json.dumps({"task_id": task_id}).encode()
        at = self._append(kind, head, body)
        self._note_complete(self._segments[-1], task_id, at, len(body), kind)

    def outcome(self, task_id: str) -> bytes | None:
        """The stored outcome of a request, or None. Raises DamagedError."""
        found = self._outcomes.get(task_id)
        if found is None:
            return None
        segment, offset, size, kind = found
        with segment.path.open("rb") as file:
            file.seek(offset)
            body = file.read(size)
        try:
            return zlib.decompress(body) if kind == _COMPRESSED else body
        except zlib.error as error:
            raise DamagedError(f"the stored outcome of {task_id} cannot be read: {error}") from error

    @property
    def open_requests(self) -> list[Request]:
        """The requests without an outcome, oldest first."""
        return sorted(
            (request for _, request in self._accepted.values()), key=lambda request: request.accepted_at_s
        )

    @property
    def stored_bytes(self) -> int:
        """The size of all segments."""
        return sum(segment.size for segment in self._segments)

    def sweep(self, oldest_s: float) -> int:
        """Remove segments whose records are all older than this (seconds since 1970), and the oldest
        while there are too many bytes; how many went. Raises OSError without room."""
        removed = 0
        if self._segments[-1].complete and self._segments[-1].newest_s < oldest_s:
            self._begin_segment()
        newest = self._segments[-1].number  # what is open goes behind it, and is not swept in turn
        while self._segments[0].number < newest and (
            self._segments[0].newest_s < oldest_s or self.stored_bytes > self._max_bytes
        ):
            self._remove(self._segments[0])
            removed += 1
        return removed

    def close(self) -> None:
        """Close the newest segment."""
        os.close(self._descriptor)

    # Segments

    def _begin_segment(self) -> _Segment:
        """A new newest segment. Raises OSError; the one before goes on being the newest then."""
        number = self._segments[-1].number + 1 if self._segments else 1
        segment = _Segment(number, self._folder / f"{number:012d}.log", newest_s=time.time())
        descriptor = _opened(segment.path)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._segments.append(segment)
        return segment

    def _append(self, kind: int, head: bytes, body: bytes) -> int:
        """The offset of the body in the newest segment."""
        segment = self._segments[-1]
        if segment.size >= self._segment_bytes:
            segment = self._begin_segment()
        checksum = zlib.crc32(body, zlib.crc32(head))
        raw = _HEADER.pack(_MAGIC, kind, len(head), len(body), checksum) + head + body
        try:
            written = os.write(self._descriptor, raw)
        except OSError:
            os.ftruncate(self._descriptor, segment.size)
            raise
        if written != len(raw):
            os.ftruncate(self._descriptor, segment.size)
            raise OSError(28, "no room in tmpfs for the journal of requests")
        at = segment.size + _HEADER.size + len(head)
        segment.size += len(raw)
        segment.newest_s = time.time()
        return at

    def _note_complete(self, segment: _Segment, task_id: str, at: int, size: int, kind: int) -> None:
        accepted = self._accepted.pop(task_id, None)
        if accepted is not None:
            accepted[0].open.discard(task_id)
        segment.complete.add(task_id)
        self._outcomes[task_id] = (segment, at, size, kind)

    def _remove(self, segment: _Segment) -> None:
        for task_id in list(segment.open):
            request = self._accepted[task_id][1]
            self.accept(request)  # into the newest segment
            segment.open.discard(task_id)
        for task_id in segment.complete:
            if self._outcomes[task_id][0] is segment:
                del self._outcomes[task_id]
        self._segments.remove(segment)
        segment.path.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        segment = _Segment(int(path.stem), path, newest_s=path.stat().st_mtime)
        self._segments.append(segment)
        raw = path.read_bytes()
        for kind, head, begins, ends in _records(raw):
            segment.size = ends
            if kind != _ACCEPT:
                self._note_complete(segment, head["task_id"], begins, ends - begins, kind)
                continue
            try:
                request = _request(head, raw[begins:ends])
            except (KeyError, TypeError, ValueError) as error:
                log("accepted request cannot be read", segment=path.name, reason=repr(error))
                continue
            if request.task_id not in self._outcomes:
                segment.open.add(request.task_id)
                previous = self._accepted.get(request.task_id)
                if previous is not None:
                    previous[0].open.discard(request.task_id)
                self._accepted[request.task_id] = (segment, request)
        if segment.size != len(raw):
            log("torn record cut off", segment=path.name, bytes=len(raw) - segment.size)
            os.truncate(path, segment.size)


def _opened(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o640)


def _records(raw: bytes) -> Iterator[tuple[int, dict[str, Any], int, int]]:
    """Kind, head, and where the body begins and ends, up to the first record that is not whole."""
    at = 0
    while at + _HEADER.size <= len(raw):
        magic, kind, head_bytes, body_bytes, checksum = _HEADER.unpack_from(raw, at)
        begins = at + _HEADER.size + head_bytes
        ends = begins + body_bytes
        if magic != _MAGIC or ends > len(raw) or zlib.crc32(raw[at + _HEADER.size : ends]) != checksum:
            return
        yield kind, json.loads(raw[at + _HEADER.size : begins]), begins, ends
        at = ends


def _accept_head(request: Request) -> bytes:
    value = {
        "task_id": request.task_id,
        "key": request.key,
        "teams": [asdict(team) for team in request.teams],
        "hybrid": request.hybrid,
        "command": request.command,
        "deadline_ms": request.deadline_ms,
        "swarm_id": request.swarm_id,
        "accepted_at_s": request.accepted_at_s,
    }
    return json.dumps(value).encode()


def _request(head: dict[str, Any], payload: bytes) -> Request:
    teams = tuple(TeamPlan(**{**team, "named": tuple(team["named"])}) for team in head.pop("teams"))
    command = tuple(map(str, head.pop("command")))
    return Request(teams=teams, command=command, payload=payload, **head)
