"""One criterion against the evidence: the verdict, and a reason that can be read without the code."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cfn.judge import proof
from cfn.judge.criterion import Criterion
from cfn.judge.figures import Figure, bad_fraction, request_figure, sample_figure
from cfn.judge.hosts import Host
from cfn.judge.measures import CUMULATIVE, Origin
from cfn.judge.verdict import Verdict
from cfn.judge.window import Window
from cfn.metrics.arm import Arm
from cfn.metrics.times import format_ms

FLEET = "the fleet"
NOTHING = Figure(None, 0)
STALE_BUCKETS = 3  # 15 minutes of real time: the blind limit
TREND_STATISTICS = ("relative_range", "slope")  # looked at once, when the window is full


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one criterion stands. `ask_again_ms` is set when waiting is what is missing."""

    criterion: Criterion
    layer: str
    window: Window
    verdict: Verdict
    reason: str
    observed: Figure = NOTHING
    where: str = FLEET
    ask_again_ms: int | None = None
    missing: str = ""
    proof: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Point:
    """One figure that can break the limit: of the fleet or of a host, of the window or of a bucket."""

    where: str
    figure: Figure
    start_ms: int = 0


def evaluate(criterion: Criterion, layer: str, hosts: Sequence[Host], window: Window) -> Result:
    """Judge one criterion. `layer` is "criterion" (needs its full window) or "guardrail" (does not)."""
    judged = _Judged(criterion, layer, hosts, window)
    if criterion.origin is Origin.LATER:
        return judged.result(Verdict.NO_DATA, f"{criterion.metric} is not measured yet: {criterion.needs}")
    if not window.starts:
        return judged.wait("the traffic is still settling")
    broken = judged.broken()
    if broken is not None:
        return broken
    return judged.unseen() or judged.unfinished() or judged.held()


