"""The cadence of looks: when one is due, which were missed, and what a fresh flip switches on. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from cfn.errors import UsageError
from cfn.judge.timescale import TimeScale
from cfn.metrics import checks

GRACE_SHARE = 0.25  # of the interval: so late, a look counts as missed


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
    """Where the looks stand. Times in ms since 1970. `missed` are the due times of looks that never
    came, oldest first; the newest may still be made up for by a look now."""

    now_due: bool
    next_ms: int
    every_s: float
    missed: tuple[int, ...]
    intensive_until_ms: int
    closely_until_ms: int


def read_cadence(figures: Mapping[str, Any], traffic_pct: float, scale: TimeScale) -> Cadence:
    """The cadence in a stage's figures (`looks`, `intensive_logging_s`, `watch_closely_s`, and
    `intensive_logging_at_100_s` at full traffic). Raises UsageError."""
    try:
        phases = tuple(
            Phase(
                until_s=checks.number(each.get("until_s"), "until_s", low=1) / scale.factor,
                every_s=scale.cadence_s(checks.number(each.get("every_s"), "every_s", low=1)),
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


def schedule(cadence: Cadence, since_ms: int) -> Iterator[tuple[int, float]]:
    """Due times in ms since 1970 and the interval that led to each, without end."""
    at_s = 0.0
    phases = iter(cadence.phases)
    phase = next(phases)
    while True:
        following = at_s + phase.every_s
        while following > phase.until_s + 1e-9:
            later = next(phases, None)
            if later is None:
                break
            phase = later
            following = at_s + phase.every_s
        at_s = following
        yield since_ms + round(at_s * 1_000), phase.every_s


def due(cadence: Cadence, since_ms: int, looks_ms: Sequence[int], now_ms: int) -> Due:
    """Where the looks stand for traffic that is as it is since `since_ms`. A look serves the newest
    due time before it."""
    past = list(takewhile(lambda each: each[0] <= now_ms, schedule(cadence, since_ms)))
    coming_ms, every_s = next(each for each in schedule(cadence, since_ms) if each[0] > now_ms)
    ends = [*(time_ms for time_ms, _ in past), coming_ms][1:]
    served = [
        any(begin <= look < end for look in looks_ms) for (begin, _), end in zip(past, ends, strict=True)
    ]
    now_due = bool(past) and not served[-1]
    missed = tuple(
        time_ms
        for (time_ms, interval_s), was in zip(past, served, strict=True)
        if not was and now_ms > time_ms + GRACE_SHARE * interval_s * 1_000
    )
    return Due(
        now_due=now_due,
        next_ms=past[-1][0] if now_due else coming_ms,
        every_s=every_s,
        missed=missed,
        intensive_until_ms=since_ms + round(cadence.intensive_s * 1_000),
        closely_until_ms=since_ms + round(cadence.closely_s * 1_000),
    )
