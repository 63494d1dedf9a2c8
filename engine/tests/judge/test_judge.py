"""The judge from end to end: files as the router and the collector write them, in; a verdict, out."""

from typing import Any

import pytest

from cfn.judge import judge as judge_module
from cfn.judge.judge import judge
from cfn.judge.request import read_request
from cfn.metrics.times import format_ms
from engine.tests.judge.conftest import SINCE_MS

FULL_S = 66


def by_name(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in verdict["results"]}


def broken(verdict: dict[str, Any]) -> set[str]:
    return {each["name"] for each in verdict["results"] if each["verdict"] == "FAIL"}


LOST = {"trigger_delivery_rate", "delivery_rate", "error_rate", "delivery_vs_v1", "error_vs_v1"}

# What V2 does


@pytest.mark.parametrize("part", ["staging", "production"])
def test_a_perfect_v2_passes(fleet: Any, part: str) -> None:
    fleet.traffic_pct = 100.0 if part == "staging" else 10.0
    verdict = fleet.write(FULL_S).judge(FULL_S, part=part)
    assert (verdict["verdict"], verdict["exit_code"]) == ("PASS", 0), verdict["reasons"]
    assert verdict["observed"]["v2_share_pct"] == pytest.approx(fleet.traffic_pct, abs=1.5)
    assert "1:10080; worth nothing outside the lab" in verdict["time_scale"]["note"]


@pytest.mark.parametrize(
    ("changes", "seconds", "culprits"),
    [
        ({"undelivered_pct": 30}, FULL_S, LOST),
        ({"undelivered_pct": 30}, 20, LOST),
        ({"failed_pct": 100}, 20, {"error_rate", "error_vs_v1"}),
        ({"failed_pct": 4}, FULL_S, {"error_rate", "error_vs_v1"}),
        ({"v2_time_ms": 9_000}, FULL_S, {"coordination_time"}),
        ({"v2_time_ms": 20_000}, 20, {"trigger_coordination_time", "coordination_time"}),
        ({"crash_at_s": 10}, 20, {"trigger_crash", "no_crash"}),
        ({"crash_at_s": 1}, 20, {"trigger_crash", "no_crash"}),
        ({"fallback": "error"}, 20, {"no_fallback"}),
        ({"tmpfs_pct": 91}, 20, {"trigger_tmpfs", "tmpfs_free"}),
        ({"fd_count": 12_001}, 20, {"trigger_fd_exhaustion"}),
    ],
)
def test_a_degraded_v2_fails_by_name(
    fleet: Any, behaviour: Any, changes: dict[str, Any], seconds: int, culprits: set[str]
) -> None:
    verdict = fleet.write(seconds, behaviour(**changes)).judge(seconds)
    assert (verdict["verdict"], verdict["exit_code"]) == ("FAIL", 10)
    assert broken(verdict) == culprits
    assert all(any(name in reason for reason in verdict["reasons"]) for name in culprits)


