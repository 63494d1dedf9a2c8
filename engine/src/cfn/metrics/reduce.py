"""The reduction: pieces of the events and samples files in, evidence out. Memory grows with the number
of buckets in the window and of generations, not with the number of lines.
"""

import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from functools import cached_property

from cfn.metrics.evidence import Evidence, Gauge, RequestCell, SampleCell, Source
from cfn.metrics.files import MAX_LINE_BYTES, Piece
from cfn.metrics.memory import Memory
from cfn.metrics.records import DamagedLineError, GenerationStarted, Ordered, Sampled, read_sample
from cfn.metrics.tallier import Tallier, in_order
from cfn.metrics.tally import DISORDER_TOLERANCE_MS, MAX_EXAMPLES, Cell, Damage, Tally

FUTURE_TOLERANCE_MS = 2_000  # a clock that is being slewed; more is a wrong clock
LINES_REMEMBERED = 65_536  # a duplicate is recognised among at least so many events before it
HOST = "host"  # among the units whose restarts are counted: a reboot hides no crash, it is one
REBOOT_TOLERANCE_S = 60.0  # of a collector that could not keep what it said first


def reduce_events(
    pieces: Iterable[Piece],
    evidence: Evidence,
    *,
    split_key: str,
    now_ms: int,
    memory: Memory,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Fill the request side of `evidence` from the pieces of the events file, oldest first. Raises
    OSError when one cannot be read. Forks helpers for a large file: not for a process with threads.
    `meanwhile` is called once, when they are at work."""
    merging = _Events(evidence, split_key)
    tallier = Tallier(split_key, evidence.bucket_ms, now_ms + FUTURE_TOLERANCE_MS, memory)
    for piece, found in in_order(list(pieces), tallier, meanwhile):
        evidence.events.present = True
        doubled = merging.doubled(found)
        merging.add(tallier.without(piece, doubled) if doubled else found)
        if piece.damage:
            merging.add(Tally(damage=[Damage(piece.damage, 0, None)]))
    merging.finish()
    memory.forget_old()


class _DamageCount:
    """Damaged lines of one file that can belong to the window: not those between two records that are
    older than it, nor those between two that are younger."""

    def __init__(self, source: Source, evidence: Evidence) -> None:
        self._source = source
        self._since_ms = evidence.since_ms
        self._until_ms = evidence.until_ms
        self._newest_ms = 0
        self._open: list[Damage] = []

    def add(self, found: Tally) -> None:
        """The damage of the next piece."""
        if found.lines:
            first_ms = max(self._newest_ms, found.first_ms)
            for damage in self._open:
                self._count(damage, first_ms)
            self._open.clear()
        for damage in found.damage:
            placed = Damage(
                damage.kind, max(damage.before_ms, self._newest_ms), damage.after_ms, damage.count
            )
            if damage.after_ms is None:
                self._open.append(placed)
            else:
                self._count(placed, max(damage.after_ms, self._newest_ms))
        self._newest_ms = max(self._newest_ms, found.newest_ms)

    def finish(self) -> None:
        """No record follows: what is open may belong to the window."""
        for damage in self._open:
            self._count(damage, self._until_ms)

    def _count(self, damage: Damage, after_ms: int) -> None:
        if after_ms >= self._since_ms and damage.before_ms < self._until_ms:
            self._source.damaged[damage.kind] += damage.count


class _Keys:
    """The keys of a piece's events. Two that are one event have one time: mostly no set of them is needed."""

    def __init__(self, found: Tally) -> None:
        self._packed = found.keys
        self._oldest_ms = found.oldest_ms
        self._newest_ms = found.newest_ms
        self.count = len(found.keys) // 8

    def overlaps(self, other: "_Keys") -> bool:
        """Whether the times of the two have any in common."""
        return self._oldest_ms <= other._newest_ms and other._oldest_ms <= self._newest_ms

    @cached_property
    def all(self) -> frozenset[int]:
        """All of them."""
        return frozenset(array("Q", self._packed))


class _Events:
    """Tallies merged into evidence, in the order of the file."""

    def __init__(self, evidence: Evidence, split_key: str) -> None:
        self._evidence = evidence
        self._key_sha256 = hashlib.sha256(split_key.encode()).hexdigest()[:16]
        self._recorded: dict[int, GenerationStarted] = {}
        self._damage = _DamageCount(evidence.events, evidence)
        self._recent: deque[_Keys] = deque()

    def doubled(self, found: Tally) -> frozenset[int]:
        """The keys of a tally that occurred among the events before."""
        keys = _Keys(found)
        doubled = {key for before in self._recent if before.overlaps(keys) for key in before.all & keys.all}
        self._recent.append(keys)
        while sum(each.count for each in self._recent) - self._recent[0].count >= LINES_REMEMBERED:
            self._recent.popleft()
        return frozenset(doubled)

    def add(self, found: Tally) -> None:
        """Merge the next tally."""
        evidence = self._evidence
        for record in found.generations:
            self._recorded[record.generation] = record
            if record.time_ms < evidence.until_ms:
                evidence.latest_generation = max(evidence.latest_generation or 0, record.generation)
                evidence.generations[record.generation] = record.config
        self._damage.add(found)
        for cell in found.cells:
            if evidence.since_ms <= cell.start_ms < evidence.until_ms:
                self._add_cell(cell)

    def finish(self) -> None:
        """Nothing follows."""
        self._damage.finish()
        evidence = self._evidence
        used = {generation for _, generation in evidence.requests} | {evidence.latest_generation}
        evidence.generations = {key: value for key, value in evidence.generations.items() if key in used}

    def _add_cell(self, cell: Cell) -> None:
        evidence = self._evidence
        evidence.events.records += cell.events
        evidence.releases |= cell.releases
        config = Ordered(version=cell.version, traffic_pct=Decimal(str(cell.traffic_pct)).normalize())
        evidence.generations.setdefault(cell.generation, config)
        evidence.latest_generation = max(evidence.latest_generation or 0, cell.generation)
        self._check(cell, config)
        key = (cell.start_ms, cell.generation)
        total = evidence.requests.get(key) or RequestCell()
        total.v1.merge(cell.v1)
        total.v2.merge(cell.v2)
        total.over_capacity += cell.outside
        evidence.requests[key] = total

    def _check(self, cell: Cell, config: Ordered) -> None:
        """Hold a cell to the record of its generation."""
        arms = self._evidence.arms
        generation = self._recorded.get(cell.generation)
        arms.checked += cell.events
        arms.mismatches += cell.mismatches
        examples = list(cell.examples)
        if generation is None:
            arms.unrecorded += cell.events
        elif generation.split_key_sha256 != self._key_sha256 or generation.config != config:
            arms.mismatches += cell.events - cell.mismatches
            what = "configuration" if generation.config != config else "split key"
            examples.append(f"generation {cell.generation}: its events carry another {what} than its record")
        else:
            small = {agents: n for agents, n in cell.over_capacity.items() if agents <= generation.max_agents}
            if small:
                arms.mismatches += sum(small.values())
                examples.append(f"called over capacity with {max(small)} of {generation.max_agents} agents")
        arms.examples += examples[: MAX_EXAMPLES - len(arms.examples)]


def reduce_samples(pieces: Iterable[Piece], evidence: Evidence, *, now_ms: int) -> None:
    """Fill the sample side of `evidence` from the pieces of the samples file, oldest first. Raises
    OSError when one cannot be read."""
    reducing = _Samples(evidence, now_ms + FUTURE_TOLERANCE_MS)
    for piece in pieces:
        evidence.samples.present = True
        for line in piece.read().split(b"\n"):
            if line.strip():
                reducing.line(line)
        if piece.damage:
            reducing.damaged(piece.damage)
    reducing.finish()


class _Samples:
    """Samples added to evidence one by one. One with the very bytes of the one before is a duplicate."""

    def __init__(self, evidence: Evidence, future_ms: int) -> None:
        self._evidence = evidence
        self._future_ms = future_ms
        self._damage = _DamageCount(evidence.samples, evidence)
        self._newest_ms = 0
        self._before: Sampled | None = None
        self._recent: deque[bytes] = deque(maxlen=1_024)

    def line(self, line: bytes) -> None:
        """Read one line."""
        if len(line) > MAX_LINE_BYTES:
            self.damaged("too_long")
            return
        try:
            sample = read_sample(line)
        except DamagedLineError as error:
            self.damaged(error.kind)
            return
        if sample.time_ms > self._future_ms:
            self.damaged("future")
            return
        if sample.time_ms < self._newest_ms - DISORDER_TOLERANCE_MS:
            self.damaged("out_of_order")
        if sample.time_ms <= self._newest_ms and line in self._recent:
            self.damaged("duplicate")
            return
        self._recent.append(line)
        self._newest_ms = max(self._newest_ms, sample.time_ms)
        self._damage.add(Tally(lines=1, first_ms=sample.time_ms, newest_ms=sample.time_ms))
        if self._evidence.since_ms <= sample.time_ms < self._evidence.until_ms:
            self._evidence.samples.records += 1
            _add_sample(sample, self._before, self._evidence)
        # Starts and boots compare with the newest so far: an old sample that comes late is no restart.
        if self._before is None or sample.time_ms > self._before.time_ms:
            self._before = sample if self._before is None else _newest(self._before, sample)

    def damaged(self, kind: str) -> None:
        """Count one line that is no sample."""
        self._damage.add(Tally(damage=[Damage(kind, 0, None)]))

    def finish(self) -> None:
        """Nothing follows."""
        self._damage.finish()


def _newest(before: Sampled, sample: Sampled) -> Sampled:
    """A sample, with what it could not say from the one before."""
    return replace(
        sample,
        starts=sample.starts or before.starts,
        boot_time_s=before.boot_time_s if sample.boot_time_s is None else sample.boot_time_s,
    )


def restarts_since(before: int, now: int) -> int:
    """How many automatic restarts lie between two readings of a unit's `starts`.

    A deliberate restart (or a reboot) puts the count back to 1; what is above that came after.
    """
    return now - before if now >= before else max(0, now - 1)


def _add_sample(sample: Sampled, before: Sampled | None, evidence: Evidence) -> None:
    evidence.releases.add(sample.release)
    start = sample.time_ms - sample.time_ms % evidence.bucket_ms
    cell = evidence.sampled.setdefault(start, SampleCell())
    cell.samples += 1
    for name, value in sample.gauges.items():
        cell.gauges.setdefault(name, Gauge()).add(value)
    if evidence.samples.records > 1 and sample.requests is not None:
        cell.requests_seen += sample.requests  # those of the first began before the window
    follows = before if before is not None and sample.time_ms > before.time_ms else None
    if follows is not None and _rebooted(follows, sample):
        cell.restarts[HOST] = cell.restarts.get(HOST, 0) + 1
    if not sample.starts:
        return
    cell.starts_samples += 1
    for unit, starts in sample.starts.items():
        rise = restarts_since(follows.starts.get(unit, starts), starts) if follows is not None else 0
        cell.restarts[unit] = cell.restarts.get(unit, 0) + rise


def _rebooted(before: Sampled, now: Sampled) -> bool:
    """Whether the host started anew between two samples."""
    if before.boot_time_s is None or now.boot_time_s is None:
        return False
    return now.boot_time_s > before.boot_time_s + REBOOT_TOLERANCE_S
