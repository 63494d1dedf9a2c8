"""Records as a table for a person: one line each, what it comes to first."""

from collections.abc import Mapping, Sequence
from typing import Any

_SUMMARY_CHARS = 60


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Columns: number, time, stage, kind, who asked, and a summary of the data."""
    if not records:
        return "the ledger is empty"
    rows = [("#", "time", "stage", "kind", "actor", "what")]
    rows += [
        (
            str(record["sequence"]),
            record["time"][:19].replace("T", " "),
            record["stage"],
            record["kind"],
            record["actor"],
            summary(record["data"]),
        )
        for record in records
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]])
        for row in rows
    ]
    return "\n".join(lines)


def summary(data: Mapping[str, Any]) -> str:
    """A verdict and its first reason, or a text, or the short values of any other data."""
    verdict = data.get("verdict")
    if isinstance(verdict, dict):
        reasons = verdict.get("reasons") or [""]
        return _short(f"{verdict.get('verdict')}: {reasons[0]}")
    if isinstance(data.get("text"), str):
        return _short(data["text"])
    values = [f"{key}={value}" for key, value in data.items() if isinstance(value, str | int | float)]
    return _short(" ".join(values))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SUMMARY_CHARS else line[: _SUMMARY_CHARS - 3] + "..."
