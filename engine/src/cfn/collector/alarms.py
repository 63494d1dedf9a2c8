"""What a sample says about the samples before it: how memory grows, and which alarms were false. Pure."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

GROWTH_OVER_S = 3_600.0
MAX_POINTS = 120  # a slope over all pairs of an hour at one a second would cost more than a sample
FALSE_ALARMS_OVER = 10_000  # health checks


@dataclass(slots=True)
class Growth:
    """Slope of a figure over the last hour: the median over pairs of points (Theil-Sen), which one
    burst does not move. Needs a quarter of an hour."""

    _points: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, time_s: float, value: float | None) -> float | None:
        """Units a minute after one more point; None while too little is known. `time_s` never goes back."""
        if value is None:
            return None
        if self._points and time_s - self._points[-1][0] < GROWTH_OVER_S / MAX_POINTS:
            return self._slope()
        self._points.append((time_s, value))
        while time_s - self._points[0][0] > GROWTH_OVER_S:
            self._points.popleft()
        return self._slope()

    def _slope(self) -> float | None:
        points: Sequence[tuple[float, float]] = tuple(self._points)
        if len(points) < 3 or points[-1][0] - points[0][0] < GROWTH_OVER_S / 4:
            return None
        half = len(points) // 2
        slopes = [
            60 * (late[1] - early[1]) / (late[0] - early[0])
            for early, late in zip(points[:half], points[-half:], strict=True)
        ]
        return median(slopes)


@dataclass(slots=True)
class HealthChecks:
    """Health checks of the daemons, and the false alarms among them: a daemon that did not answer, and
    then answered as the same process, had been alive all the time."""

    _pids: dict[str, int] = field(default_factory=dict)
    _silent: dict[str, int] = field(default_factory=dict)
    _checks: deque[tuple[int, int]] = field(default_factory=deque)  # checks, false alarms
    _reported: int | None = None

    def add(self, answers: dict[str, int | None], reported: int | None) -> float | None:
        """Share of false alarms in percent, over the last checks. `answers` has the process id of each
        daemon that answered, None for one that did not; `reported` is the conductor's own count of
        false alarms since its start."""
        false = 0
        for daemon, pid in answers.items():
            if pid is None:
                self._silent[daemon] = self._silent.get(daemon, 0) + 1
                continue
            if self._pids.get(daemon) == pid:
                false += self._silent.get(daemon, 0)
            self._pids[daemon] = pid
            self._silent.pop(daemon, None)
        if reported is not None:
            if self._reported is not None and reported > self._reported:
                false += reported - self._reported
            self._reported = reported
        known = sum(daemon in self._pids for daemon in answers)
        if known:
            self._checks.append((known, false))
        total = sum(checks for checks, _ in self._checks)
        while total > FALSE_ALARMS_OVER:
            total -= self._checks.popleft()[0]
        if not total:
            return None
        return min(100.0, 100 * sum(alarms for _, alarms in self._checks) / total)
