"""A soak's account: what is a problem, and how it stands between its start and its end."""

import json
from pathlib import Path
from typing import Any

import pytest

from cfn.errors import RefusedError, UsageError
from cfn.load.account import Account
from cfn.operate import soak
from cfn.operate.checks import limits_of
from cfn.paths import Paths

LIMITS = {
    "fd_count": {"compare": "lt", "threshold": 10_000, "unit": "count"},
    "memory_coordinator_kb": {"compare": "lt", "threshold": 1_500_000, "unit": "kb"},
    "delivery_rate_pct": {"compare": "ge", "threshold": 90, "unit": "pct"},
}
USED = {"memory_kb": 1_000.0, "fd_count": 100.0, "memory_coordinator_kb": None}


def filled(*answers: tuple[str, float] | None) -> Account:
    """An account of one task for each: its outcome and delivery, or None for one without an answer."""
    account = Account(planned=len(answers))
    for number, answer in enumerate(answers):
        account.open(f"t{number}", late_s=0.0)
        if answer is not None:
            outcome, delivery_pct = answer
            body = {"outcome": outcome, "coordination": {"delivery_rate_pct": delivery_pct}}
            account.answered(f"t{number}", 200, json.dumps(body).encode(), latency_s=0.1)
    return account


@pytest.mark.parametrize(
    ("answers", "last", "problem"),
    [
        ([("done", 100.0)] * 3, USED, ""),
        ([("done", 100.0), None], USED, "1 of 2 requests were not answered exactly once (1 never, 0 twice)"),
        ([("done", 100.0), ("failed", 100.0)], USED, "1 requests failed and 0 were answered in part"),
        ([("partial", 100.0)], USED, "0 requests failed and 1 were answered in part"),
        ([("done", 89.0)], USED, "delivery_rate_pct: 89 pct, allowed at least 90 pct"),
        ([("done", 100.0)], USED | {"fd_count": 10_000.0}, "fd_count: 10000 count, allowed below 10000"),
        ([], USED, "no request was sent"),
    ],
)
def test_what_is_a_problem(
    answers: list[tuple[str, float] | None], last: dict[str, float | None], problem: str
) -> None:
    found = soak.account(filled(*answers).report(1.0), USED, last, limits_of(LIMITS))
    assert found["ok"] is (not problem)
    assert problem in " ".join(found["problems"])
    assert found["growth"]["memory_kb"] == 0


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A host's folders; systemd does nothing, and says that the unit runs."""
    paths = Paths(tmp_path)
    paths.state.mkdir(parents=True)
    monkeypatch.setattr(soak, "_system", lambda _argv: None)
    monkeypatch.setattr(soak, "_active", lambda: True)
    return paths


def order(**changes: Any) -> soak.Order:
    fields = {"soak": "soak-1", "seconds": 60, "rate_per_s": 1.0, "sizes": "1:1", "limits": LIMITS}
    return soak.Order(**{**fields, **changes})


def test_from_the_start_to_the_account(here: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    assert soak.status(here)["state"] == "none"
    assert soak.start(here, order(), check=True)["changed"]
    assert soak.status(here)["state"] == "none"
    assert soak.start(here, order(), check=False)["state"] == "running"
    again = soak.start(here, order(soak="soak-2"), check=False)
    assert (again["changed"], again["soak"]) == (False, "soak-1")
    with pytest.raises(RefusedError, match="60 s runs already"):
        soak.start(here, order(seconds=61), check=False)
    monkeypatch.setattr(soak, "_active", lambda: False)
    assert soak.status(here)["state"] == "lost"
    result = {"soak": "soak-1", "since": "then", "stopped": False, "ok": True, "problems": []}
    (soak.folder(here) / "result.json").write_text(json.dumps(result))
    assert soak.status(here)["state"] == "done"
    assert soak.stop(here, check=False)["changed"] is False


def test_an_order_that_is_not_bounded_starts_nothing(here: Paths) -> None:
    with pytest.raises(UsageError):
        soak.start(here, order(seconds=10**9), check=False)
    assert soak.status(here)["state"] == "none"
