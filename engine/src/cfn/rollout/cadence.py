"""The cadence of looks: when one is due, which were missed, and what a fresh flip switches on. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cfn.errors import UsageError
from cfn.judge.timescale import TimeScale
from cfn.metrics import checks

GRACE_SHARE = 0.25  # of the interval: so late, a look counts as missed
MAX_NAMED_MISSED = 20
SHORTEST_S = 60.0  # the watch runs once a minute, in the lab, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Until `until_s` after the flip, a look every `every_s`; seconds, already on the time scale."""

    until_s: float
    every_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """The phases of a stage's looks, the last of which goes on, and how long after a flip the details
    are logged (`intensive_s`) and somebody watches closely (`closely_s`)."""

    phases: tuple[Phase, ...]
    intensive_s: float
    closely_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Where the looks stand. Times in ms since 1970. `missed` are the newest due times of looks that
    never came, oldest first, of `missed_count` in all; the newest may still be made up for now."""

    now_due: bool
    next_ms: int
    every_s: float
    missed: tuple[int, ...]
    missed_count: int
    intensive_until_ms: int
    closely_until_ms: int


def read_cadence(figures: Mapping[str, Any], traffic_pct: float, scale: TimeScale) -> Cadence:
    """The cadence in a stage's figures (`looks`, `intensive_logging_s`, `watch_closely_s`, and
    `intensive_logging_at_100_s` at full traffic). Raises UsageError."""
    try:
        phases = tuple(
            Phase(
                until_s=checks.number(each.get("until_s"), "until_s", low=1) / scale.factor,
                every_s=max(
                    scale.cadence_s(checks.number(each.get("every_s"), "every_s", low=1)), SHORTEST_S
                ),
            )
            for each in (
                checks.mapping(look, "a look") for look in checks.sequence(figures["looks"], "looks")
            )
        )
        intensive = figures.get("intensive_logging_s", 0)
        if traffic_pct >= 100:
            intensive = figures.get("intensive_logging_at_100_s", intensive)
        intensive_s = checks.number(intensive, "intensive_logging_s") / scale.factor
        closely_s = checks.number(figures.get("watch_closely_s", 0), "watch_closely_s") / scale.factor
    except (ValueError, KeyError) as error:
        raise UsageError(f"cadence: {error}") from None
    if not phases or any(a.until_s >= b.until_s for a, b in pairwise(phases)):
        raise UsageError("cadence: looks must name at least one phase, each with a later until_s")
    return Cadence(phases=phases, intensive_s=intensive_s, closely_s=closely_s)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Due times in ms since 1970, numbered from 0, without end: runs of equal intervals, as (first due
    time, interval, how many; None of the last run)."""

    runs: tuple[tuple[int, int, int | None], ...]

    def number(self, time_ms: int) -> int:
        """The number of the newest due time at or before `time_ms`; -1 before the first."""
        found = -1
        for first, every, count in self.runs:
            if time_ms < first:
                break
            passed = (time_ms - first) // every + 1
            found += passed if count is None else min(passed, count)
        return found

    def time(self, number: int) -> tuple[int, int]:
        """The due time with a number, and the interval that led to it, in ms."""
        for first, every, count in self.runs:
            if count is None or number < count:
                return first + number * every, every
            number -= count
        raise AssertionError("the last run has no end")


def schedule(cadence: Cadence, since_ms: int) -> Schedule:
    """The due times of a cadence that began at `since_ms`."""
    runs: list[tuple[int, int, int | None]] = []
    at_ms = 0
    for phase in cadence.phases:
        every = max(1, round(phase.every_s * 1_000))
        count = max(0, (round(phase.until_s * 1_000) - at_ms) // every)
        last = phase is cadence.phases[-1]
        if count or last:
            runs.append((since_ms + at_ms + every, every, None if last else count))
        at_ms += count * every
    return Schedule(tuple(runs))


def due(cadence: Cadence, since_ms: int, looks_ms: Sequence[int], now_ms: int) -> Due:
    """Where the looks stand for traffic that is as it is since `since_ms`. A look serves the newest
    due time before it."""
    times = schedule(cadence, since_ms)
    newest = times.number(now_ms)
    served = {number for look in looks_ms if 0 <= (number := times.number(look)) <= newest}
    now_due = newest >= 0 and newest not in served
    next_ms, every_ms = times.time(newest if now_due else newest + 1)
    late = now_due and now_ms > next_ms + GRACE_SHARE * every_ms
    last = newest if late or not now_due else newest - 1  # the last that is served, or is not coming
    missed = [
        number for number in range(last, max(-1, last - MAX_NAMED_MISSED * 2), -1) if number not in served
    ]
    return Due(
        now_due=now_due,
        next_ms=next_ms,
        every_s=every_ms / 1_000,
        missed=tuple(times.time(number)[0] for number in reversed(missed[:MAX_NAMED_MISSED])),
        missed_count=last + 1 - sum(number <= last for number in served),
        intensive_until_ms=since_ms + round(cadence.intensive_s * 1_000),
        closely_until_ms=since_ms + round(cadence.closely_s * 1_000),
    )