def test_a_crash_right_after_a_flip_within_a_bucket_is_seen(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(20, behaviour(crash_at_s=1)).judge(20, since=format_ms(SINCE_MS + 100))
    assert broken(verdict) == {"trigger_crash", "no_crash"}


@pytest.mark.parametrize(
    ("release", "word"), [("1.0.0", "PASS"), ("0.9.0, 1.0.0", "PASS"), ("", "PASS"), ("2.0.0", "ERROR")]
)
def test_the_evidence_is_of_the_release_that_is_asked_about(fleet: Any, release: str, word: str) -> None:
    verdict = fleet.write(FULL_S).judge(FULL_S, release=release)
    assert verdict["verdict"] == word, verdict["reasons"]
    if word == "ERROR":
        assert "ran release 1.0.0; the question is about 2.0.0" in verdict["reasons"][0]


def test_growing_memory_fails_in_staging(fleet: Any, behaviour: Any) -> None:
    fleet.traffic_pct = 100.0
    verdict = fleet.write(FULL_S, behaviour(memory_growth_pct=200)).judge(FULL_S, part="staging")
    assert broken(verdict) == {"memory_stable", "memory_no_leak"}


@pytest.mark.parametrize(("floor", "verdict"), [(0, "FAIL"), (300_000, "FAIL"), (500_000, "PASS")])
def test_growth_counts_from_its_floor(fleet: Any, behaviour: Any, floor: float, verdict: str) -> None:
    """From 200,000 kB to twice as much and 1 % of noise."""
    criterion: dict[str, Any] = {"name": "memory", "metric": "memory_kb", "statistic": "slope"}
    criterion |= {"unit": "pct_per_window", "compare": "le", "threshold": 10, "min_samples": 10}
    criterion |= {"scope": "worst_host", "floor": floor}
    changes = {"criteria": [criterion], "triggers": []}
    found = fleet.write(FULL_S, behaviour(memory_growth_pct=100)).judge(FULL_S, **changes)
    assert found["verdict"] == verdict, found["reasons"]
    assert (f"growth counts from {floor:g}" in by_name(found)["memory"]["reason"]) == (verdict == "PASS")


def test_the_reason_names_metric_value_unit_samples_and_limit(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(FULL_S, behaviour(v2_time_ms=9_000)).judge(FULL_S)
    result = by_name(verdict)["coordination_time"]
    for part in ("p95", "coordination_time_ms", "ms", f"{result['samples']} requests", "below 5000 ms"):
        assert part in result["reason"]
    assert result["observed"] > 9_000


def test_what_v1_rescued_stays_the_failure_of_v2(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(20, behaviour(undelivered_pct=30, fallback="delivery")).judge(20)
    assert {"delivery_rate", "no_fallback"} <= broken(verdict)


def test_a_few_errors_early_are_held_until_they_prove_something(fleet: Any, behaviour: Any) -> None:
    """Half a percent of errors can look like more than one percent in the first minutes."""
    verdict = fleet.write(12, behaviour(failed_pct=1.2, requests_per_s=40)).judge(12)
    found = by_name(verdict)["error_rate"]
    assert found["observed"] > 1
    assert (found["verdict"], found["proof"]["proved_broken"]) == ("INCONCLUSIVE", False)


# Time and evidence


def test_a_window_that_is_not_full_says_when_to_ask_again(fleet: Any) -> None:
    early = fleet.write(30).judge(30)
    assert (early["verdict"], early["exit_code"]) == ("INCONCLUSIVE", 11)
    assert early["ask_again_at"] == "2023-11-14T22:14:24.000Z"
    assert any("time until" in each for each in early["missing"])
    fleet.write(64)
    assert fleet.judge(64.0)["verdict"] == "PASS"
    assert fleet.judge(63.9)["verdict"] == "INCONCLUSIVE"


def test_while_traffic_settles_nothing_is_judged(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(3, behaviour(v2_time_ms=60_000)).judge(3)
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert "settling" in by_name(verdict)["coordination_time"]["reason"]


def test_idle_is_held_and_never_failed(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(FULL_S, behaviour(requests_per_s=0)).judge(FULL_S)
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert "idle" in verdict["reasons"][0]
    assert verdict["observed"]["v2_share_pct"] is None


def test_too_few_requests_are_held_and_counted(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(FULL_S, behaviour(requests_per_s=1)).judge(FULL_S)
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert any("more" in each for each in verdict["missing"])


def test_staging_wants_its_limits_proved(fleet: Any, behaviour: Any) -> None:
    fleet.traffic_pct = 100.0
    verdict = fleet.write(FULL_S, behaviour(requests_per_s=1)).judge(FULL_S, part="staging")
    assert by_name(verdict)["error_rate"]["verdict"] == "INCONCLUSIVE"
    assert "201 more requests as good as the 186 so far" in by_name(verdict)["error_rate"]["missing"]
    assert by_name(verdict)["delivery_rate"]["verdict"] == "PASS"


@pytest.mark.parametrize("silent_s", [(0, FULL_S), (20, 45), (60, FULL_S), (3, 14)])
def test_a_silent_collector_is_no_data(fleet: Any, behaviour: Any, silent_s: tuple[float, float]) -> None:
    verdict = fleet.write(FULL_S, behaviour(collector_silent_s=silent_s)).judge(FULL_S)
    assert (verdict["verdict"], verdict["exit_code"]) == ("NO_DATA", 12)


def test_starts_that_cannot_be_read_are_no_sign_of_health(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(FULL_S, behaviour(starts_readable=False)).judge(FULL_S)
    assert verdict["verdict"] == "NO_DATA"
    assert by_name(verdict)["no_crash"]["verdict"] == "NO_DATA"


def test_a_fail_outweighs_missing_data(fleet: Any, behaviour: Any) -> None:
    how = behaviour(undelivered_pct=30, collector_silent_s=(20, 45))
    assert fleet.write(FULL_S, how).judge(FULL_S)["verdict"] == "FAIL"


def test_an_exception_in_the_judge_is_an_error(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = read_request(fleet.write(FULL_S).request(FULL_S))

    def fails(*_: object) -> None:
        raise ZeroDivisionError("by accident")

    with monkeypatch.context() as patched:
        patched.setattr(judge_module, "evaluate", fails)
        verdict = judge(request)
        assert (verdict["verdict"], len(verdict["results"])) == ("ERROR", 21)
    monkeypatch.setattr(judge_module, "_compose", fails)
    assert judge(request)["verdict"] == "ERROR"


def test_nothing_but_dry_runs_is_never_a_pass(fleet: Any) -> None:
    request = fleet.write(FULL_S).request(FULL_S)
    for each in request["criteria"] + request["triggers"]:
        each["dry_run"] = True
    verdict = judge(read_request(request))
    assert verdict["verdict"] == "ERROR"


def test_a_dry_run_is_shown_and_not_counted(fleet: Any, behaviour: Any) -> None:
    request = fleet.write(FULL_S, behaviour(v2_time_ms=9_000)).request(FULL_S)
    for each in request["criteria"]:
        each["dry_run"] = each.get("dry_run", False) or each["name"] == "coordination_time"
    verdict = judge(read_request(request))
    assert verdict["verdict"] == "PASS"
    assert by_name(verdict)["coordination_time"]["verdict"] == "FAIL"


def test_a_clock_that_is_a_little_ahead_is_settling_and_not_refused(fleet: Any) -> None:
    verdict = fleet.write(FULL_S).judge(FULL_S, since="2023-11-14T22:14:31.000Z")
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert "settling" in verdict["reasons"][0]
