"""The breaker: its table of transitions, what holds in any order of events, and that nothing is forgotten."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cfn.config import Config
from cfn.coordination import AgentResult, AgentState, Coordination
from cfn.router.breaker import Breaker, Rules, State, what_was_bad
from cfn.router.breaker_keeper import BreakerKeeper
from cfn.router.decision import V2End, V2Result

RULES = Rules(window_requests=4, failures=2, minimum_requests=3, engine_s=5.0, probe_s=10.0)
D, F, U, X, R = (
    AgentState.DONE,
    AgentState.FAILED,
    AgentState.UNDELIVERED,
    AgentState.UNKNOWN,
    AgentState.RUNNING,
)


def after(results: str, rules: Rules = RULES) -> Breaker:
    """A breaker that saw V2's results: `.` a good one, `x` a bad one, `?` one that says nothing."""
    breaker = Breaker()
    for result in results:
        breaker = breaker.judged({".": "", "x": "time", "?": None}[result], rules, 100.0)
    return breaker


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("", State.CLOSED),
        ("xx", State.CLOSED),  # fewer than the minimum
        ("xx.", State.CLOSED),  # a good one never opens it
        (".xx", State.OPEN),
        ("x.x", State.OPEN),
        ("x...x", State.CLOSED),  # the first has left the window of four
        ("x..x", State.OPEN),
        ("x??.??x", State.OPEN),  # what says nothing takes no place
        ("x.??", State.CLOSED),
    ],
)
def test_n_of_m_with_a_minimum(results: str, state: State) -> None:
    assert after(results).state is state


def test_the_reason_counts_what_was_bad() -> None:
    breaker = after(".x").judged("delivery", RULES, 0.0)
    assert breaker.reason == "2 of V2's last 3 requests were bad: 1 delivery, 1 time"


def test_no_failures_configured_never_opens_it() -> None:
    assert Rules.of(Config(breaker_failures=0)).failures == 0
    assert after("x" * 50, Rules.of(Config(breaker_failures=0))).state is State.CLOSED


def test_without_v1_nothing_opens_it() -> None:
    rules = Rules.of(Config(v1_enabled=False))
    assert after("x" * 50, rules).state is State.CLOSED
    assert Breaker().silent(1e9, rules, 0.0).state is State.CLOSED


@pytest.mark.parametrize(
    ("silent_s", "state"), [(0.0, State.CLOSED), (4.999, State.CLOSED), (5.0, State.OPEN)]
)
def test_a_silent_engine_opens_it(silent_s: float, state: State) -> None:
    assert Breaker().silent(silent_s, RULES, 0.0).state is state


def test_open_holds_all_and_only_an_order_closes() -> None:
    breaker = Breaker().opened("why", "ann", RULES, 100.0)
    no_probes = Rules(window_requests=4, failures=2, minimum_requests=3, engine_s=5.0, probe_s=0.0)
    assert {breaker.admit(no_probes, now)[1] for now in (100.0, 1e6)} == {"held"}
    assert breaker.judged("", no_probes, 1e6) is breaker
    closed = breaker.closed("mended", "bob")
    assert (closed.state, closed.reason, closed.by, closed.recent) == (State.CLOSED, "mended", "bob", ())


def test_probes_are_evidence_and_no_decision() -> None:
    breaker = Breaker().opened("why", "ann", RULES, 100.0)
    assert breaker.admit(RULES, 109.9)[1] == "held"
    breaker, admission = breaker.admit(RULES, 110.0)
    assert (admission, breaker.state) == ("probe", State.HALF_OPEN)
    assert breaker.admit(RULES, 1e6)[1] == "held"  # one at a time
    breaker = breaker.probed("", RULES, 111.0)
    assert (breaker.state, breaker.probes_good) == (State.HALF_OPEN, 1)
    assert breaker.admit(RULES, 119.9)[1] == "held"  # and no more often
    breaker, admission = breaker.admit(RULES, 120.0)
    assert admission == "probe"
    breaker = breaker.probed(None, RULES, 121.0)  # not accepted
    assert (breaker.state, breaker.probes_bad, breaker.reason) == (
        State.OPEN,
        1,
        "a probe was bad: not accepted",
    )
    assert breaker.admit(RULES, 130.9)[1] == "held"


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now_s = 0.0
        self.probes = 0
        self.ordered_closed = True

    @rule(by_s=st.floats(0, 30))
    def time_passes(self, by_s: float) -> None:
        self.now_s += by_s

    @rule(bad=st.sampled_from(["", "time", None]))
    def a_request(self, bad: str | None) -> None:
        before = self.breaker
        self.breaker, admission = before.admit(RULES, self.now_s)
        if admission == "probe":
            self.probes += 1
        assert (admission == "v2") == (before.state is State.CLOSED)
        if admission == "v2":
            self.breaker = self.breaker.judged(bad, RULES, self.now_s)
            assert bad or self.breaker.state is State.CLOSED

    @precondition(lambda self: self.probes > 0)
    @rule(bad=st.sampled_from(["", "time", None]))
    def a_probe_ends(self, bad: str | None) -> None:
        self.probes -= 1
        before = self.breaker
        self.breaker = before.probed(bad, RULES, self.now_s)
        assert (self.breaker.state is State.CLOSED) == (before.state is State.CLOSED)

    @rule(silent_s=st.floats(0, 20))
    def the_engine_is_silent(self, silent_s: float) -> None:
        before = self.breaker.state
        self.breaker = self.breaker.silent(silent_s, RULES, self.now_s)
        if silent_s >= RULES.engine_s:
            assert self.breaker.state is not State.CLOSED
        else:
            assert self.breaker.state is before

    @rule(close=st.booleans())
    def an_order(self, close: bool) -> None:
        if close:
            self.breaker = self.breaker.closed("r", "b")
        else:
            self.breaker = self.breaker.opened("r", "b", RULES, self.now_s)
        assert (self.breaker.state is State.CLOSED) == close

    @invariant()
    def bounded(self) -> None:
        assert len(self.breaker.recent) <= RULES.window_requests
        if self.breaker.state is State.CLOSED:
            assert len([bad for bad in self.breaker.recent if bad]) <= RULES.failures


