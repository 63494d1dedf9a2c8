"""Evidence: what one host's files say about a window, small enough to send and to keep.

`cfn metrics` writes it, the judge reads it, and the ledger keeps it, so that a verdict can be
recomputed from its record alone. Times are milliseconds inside and RFC 3339 in JSON.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cfn.metrics import checks
from cfn.metrics.arm import Arm
from cfn.metrics.packing import unpack
from cfn.metrics.records import GAUGES, Ordered, gauge_range, read_config
from cfn.metrics.times import format_ms, parse_ms

EVIDENCE_VERSION = 2
SOURCES = ("files", "prometheus")
UNKNOWN_RELEASE = "unknown"  # of a source that does not say
# Kinds of damage that lost a record; the other kinds are told, and nothing is missing because of them.
LOST_KINDS = ("garbage", "not_finite", "unknown_version", "invalid", "too_long", "future")
TOLD_KINDS = ("cut", "duplicate", "out_of_order")


@dataclass(slots=True)
class Source:
    """How one file fared: `records` that were used, in the window, and damaged lines by kind."""

    present: bool = False
    records: int = 0
    damaged: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LOST_KINDS + TOLD_KINDS, 0))

    @property
    def lost(self) -> int:
        """Lines that held a record which cannot be read."""
        return sum(self.damaged[kind] for kind in LOST_KINDS)

    def as_json(self) -> dict[str, Any]:
        """The object that evidence carries."""
        return {"present": self.present, "records": self.records, "damaged": dict(self.damaged)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Source":
        """The inverse of `as_json`. Raises ValueError."""
        damaged = checks.mapping(value.get("damaged"), "damaged")
        return cls(
            present=checks.boolean(value.get("present"), "present"),
            records=checks.whole(value.get("records"), "records"),
            damaged={kind: checks.whole(damaged.get(kind), kind) for kind in LOST_KINDS + TOLD_KINDS},
        )


@dataclass(slots=True)
class Gauge:
    """One gauge in one bucket. A mutable accumulator; `last` is by time, then by order in the file."""

    samples: int = 0
    low: float = 0.0
    high: float = 0.0
    total: float = 0.0
    last: float = 0.0

    @property
    def mean(self) -> float:
        """Mean over the samples, of which there is at least one."""
        return self.total / self.samples

    def add(self, value: float) -> None:
        """Count one sample."""
        self.low = value if self.samples == 0 else min(self.low, value)
        self.high = value if self.samples == 0 else max(self.high, value)
        self.samples += 1
        self.total += value
        self.last = value

    def as_json(self) -> dict[str, Any]:
        """The object that evidence carries."""
        return {
            "samples": self.samples,
            "min": self.low,
            "max": self.high,
            "mean": round(self.mean, 6),
            "last": self.last,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], name: str) -> "Gauge":
        """The inverse of `as_json`, for the gauge of a name. Raises ValueError."""
        samples = checks.whole(value.get("samples"), "samples", low=1)
        least, most = gauge_range(name)
        low, high, mean, last = (
            checks.number(value.get(part), f"{name}.{part}", low=least, high=most)
            for part in ("min", "max", "mean", "last")
        )
        slack = 1e-6 * (1 + abs(low) + abs(high))  # the mean is rounded
        if not low - slack <= mean <= high + slack or not low <= last <= high:
            raise ValueError(f"a gauge's mean {mean:g} or last {last:g} is not from {low:g} to {high:g}")
        return cls(samples=samples, low=low, high=high, total=mean * samples, last=last)


@dataclass(slots=True)
class RequestCell:
    """Requests of one bucket under one generation, by ordered version. What V2 may not take at all
    (over capacity, outside the split) is only counted."""

    v1: Arm = field(default_factory=Arm)
    v2: Arm = field(default_factory=Arm)
    over_capacity: int = 0


@dataclass(slots=True)
class SampleCell:
    """Samples of one bucket. `restarts` by unit counts the rises of `starts`, and the host's reboots;
    `starts_samples` says in how many samples `starts` could be read at all. `requests_seen` is how many
    requests the collector saw end between two samples of the window: the events file must hold at least
    as many."""

    samples: int = 0
    gauges: dict[str, Gauge] = field(default_factory=dict)
    starts_samples: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    requests_seen: int = 0


class CompactCells(MutableMapping[tuple[int, int], RequestCell]):
    """Request cells kept as bytes, a tenth of their size as objects: two weeks of a busy host are
    thousands of cells with some hundred counts each. What is read is a copy: write it back."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], bytes] = {}

    def __getitem__(self, key: tuple[int, int]) -> RequestCell:
        return _cell_decoder.decode(self._cells[key])

    def __setitem__(self, key: tuple[int, int], cell: RequestCell) -> None:
        self._cells[key] = _cell_encoder.encode(cell)

    def __delitem__(self, key: tuple[int, int]) -> None:
        del self._cells[key]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


