"""The outcome of a coordination and the rates that are derived from it."""

import pytest

from cfn.coordination import AgentResult, AgentState, Coordination
from cfn.errors import DamagedError


def coordination(*states: AgentState) -> Coordination:
    return Coordination(
        task_id="t",
        coordination_time_ms=1.5,
        total_time_ms=2.0,
        results=tuple(AgentResult(agent=f"agent-{n}", state=state) for n, state in enumerate(states, 1)),
    )


@pytest.mark.parametrize(
    ("states", "delivery", "completion", "error", "complete"),
    [
        ((AgentState.DONE,) * 4, 100.0, 100.0, 0.0, True),
        ((AgentState.FAILED,) * 4, 100.0, 0.0, 100.0, True),
        ((AgentState.DONE, AgentState.UNDELIVERED), 50.0, 50.0, 50.0, True),
        ((AgentState.DONE, AgentState.UNKNOWN), 100.0, 50.0, 50.0, True),
        ((AgentState.DONE, AgentState.RUNNING), 100.0, 50.0, 0.0, False),
        ((AgentState.WAITING, AgentState.DONE), 50.0, 50.0, 0.0, False),
        ((), 0.0, 0.0, 0.0, True),
    ],
)
def test_rates(
    states: tuple[AgentState, ...], delivery: float, completion: float, error: float, complete: bool
) -> None:
    found = coordination(*states)
    assert (found.delivery_rate_pct, found.completion_rate_pct, found.error_rate_pct) == (
        delivery,
        completion,
        error,
    )
    assert found.complete is complete


def test_json_there_and_back() -> None:
    found = coordination(AgentState.DONE, AgentState.UNDELIVERED)
    assert Coordination.from_json(found.as_json()) == found
    assert found.never_started == ["agent-2"]


@pytest.mark.parametrize("value", [{}, {"task_id": "t"}, {"task_id": "t", "results": 3}])
def test_damaged_json_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(DamagedError):
        Coordination.from_json(value)
