"""The judge's parts on their own: criteria, time scale, windows, figures, proof, order of verdicts."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.errors import UsageError
from cfn.judge.criterion import Criterion, Per, read_criterion
from cfn.judge.figures import relative_range_pct
from cfn.judge.timescale import TimeScale
from cfn.judge.verdict import EXIT_CODES, Verdict, worst
from cfn.judge.window import window_of

GOOD: dict[str, Any] = {
    "name": "c",
    "metric": "coordination_time_ms",
    "statistic": "p95",
    "compare": "lt",
    "threshold": 5000,
    "unit": "ms",
    "window_s": 3600,
    "min_samples": 5,
}


def criterion(**changes: Any) -> Criterion:
    return read_criterion(GOOD | changes)


# Verdicts


def test_the_worst_wins_in_the_stated_order() -> None:
    order = [Verdict.FAIL, Verdict.ERROR, Verdict.NO_DATA, Verdict.INCONCLUSIVE, Verdict.PASS]
    for worse, better in pairwise(order):
        assert worst([better, worse, better]) is worse
    assert worst([Verdict.PASS]) is Verdict.PASS
    assert worst([]) is Verdict.ERROR


def test_every_verdict_has_an_exit_code_of_its_own() -> None:
    assert EXIT_CODES == {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11, "NO_DATA": 12, "ERROR": 13}


# Criteria


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "unknown field surprise"),
        ({"metric": "happiness"}, "metric is 'happiness'"),
        ({"statistic": "slope"}, "statistic of coordination_time_ms"),
        ({"unit": "s"}, "unit of coordination_time_ms p95 is 's'"),
        ({"threshold": "5000"}, "threshold is not a number"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": True}, "threshold is not a number"),
        ({"compare": "=="}, "compare is '=='"),
        ({"window_s": 60}, "shorter than bucket_s"),
        ({"min_samples": 0}, "min_samples is 0"),
        ({"min_samples": 1.5}, "min_samples is not a whole"),
        ({"coverage": 0.1}, "coverage is 0.1"),
        ({"scope": "galaxy"}, "scope is 'galaxy'"),
        ({"arm": "v3"}, "arm is 'v3'"),
        ({"per": "cumulative"}, "per is not an object"),
        ({"per": {"kind": "n_of_m", "n": 3, "m": 2}}, "per.m is 2"),
        ({"per": {"kind": "cumulative", "n": 3}}, "exactly the fields"),
        ({"dry_run": "yes"}, "dry_run is not true or false"),
        ({"needs": "something"}, "needs is for"),
        ({"floor": 1}, "floor is the level from which growth counts"),
        ({"floor": -1}, "floor is -1"),
        ({"proved": 1}, "proved is not true or false"),
        ({"proved": True, "statistic": "mean"}, "proved is for the mean of a rate"),
        ({"proved": True, "scope": "worst_host"}, "whole fleet and window"),
        ({"proved": True, "compare": "gt"}, "lt and le are allowed"),
        ({"item": "x"}, "metric attested has one"),
        ({"metric": "attested", "statistic": "last", "unit": "count"}, "metric attested has one"),
        ({"metric": "error_ratio", "statistic": "sequential", "unit": "ratio", "threshold": 0.5}, "a margin"),
        ({"metric": "error_ratio", "statistic": "sequential", "unit": "ratio", "compare": "lt"}, "a margin"),
        (
            {"metric": "critical_incidents", "statistic": "sum", "unit": "count", "scope": "worst_host"},
            "scope fleet",
        ),
        ({"metric": "memory_kb", "statistic": "max", "unit": "kb"}, "scope worst_host"),
        ({"name": ""}, "a name"),
    ],
)
def test_what_cannot_be_judged_as_written_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        criterion(**changes)


@pytest.mark.parametrize("missing", ["metric", "statistic", "compare", "threshold", "unit", "min_samples"])
def test_a_missing_field_is_refused(missing: str) -> None:
    with pytest.raises(UsageError, match=missing):
        read_criterion({key: value for key, value in GOOD.items() if key != missing})


@pytest.mark.parametrize("limit", [0, 100])
def test_an_exact_limit_has_no_proof(limit: int) -> None:
    rate = {"metric": "error_rate_pct", "statistic": "mean", "unit": "pct", "proved": True}
    assert criterion(**rate, threshold=1).proved
    with pytest.raises(UsageError, match="proved needs"):
        criterion(**rate, threshold=limit)


@pytest.mark.parametrize(
    ("compare", "value", "holds"),
    [("lt", 5000, False), ("lt", 4999.9, True), ("le", 5000, True), ("gt", 5000, False), ("ge", 5000, True)],
)
def test_comparisons(compare: str, value: float, holds: bool) -> None:
    assert criterion(compare=compare).holds(value) is holds


def test_per_is_read() -> None:
    assert criterion(per={"kind": "consecutive", "n": 4}).per == Per("consecutive", 4, 4)
    assert criterion(per={"kind": "n_of_m", "n": 2, "m": 3}).per == Per("n_of_m", 2, 3)


# Time scale


def test_real_time_changes_nothing() -> None:
    assert TimeScale(1).criterion(criterion()) == criterion()
    assert TimeScale(1).note() == ""


def test_a_week_becomes_a_minute_and_evidence_stays() -> None:
    scaled = TimeScale(10_080).criterion(criterion(window_s=604_800, min_samples=50))
    assert (scaled.window_s, scaled.bucket_s, scaled.settle_s) == (60, 2, 3)
    assert (scaled.min_samples, scaled.coverage, scaled.threshold) == (50, 0.9, 5000)
    assert TimeScale(10_080).interval_s(60) == 0.5
    assert TimeScale(10_080).cadence_s(7_200) == 2
    assert "1:10080; worth nothing outside the lab" in TimeScale(10_080).note()


def test_no_settling_stays_none_and_a_window_has_ten_buckets() -> None:
    scaled = TimeScale(1_000_000).criterion(criterion(settle_s=0))
    assert (scaled.settle_s, scaled.window_s) == (0, 20)


@pytest.mark.parametrize("factor", [0, 0.5, -1, float("nan"), float("inf")])
def test_a_factor_that_lengthens_time_is_refused(factor: float) -> None:
    with pytest.raises(UsageError):
        TimeScale(factor)


@given(st.floats(1, 1e6), st.floats(300, 1e7))
def test_a_scaled_window_is_never_shorter_than_ten_buckets_nor_longer_than_real(
    factor: float, window_s: float
) -> None:
    real = criterion(window_s=window_s)
    scaled = TimeScale(factor).criterion(real)
    assert scaled.window_s <= max(real.window_s, 10 * scaled.bucket_s) + 0.001
    assert scaled.window_s + 0.01 >= min(10 * scaled.bucket_s, real.window_s)


# Windows


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_window_holds_whole_buckets_after_the_settling(since_ms: int, elapsed_ms: int) -> None:
    now_ms = since_ms + elapsed_ms
    window = window_of(criterion(), since_ms, now_ms)
    assert window.start_ms % 300_000 == 0
    assert window.start_ms >= since_ms + 300_000
    assert all(start + 300_000 <= now_ms for start in window.starts)
    assert len(window.starts) <= 12
    assert window.full == (len(window.starts) == 12)
    assert window.full == (now_ms // 300_000 * 300_000 >= window.full_at_ms)


@pytest.mark.parametrize("since_ms", [600_000, 600_001, 899_999])
def test_a_sum_that_nothing_settles_for_begins_with_the_bucket_of_the_change(since_ms: int) -> None:
    """A crash in the first minutes would else never be seen."""
    now_ms = since_ms + 3_600_000
    window = window_of(
        criterion(settle_s=0, metric="fallbacks", statistic="sum", unit="count", compare="le"),
        since_ms,
        now_ms,
    )
    assert window.starts[0] == 600_000
    level = window_of(criterion(settle_s=0), since_ms, now_ms)
    assert level.starts[0] == -(-since_ms // 300_000) * 300_000  # it may be from before the change
    # A whole window of the new traffic is still asked for.
    assert window.full_at_ms - 3_600_000 >= since_ms


# Figures


def test_relative_range_forgives_one_odd_bucket_and_no_more() -> None:
    steady = [100.0] * 40
    assert relative_range_pct(steady) == 0
    assert relative_range_pct([*steady, 200.0]) == 0
    assert relative_range_pct([90.0] * 20 + [110.0] * 20) == pytest.approx(10)
    assert relative_range_pct([100.0, 100.0]) is None
    assert relative_range_pct([0.0, 0.0, 0.0]) is None


# Windows that grow


def test_evidence_that_is_weighed_at_every_look_begins_with_the_traffic() -> None:
    now_ms = 10 * 3_600_000
    assert window_of(criterion(), 0, now_ms).start_ms == now_ms - 3_600_000
    assert window_of(criterion(proved=True), 0, now_ms).start_ms == 300_000
    assert window_of(criterion(proved=True), 0, now_ms).full_at_ms == 300_000 + 3_600_000
