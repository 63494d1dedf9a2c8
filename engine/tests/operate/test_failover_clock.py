"""How long teams were without a hub: overlapping failovers count from the first to the last."""

from cfn.engine.failover_clock import FailoverClock

ONE, TWO = ("s", "team-1"), ("s", "team-2")


def test_from_the_loss_to_the_last_team() -> None:
    clock = FailoverClock()
    assert clock.last_s is None
    clock.lost([ONE, TWO], 10.0)
    clock.served(ONE, 10.5)
    assert clock.last_s is None
    clock.served(TWO, 12.0)
    assert clock.last_s == 2.0


def test_two_that_overlap_are_one() -> None:
    clock = FailoverClock()
    clock.lost([ONE], 10.0)
    clock.lost([TWO], 11.0)
    clock.served(ONE, 11.5)
    clock.served(TWO, 13.0)
    assert clock.last_s == 3.0


def test_one_without_teams_and_a_team_that_nobody_waits_for_say_nothing() -> None:
    clock = FailoverClock()
    clock.lost([], 10.0)
    clock.served(ONE, 11.0)
    assert clock.last_s is None
