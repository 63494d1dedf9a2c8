"""How busy this machine is while the bench does nothing: what others do disturbs what is measured."""

import time
from collections.abc import Sequence
from pathlib import Path

SETTLE_S = 0.05  # between two measurements, for what the kernel still tidies up
WINDOW_S = 0.25


def busy_pct() -> float:
    """The share of all processors that was busy during the next `WINDOW_S`; blocks as long."""
    before = ticks(Path("/proc/stat").read_text())
    time.sleep(WINDOW_S)
    return share_pct(before, ticks(Path("/proc/stat").read_text()))


def ticks(stat: str) -> tuple[int, ...]:
    """The counters of all processors together, from the text of /proc/stat (see proc(5))."""
    return tuple(map(int, stat.split("\n", 1)[0].split()[1:9]))


def share_pct(before: Sequence[int], after: Sequence[int]) -> float:
    """Busy share between two readings: neither idle (4th counter) nor waiting for a disk (5th)."""
    spent = [late - early for early, late in zip(before, after, strict=True)]
    total = sum(spent)
    return round(100 * (total - spent[3] - spent[4]) / total, 1) if total else 0.0
