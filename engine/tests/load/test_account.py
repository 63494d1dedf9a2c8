"""The account: every request that was sent is answered once, answered twice, or never."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.load.account import Account, LoadReport, percentile


def body(outcome: str = "done", **values: object) -> bytes:
    answer = {"outcome": outcome, "ordered": "v1", "served": "v1", "generation": 1, "fallback": None}
    return json.dumps(answer | {"reason": "split", "detail": ""} | values).encode()


def account_of(*answers: bytes | None) -> Account:
    account = Account(planned=len(answers))
    for number, answer in enumerate(answers):
        account.open(f"t-{number}", late_s=0)
        if answer is not None:
            account.answered(f"t-{number}", 200, answer, latency_s=0.01)
    return account


def test_all_well() -> None:
    report = account_of(body(), body(ordered="v2", served="v2")).report(2.0)
    assert report.ok
    assert (report.answered_once, report.by_ordered) == (2, {"v1": 1, "v2": 1})
    assert report.as_json()["ok"] is True
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))


def test_nothing_sent_is_not_well() -> None:
    assert not Account(planned=3).report(0).ok


def test_never_answered() -> None:
    account = account_of(body(), None)
    account.unanswered("t-1", "timed out")
    assert account.open_ids() == ["t-1"]
    report = account.report(1)
    assert (report.answered_once, report.never, report.ok) == (1, 1, False)
    assert report.failures == ["t-1: never answered: timed out"]


def test_answered_when_asked() -> None:
    account = account_of(None)
    account.answered("t-0", 200, body(), latency_s=None)
    report = account.report(1)
    assert (report.ok, report.answered_by_asking, report.latency_ms) == (True, 1, {})


def test_a_router_that_does_not_know_the_task_is_not_asked_again() -> None:
    account = account_of(None, body())
    account.not_known("t-0")
    account.not_known("t-1")  # has been answered: it was only forgotten
    assert account.open_ids() == []
    report = account.report(1)
    assert (report.never, report.answered_once) == (1, 1)
    assert "does not know it" in report.failures[0]


def test_two_answers_that_differ_and_two_that_do_not() -> None:
    account = account_of(body(), body())
    account.answered("t-0", 200, body(), latency_s=None)
    account.answered("t-1", 200, body(served="v2"), latency_s=None)
    report = account.report(1)
    assert (report.answered_once, report.answered_twice, report.ok) == (1, 1, False)
    assert report.failures == ["t-1: two answers that differ"]


@pytest.mark.parametrize(
    ("answer", "failed", "partial"),
    [
        (body("failed", detail="V1 is gone"), 1, 0),
        (body("refused"), 1, 0),
        (body("partial"), 0, 1),
        (b"<html>", 1, 0),
        (b"{}", 1, 0),
        (b"[]", 1, 0),
    ],
)
def test_answers_that_are_not_done(answer: bytes, failed: int, partial: int) -> None:
    report = account_of(answer).report(1)
    assert (report.failed, report.partial, report.ok) == (failed, partial, False)
    assert len(report.failures) == failed


def test_only_the_first_reasons_are_shown() -> None:
    assert len(account_of(*[body("failed")] * 100).report(1).failures) == 5


def test_shares_by_generation_without_what_is_outside_the_split() -> None:
    v2 = {"ordered": "v2", "served": "v2"}
    account = account_of(
        body(), body(**v2), body(generation=2), body(generation=2, **v2), body(reason="over_capacity")
    )
    account.saw_generation({"generation": 1, "version": "v2", "traffic_pct": 50})
    assert account.report(1).expected_share_pct is None  # generation 2 was never seen
    account.saw_generation({"generation": 2, "version": "v1", "traffic_pct": 50})
    report = account.report(1)
    assert (report.observed_share_pct, report.expected_share_pct) == (50.0, 25.0)
    assert report.over_capacity == 1
    assert report.generations["2"] == {"ordered_pct": 0.0, "observed_pct": 50.0, "v1": 1, "v2": 1}


def test_late_starts_and_retries() -> None:
    account = Account(planned=2)
    account.open("a", late_s=0.2)
    account.open("b", late_s=0.01)
    account.retried("a", refused=False)
    account.retried("a", refused=False)
    account.answered("a", 200, body(), latency_s=0.1)
    account.answered("b", 200, body(), latency_s=0.1)
    report = account.report(1)
    assert (report.late_starts, report.latest_start_ms, report.retries) == (1, 200.0, 2)
    assert account.answered_ids(1)[0] == "a"  # what was retried is looked at again


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (95, 95), (99, 99), (100, 100)])
def test_percentile(percent: int, expected: int) -> None:
    assert percentile(range(100, 0, -1), percent) == expected


steps = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["answer", "other", "lost", "unknown", "retry"])),
    max_size=60,
)


@given(steps=steps)
def test_the_account_always_adds_up(steps: list[tuple[int, str]]) -> None:
    account = account_of(*[None] * 10)
    for number, step in steps:
        task_id = f"t-{number}"
        match step:
            case "answer":
                account.answered(task_id, 200, body(), latency_s=0.1)
            case "other":
                account.answered(task_id, 200, body("failed"), latency_s=None)
            case "lost":
                account.unanswered(task_id, "reset")
            case "unknown":
                account.not_known(task_id)
            case "retry":
                account.retried(task_id, refused=False)
    report: LoadReport = account.report(1)
    assert report.answered_once + report.answered_twice + report.never == report.sent == 10
    answered = {number for number, step in steps if step in ("answer", "other")}
    both = {n for n in answered if {s for m, s in steps if m == n} >= {"answer", "other"}}
    assert report.never == 10 - len(answered)
    assert report.answered_twice == len(both)
    assert sum(report.by_ordered.values()) == len(answered)
