"""The hub's state machine: tables, and random walks that check the promise after every step."""

import pytest
from cfn.engine.records import Damaged, Kind, Reason, Record, decode, encode
from cfn.engine.store import Request
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cfn.coordination import FINAL_STATES, AgentState
from cfn.engine.assignment import MAX_INCARNATIONS, Assignment, Do, IllegalTransition, Order
from cfn.engine.claims import Ended, Standing, Verdict

EPOCH = 7
DONE = Ended(reason=Reason.NONE, exit_code=0, output=b"x")
FAILED = Ended(reason=Reason.EXIT, exit_code=3)
S = AgentState


def made(agents: int = 1, lost_deliveries: frozenset[int] = frozenset()) -> Assignment:
    request = Request(
        task_id="t", agents=tuple(f"a{n}" for n in range(agents)), payload=b"", deadline_ms=1000, swarm_id="",
        accepted_at_s=100.0,
    )  # fmt: skip
    return Assignment(request=request, epoch=EPOCH, run_limit_s=10, lost_deliveries=lost_deliveries)


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
    outcome = assignment.outcome(105.0)
    assert (round(outcome.coordination_time_ms), round(outcome.total_time_ms)) == (200, 300)
    assert outcome.results[0].output == "x"


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
    outcome = assignment.outcome(102.0)
    assert outcome.results[0].reason == "no acknowledgement within 1000 ms"
    assert outcome.coordination_time_ms == 1000


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
    assert assignment.outcome(101.0).results[0].reason == "no process"


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


@pytest.mark.parametrize("position", range(64))
def test_a_damaged_record_is_never_taken_for_an_empty_one(position: int) -> None:
    raw = encode(Record(kind=Kind.CLAIMED, index=3, epoch=9, pid=11, at_ns=12, inline=b"abc", output_bytes=3))
    assert decode(raw) == Record(
        kind=Kind.CLAIMED, index=3, epoch=9, pid=11, at_ns=12, inline=b"abc", output_bytes=3
    )
    assert decode(bytes(64)) is None
    broken = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
    assert decode(broken) == Damaged()


class OneAgent(RuleBasedStateMachine):
    """An agent's slot, worker and hub as a model: whatever happens, one final state that is true."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
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
