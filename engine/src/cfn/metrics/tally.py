"""What one piece of the events file reduces to. A pure function of its bytes, the split key and the
length of a bucket, so that it can be remembered (cfn.metrics.memory) and computed in any process.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache

import msgspec
from msgspec import UNSET

from cfn.metrics import event_line
from cfn.metrics.arm import Arm
from cfn.metrics.event_line import EventLine
from cfn.metrics.files import MAX_LINE_BYTES
from cfn.metrics.records import (
    LEVEL_RATES,
    RATES,
    Coordinated,
    DamagedLineError,
    GenerationStarted,
    Version,
    read_event,
)
from cfn.router.split import BUCKETS, ordered_version

DISORDER_TOLERANCE_MS = 1_000  # two coordinations that end together may be written in either order
MAX_EXAMPLES = 5
KEY_MASK = 2**64 - 1
_BLOCK_BYTES = 131_072
_RATE_FIELDS = (*RATES, *LEVEL_RATES)


@dataclass(slots=True)
class Cell:
    """The requests of one bucket under one generation and the configuration that they carry.

    `outside` counts requests outside the split, `over_capacity` those of them that are as they should
    be, by their agents; `mismatches` the events whose bucket or version differs from what is recomputed.
    """

    start_ms: int
    generation: int
    version: Version
    traffic_pct: float
    v1: Arm = field(default_factory=Arm)
    v2: Arm = field(default_factory=Arm)
    outside: int = 0
    over_capacity: dict[int, int] = field(default_factory=dict)
    mismatches: int = 0
    examples: list[str] = field(default_factory=list)
    releases: set[str] = field(default_factory=set)

    @property
    def events(self) -> int:
        """How many events fell in here."""
        return self.v1.requests + self.v2.requests + self.outside


@dataclass(slots=True)
class Damage:
    """`count` damaged lines of a kind in a row, between a record that brought the file's newest time to
    `before_ms` (0: none yet) and one that brought it to `after_ms` (None: none followed)."""

    kind: str
    before_ms: int
    after_ms: int | None
    count: int = 1


@dataclass(slots=True)
class Tally:
    """What a piece held. `keys` are eight bytes for each event, by task and time: two that are equal
    are one event written twice. `lines` counts the records; times are those of the first record, the
    oldest and the newest."""

    cells: list[Cell] = field(default_factory=list)
    generations: list[GenerationStarted] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    lines: int = 0
    first_ms: int = 0
    oldest_ms: int = 0
    newest_ms: int = 0
    keys: bytes = b""


class Hasher:
    """HMAC-SHA256 of task ids under one key (RFC 2104), with the key's two blocks hashed once: a third
    of the time that a fresh HMAC takes, for the same digest."""

    def __init__(self, split_key: str) -> None:
        key = split_key.encode()
        block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        self.inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block)).copy
        self.outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block)).copy

    def number(self, task_id: str) -> int:
        """The digest's first eight bytes; modulo BUCKETS, the task's bucket."""
        inner = self.inner()
        inner.update(task_id.encode())
        outer = self.outer()
        outer.update(inner.digest())
        return int.from_bytes(outer.digest()[:8], "big")


def tally(
    content: bytes,
    *,
    hasher: Hasher,
    bucket_ms: int,
    future_ms: int,
    without: frozenset[int] = frozenset(),
) -> Tally:
    """Reduce whole lines. Records later than `future_ms` are damage; events whose key is in `without`
    were written before, in another piece."""
    return _Tallying(hasher, bucket_ms, future_ms, without).run(content)


_Where = tuple[int, int, Version, float]
# Ordered, agents, outcome, fallback, release, and the rates in the order of _RATE_FIELDS.
_Alike = tuple[Version, int, str, str | None, str, float, float, float, float | None, float | None]


class _Tallying:
    def __init__(self, hasher: Hasher, bucket_ms: int, future_ms: int, without: frozenset[int]) -> None:
        self._hasher = hasher
        self._bucket_ms = bucket_ms
        self._future_ms = future_ms
        self._seen: set[int] = set(without)
        self._keys = array("Q")
        self._cells: dict[_Where, Cell] = {}
        self._groups: dict[_Where, dict[_Alike, list[float]]] = {}
        self._tally = Tally()
        self._open_damage: dict[str, Damage] = {}

    def run(self, content: bytes) -> Tally:
        tally = self._tally
        for block in _blocks(content):
            try:
                events = event_line.decode_lines(block)
            except (msgspec.DecodeError, UnicodeDecodeError):
                for line in block.split(b"\n"):
                    if line.strip():
                        self._line(line)
            else:
                self._events(events)
        self._settle()
        tally.cells = [self._cells[key] for key in sorted(self._cells)]
        tally.keys = self._keys.tobytes()
        return tally

    def _line(self, line: bytes) -> None:
        if len(line) > MAX_LINE_BYTES:
            self._damaged("too_long")
            return
        try:
            self._events([event_line.decode(line)])
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._odd_line(line)

    def _odd_line(self, line: bytes) -> None:
        """A line that is no coordination to the fast decoder."""
        try:
            record = read_event(line)
        except DamagedLineError as error:
            self._damaged(error.kind)
            return
        if isinstance(record, Coordinated):
            self._events([event_line.from_record(record)])
            return
        key = hash((record.time_ms, record.generation, record.max_agents)) & KEY_MASK
        if self._new(key) and self._follows(record.time_ms):
            self._tally.generations.append(record)

    def _events(self, events: Iterable[EventLine]) -> None:
        """Count coordinations. Two million of them should take seconds: hence one loop, few calls."""
        new_inner, new_outer, time_of = self._hasher.inner, self._hasher.outer, event_line.time_ms
        bucket_ms, cells, groups, tally = self._bucket_ms, self._cells, self._groups, self._tally
        seen, keys, future_ms = self._seen, self._keys, self._future_ms
        where: _Where | None = None
        for event in events:
            try:
                moment_ms = time_of(event.time)
            except ValueError:
                self._damaged("invalid")
                continue
            states = event.states
            if states.done + states.failed + states.undelivered + states.unknown != event.agents:
                self._damaged("invalid")
                continue
            inner = new_inner()  # Hasher.number, without the call
            inner.update(event.task_id.encode())
            outer = new_outer()
            outer.update(inner.digest())
            number = int.from_bytes(outer.digest()[:8], "big")
            key = (number + moment_ms) & KEY_MASK
            if key in seen:
                self._damaged("duplicate")
                continue
            seen.add(key)
            keys.append(key)
            if event.sticky_key is not UNSET:
                number = self._hasher.number(event.sticky_key)
            if tally.lines and tally.newest_ms <= moment_ms <= future_ms and not self._open_damage:
                tally.newest_ms = moment_ms
                tally.lines += 1
            elif not self._follows(moment_ms):
                continue
            here = (
                moment_ms - moment_ms % bucket_ms, event.generation, event.version, event.traffic_pct,
            )  # fmt: skip
            if here != where:  # rarely: events that follow one another mostly share their cell
                where = here
                cell = cells.setdefault(where, Cell(*where))
                group = groups.setdefault(where, {})
                v2_buckets = _v2_buckets(event.version, event.traffic_pct)
            bucket = number % BUCKETS
            expected: Version = "v2" if bucket < v2_buckets else "v1"
            usual = event.bucket == bucket and event.ordered == expected and event.reason == "split"
            if not usual and not self._belongs(event, cell, bucket, expected):
                continue
            alike = (
                event.ordered, event.agents, event.outcome, event.fallback, event.release,
                event.delivery_rate_pct, event.completion_rate_pct, event.error_rate_pct,
                event.mesh_delivery_rate_pct, event.worker_delivery_rate_pct,
            )  # fmt: skip
            times = group.get(alike)
            if times is None:
                group[alike] = [event.coordination_time_ms]
            else:
                times.append(event.coordination_time_ms)

    def _belongs(self, event: EventLine, cell: Cell, bucket: int, expected: Version) -> bool:
        """Note what is odd of an event. False if it is outside the split and belongs to no arm."""
        problem = _problem(event, bucket, expected)
        if problem:
            cell.mismatches += 1
            if len(cell.examples) < MAX_EXAMPLES:
                cell.examples.append(f"task {event.task_id[:64]}: {problem}")
        if event.reason != "over_capacity":
            return True
        cell.releases.add(event.release)
        cell.outside += 1
        if not problem:
            cell.over_capacity[event.agents] = cell.over_capacity.get(event.agents, 0) + 1
        return False

    def _settle(self) -> None:
        """Put what was grouped by likeness into its arms."""
        for where, group in self._groups.items():
            cell = self._cells[where]
            for (ordered, agents, outcome, fallback, release, *rates), times in group.items():
                cell.releases.add(release)
                (cell.v2 if ordered == "v2" else cell.v1).add(
                    times,
                    agents=agents,
                    outcome=outcome,
                    fallback=fallback,
                    rates_pct=dict(zip(_RATE_FIELDS, rates, strict=True)),
                )

    def _new(self, key: int) -> bool:
        """Whether this event was not seen before; one that was is told as a duplicate."""
        if key in self._seen:
            self._damaged("duplicate")
            return False
        self._seen.add(key)
        self._keys.append(key)
        return True

    def _follows(self, moment_ms: int) -> bool:
        """A record was read: note its order, and that it follows the damage before it. False if it is
        from the future, and no record at all."""
        if moment_ms > self._future_ms:
            self._damaged("future")
            return False
        tally = self._tally
        if not tally.lines:
            tally.first_ms = tally.oldest_ms = moment_ms
        tally.lines += 1
        tally.oldest_ms = min(tally.oldest_ms, moment_ms)
        if moment_ms >= tally.newest_ms:
            tally.newest_ms = moment_ms
        elif moment_ms < tally.newest_ms - DISORDER_TOLERANCE_MS:
            self._damaged("out_of_order")
        if self._open_damage:
            for damage in self._open_damage.values():
                damage.after_ms = tally.newest_ms
            self._open_damage.clear()
        return True

    def _damaged(self, kind: str) -> None:
        damage = self._open_damage.get(kind)
        if damage is None:
            damage = self._open_damage[kind] = Damage(kind, self._tally.newest_ms, None, 0)
            self._tally.damage.append(damage)
        damage.count += 1


def _blocks(content: bytes) -> Iterator[bytes]:
    """The content in blocks of whole lines, each small enough that its events stay in the cores' caches
    between decoding and counting (a tenth of the time)."""
    begin = 0
    while begin < len(content):
        end = content.find(b"\n", begin + _BLOCK_BYTES) + 1 or len(content)
        yield content[begin:end]
        begin = end


def _problem(event: EventLine, bucket: int, expected: Version) -> str:
    """Why the event is not as its own configuration orders; empty if it is."""
    if event.bucket != bucket:
        return f"bucket {event.bucket}, recomputed {bucket}"
    if event.reason == "over_capacity":
        return "" if event.ordered == "v1" else "over capacity, but not ordered v1"
    if event.ordered != expected:
        return f"ordered {event.ordered}, recomputed {expected} (bucket {bucket})"
    return ""


@lru_cache(maxsize=64)
def _v2_buckets(version: Version, traffic_pct: float) -> int:
    """How many buckets V2 serves under a configuration: the first so many, since the split is monotone."""
    share = Decimal(str(traffic_pct))
    return sum(ordered_version(version, share, number) == "v2" for number in range(BUCKETS))
