"""Rows: what was measured, how far from the limit and the peers, and how a person reads them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. `value` is the median of `samples`; a ratio is that of the medians of one run.

    A figure that could not be had has `refused`, the reason, and no value. `busy_pct` is how
    busy the machine was with other things just before.
    """

    name: str
    unit: str
    value: float | None = None
    samples: int = 0
    min: float | None = None
    max: float | None = None
    ratio_to_limit: float | None = None
    ratio_to_redis: float | None = None
    ratio_to_nats: float | None = None
    busy_pct: float | None = None
    refused: str = ""

    def as_json(self) -> dict[str, Any]:
        """The object in engine.json."""
        return asdict(self)


def measured(
    name: str,
    values: Sequence[float],
    unit: str = "ms",
    *,
    against: Mapping[str, Sequence[float]] | None = None,
    busy_pct: float | None = None,
) -> Row:
    """A row of at least one value. `against`: samples of the limit and the peers, taken in turn with them."""
    median = statistics.median(values)
    ratios = {
        peer: round(median / statistics.median(others), 3)
        for peer, others in (against or {}).items()
        if statistics.median(others) > 0
    }
    return Row(
        name=name,
        unit=unit,
        value=round(median, 3),
        samples=len(values),
        min=round(min(values), 3),
        max=round(max(values), 3),
        ratio_to_limit=ratios.get("limit"),
        ratio_to_redis=ratios.get("redis"),
        ratio_to_nats=ratios.get("nats"),
        busy_pct=busy_pct,
    )


def refused(name: str, reason: str, unit: str = "ms") -> Row:
    """A row without a figure, and why."""
    return Row(name=name, unit=unit, refused=reason)


def growth(name: str, rows: Sequence[Row], small: tuple[str, int], large: tuple[str, int]) -> Row:
    """How much dearer an agent is in a large swarm: (name, agents) of the two rows."""
    values = {row.name: row.value for row in rows}
    parts = [(values.get(row), agents) for row, agents in (small, large)]
    if any(value is None for value, _ in parts):
        return refused(name, "one of the two rows has no figure", "x")
    per_agent = [value / agents for value, agents in parts if value is not None]
    return measured(name, [per_agent[1] / per_agent[0]], "x")


def render(rows: Sequence[Row]) -> str:
    """All rows as a table."""
    width = max((len(row.name) for row in rows), default=0)
    head = ("median", "min", "max")
    lines = [
        f"{'':{width}} {'n':>5} {head[0]:>10} {head[1]:>10} {head[2]:>10} {'unit':6}"
        f" {'x limit':>8} {'x redis':>8} {'x nats':>8} {'busy %':>7}"
    ]
    for row in rows:
        if row.refused:
            lines.append(f"{row.name:{width}}       refused: {row.refused}")
            continue
        numbers = " ".join(f"{_number(value):>10}" for value in (row.value, row.min, row.max))
        ratios = " ".join(
            f"{_number(value):>8}" for value in (row.ratio_to_limit, row.ratio_to_redis, row.ratio_to_nats)
        )
        lines.append(
            f"{row.name:{width}} {row.samples:>5} {numbers} {row.unit:6} {ratios} {_number(row.busy_pct):>7}"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
