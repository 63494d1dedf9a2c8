"""What may be done to a coordinator, and what was found held against limits: tables."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cfn.errors import RefusedError, UsageError
from cfn.operate import checks, coordinators, trials
from cfn.operate.coordinators import Coordinator
from cfn.paths import Paths


def health(*states: str, topology: str = "hybrid") -> dict[str, Any]:
    """As the conductor says it: coordinators 1, 2, ... in these states."""
    rows = [
        {
            "id": number,
            "state": state,
            "failovers": 0,
            **({"pid": 100 + number, "agents": 10} if state != "down" else {}),
        }
        for number, state in enumerate(states, start=1)
    ]
    return {"topology": topology, "coordinators": rows}


@pytest.mark.parametrize(
    ("states", "number", "action", "changes"),
    [
        (("up", "up"), 1, "drain", True),
        (("draining", "up"), 1, "drain", False),
        (("up", "up"), 1, "return", False),
        (("draining", "up"), 1, "return", True),
        (("down", "up"), 1, "return", True),
        (("draining",), 1, "restart", True),  # it serves nobody any more
        (("down", "up"), 1, "failover", True),
        (("hung", "up"), 1, "failover", True),
        (("up", "down"), 2, "restart", True),
    ],
)
def test_what_changes(states: tuple[str, ...], number: int, action: str, changes: bool) -> None:
    found = coordinators.check(health(*states), number, action)
    assert coordinators.changes(found, action) is changes


@pytest.mark.parametrize(
    ("states", "number", "action", "error", "words"),
    [
        (("up", "up"), 3, "drain", UsageError, "coordinator 3 does not exist on this host; there are 1, 2"),
        (("up", "down"), 1, "drain", RefusedError, "the last healthy one"),
        (("up", "draining"), 1, "failover", RefusedError, "the last healthy one"),
        (("up", "hung"), 1, "restart", RefusedError, "the last healthy one"),
        (("down", "up"), 1, "drain", RefusedError, "only one that is up can be drained"),
    ],
)
def test_what_is_refused(
    states: tuple[str, ...], number: int, action: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        coordinators.check(health(*states), number, action)


def test_a_flat_topology_has_none() -> None:
    with pytest.raises(RefusedError, match="topology is flat"):
        coordinators.check(health(topology="flat"), 1, "drain")


def test_the_prediction_changes_one_only() -> None:
    rows = coordinators.listed(health("up", "up"))
    assert [each.state for each in coordinators.predicted(rows, 2, "drain")] == ["up", "draining"]


@pytest.mark.parametrize(("agents", "found"), [((10, 10), 0.0), ((9, 11), 10.0), ((), None), ((0, 0), None)])
def test_imbalance(agents: tuple[int, ...], found: float | None) -> None:
    rows = [
        coordinators.Coordinator(number=number, state="up", agents=count)
        for number, count in enumerate(agents, start=1)
    ]
    assert coordinators.imbalance_pct(rows) == found


LIMITS = {
    "worker_imbalance_pct": {"compare": "le", "threshold": 10, "unit": "pct"},
    "fd_count": {"compare": "lt", "threshold": 10_000, "unit": "count"},
}


@pytest.mark.parametrize(
    ("imbalance_pct", "fd_count", "ok", "words"),
    [
        (10.0, 9_999.0, True, "worker_imbalance_pct: 10 pct, allowed at most 10 pct"),
        (10.1, 1.0, False, "worker_imbalance_pct: 10.1 pct, allowed at most 10 pct. do this"),
        (0.0, 10_000.0, False, "fd_count: 10000 count, allowed below 10000 count. do that"),
        (None, 1.0, False, "worker_imbalance_pct: not measured, allowed at most 10 pct. do this"),
    ],
)
def test_figures_are_held_against_limits(
    imbalance_pct: float | None, fd_count: float, ok: bool, words: str
) -> None:
    found = checks.hold(
        {"worker_imbalance_pct": imbalance_pct, "fd_count": fd_count},
        checks.limits_of(LIMITS),
        {"worker_imbalance_pct": "do this", "fd_count": "do that"},
    )
    result = checks.verdict(found)
    assert result["ok"] is ok
    assert words in result["summary"]


def test_a_figure_without_a_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="no limit is given for memory_worker_kb"):
        checks.hold({"memory_worker_kb": 1.0}, checks.limits_of(LIMITS), {})


@pytest.mark.parametrize(
    "value", [[], {"a": 1}, {"a": {"compare": "eq", "threshold": 1}}, {"a": {"compare": "lt"}}]
)
def test_limits_that_make_no_sense(value: object) -> None:
    with pytest.raises(UsageError, match="limit"):
        checks.limits_of(value)


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        ([[8, 8, 8, 11], [8, 8, 8, 8]], 0),  # a live request came and went
        ([[0, 0, 0, 0], [3, 8, 8, 8], [8, 8, 8, 8]], 0),  # the swarm is still being made
        ([[4, 8, 8, 12]], 50),  # nobody else is there: no second look
        ([[8, 8, 8, 11], [8, 8, 9, 12], [8, 8, 8, 12]], 25.714),  # somebody always is
    ],
)
def test_of_the_looks_at_the_balance_the_evenest_counts(
    monkeypatch: pytest.MonkeyPatch, looks: list[list[int]], found: float
) -> None:
    left = [
        [Coordinator(number=number, state="up", agents=agents) for number, agents in enumerate(look, start=1)]
        for look in looks
    ]
    monkeypatch.setattr(trials, "SETTLE_S", 0.3)
    monkeypatch.setattr(trials, "hybrid", lambda _: {})
    monkeypatch.setattr(trials, "health", lambda _: {})
    monkeypatch.setattr(trials, "swarm", lambda *_: nullcontext())
    monkeypatch.setattr(coordinators, "listed", lambda _: left.pop(0) if len(left) > 1 else left[0])
    left.insert(0, left[0])  # the one that counts how many there should be
    assert trials.load_balance(Paths(Path("/nowhere")), 32, 1) == {
        "coordinators_missing": 0,
        "worker_imbalance_pct": found,
    }
