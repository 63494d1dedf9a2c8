"""One criterion against the evidence: the verdict, and a reason that can be read without the code."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cfn.judge import proof
from cfn.judge.criterion import Criterion
from cfn.judge.figures import Figure, bad_limit, bad_sum, levels, request_figure, sample_figure
from cfn.judge.fleet import Fleet
from cfn.judge.measures import CUMULATIVE, MEASURES, Origin
from cfn.judge.result import FLEET, NOTHING, Result, hold
from cfn.judge.sequential import ALPHA_BROKEN, ALPHA_KEPT, Floats, first_proof
from cfn.judge.trend import CONFIDENCE, trend
from cfn.judge.verdict import Verdict
from cfn.judge.window import Window
from cfn.metrics.arm import Arm
from cfn.metrics.evidence import SampleCell
from cfn.metrics.times import format_ms

STALE_BUCKETS = 3  # 15 minutes of real time: the blind limit
TREND_STATISTICS = ("relative_range", "slope")  # looked at once, when the window is full


@dataclass(frozen=True, slots=True)
class _Point:
    """One figure that can break the limit: of the fleet or of a host, of the window or of a bucket.
    `decides` is what is held against the limit, where that is not the figure itself; `because` says why."""

    where: str
    figure: Figure
    start_ms: int = 0
    decides: float | None = None
    because: str = ""

    @property
    def value(self) -> float | None:
        return self.figure.value if self.decides is None else self.decides


def evaluate(criterion: Criterion, layer: str, fleet: Fleet, window: Window) -> Result:
    """Judge one criterion on events or samples. `layer` is "criterion" (needs its full window) or
    "guardrail" (does not)."""
    if not window.starts:
        return hold(criterion, layer, window, "the traffic is still settling")
    judged = _Judged(criterion, layer, fleet, window)
    broken = judged.broken()
    if broken is not None:
        return broken
    return judged.unseen() or judged.unfinished() or judged.held()


class _Judged:
    """The steps of one evaluation, in the order in which they may end it."""

    def __init__(self, criterion: Criterion, layer: str, fleet: Fleet, window: Window) -> None:
        self.criterion = criterion
        self.layer = layer
        self.window = window
        self.fleet = fleet
        self.hosts = fleet.hosts
        self.arm = fleet.total(criterion.arm, window) if criterion.origin is Origin.EVENTS else Arm()
        self.cumulative = criterion.per.kind == "cumulative"
        self.points = self._window_points() if self.cumulative else self._bucket_points()
        self.proof = self._prove() if criterion.proved and self.arm.requests else {}

    # What the evidence says.

    def _window_points(self) -> list[_Point]:
        if self.criterion.origin is Origin.SAMPLES:
            return [self._sample_point(host.name, host.samples(self.window.starts)) for host in self.hosts]
        seconds = max(1, len(self.window.starts)) * self.window.bucket_ms / 1_000
        if self.criterion.scope == "fleet":
            return [_Point(FLEET, request_figure(self.criterion, self.arm, seconds))]
        totals = [(host, self.fleet.total_of(host, self.criterion.arm, self.window)) for host in self.hosts]
        return [_Point(host.name, request_figure(self.criterion, total, seconds)) for host, total in totals]

    def _sample_point(self, where: str, cells: list[SampleCell]) -> _Point:
        if self.criterion.statistic != "slope":
            return _Point(where, sample_figure(self.criterion, cells))
        samples = sum(
            cell.gauges[self.criterion.metric].samples
            for cell in cells
            if self.criterion.metric in cell.gauges
        )
        level = levels(self.criterion.metric, cells)
        found = trend(level, len(cells)) if self.window.full else None
        if found is None:
            return _Point(where, Figure(None, samples))
        figure = Figure(found.slope_pct, samples)
        highest, floor = max(value for _, value in level), self.criterion.floor
        if highest < floor:
            because = f", of a level of {highest:.4g} at most: growth counts from {floor:g},"
            return _Point(where, figure, decides=0.0, because=because)
        because = f", at least {found.low_pct:.4g} with {100 * CONFIDENCE:g} % confidence,"
        return _Point(where, figure, decides=found.low_pct, because=because)

    def _bucket_points(self) -> list[_Point]:
        """The buckets that have evidence enough; a bucket without is neither good nor bad."""
        points: list[_Point] = []
        seconds = self.window.bucket_ms / 1_000
        starts = self.window.starts
        if self.criterion.origin is Origin.SAMPLES:
            for host in self.hosts:
                cells = zip(starts, host.samples(starts), strict=True)
                points += [
                    _Point(host.name, sample_figure(self.criterion, [cell]), start) for start, cell in cells
                ]
        else:
            if self.criterion.scope == "fleet":
                series = [(FLEET, list(self.fleet.by_bucket(self.criterion.arm, self.window).items()))]
            else:
                series = [(host.name, host.arms(self.criterion.arm, starts)) for host in self.hosts]
            points = [
                _Point(where, request_figure(self.criterion, arm, seconds), start)
                for where, arms in sorted(series, key=lambda each: each[0])
                for start, arm in arms
            ]
        enough = self.criterion.min_samples
        return [p for p in points if p.figure.value is not None and p.figure.samples >= enough]

    def _prove(self) -> dict[str, Any]:
        criterion, limit = self.criterion, bad_limit(self.criterion)
        mine, theirs = self._sums(criterion.arm), self._sums("v1")
        if criterion.arm == "v2":
            shared = proof.shared(theirs[:, 0], theirs[:, 1], limit)
        else:
            shared = np.zeros(len(mine), dtype=bool)
        own = np.where(shared[:, None], 0.0, mine)
        above = proof.log_e_above(own[:, 0], own[:, 1], limit)
        broken = first_proof(above, ALPHA_BROKEN)
        bad, requests = bad_sum(criterion, self.arm)
        below = proof.log_e_below(bad, requests, limit)
        end_of = None if broken is None else self.window.starts[broken] + self.window.bucket_ms
        return {
            "alpha_broken": ALPHA_BROKEN,
            "alpha_kept": ALPHA_KEPT,
            "bad": round(bad, 6),
            "requests": requests,
            "limit": round(limit, 9),
            "buckets_bad_for_v1_too": int(shared.sum()),
            "highest_log_e_above": round(float(above.max()), 6),
            "log_e_below": round(below, 6),
            "broken_at": None if end_of is None else format_ms(end_of),
            "proved_broken": broken is not None,
            "proved_kept": proof.kept(below),
        }

    def _sums(self, name: str) -> Floats:
        """The sum of bad fractions and the number of requests of each bucket of the fleet."""
        arms = self.fleet.by_bucket(name, self.window)
        nothing = Arm()
        sums = [bad_sum(self.criterion, arms.get(start, nothing)) for start in self.window.starts]
        return np.array(sums, dtype=float)

    # The steps.

    def broken(self) -> Result | None:
        """FAIL, if the limit is broken on enough evidence."""
        if not self.cumulative:
            return self._broken_buckets()
        point = self._worst()
        if self.criterion.proved:
            if not self.proof or not self.proof["proved_broken"]:
                return None
            at = self.proof["broken_at"]
            return self.result(Verdict.FAIL, f"{self._said(point)}; proved broken at {at}", point)
        if point is None or point.value is None or self.criterion.holds(point.value):
            return None
        final = self._only_gets_worse()
        if not final and point.figure.samples < self.criterion.min_samples:
            return None
        if not (self.window.full or final) and not self._may_fail_early():
            return None
        return self.result(Verdict.FAIL, self._said(point), point)

    def _only_gets_worse(self) -> bool:
        """Whether a broken limit stays broken whatever comes: one crash is one crash too many."""
        upper = self.criterion.compare in ("lt", "le")
        if self.criterion.metric in CUMULATIVE and self.criterion.statistic == "sum":
            return upper
        return self.criterion.statistic == ("max" if upper else "min")

    def _may_fail_early(self) -> bool:
        """Not what is looked at once or can still grow to its limit, nor what must not be decided by
        looking until it looks bad: that needs proof."""
        statistic = self.criterion.statistic
        return statistic not in (*TREND_STATISTICS, "max", "min", "sum", "count")

    def _broken_buckets(self) -> Result | None:
        per = self.criterion.per
        for where in sorted({point.where for point in self.points}):
            series = [point for point in self.points if point.where == where]
            for index in range(len(series)):
                run = series[index : index + per.m]
                bad = [p for p in run if p.value is not None and not self.criterion.holds(p.value)]
                if len(bad) >= per.n:
                    rule = f"{len(bad)} of {len(run)} buckets with evidence from {format_ms(run[0].start_ms)}"
                    return self.result(Verdict.FAIL, f"{self._said(bad[-1])} in {rule}", bad[-1])
        return None

    def unseen(self) -> Result | None:
        """NO_DATA, if the collector saw too little of the window, or nothing lately."""
        starts = self.window.starts
        for host in self.hosts:
            seen = [self._has_sample(cell) for cell in host.samples(starts)]
            share = sum(seen) / len(seen)
            what = self.criterion.metric if self._of_samples else "the collector"
            if share < self.criterion.coverage:
                return self.result(
                    Verdict.NO_DATA,
                    f"{host.name}: samples of {what} in {sum(seen)} of {len(seen)} buckets "
                    f"({100 * share:.0f} %); {100 * self.criterion.coverage:.0f} % are needed",
                )
            if not any(seen[-STALE_BUCKETS:]):
                since = format_ms(starts[len(seen) - seen[::-1].index(True) - 1] + self.window.bucket_ms)
                return self.result(Verdict.NO_DATA, f"{host.name}: no sample of {what} since {since}")
        return None if self.hosts else self.result(Verdict.NO_DATA, "no host has usable evidence")

    @property
    def _of_samples(self) -> bool:
        """Whether each of the collector's samples should hold the metric."""
        measure = MEASURES[self.criterion.metric]
        return measure.origin is Origin.SAMPLES and not measure.occasional

    def _has_sample(self, cell: SampleCell) -> bool:
        if not self._of_samples:
            return bool(cell.samples)
        if self.criterion.metric in CUMULATIVE:
            return bool(cell.starts_samples)
        return self.criterion.metric in cell.gauges

    def unfinished(self) -> Result | None:
        """INCONCLUSIVE, if time or evidence is missing."""
        point = self._worst()
        if self.criterion.origin is Origin.EVENTS and not self.arm.requests:
            arm = self.criterion.arm
            return self.wait(f"idle: no request was ordered to {arm}", missing=f"requests ordered to {arm}")
        if MEASURES[self.criterion.metric].occasional and all(each.value is None for each in self.points):
            metric = self.criterion.metric
            return self.wait(f"{metric}: nothing to measure happened yet", missing=f"one {metric} at least")
        if self.criterion.statistic in TREND_STATISTICS and not self.window.full:
            return self.wait("looked at once, when the window is full")
        if point is None or point.figure.value is None:
            return self.wait(
                "no bucket has evidence enough" if not self.cumulative else self._said(point),
                missing=f"{self.criterion.min_samples} samples",
            )
        if self.layer == "criterion" and not self.window.full:
            return self.wait(f"{self._said(point)} so far, but the window is not full", point)
        unknown = [each.where for each in self.points if each.figure.value is None]
        if unknown and not MEASURES[self.criterion.metric].occasional:
            return self.wait(f"no value of {unknown[0]}", missing=f"evidence of {', '.join(unknown)}")
        known = [each for each in self.points if each.figure.value is not None]
        fewest = min((each.figure.samples for each in known), default=0)
        if self.cumulative and fewest < self.criterion.min_samples:
            lacking = self.criterion.min_samples - fewest
            return self.wait(
                f"{self._said(point)}, on {fewest} of {self.criterion.min_samples} needed",
                point,
                f"{lacking} more",
            )
        if self.criterion.proved and not self.proof["proved_kept"]:
            said = f"{self._said(point)}, neither proved kept (alpha {ALPHA_KEPT:g}) nor broken"
            return self.wait(said, point, self._unproved())
        return None

    def held(self) -> Result:
        """PASS."""
        point = self._worst()
        proved = "; proved" if self.criterion.proved else ""
        return self.result(Verdict.PASS, f"{self._said(point)}{proved}", point)

    def _unproved(self) -> str:
        """How much evidence is missing."""
        bad, requests, limit = self.proof["bad"], self.proof["requests"], self.proof["limit"]
        more = proof.more_requests_needed(bad, requests, limit)
        perfect = proof.perfect_requests_needed(limit)
        if more is None:
            return f"fewer bad requests: {bad:g} of {requests} is more than the limit on their mean"
        return (
            f"{more} more requests as good as the {requests} so far "
            f"(without any fault, {perfect} in all prove it)"
        )

    # How a result is put.

    def _worst(self) -> _Point | None:
        """The point nearest to breaking the limit; one without a value is worst of all in a window."""
        if not self.points:
            return None
        upper = self.criterion.compare in ("lt", "le")
        known = [each for each in self.points if each.value is not None]
        if not known:
            return self.points[0]

        def badness(point: _Point) -> float:
            value = point.value or 0.0
            return value if upper else -value

        return max(known, key=badness)

    def _said(self, point: _Point | None) -> str:
        criterion = self.criterion
        if point is None or point.figure.value is None:
            return f"{criterion.statistic} of {criterion.metric} has no value; the limit is {criterion.limit}"
        counted = "requests" if criterion.origin is Origin.EVENTS else "samples"
        return (
            f"{criterion.statistic} of {criterion.metric} is {point.figure.value:.6g} {criterion.unit}"
            f"{point.because} on {point.figure.samples} {counted} ({point.where}); "
            f"the limit is {criterion.limit}"
        )

    def wait(self, reason: str, point: _Point | None = None, missing: str = "") -> Result:
        """INCONCLUSIVE, with the time at which asking again makes sense."""
        return hold(
            self.criterion,
            self.layer,
            self.window,
            reason,
            observed=point.figure if point else NOTHING,
            where=point.where if point else FLEET,
            missing=missing,
            proof=self.proof,
        )

    def result(self, verdict: Verdict, reason: str, point: _Point | None = None) -> Result:
        """A result of this criterion."""
        return Result(
            criterion=self.criterion,
            layer=self.layer,
            window=self.window,
            verdict=verdict,
            reason=reason,
            observed=point.figure if point else NOTHING,
            where=point.where if point else FLEET,
            proof=self.proof,
        )
