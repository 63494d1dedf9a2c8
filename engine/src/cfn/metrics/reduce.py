"""The reduction: lines of events and samples in, evidence out. Pure; memory grows with the number
of buckets in the window and of generations, not with the number of lines.
"""

import hashlib
from collections.abc import Callable, Iterable

from cfn.metrics.evidence import ArmsCheck, Evidence, Gauge, RequestCell, SampleCell, Source
from cfn.metrics.files import Line
from cfn.metrics.records import (
    Coordinated,
    DamagedLineError,
    GenerationStarted,
    Sampled,
    read_event,
    read_sample,
)
from cfn.router.split import bucket, ordered_version

FUTURE_TOLERANCE_MS = 2_000  # a clock that is being slewed; more is a wrong clock
DISORDER_TOLERANCE_MS = 1_000  # two coordinations that end together may be written in either order
MAX_EXAMPLES = 5
LINES_REMEMBERED = 65_536

Record = GenerationStarted | Coordinated | Sampled


class _Reader:
    """Reads the lines of one file and counts their damage.

    Damage before the last record that is older than the window is forgotten: it cannot belong to the
    window. A duplicate is recognised among the last LINES_REMEMBERED lines.
    """

    def __init__(self, source: Source, evidence: Evidence, now_ms: int) -> None:
        self._source = source
        self._since_ms = evidence.since_ms
        self._until_ms = evidence.until_ms
        self._now_ms = now_ms
        self._newest_ms = 0
        self._recent: dict[int, None] = {}

    def read(self, line: Line, parse: Callable[[bytes], Record]) -> Record | None:
        """The record of a line, or None if the line is damaged or doubled (and counted as such)."""
        self._source.present = True
        if line.damage:
            self._count(line.damage)
            return None
        try:
            record = parse(line.content)
        except DamagedLineError as error:
            self._count(error.kind)
            return None
        # Only now: two lines that were cut at the same place are two lost records, not one twice.
        if self._doubled(line.content):
            self._count("duplicate")
            return None
        if record.time_ms > self._now_ms + FUTURE_TOLERANCE_MS:
            self._count("future")
            return None
        if max(record.time_ms, self._newest_ms) < self._since_ms:
            self._source.damaged = dict.fromkeys(self._source.damaged, 0)
        elif record.time_ms < self._newest_ms - DISORDER_TOLERANCE_MS:
            self._count("out_of_order")
        self._newest_ms = max(self._newest_ms, record.time_ms)
        return record

    def in_window(self, record: Record) -> bool:
        """Whether a record's time lies in the window."""
        return self._since_ms <= record.time_ms < self._until_ms

    def _count(self, kind: str) -> None:
        self._source.damaged[kind] += 1

    def _doubled(self, content: bytes) -> bool:
        key = hash(content)
        if key in self._recent:
            return True
        self._recent[key] = None
        if len(self._recent) > LINES_REMEMBERED:
            del self._recent[next(iter(self._recent))]
        return False


def reduce_events(lines: Iterable[Line], evidence: Evidence, *, split_key: str, now_ms: int) -> None:
    """Fill the request side of `evidence` from the lines of the events file, oldest first."""
    reader = _Reader(evidence.events, evidence, now_ms)
    recorded: dict[int, GenerationStarted] = {}
    key_sha256 = hashlib.sha256(split_key.encode()).hexdigest()[:16]
    for line in lines:
        record = reader.read(line, read_event)
        if isinstance(record, GenerationStarted):
            recorded[record.generation] = record
            if record.time_ms < evidence.until_ms:
                evidence.latest_generation = max(evidence.latest_generation or 0, record.generation)
                evidence.generations[record.generation] = record.config
        elif isinstance(record, Coordinated) and reader.in_window(record):
            evidence.events.records += 1
            _check_arm(record, recorded.get(record.generation), split_key, key_sha256, evidence.arms)
            _add_event(record, evidence)
    used = {generation for _, generation in evidence.requests} | {evidence.latest_generation}
    evidence.generations = {key: value for key, value in evidence.generations.items() if key in used}


def reduce_samples(lines: Iterable[Line], evidence: Evidence, *, now_ms: int) -> None:
    """Fill the sample side of `evidence` from the lines of the samples file, oldest first."""
    reader = _Reader(evidence.samples, evidence, now_ms)
    before: Sampled | None = None
    for line in lines:
        record = reader.read(line, read_sample)
        if not isinstance(record, Sampled):
            continue
        if reader.in_window(record):
            evidence.samples.records += 1
            _add_sample(record, before, evidence)
        # Starts compare with the newest sample so far: an old one that comes late is no restart.
        if record.starts and (before is None or record.time_ms > before.time_ms):
            before = record


def restarts_since(before: int, now: int) -> int:
    """How many automatic restarts lie between two readings of a unit's `starts`.

    A deliberate restart (or a reboot) puts the count back to 1; what is above that came after.
    """
    return now - before if now >= before else max(0, now - 1)


def _check_arm(
    event: Coordinated,
    generation: GenerationStarted | None,
    split_key: str,
    key_sha256: str,
    arms: ArmsCheck,
) -> None:
    arms.checked += 1
    arms.unrecorded += generation is None
    problem = ""
    expected_bucket = bucket(split_key, event.split_on)
    if generation is not None and generation.split_key_sha256 != key_sha256:
        problem = f"generation {event.generation} used another split key than the configuration's"
    elif generation is not None and generation.config != event.config:
        problem = f"it carries another configuration than its generation {event.generation}"
    elif event.bucket != expected_bucket:
        problem = f"bucket {event.bucket}, recomputed {expected_bucket}"
    elif event.reason == "split":
        expected = ordered_version(event.config.version, event.config.traffic_pct, expected_bucket)
        if event.ordered != expected:
            problem = f"ordered {event.ordered}, recomputed {expected} (bucket {expected_bucket})"
    elif event.ordered != "v1":
        problem = "over capacity, but not ordered v1"
    elif generation is not None and event.agents <= generation.max_agents:
        problem = f"called over capacity with {event.agents} of {generation.max_agents} agents"
    if problem:
        arms.mismatches += 1
        if len(arms.examples) < MAX_EXAMPLES:
            arms.examples.append(f"task {event.task_id[:64]}: {problem}")


def _add_event(event: Coordinated, evidence: Evidence) -> None:
    evidence.releases.add(event.release)
    evidence.generations.setdefault(event.generation, event.config)
    evidence.latest_generation = max(evidence.latest_generation or 0, event.generation)
    start = event.time_ms - event.time_ms % evidence.bucket_ms
    cell = evidence.requests.setdefault((start, event.generation), RequestCell())
    if event.reason == "over_capacity":
        cell.over_capacity += 1
    else:
        (cell.v2 if event.ordered == "v2" else cell.v1).add(event)


def _add_sample(sample: Sampled, before: Sampled | None, evidence: Evidence) -> None:
    evidence.releases.add(sample.release)
    start = sample.time_ms - sample.time_ms % evidence.bucket_ms
    cell = evidence.sampled.setdefault(start, SampleCell())
    cell.samples += 1
    for name, value in sample.gauges.items():
        cell.gauges.setdefault(name, Gauge()).add(value)
    if evidence.samples.records > 1 and sample.requests is not None:
        cell.requests_seen += sample.requests  # those of the first began before the window
    if not sample.starts:
        return
    cell.starts_samples += 1
    for unit, starts in sample.starts.items():
        rise = 0
        if before is not None and sample.time_ms > before.time_ms:
            rise = restarts_since(before.starts.get(unit, starts), starts)
        cell.restarts[unit] = cell.restarts.get(unit, 0) + rise
