"""The hub's state machine: tables, and random walks that check the promise after every step."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cfn.coordination import FINAL_STATES, AgentResult, AgentState
from cfn.engine.assignment import (
    LOOK_S,
    MAX_INCARNATIONS,
    OVERDUE_S,
    RESEND_S,
    Assignment,
    Do,
    IllegalTransition,
    Order,
)
from cfn.engine.claims import Ended, Standing, Verdict
from cfn.engine.lean import records

EPOCH = 7
BEGAN_S = 100.0
DEADLINE_S = 101.0
DONE = Ended(reason=records.NONE, exit_code=0, output=b"x")
FAILED = Ended(reason=records.EXIT, exit_code=3)
S = AgentState


def made(agents: int = 1, lost_deliveries: frozenset[int] = frozenset()) -> Assignment:
    return Assignment(
        agents=tuple(f"a{n}" for n in range(agents)),
        epoch=EPOCH,
        deadline_at_s=DEADLINE_S,
        deadline_ms=1000,
        run_limit_s=10,
        lost_deliveries=lost_deliveries,
    )


def verdict(standing: Standing, ended: Ended | None = None, pid: int = 0) -> Verdict:
    return Verdict(standing=standing, ended=ended, pid=pid)


@pytest.mark.parametrize(
    ("standing", "ended", "state", "orders"),
    [
        (Standing.ENDED, DONE, S.DONE, []),
        (Standing.ENDED, FAILED, S.FAILED, []),
        (Standing.FENCED, None, S.UNDELIVERED, []),
        (Standing.ORPHANED, None, S.UNKNOWN, []),
        (Standing.RUNNING, None, S.RUNNING, []),
        (Standing.LOCKED, None, S.WAITING, []),
        (Standing.UNCLAIMED, None, S.WAITING, [Order(Do.SPAWN, 0)]),
    ],
)
def test_what_a_slot_says_of_an_agent_without_a_socket(
    standing: Standing, ended: Ended | None, state: AgentState, orders: list[Order]
) -> None:
    assignment = made()
    assert assignment.missing(0) == [Order(Do.LOOK, 0)]
    assert assignment.judged(0, verdict(standing, ended), 100.1) == orders
    assert assignment.state(0) is state


def test_the_common_path() -> None:
    assignment = made()
    assert assignment.begin() == [Order(Do.SPAWN, 0)]
    assert assignment.attached(0) == [Order(Do.SEND, 0)]
    assignment.sent(0, 100.1, taken=True)
    assignment.claimed(0, EPOCH, 100.2)
    assignment.ended(0, EPOCH, DONE, 100.3)
    assert (assignment.last_ack_s, assignment.last_end_s) == (100.2, 100.3)
    assert assignment.results() == [AgentResult(agent="a0", state=S.DONE, exit_code=0, output="x")]


def test_another_epoch_counts_for_nothing() -> None:
    assignment = made()
    assignment.claimed(0, EPOCH - 1, 100.1)
    assignment.ended(0, EPOCH + 1, DONE, 100.1)
    assert assignment.refused(0, EPOCH - 1) == []
    assert assignment.state(0) is S.WAITING


def test_the_deadline_fences_and_a_hanging_worker_is_killed() -> None:
    assignment = made(2)
    for index in (0, 1):
        assignment.attached(index)
        assignment.sent(index, 100.1, taken=True)
    assignment.claimed(1, EPOCH, 100.2)
    assert assignment.tick(100.9) == []
    assert assignment.tick(101.0) == [Order(Do.FENCE, 0)]
    assert assignment.judged(0, verdict(Standing.FENCED), 101.0) == [Order(Do.KILL, 0)]
    assert assignment.results()[0].reason == "no acknowledgement within 1000 ms"
    assert assignment.unclaimed == 0


def test_a_process_between_lock_and_claim_is_killed_and_looked_at_again() -> None:
    assignment = made()
    assert assignment.give_up_unclaimed("revoked") == [Order(Do.FENCE, 0)]
    assert assignment.judged(0, verdict(Standing.LOCKED, pid=5), 100.1) == [Order(Do.KILL, 0)]
    assert assignment.tick(100.2) == [Order(Do.FENCE, 0)]
    assignment.judged(0, verdict(Standing.FENCED), 100.2)
    assert assignment.state(0) is S.UNDELIVERED


def test_far_beyond_its_time_limit_it_is_killed_once_and_then_judged() -> None:
    assignment = made()
    assignment.attached(0)
    assignment.sent(0, 100.0, taken=True)
    assignment.claimed(0, EPOCH, 100.0)
    assert assignment.tick(114.9) == []
    assert assignment.tick(115.0) == [Order(Do.KILL, 0)]
    assert assignment.tick(115.1) == [Order(Do.LOOK, 0)]
    assignment.judged(0, verdict(Standing.ORPHANED), 115.1)
    assert assignment.state(0) is S.UNKNOWN


def test_the_time_limit_runs_from_the_claim_whoever_was_the_hub_then() -> None:
    assignment = made(2)
    assignment.claimed(1, EPOCH, 103.0)
    running = Verdict(standing=Standing.RUNNING, pid=4, since_s=90.0)
    assignment.judged(0, running, 104.0)
    assert assignment.next_s() == 104.0 + LOOK_S
    assert assignment.tick(90.0 + 10 + OVERDUE_S) == [Order(Do.LOOK, 0), Order(Do.KILL, 0)]
    assert assignment.tick(103.0 + 10 + OVERDUE_S)[-1] == Order(Do.KILL, 1)


def test_a_few_processes_are_tried_then_it_is_undelivered() -> None:
    assignment = made()
    assignment.begin()
    for _ in range(MAX_INCARNATIONS - 1):
        assignment.missing(0)
        assert assignment.judged(0, verdict(Standing.UNCLAIMED), 100.1) == [Order(Do.SPAWN, 0)]
    assert assignment.judged(0, verdict(Standing.UNCLAIMED), 100.1) == [Order(Do.FENCE, 0)]


def test_a_failed_fork_is_undelivered_with_its_reason() -> None:
    assignment = made()
    assert assignment.spawning_failed(0, "no process") == [Order(Do.FENCE, 0)]
    assignment.judged(0, verdict(Standing.FENCED), 100.1)
    assert assignment.results()[0].reason == "no process"


def test_what_another_hub_gave_up_says_so() -> None:
    assignment = made()
    assignment.judged(0, verdict(Standing.FENCED), 100.1)
    assert assignment.results()[0].reason == "it was given up before this hub had it"


def test_what_a_socket_did_not_take_is_sent_again_and_a_lost_delivery_never() -> None:
    assignment = made(2, lost_deliveries=frozenset({1}))
    assert assignment.attached(1) == []
    assignment.attached(0)
    assignment.sent(0, 100.0, taken=False)
    assert assignment.tick(100.3) == [Order(Do.SEND, 0)]


def test_an_illegal_transition_raises() -> None:
    assignment = made()
    assignment.claimed(0, EPOCH, 100.1)
    with pytest.raises(IllegalTransition):
        assignment.judged(0, verdict(Standing.FENCED), 100.2)


def test_results_of_all_states_at_once() -> None:
    assignment = made(4)
    assignment.claimed(1, EPOCH, 100.1)
    assignment.ended(2, EPOCH, FAILED, 100.1)
    assignment.judged(3, verdict(Standing.ORPHANED), 100.1)
    assert assignment.results() == [
        AgentResult(agent="a0", state=S.WAITING),
        AgentResult(agent="a1", state=S.RUNNING),
        AgentResult(agent="a2", state=S.FAILED, exit_code=3, reason="ended with exit code 3"),
        AgentResult(agent="a3", state=S.UNKNOWN, reason="its process died before it gave a result"),
    ]
    assert (assignment.unclaimed, assignment.complete) == (1, False)


def test_nothing_changes_what_is_final() -> None:
    assignment = made()
    assignment.ended(0, EPOCH, DONE, 100.1)
    assert assignment.complete
    assert assignment.next_s() is None
    assert assignment.attached(0) == assignment.missing(0) == assignment.refused(0, EPOCH) == []
    assert assignment.spawning_failed(0, "x") == assignment.judged(0, verdict(Standing.FENCED), 101.0) == []
    assert assignment.give_up_unclaimed("x") == assignment.tick(500.0) == []
    assignment.ended(0, EPOCH, FAILED, 100.2)
    assert assignment.state(0) is S.DONE


def test_an_end_without_an_end_is_a_defect() -> None:
    with pytest.raises(IllegalTransition, match="a0"):
        made().judged(0, verdict(Standing.ENDED), 100.1)


def test_what_is_due_next() -> None:
    assignment = made(2)
    assert assignment.next_s() == DEADLINE_S
    assignment.attached(0)
    assignment.sent(0, 100.0, taken=False)
    assert assignment.next_s() == 100.0 + RESEND_S
    assignment.attached(0)  # with another process nothing is to be sent again
    assert assignment.next_s() == DEADLINE_S
    assignment.claimed(0, EPOCH, 100.2)
    assignment.claimed(1, EPOCH, 100.3)
    assert assignment.next_s() == 100.2 + 10 + OVERDUE_S
    assignment.ended(0, EPOCH, DONE, 100.4)
    assert assignment.next_s() == 100.3 + 10 + OVERDUE_S


def test_a_process_without_a_socket_is_looked_at_until_it_ends() -> None:
    assignment = made()
    assignment.judged(0, verdict(Standing.RUNNING, pid=4), 100.1)
    assert assignment.next_s() == 100.1 + LOOK_S
    assert assignment.tick(100.1 + LOOK_S) == [Order(Do.LOOK, 0)]
    assignment.judged(0, verdict(Standing.ENDED, DONE), 100.3)
    assert assignment.state(0) is S.DONE


def test_a_worker_born_with_its_task_is_asked_nothing() -> None:
    assignment = made()
    assignment.begin()
    assert assignment.attached(0, asked=True) == []
    assert assignment.refused(0, EPOCH) == [Order(Do.LOOK, 0)]
    assert assignment.judged(0, verdict(Standing.UNCLAIMED), 100.1) == []  # it is there: it may still claim


class OneAgent(RuleBasedStateMachine):
    """An agent's slot, worker and hub as a model: whatever happens, one final state that is true."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGAN_S
        self.slot = Standing.UNCLAIMED
        self.starts = 0
        self.worker = False
        self.assigned = False
        self.hub = made()
        self.carry_out(self.hub.begin())

    def carry_out(self, orders: list[Order]) -> None:
        todo = list(orders)
        for _ in range(50):
            if not todo:
                return
            order = todo.pop(0)
            if order.do is Do.SPAWN:
                self.worker = True
                todo += self.hub.attached(0)
            elif order.do is Do.SEND:
                self.assigned = self.worker
                self.hub.sent(0, self.now, taken=self.worker)
            elif order.do is Do.KILL:
                self.die()
            else:
                if order.do is Do.FENCE and self.slot is Standing.UNCLAIMED:
                    self.slot = Standing.FENCED
                ended = DONE if self.slot is Standing.ENDED else None
                todo += self.hub.judged(0, verdict(self.slot, ended), self.now)
        raise AssertionError("the hub orders for ever")

    def die(self) -> None:
        self.worker = self.assigned = False
        if self.slot is Standing.RUNNING:
            self.slot = Standing.ORPHANED

    @precondition(lambda self: self.worker and self.assigned)
    @rule(told=st.booleans())
    def claim(self, told: bool) -> None:
        if self.slot is Standing.UNCLAIMED:
            self.slot = Standing.RUNNING
            self.starts += 1
            if told:
                self.hub.claimed(0, EPOCH, self.now)
        elif told:
            self.carry_out(self.hub.refused(0, EPOCH))

    @precondition(lambda self: self.slot is Standing.RUNNING)
    @rule(told=st.booleans())
    def end(self, told: bool) -> None:
        self.slot = Standing.ENDED
        if told:
            self.hub.ended(0, EPOCH, DONE, self.now)

    @precondition(lambda self: self.worker)
    @rule()
    def killed(self) -> None:
        self.die()
        self.carry_out(self.hub.missing(0))

    @rule(pause_s=st.sampled_from([0.01, 0.3, 2.0, 30.0]))
    def time_passes(self, pause_s: float) -> None:
        self.now += pause_s
        self.carry_out(self.hub.tick(self.now))

    @rule()
    def revoked(self) -> None:
        self.carry_out(self.hub.give_up_unclaimed("revoked"))

    @invariant()
    def never_twice_and_never_a_lie(self) -> None:
        assert self.starts <= 1
        state = self.hub.state(0)
        assert state is not S.UNDELIVERED or (self.slot is Standing.FENCED and not self.starts)
        assert state is not S.DONE or self.slot is Standing.ENDED
        assert state is not S.UNKNOWN or self.slot is Standing.ORPHANED
        assert state in FINAL_STATES or self.hub.next_s() is not None or self.worker


TestOneAgent = OneAgent.TestCase
TestOneAgent.settings = settings(max_examples=150, stateful_step_count=20, deadline=None)
