"""The statistics of the judge on their own: proofs, the comparison, latency and trends."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfn.judge import comparison, proof
from cfn.judge.latency import holm, latency
from cfn.judge.sequential import ALPHA_BROKEN, ALPHA_KEPT, MOST_PER_BUCKET, first_proof
from cfn.judge.trend import trend
from cfn.metrics.arm import Arm

DAY = 288  # buckets of 5 minutes

# Limits


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.1])
def test_a_perfect_v2_is_proved_after_a_known_number_of_requests(limit: float) -> None:
    needed = proof.perfect_requests_needed(limit)
    assert math.log(1 / ALPHA_KEPT) / limit * 0.9 <= needed <= math.log(1 / ALPHA_KEPT) / limit * 1.15
    assert proof.kept(proof.log_e_below(0, needed, limit))
    assert not proof.kept(proof.log_e_below(0, needed - 1, limit))


@pytest.mark.parametrize(("bad", "requests"), [(0, 100), (3, 1_000), (40, 5_000)])
def test_how_many_more_requests_prove_it_is_told_truly(bad: int, requests: int) -> None:
    more = proof.more_requests_needed(bad, requests, 0.01)
    assert more is not None
    for part, kept in ((1.01, True), (0.97, False)):
        total = round((requests + more) * part)
        assert proof.kept(proof.log_e_below(bad * total / requests, total, 0.01)) is kept


def test_what_is_above_its_limit_is_never_promised_a_proof() -> None:
    assert proof.more_requests_needed(20, 1_000, 0.01) is None
    assert proof.more_requests_needed(0, 10_000, 0.01) == 0


def bernoulli(
    rng: np.random.Generator, share: float, buckets: int, size: float
) -> tuple[np.ndarray, np.ndarray]:
    requests = rng.poisson(size, buckets).astype(float)
    return rng.binomial(requests.astype(int), share).astype(float), requests


@pytest.mark.parametrize("size", [0.5, 20])
def test_looking_after_every_bucket_is_wrong_at_most_as_often_as_alpha(size: float) -> None:
    """At the limit itself both claims are false, however often one looks."""
    rng = np.random.default_rng(7)
    limit, runs, wrong_above, wrong_below = 0.05, 400, 0, 0
    for _ in range(runs):
        bad, requests = bernoulli(rng, limit, 600, size)
        wrong_above += first_proof(proof.log_e_above(bad, requests, limit), ALPHA_BROKEN) is not None
        totals = zip(bad.cumsum(), requests.cumsum(), strict=True)
        wrong_below += any(proof.kept(proof.log_e_below(b, int(n), limit)) for b, n in totals)
    assert wrong_above / runs <= ALPHA_BROKEN
    assert wrong_below / runs <= ALPHA_KEPT


def test_a_late_change_is_not_drowned_by_a_good_past() -> None:
    rng = np.random.default_rng(3)
    days = 12 * DAY
    good, served = bernoulli(rng, 0.002, days, 50)
    bad, more = bernoulli(rng, 0.03, DAY, 50)
    evidence = proof.log_e_above(np.append(good, bad), np.append(served, more), 0.01)
    found = first_proof(evidence, ALPHA_BROKEN)
    assert found is not None
    assert days < found < days + 3 * 12


def test_one_terrible_bucket_is_not_yet_a_proof() -> None:
    bad, requests = np.zeros(100), np.full(100, 1_000.0)
    bad[50] = 1_000.0
    evidence = proof.log_e_above(bad, requests, 0.01)
    assert evidence.max() <= MOST_PER_BUCKET
    bad[50:65] = 500.0
    assert first_proof(proof.log_e_above(bad, requests, 0.01), ALPHA_BROKEN) is not None


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0.001, 0.999))
def test_evidence_is_finite_and_never_on_both_sides(requests: int, share: float, limit: float) -> None:
    bad = share * requests
    above = float(proof.log_e_above(np.array([bad]), np.array([float(requests)]), limit)[-1])
    below = proof.log_e_below(bad, requests, limit)
    assert math.isfinite(above)
    assert math.isfinite(below)
    assert not (above >= -math.log(ALPHA_BROKEN) and proof.kept(below))


# V2 against V1


def weeks(rng: np.random.Generator, ratio: float, *, shared: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A day of three hosts at 10 %: bad requests and requests, by bucket, host and arm."""
    requests = rng.poisson([500.0, 55.0], (DAY, 3, 2)).astype(float)
    trouble = np.where(rng.random((DAY, 1, 1)) < 0.1, shared, 1.0)
    shares = np.clip(0.005 * trouble * np.array([1.0, ratio]), 0, 1)
    return rng.binomial(requests.astype(int), shares).astype(float), requests