class _Judged:
    """The steps of one evaluation, in the order in which they may end it."""

    def __init__(self, criterion: Criterion, layer: str, hosts: Sequence[Host], window: Window) -> None:
        self.criterion = criterion
        self.layer = layer
        self.window = window
        self.hosts = [host for host in hosts if host.evidence is not None]
        self.arm = Arm()
        if criterion.origin is Origin.EVENTS:
            for host in self.hosts:
                for _, arm in host.arms(criterion.arm, window.starts):
                    self.arm.merge(arm)
        self.cumulative = criterion.per.kind == "cumulative"
        self.points = self._window_points() if self.cumulative else self._bucket_points()
        self.proof = self._prove() if criterion.proof != "none" and self.arm.requests else {}

    # What the evidence says.

    def _window_points(self) -> list[_Point]:
        seconds = max(1, len(self.window.starts)) * self.window.bucket_ms / 1_000
        if self.criterion.origin is Origin.SAMPLES:
            return [
                _Point(host.name, sample_figure(self.criterion, host.samples(self.window.starts)))
                for host in self.hosts
            ]
        if self.criterion.scope == "fleet":
            return [_Point(FLEET, request_figure(self.criterion, self.arm, seconds))]
        points = []
        for host in self.hosts:
            total = Arm()
            for _, arm in host.arms(self.criterion.arm, self.window.starts):
                total.merge(arm)
            points.append(_Point(host.name, request_figure(self.criterion, total, seconds)))
        return points

    def _bucket_points(self) -> list[_Point]:
        """The buckets that have evidence enough; a bucket without is neither good nor bad."""
        points: list[_Point] = []
        seconds = self.window.bucket_ms / 1_000
        if self.criterion.origin is Origin.SAMPLES:
            for host in self.hosts:
                cells = zip(self.window.starts, host.samples(self.window.starts), strict=True)
                points += [
                    _Point(host.name, sample_figure(self.criterion, [cell]), start) for start, cell in cells
                ]
        else:
            arms: dict[tuple[str, int], Arm] = {}
            for host in self.hosts:
                where = FLEET if self.criterion.scope == "fleet" else host.name
                for start, arm in host.arms(self.criterion.arm, self.window.starts):
                    arms.setdefault((where, start), Arm()).merge(arm)
            points = [
                _Point(where, request_figure(self.criterion, arm, seconds), start)
                for (where, start), arm in sorted(arms.items())
            ]
        enough = self.criterion.min_samples
        return [p for p in points if p.figure.value is not None and p.figure.samples >= enough]

    def _prove(self) -> dict[str, Any]:
        bad, limit = bad_fraction(self.criterion, self.arm)
        above = proof.log_e_above(bad, self.arm.requests, limit)
        below = proof.log_e_below(bad, self.arm.requests, limit)
        return {
            "alpha": proof.ALPHA,
            "bad": round(bad, 6),
            "requests": self.arm.requests,
            "limit": round(limit, 6),
            "log_e_above": round(above, 6),
            "log_e_below": round(below, 6),
            "proved_broken": proof.proved(above),
            "proved_kept": proof.proved(below),
        }

    # The steps.

    def broken(self) -> Result | None:
        """FAIL, if the limit is broken on enough evidence."""
        if not self.cumulative:
            return self._broken_buckets()
        point = self._worst()
        if point is None or point.figure.value is None or self.criterion.holds(point.figure.value):
            if self.proof and self.proof["proved_broken"]:
                return self.result(Verdict.FAIL, f"{self._said(point)}; proved broken", point)
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
        """Not what is looked at once, what can still grow to its limit, or what has to be proved."""
        statistic = self.criterion.statistic
        if statistic in TREND_STATISTICS or statistic in ("max", "min", "sum", "count"):
            return False
        return not self.proof or bool(self.proof["proved_broken"])

    def _broken_buckets(self) -> Result | None:
        per = self.criterion.per
        for where in sorted({point.where for point in self.points}):
            series = [point for point in self.points if point.where == where]
            for index in range(len(series)):
                run = series[index : index + per.m]
                bad = [
                    p for p in run if p.figure.value is not None and not self.criterion.holds(p.figure.value)
                ]
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
            what = self.criterion.metric if self.criterion.origin is Origin.SAMPLES else "the collector"
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

    def _has_sample(self, cell: Any) -> bool:
        if self.criterion.origin is not Origin.SAMPLES:
            return bool(cell.samples)
        if self.criterion.metric == "restarts":
            return bool(cell.starts_samples)
        return self.criterion.metric in cell.gauges

    def unfinished(self) -> Result | None:
        """INCONCLUSIVE, if time or evidence is missing."""
        point = self._worst()
        if self.criterion.origin is Origin.EVENTS and not self.arm.requests:
            arm = self.criterion.arm
            return self.wait(f"idle: no request was ordered to {arm}", missing=f"requests ordered to {arm}")
        if point is None or point.figure.value is None:
            return self.wait(
                "no bucket has evidence enough", missing=f"{self.criterion.min_samples} samples a bucket"
            )
        if self.layer == "criterion" and not self.window.full:
            return self.wait(f"{self._said(point)} so far, but the window is not full", point)
        unknown = [each.where for each in self.points if each.figure.value is None]
        if unknown:
            return self.wait(f"no value of {unknown[0]}", missing=f"evidence of {', '.join(unknown)}")
        fewest = min((point.figure.samples for point in self.points), default=0)
        if self.cumulative and fewest < self.criterion.min_samples:
            lacking = self.criterion.min_samples - fewest
            return self.wait(
                f"{self._said(point)}, on {fewest} of {self.criterion.min_samples} needed",
                point,
                f"{lacking} more",
            )
        if self.criterion.proof == "both" and not self.proof["proved_kept"]:
            needed = proof.perfect_requests_needed(self.proof["limit"])
            more = f"more requests (without any fault {needed} prove it, {self.arm.requests} came)"
            return self.wait(f"{self._said(point)}, not proved at alpha {proof.ALPHA:g}", point, more)
        return None

    def held(self) -> Result:
        """PASS."""
        point = self._worst()
        proved = "; proved" if self.proof and self.proof["proved_kept"] else ""
        return self.result(Verdict.PASS, f"{self._said(point)}{proved}", point)

    # How a result is put.

    def _worst(self) -> _Point | None:
        """The point nearest to breaking the limit; one without a value is worst of all in a window."""
        if not self.points:
            return None
        upper = self.criterion.compare in ("lt", "le")

        def badness(point: _Point) -> float:
            if point.figure.value is None:
                return float("-inf") if any(p.figure.value is not None for p in self.points) else 0.0
            return point.figure.value if upper else -point.figure.value

        return max(self.points, key=badness)

    def _said(self, point: _Point | None) -> str:
        criterion = self.criterion
        if point is None or point.figure.value is None:
            return f"{criterion.statistic} of {criterion.metric} has no value; the limit is {criterion.limit}"
        counted = "requests" if criterion.origin is Origin.EVENTS else "samples"
        return (
            f"{criterion.statistic} of {criterion.metric} is {point.figure.value:.6g} {criterion.unit} "
            f"on {point.figure.samples} {counted} ({point.where}); the limit is {criterion.limit}"
        )

    def wait(self, reason: str, point: _Point | None = None, missing: str = "") -> Result:
        """INCONCLUSIVE, with the time at which asking again makes sense."""
        full_at = self.window.full_at_ms
        again = full_at if self.layer == "criterion" and not self.window.full else None
        again = again or self.window.end_ms + self.window.bucket_ms
        missing = missing or f"time until {format_ms(again)}"
        return self.result(Verdict.INCONCLUSIVE, reason, point, again, missing)

    def result(
        self,
        verdict: Verdict,
        reason: str,
        point: _Point | None = None,
        ask_again_ms: int | None = None,
        missing: str = "",
    ) -> Result:
        """A result of this criterion."""
        return Result(
            criterion=self.criterion,
            layer=self.layer,
            window=self.window,
            verdict=verdict,
            reason=reason,
            observed=point.figure if point else NOTHING,
            where=point.where if point else FLEET,
            ask_again_ms=ask_again_ms,
            missing=missing,
            proof=self.proof,
        )
