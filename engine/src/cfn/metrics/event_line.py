"""A line of the events file as the fast decoder reads it: typed, checked, and only what is needed.

What it takes, cfn.metrics.records takes as well, with the same values (a test compares the two); what
it refuses is read again there, which says what kind of damage it is.
"""

from typing import Annotated, Literal

import msgspec

from cfn.metrics.histogram import LARGEST
from cfn.metrics.records import Coordinated, Version
from cfn.metrics.times import format_ms, parse_ms

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]

_SECONDS = {f"{second:02d}": second * 1_000 for second in range(60)}
_MILLISECONDS = {f".{part:03d}Z": part for part in range(1_000)}
_minutes: dict[str, int] = {}
_MINUTES_KEPT = 65_536


class States(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Agents by final state."""

    done: Count = 0
    failed: Count = 0
    undelivered: Count = 0
    unknown: Count = 0


class EventLine(msgspec.Struct, gc=False, tag="coordination", tag_field="type"):
    """A coordination; the fields are those of docs/reference/records.md."""

    v: Literal[1]
    time: str
    release: str
    task_id: str
    agents: Count
    bucket: Annotated[int, msgspec.Meta(ge=0, le=9_999)]
    generation: Positive
    version: Version
    traffic_pct: Percent
    ordered: Version
    reason: Literal["split", "over_capacity"]
    fallback: Literal["error", "time", "delivery"] | None
    outcome: Literal["done", "partial", "failed", "refused"]
    states: States
    coordination_time_ms: Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
    delivery_rate_pct: Percent
    completion_rate_pct: Percent
    error_rate_pct: Percent
    sticky_key: str | msgspec.UnsetType = msgspec.UNSET
    mesh_delivery_rate_pct: Percent | None = None
    worker_delivery_rate_pct: Percent | None = None


_decoder = msgspec.json.Decoder(EventLine)


def decode_lines(content: bytes) -> list[EventLine]:
    """Every line as a coordination. Raises msgspec.DecodeError or UnicodeDecodeError if one is not."""
    return _decoder.decode_lines(content)


def decode(line: bytes) -> EventLine:
    """One line. Raises as `decode_lines`."""
    return _decoder.decode(line)


def time_ms(text: str) -> int:
    """A record's time in milliseconds since 1970. Raises ValueError."""
    try:
        return _minutes[text[:17]] + _SECONDS[text[17:19]] + _MILLISECONDS[text[19:]]
    except KeyError:
        found = parse_ms(text)
        if text.endswith("Z") and len(_minutes) < _MINUTES_KEPT:
            _minutes[text[:17]] = found // 60_000 * 60_000
        return found


def from_record(record: Coordinated) -> EventLine:
    """The line of a record that was read the slow way."""
    delivery, completion, error = record.rates_pct
    mesh, worker = record.level_rates_pct
    return EventLine(
        v=1,
        time=format_ms(record.time_ms),
        release=record.release,
        task_id=record.task_id,
        agents=record.agents,
        bucket=record.bucket,
        generation=record.generation,
        version=record.config.version,
        traffic_pct=float(record.config.traffic_pct),
        ordered=record.ordered,
        reason=record.reason,  # type: ignore[arg-type]
        fallback=record.fallback,  # type: ignore[arg-type]
        outcome=record.outcome,  # type: ignore[arg-type]
        states=States(done=record.agents),
        coordination_time_ms=record.coordination_time_ms,
        sticky_key=msgspec.UNSET if record.split_on == record.task_id else record.split_on,
        delivery_rate_pct=delivery,
        completion_rate_pct=completion,
        error_rate_pct=error,
        mesh_delivery_rate_pct=mesh,
        worker_delivery_rate_pct=worker,
    )