def test_twice_the_errors_are_proved_within_hours_and_a_shared_burst_is_nobodys() -> None:
    rng = np.random.default_rng(5)
    twice = [first_proof(comparison.log_e_worse(*weeks(rng, 2.0), 1.25), ALPHA_BROKEN) for _ in range(20)]
    assert all(found is not None for found in twice)
    assert float(np.median([found or 0 for found in twice])) < 48
    same = [comparison.log_e_worse(*weeks(rng, 1.0, shared=20.0), 1.25) for _ in range(40)]
    assert all(first_proof(each, ALPHA_BROKEN) is None for each in same)


def test_a_stratum_with_one_arm_alone_says_nothing() -> None:
    bad, requests = np.zeros((10, 2, 2)), np.zeros((10, 2, 2))
    requests[:, 0, 1], bad[:, 0, 1] = 100, 50
    requests[:, 1, 0] = 100
    assert comparison.log_e_worse(bad, requests, 1.25).max() <= 0
    assert comparison.ratio(bad, requests) is None


def test_the_ratio_is_weighted_by_stratum_and_not_pooled() -> None:
    """Pooled, V2 would look twice as bad for being served where everything is bad (Simpson)."""
    requests = np.array([[[900.0, 100.0], [100.0, 900.0]]])
    bad = np.array([[[9.0, 1.0], [10.0, 90.0]]])
    assert comparison.ratio(bad, requests) == pytest.approx(1.0)


# Latency


def arms(rng: np.random.Generator, factor: float, buckets: int) -> dict[int, Arm]:
    found = {}
    for number in range(buckets):
        arm = Arm()
        busy = 300 * (1 + 0.5 * math.sin(number / 20))
        times = [float(busy * factor * rng.lognormal(0, 0.4)) for _ in range(8)]
        rates = {"delivery_rate_pct": 100.0, "completion_rate_pct": 100.0, "error_rate_pct": 0.0}
        arm.add(times, agents=1, outcome="done", fallback=None, rates_pct=rates)
        found[number] = arm
    return found


@pytest.mark.parametrize(("factor", "slower"), [(1.0, False), (1.2, False), (1.6, True)])
@pytest.mark.parametrize("statistic", ["p50", "p95", "mean"])
def test_a_slower_v2_is_found_and_an_equal_one_is_not(factor: float, slower: bool, statistic: str) -> None:
    rng = np.random.default_rng(11)
    found = latency(arms(rng, 1, 240), arms(rng, factor, 240), range(240), statistic, 1.25, seed=1)
    assert found.p_value is not None
    assert (found.p_value < 0.01) is slower
    assert found.ratio == pytest.approx(factor, rel=0.12)
    assert latency(arms(rng, 1, 50), arms(rng, 9, 50), range(50), statistic, 1.25, seed=1).p_value is None


def test_holm_corrects_for_all_and_keeps_the_order() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {
        "a": pytest.approx(0.03), "c": pytest.approx(0.06), "b": pytest.approx(0.06),
    }  # fmt: skip
    assert holm({}) == {}


# Trends


def memory(
    rng: np.random.Generator, growth_pct_a_day: float, correlation: float = 0.0
) -> list[tuple[int, float]]:
    """Three days of bucket minima of five samples with 5 % noise."""
    count, points, drift = 3 * DAY, [], 0.0
    for number in range(count):
        drift = correlation * drift + math.sqrt(1 - correlation**2) * rng.normal(0, 0.05)
        level = 200_000 * (1 + growth_pct_a_day / 100 * number / DAY)
        noise = rng.normal(0, 0.05, 5).min() if not correlation else drift
        points.append((number, level * (1 + noise)))
    return points


def test_a_leak_of_a_percent_a_day_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(2)
    leaks = [trend(memory(rng, 1.0), 864) for _ in range(10)]
    assert all(found is not None and found.low_pct > 0.5 for found in leaks)
    steady = [trend(memory(rng, 0.0), 864) for _ in range(20)]
    assert all(found is not None and found.low_pct <= 0.5 for found in steady)


def test_noise_that_wanders_is_no_leak() -> None:
    rng = np.random.default_rng(4)
    found = [trend(memory(rng, 0.0, correlation=0.95), 864) for _ in range(20)]
    assert sum(each is None or each.low_pct > 0.5 for each in found) <= 1


def test_a_trend_is_robust_and_independent_of_the_length_of_a_bucket() -> None:
    for count in (20, 1_000):
        found = trend([(index, 100 + 10 * index / count) for index in range(count)], count)
        assert found is not None
        assert found.slope_pct == pytest.approx(9.5, abs=0.3)
    flat = trend([(index, 100.0 + (900 if index == 7 else 0)) for index in range(30)], 30)
    assert flat is not None
    assert (flat.slope_pct, flat.low_pct) == (0, 0)
    assert trend([(0, 1.0), (1, 2.0)], 2) is None
    assert trend([(index, 0.0) for index in range(30)], 30) is None