TestAnyOrder = AnyOrder.TestCase


def result(end: V2End, *states: AgentState, time_ms: float = 1.0) -> V2Result:
    results = tuple(AgentResult(agent=f"agent-{n}", state=state) for n, state in enumerate(states, 1))
    return V2Result(
        end=end,
        coordination=Coordination(
            task_id="t", coordination_time_ms=time_ms, total_time_ms=time_ms, results=results
        ),
    )


@pytest.mark.parametrize(
    ("found", "bad"),
    [
        (result(V2End.ANSWERED, D, D), ""),
        (result(V2End.ANSWERED, F, F), ""),  # what the agents' command does is not V2's
        (result(V2End.ANSWERED, D, D, D, D, U), ""),  # 80 % is not below 80 %
        (result(V2End.ANSWERED, D, D, D, U), "delivery"),
        (result(V2End.ANSWERED, D, X), "unknown agents"),
        (result(V2End.ANSWERED, D, time_ms=30_000), ""),
        (result(V2End.ANSWERED, D, time_ms=30_001), "slow"),  # slow but complete
        (result(V2End.REVOKED, D, U), "out of time"),
        (result(V2End.REVOKED, D, R), ""),
        (result(V2End.LOST, X), "lost"),
        (result(V2End.REFUSED, U), "refused"),
        (result(V2End.NOT_ACCEPTED, U), None),  # how long that lasts is judged by the engine's silence
        (result(V2End.OVERLOADED, U), None),
        (result(V2End.HELD, U), None),
    ],
)
def test_what_the_breaker_holds_against_v2(found: V2Result, bad: str | None) -> None:
    assert what_was_bad(found, Config()) == bad


def test_state_outlives_the_process_and_each_move_is_one_record(tmp_path: Path) -> None:
    records: list[Any] = []
    keeper = BreakerKeeper(tmp_path / "breaker.json", records.append)
    for _ in range(20):
        keeper.judged(keeper.admit(), "time")
    assert keeper.breaker.state is State.OPEN
    again = BreakerKeeper(tmp_path / "breaker.json", records.append)
    again.follow(Config(coordination_version="v2"), generation=3)
    assert (again.breaker.state, again.since, again.admit()) == (State.OPEN, keeper.since, "held")
    assert again.order(State.CLOSED, "mended", "bob")
    assert not again.order(State.CLOSED, "mended", "bob")
    assert [(r["type"], r["before"], r["state"], r["by"]) for r in records] == [
        ("breaker", "closed", "open", "router"),
        ("breaker", "open", "closed", "bob"),
    ]
    assert BreakerKeeper(tmp_path / "breaker.json", records.append).breaker.state is State.CLOSED


def test_ordering_v1_closes_it(tmp_path: Path) -> None:
    keeper = BreakerKeeper(tmp_path / "breaker.json", lambda _: None)
    keeper.order(State.OPEN, "r", "b")
    keeper.follow(Config(coordination_version="v2"), generation=1)
    assert keeper.breaker.state is State.OPEN
    keeper.follow(Config(coordination_version="v1"), generation=2)
    assert (keeper.breaker.state, keeper.breaker.by) == (State.CLOSED, "generation 2")


@pytest.mark.parametrize("text", ["", "{}", '{"state": "ajar"}', "\0"])
def test_a_damaged_state_holds_v1(tmp_path: Path, text: str) -> None:
    path = tmp_path / "breaker.json"
    path.write_text(text)
    keeper = BreakerKeeper(path, lambda _: None)
    assert keeper.breaker.state is State.OPEN
    assert "damaged" in keeper.problem


def test_a_state_that_cannot_be_kept_is_in_force_and_said(tmp_path: Path) -> None:
    keeper = BreakerKeeper(tmp_path / "missing/breaker.json", lambda _: None)
    keeper.order(State.OPEN, "r", "b")
    assert keeper.breaker.state is State.OPEN
    assert "cannot be written" in keeper.as_json()["problem"]
    assert json.dumps(keeper.as_json())
