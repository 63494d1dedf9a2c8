"""What V1 prints, and what it amounts to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.coordination import FINAL_STATES, AgentState
from cfn.router.v1_contract import V1Reading

LAST = "delivery_rate=100.0 agents_coordinated=3 coordination_time_ms=12"
AGENTS = ["agent-1", "agent-2", "agent-3"]


def read(*lines: str, exit_code: int | None = 0, ended: str = "") -> tuple[list[str], str]:
    reading = V1Reading(AGENTS)
    for line in lines:
        reading.feed(line)
    results, problem = reading.results(exit_code=exit_code, ended=ended)
    return [str(result.state) for result in results], problem


def last(rate: str, agents: int) -> str:
    return f"delivery_rate={rate} agents_coordinated={agents} coordination_time_ms=1"


def lines(*states: str) -> list[str]:
    return [f"agent=agent-{n} state={state}" for n, state in enumerate(states, 1)]


@pytest.mark.parametrize(
    ("printed", "exit_code", "states", "problem"),
    [
        ([LAST], 0, ["done"] * 3, ""),
        ([last("66.7", 3)], 0, ["done", "done", "undelivered"], ""),
        ([last("100", 2)], 0, ["done", "done", "undelivered"], ""),
        ([*lines("done", "failed", "undelivered"), LAST], 1, ["done", "failed", "undelivered"], ""),
        ([*lines("done", "done", "done"), LAST], 1, ["done"] * 3, ""),
        ([*lines("done", "running"), LAST], 0, ["done", "unknown", "unknown"], ""),
        ([LAST], 1, ["unknown"] * 3, "exited 1 after"),
        ([], 0, ["unknown"] * 3, "without its last line"),
        (["lorem ipsum", "dolor"], 0, ["unknown"] * 3, "it printed 'lorem ipsum'"),
        (lines("done"), -9, ["done", "unknown", "unknown"], "exited -9 without"),
        ([last("100.0", 99)], 0, ["unknown"] * 3, "for 3 agents"),
        ([last("999", 3)], 0, ["unknown"] * 3, "for 3 agents"),
        (["agent=agent-9 state=done", LAST], 0, ["done"] * 3, ""),
        ([], None, ["undelivered"] * 3, ""),
    ],
)  # fmt: skip
def test_table(printed: list[str], exit_code: int | None, states: list[str], problem: str) -> None:
    found, said = read(*printed, exit_code=exit_code)
    assert found == states
    assert problem in said
    assert bool(problem) == bool(said)


def test_a_v1_ended_from_outside_leaves_unknown_what_it_did_not_report() -> None:
    states, problem = read(*lines("done", "running"), exit_code=-15, ended="it did not end in time")
    assert states == ["done", "unknown", "unknown"]
    assert problem == "it did not end in time"


def test_output_and_exit_code_are_read() -> None:
    reading = V1Reading(["a"])
    assert reading.feed("agent=a state=running")
    assert reading.all_acknowledged
    assert not reading.feed("agent=a state=done exit_code=0 output=50%25 of%0Aall agent=b")
    result = reading.results(exit_code=0, ended="")[0][0]
    assert (result.exit_code, result.output) == (0, "50% of\nall agent=b")


@given(
    printed=st.lists(st.one_of(st.text(max_size=30), st.sampled_from([LAST, *lines("done", "running")]))),
    exit_code=st.one_of(st.none(), st.integers(-9, 255)),
)
def test_whatever_is_printed_every_agent_ends_in_one_final_state(
    printed: list[str], exit_code: int | None
) -> None:
    states, _ = read(*printed, exit_code=exit_code)
    assert len(states) == 3
    assert {AgentState(state) for state in states} <= set(FINAL_STATES)
