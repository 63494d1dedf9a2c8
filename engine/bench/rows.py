"""Rows of a bench: one for each figure, with the bar that it is held against."""

import statistics
from collections.abc import Sequence
from typing import Any


def row(name: str, values: Sequence[float], unit: str, *, bar: str = "", **more: Any) -> dict[str, Any]:
    """The median of `values` as the figure, with their number and range. `bar` is what it has to reach,
    as in `< 3`: then `reached` says whether it does."""
    value = statistics.median(values)
    found: dict[str, Any] = {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "samples": len(values),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }
    if bar:
        word, limit = bar.split()
        reached = {"<": value < float(limit), ">": value > float(limit), "=": value == float(limit)}[word]
        found |= {"bar": bar, "reached": reached}
        if float(limit):
            found["ratio_to_limit"] = round(value / float(limit), 3)
    return found | more


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people."""
    width = max(len(line["name"]) for line in rows)
    lines = []
    for line in rows:
        held = "" if "bar" not in line else f"{line['bar']:>10}  {'ok' if line['reached'] else 'NOT REACHED'}"
        lines.append(f"{line['name']:<{width}} {line['value']:>12.3f} {line['unit']:<14}{held}")
    return "\n".join(lines)
