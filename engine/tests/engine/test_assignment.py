"""The state machine of a team's agents, without processes."""

import pytest

from cfn.coordination import AgentState
from cfn.engine.assignment import LOOK_S, MAX_INCARNATIONS, OVERDUE_S, RESEND_S, Assignment, Do, Order
from cfn.engine.claims import Standing, Verdict, ended
from cfn.engine.lean import records

DONE = ended(records.NONE, 0, b"out")
EPOCH = 7


def assignment(agents: int = 2) -> Assignment:
    return Assignment(
        agents=tuple(f"agent-{n}" for n in range(agents)),
        epoch=EPOCH,
        deadline_at_s=10.0,
        deadline_ms=10_000,
        run_limit_s=60.0,
    )


def verdict(standing: Standing) -> Verdict:
    return Verdict(standing=standing, ended=DONE if standing is Standing.ENDED else None, pid=1)


def test_an_agent_that_is_born_with_its_task_is_not_asked_again() -> None:
    team = assignment()
    assert team.begin() == [Order(Do.SPAWN, 0), Order(Do.SPAWN, 1)]
    assert team.attached(0, asked=True) == []
    assert team.attached(1) == [Order(Do.SEND, 1)]
    team.ended(0, EPOCH, DONE, 1.0)
    team.claimed(1, EPOCH, 2.0)
    assert (team.unclaimed, team.complete, team.last_ack_s) == (0, False, 2.0)
    team.ended(1, EPOCH, DONE, 3.0)
    assert team.complete
    assert [result.output for result in team.results()] == ["out", "out"]


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
def test_what_belongs_to_another_epoch_changes_nothing(epoch: int) -> None:
    team = assignment(1)
    team.claimed(0, epoch, 1.0)
    team.ended(0, epoch, DONE, 1.0)
    assert team.refused(0, epoch) == []
    assert team.state(0) is AgentState.WAITING


@pytest.mark.parametrize(
    ("standing", "state"),
    [
        (Standing.ENDED, AgentState.DONE),
        (Standing.FENCED, AgentState.UNDELIVERED),
        (Standing.ORPHANED, AgentState.UNKNOWN),
        (Standing.RUNNING, AgentState.RUNNING),
        (Standing.LOCKED, AgentState.WAITING),
        (Standing.UNCLAIMED, AgentState.WAITING),
    ],
)
def test_the_slot_of_a_dead_worker_says_what_became_of_it(standing: Standing, state: AgentState) -> None:
    team = assignment(1)
    team.begin()
    assert team.missing(0) == [Order(Do.LOOK, 0)]
    team.judged(0, verdict(standing), 1.0)
    assert team.state(0) is state


def test_a_worker_that_dies_before_its_claim_is_replaced_so_often_and_no_oftener() -> None:
    team = assignment(1)
    team.begin()
    for _ in range(MAX_INCARNATIONS - 1):
        team.missing(0)
        assert team.judged(0, verdict(Standing.UNCLAIMED), 1.0) == [Order(Do.SPAWN, 0)]
    team.missing(0)
    assert team.judged(0, verdict(Standing.UNCLAIMED), 1.0) == [Order(Do.FENCE, 0)]
    team.judged(0, verdict(Standing.FENCED), 1.0)
    assert "processes died" in team.results()[0].reason


def test_the_deadline_fences_what_is_not_claimed_and_ends_who_was_asked_and_hangs() -> None:
    team = assignment(2)
    team.begin()
    team.attached(0, asked=True)
    team.claimed(1, EPOCH, 1.0)
    assert team.next_s() == 10.0
    assert team.tick(10.0) == [Order(Do.FENCE, 0)]
    assert team.judged(0, verdict(Standing.FENCED), 10.0) == [Order(Do.KILL, 0)]
    assert team.results()[0].reason == "no acknowledgement within 10000 ms"
    assert team.tick(1.0 + 60.0 + OVERDUE_S) == [Order(Do.KILL, 1)]
    assert team.tick(1.0 + 60.0 + OVERDUE_S + LOOK_S) == [Order(Do.LOOK, 1)]


def test_what_a_socket_did_not_take_is_sent_again() -> None:
    team = assignment(1)
    team.begin()
    team.attached(0)
    team.sent(0, 1.0, taken=False)
    assert team.tick(1.0 + RESEND_S) == [Order(Do.SEND, 0)]
    team.sent(0, 2.0, taken=True)
    assert team.next_s() == 10.0