_cell_encoder = msgspec.msgpack.Encoder()
_cell_decoder = msgspec.msgpack.Decoder(RequestCell)


@dataclass(slots=True)
class ArmsCheck:
    """Events whose bucket and ordered version were recomputed from task id and key. `unrecorded` had
    no generation record in the files, and were checked against the configuration that they carry."""

    checked: int = 0
    mismatches: int = 0
    unrecorded: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Evidence:
    """One host's evidence for [since, until). Cells are keyed by bucket start (a multiple of
    `bucket_ms`), request cells also by generation; an absent cell had nothing in it."""

    host: str
    since_ms: int
    until_ms: int
    bucket_ms: int
    source: str = "files"
    events: Source = field(default_factory=Source)
    samples: Source = field(default_factory=Source)
    releases: set[str] = field(default_factory=set)
    generations: dict[int, Ordered] = field(default_factory=dict)
    latest_generation: int | None = None
    arms: ArmsCheck = field(default_factory=ArmsCheck)
    requests: MutableMapping[tuple[int, int], RequestCell] = field(default_factory=dict)
    sampled: dict[int, SampleCell] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The object that `cfn metrics` prints."""
        return self.head() | {name: list(cells) for name, cells in self.cells().items()}

    def head(self) -> dict[str, Any]:
        """That object without its cells."""
        return {
            "v": EVIDENCE_VERSION,
            "host": self.host,
            "source": self.source,
            "since": format_ms(self.since_ms),
            "until": format_ms(self.until_ms),
            "bucket_s": self.bucket_ms / 1_000,
            "releases": sorted(self.releases),
            "events": self.events.as_json(),
            "samples": self.samples.as_json(),
            "generations": [
                {
                    "generation": number,
                    "version": config.version,
                    "traffic_pct": format(config.traffic_pct, "f"),
                }
                for number, config in sorted(self.generations.items())
            ],
            "latest_generation": self.latest_generation,
            "arms": {
                "checked": self.arms.checked,
                "mismatches": self.arms.mismatches,
                "unrecorded": self.arms.unrecorded,
                "examples": list(self.arms.examples),
            },
        }

    def cells(self) -> dict[str, Iterator[dict[str, Any]]]:
        """Its cells, made one by one."""
        return {"request_cells": self._request_cells(), "sample_cells": self._sample_cells()}

    def _request_cells(self) -> Iterator[dict[str, Any]]:
        for start, generation in sorted(self.requests):
            cell = self.requests[start, generation]
            yield {
                "start": format_ms(start),
                "generation": generation,
                "v1": cell.v1.as_json() if cell.v1.requests else None,
                "v2": cell.v2.as_json() if cell.v2.requests else None,
                "over_capacity": cell.over_capacity,
            }

    def _sample_cells(self) -> Iterator[dict[str, Any]]:
        for start, cell in sorted(self.sampled.items()):
            yield {
                "start": format_ms(start),
                "samples": cell.samples,
                "gauges": {name: cell.gauges[name].as_json() for name in GAUGES if name in cell.gauges},
                "starts_samples": cell.starts_samples,
                "restarts": dict(sorted(cell.restarts.items())),
                "requests_seen": cell.requests_seen,
            }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Evidence":
        """The inverse of `as_json`, packed (cfn.metrics.packing) or not. Raises ValueError naming what is
        wrong."""
        value = unpack(value)
        if value.get("v") != EVIDENCE_VERSION:
            raise ValueError(f"evidence of version {value.get('v')!r}; this judge reads {EVIDENCE_VERSION}")
        arms = checks.mapping(value.get("arms"), "arms")
        latest = value.get("latest_generation")
        result = cls(
            host=checks.text(value.get("host"), "host"),
            source=checks.one_of(value.get("source"), "source", SOURCES),
            since_ms=parse_ms(checks.text(value.get("since"), "since")),
            until_ms=parse_ms(checks.text(value.get("until"), "until")),
            bucket_ms=round(checks.number(value.get("bucket_s"), "bucket_s", low=0.001, high=1e9) * 1_000),
            events=Source.from_json(checks.mapping(value.get("events"), "events")),
            samples=Source.from_json(checks.mapping(value.get("samples"), "samples")),
            releases={
                checks.text(each, "release") for each in checks.sequence(value.get("releases"), "releases")
            },
            latest_generation=None if latest is None else checks.whole(latest, "latest_generation"),
            arms=ArmsCheck(
                checked=checks.whole(arms.get("checked"), "checked"),
                mismatches=checks.whole(arms.get("mismatches"), "mismatches"),
                unrecorded=checks.whole(arms.get("unrecorded"), "unrecorded"),
                examples=[
                    checks.text(each, "example") for each in checks.sequence(arms.get("examples"), "examples")
                ],
            ),
        )
        for each in checks.sequence(value.get("generations"), "generations"):
            number = checks.whole(checks.mapping(each, "generation").get("generation"), "generation")
            result.generations[number] = read_config(each)
        result._read_requests(checks.sequence(value.get("request_cells"), "request_cells"))
        result._read_samples(checks.sequence(value.get("sample_cells"), "sample_cells"))
        result._check_sums()
        return result

    def _check_sums(self) -> None:
        events = sum(
            cell.v1.requests + cell.v2.requests + cell.over_capacity for cell in self.requests.values()
        )
        samples = sum(cell.samples for cell in self.sampled.values())
        for name, found, told in (
            ("events", events, self.events.records),
            ("samples", samples, self.samples.records),
        ):
            if found != told:
                raise ValueError(f"its cells hold {found} {name}, and {told} were read")

    def _read_requests(self, cells: list[Any]) -> None:
        for each in cells:
            value = checks.mapping(each, "request cell")
            key = (self._start(value), checks.whole(value.get("generation"), "generation"))
            if key in self.requests or key[1] not in self.generations:
                raise ValueError(
                    f"a request cell of generation {key[1]} is doubled or of unknown configuration"
                )
            arms = [
                Arm() if value.get(name) is None else Arm.from_json(checks.mapping(value[name], name))
                for name in ("v1", "v2")
            ]
            over = checks.whole(value.get("over_capacity"), "over_capacity")
            self.requests[key] = RequestCell(v1=arms[0], v2=arms[1], over_capacity=over)

    def _read_samples(self, cells: list[Any]) -> None:
        for each in cells:
            value = checks.mapping(each, "sample cell")
            start = self._start(value)
            gauges = checks.mapping(value.get("gauges"), "gauges")
            restarts = checks.mapping(value.get("restarts"), "restarts")
            if start in self.sampled:
                raise ValueError("a sample cell is doubled")
            self.sampled[start] = SampleCell(
                samples=checks.whole(value.get("samples"), "samples", low=1),
                gauges={
                    name: Gauge.from_json(checks.mapping(gauges[name], name), name)
                    for name in GAUGES
                    if name in gauges
                },
                starts_samples=checks.whole(value.get("starts_samples"), "starts_samples"),
                restarts={unit: checks.whole(count, "restarts") for unit, count in restarts.items()},
                requests_seen=checks.whole(value.get("requests_seen"), "requests_seen"),
            )

    def _start(self, value: Mapping[str, Any]) -> int:
        start = parse_ms(checks.text(value.get("start"), "start"))
        if start % self.bucket_ms or not self.since_ms <= start < self.until_ms:
            raise ValueError(f"a cell starts at {value.get('start')}, outside the window or off the buckets")
        return start
