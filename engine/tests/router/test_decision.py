"""When V1 is called in, for which agents, and how the parts become one answer."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.config import Config
from cfn.coordination import FINAL_STATES, AgentResult, AgentState, Coordination
from cfn.router.decision import V2End, V2Result, decide, merge, outcome_of, served_by, settle

D, F, U, X, W, R = (
    AgentState.DONE,
    AgentState.FAILED,
    AgentState.UNDELIVERED,
    AgentState.UNKNOWN,
    AgentState.WAITING,
    AgentState.RUNNING,
)
CONFIG = Config(fallback_delivery_pct=Decimal(80))


def coordination(*states: AgentState, time_ms: float = 1.0) -> Coordination:
    return Coordination(
        task_id="t",
        coordination_time_ms=time_ms,
        total_time_ms=time_ms,
        results=tuple(AgentResult(agent=f"agent-{n}", state=s) for n, s in enumerate(states, 1)),
    )


@pytest.mark.parametrize(
    ("end", "states", "fallback", "agents"),
    [
        (V2End.ANSWERED, [D, D, D, D], None, []),
        (V2End.ANSWERED, [F, F, F, F], None, []),  # they ran: never rerun
        (V2End.ANSWERED, [D, D, D, D, U], None, []),  # 80 % is not below 80 %
        (V2End.ANSWERED, [D, D, D, U], "delivery", ["agent-4"]),
        (V2End.ANSWERED, [X, F, D, U], "delivery", ["agent-4"]),
        (V2End.ANSWERED, [U, U], "delivery", ["agent-1", "agent-2"]),
        (V2End.NOT_ACCEPTED, [U, U], "error", ["agent-1", "agent-2"]),
        (V2End.REVOKED, [D, R, U], "time", ["agent-3"]),
        (V2End.REVOKED, [D, R, R], None, []),  # slow but complete reruns nothing
        (V2End.REFUSED, [U, U], "error", ["agent-1", "agent-2"]),
        (V2End.OVERLOADED, [U, U], "error", ["agent-1", "agent-2"]),
        (V2End.HELD, [U, U], "error", ["agent-1", "agent-2"]),
        (V2End.LOST, [X, X], None, []),  # nothing is certain, so nothing is rerun
    ],
)
def test_fallback_table(
    end: V2End, states: list[AgentState], fallback: str | None, agents: list[str]
) -> None:
    result = V2Result(end=end, coordination=coordination(*states))
    decision = decide(result, CONFIG, v1_takes_list=True, v1_free=True)
    assert (decision.fallback, list(decision.agents)) == (fallback, agents)


@pytest.mark.parametrize(("states", "fallback"), [([U, U], "delivery"), ([D, U], None)])
def test_a_v1_without_lists_gets_only_untouched_tasks(states: list[AgentState], fallback: str | None) -> None:
    result = V2Result(end=V2End.ANSWERED, coordination=coordination(*states))
    decision = decide(result, CONFIG, v1_takes_list=False, v1_free=True)
    assert decision.fallback == fallback
    assert bool(decision.detail) == (fallback is None)


def test_disabled_fallback_answers_what_v2_made_of_it() -> None:
    result = V2Result(end=V2End.NOT_ACCEPTED, coordination=coordination(U), detail="absent")
    decision = decide(result, Config(fallback_enabled=False), v1_takes_list=True, v1_free=True)
    assert decision.fallback is None
    assert decision.detail == "absent; CFN_FALLBACK_ENABLED is false"


@given(
    end=st.sampled_from(V2End),
    states=st.lists(st.sampled_from([*FINAL_STATES, R]), min_size=1, max_size=12),
    threshold=st.integers(0, 100),
    takes_list=st.booleans(),
    v1_free=st.booleans(),
)
def test_only_agents_that_never_started_are_ever_given_to_v1(
    end: V2End, states: list[AgentState], threshold: int, takes_list: bool, v1_free: bool
) -> None:
    result = V2Result(end=end, coordination=coordination(*states))
    config = Config(fallback_delivery_pct=Decimal(threshold))
    decision = decide(result, config, v1_takes_list=takes_list, v1_free=v1_free)
    assert set(decision.agents) <= set(result.coordination.never_started)
    assert bool(decision.agents) == (decision.fallback is not None)
    if decision.agents and not takes_list:
        assert len(decision.agents) == len(states)


@pytest.mark.parametrize(
    ("config", "end", "v1_free", "refused", "fallback"),
    [
        (CONFIG, V2End.OVERLOADED, True, False, "error"),  # V1 has a slot that nobody waits for
        (CONFIG, V2End.OVERLOADED, False, True, None),  # an overloaded V2 does not drown V1
        (Config(fallback_enabled=False), V2End.OVERLOADED, True, True, None),
        (Config(v1_enabled=False), V2End.OVERLOADED, True, True, None),
        (CONFIG, V2End.NOT_ACCEPTED, False, False, "error"),  # waits for its turn
        (Config(fallback_enabled=False), V2End.HELD, False, False, "error"),
        (Config(v1_enabled=False), V2End.NOT_ACCEPTED, True, False, None),
        (Config(v1_enabled=False), V2End.ANSWERED, True, False, None),
    ],
)
def test_who_is_told_to_come_again(
    config: Config, end: V2End, v1_free: bool, refused: bool, fallback: str | None
) -> None:
    result = V2Result(end=end, coordination=coordination(U, U))
    decision = decide(result, config, v1_takes_list=True, v1_free=v1_free)
    assert (decision.refuse, decision.fallback) == (refused, fallback)


@given(
    states=st.lists(st.sampled_from(FINAL_STATES), min_size=1, max_size=12),
    rescued=st.lists(st.sampled_from(FINAL_STATES), min_size=12, max_size=12),
)
def test_merged_answers_account_for_every_agent_once(
    states: list[AgentState], rescued: list[AgentState]
) -> None:
    v2 = coordination(*states)
    again = [AgentResult(agent=agent, state=s) for agent, s in zip(v2.never_started, rescued, strict=False)]
    v1 = Coordination(task_id="t", coordination_time_ms=9.0, total_time_ms=9.0, results=again)
    merged = merge(v2, v1)
    assert [r.agent for r in merged.results] == [r.agent for r in v2.results]
    assert sum(merged.states.values()) == len(states)
    for before, after in zip(v2.results, merged.results, strict=True):
        assert after.state is before.state or before.state is U
    assert merged.coordination_time_ms == 9.0


@pytest.mark.parametrize(
    ("states", "outcome"), [([D, D], "done"), ([D, X], "partial"), ([U, F], "failed"), ([X], "failed")]
)
def test_outcome(states: list[AgentState], outcome: str) -> None:
    assert outcome_of(coordination(*states)) == outcome


@pytest.mark.parametrize(
    ("end", "states", "v1_ran", "served"),
    [
        (V2End.ANSWERED, [D], False, "v2"),
        (V2End.ANSWERED, [D, U, U], True, "both"),
        (V2End.ANSWERED, [D, U, U], False, "v2"),  # V1 was called in and could not start
        (V2End.ANSWERED, [U], True, "v1"),
        (V2End.NOT_ACCEPTED, [U], True, "v1"),
        (V2End.NOT_ACCEPTED, [U], False, "none"),
        (V2End.LOST, [X], False, "v2"),
    ],
)
def test_served(end: V2End, states: list[AgentState], v1_ran: bool, served: str) -> None:
    result = V2Result(end=end, coordination=coordination(*states))
    assert (
        served_by(result, decide(result, CONFIG, v1_takes_list=True, v1_free=True), v1_ran=v1_ran) == served
    )


def test_what_is_not_heard_of_any_more_is_unknown() -> None:
    settled = settle(coordination(D, R, W, U), "gone")
    assert [r.state for r in settled.results] == [D, X, X, U]
