"""What holds a rollout: a pause, an open breaker, V1 by hand; and that somebody's word lets it go on."""

from typing import Any

import pytest

from cfn.errors import UsageError
from cfn.rollout.holds import holds
from cfn.rollout.records import check_data
from cfn.rollout.steps import Decision, may_start
from engine.tests.rollout.conftest import Story
from engine.tests.rollout.test_steps import asked

BY: dict[str, Any] = {"resume_by": "ada", "resume_reason": "looked at it"}


def host(version: str = "v2", breaker: str = "closed") -> dict[str, Any]:
    return {
        "host": "a",
        "version": version,
        "breaker": {"state": breaker, "since": "t", "reason": "5 of 20 bad"},
    }


def flipped(story: Story, hour: float, version: str) -> None:
    story.tell(
        hour, "flipped", "stage1", {"hosts": {"a": {"after": {"version": version, "traffic_pct": 10}}}}
    )


def decide(story: Story, *hosts: dict[str, Any], **answer: Any) -> Decision:
    return may_start(story.records, asked("stage1", 10, 9, hosts=hosts, **answer), None)


def pause(story: Story, hour: float, state: str) -> None:
    story.tell(hour, "holding", "stage1", {"state": state, "by": "ada", "reason": "a look first"})


def test_nothing_holds_a_rollout_that_runs_as_ordered(story: Story) -> None:
    flipped(story, 1, "v2")
    assert decide(story, host()).holds == []
    assert decide(story, host()).allowed


def test_a_pause_holds_until_somebody_resumes(story: Story) -> None:
    pause(story, 1, "held")
    flipped(story, 2, "v2")
    held = decide(story, host())
    assert not held.allowed
    assert "ada holds it since" in held.holds[0]
    assert "a look first" in held.holds[0]
    pause(story, 3, "resumed")
    assert decide(story, host()).allowed


@pytest.mark.parametrize("state", ["open", "half_open"])
def test_an_open_breaker_holds(story: Story, state: str) -> None:
    held = decide(story, host(breaker=state))
    assert not held.allowed
    assert "the breaker of a is" in held.holds[0]


def test_v1_by_hand_holds_and_a_rollback_is_none(story: Story) -> None:
    assert holds(story.records, [host("v1")]) == []
    flipped(story, 1, "v2")
    assert "a is on V1 by hand" in holds(story.records, [host("v1")])[0]
    story.tell(2, "rolled_back", "stage1", {"text": "t"})
    assert holds(story.records, [host("v1")]) == []


def test_a_host_that_a_stage_took_back_to_v1_is_not_held(story: Story) -> None:
    flipped(story, 1, "v2")
    story.tell(2, "failed", "stage1", {"hosts": {"a": {"version": "v1", "traffic_pct": 0}}})
    assert holds(story.records, [host("v1")]) == []
    story.tell(3, "failed", "stage1", {"hosts": {"a": {"version": "v2", "traffic_pct": 10}}})
    assert len(holds(story.records, [host("v1")])) == 1


def test_who_resumes_says_who_and_why_and_it_is_recorded(story: Story) -> None:
    pause(story, 1, "held")
    resumed = decide(story, host(), **BY)
    assert resumed.allowed
    assert resumed.resumed is not None
    assert resumed.resumed["held"] == resumed.holds
    check_data("holding", resumed.resumed)
    with pytest.raises(UsageError, match="both resume_by and resume_reason"):
        decide(story, host(), resume_by="ada")


def test_to_resume_answers_for_nothing_else(story: Story) -> None:
    pause(story, 1, "held")
    decision = may_start(story.records, asked("stage2", 50, 9, hosts=(host(),), **BY), None)
    assert decision.reasons
    assert not decision.allowed


def test_what_is_not_held_is_not_resumed(story: Story) -> None:
    assert decide(story, host(), **BY).resumed is None


@pytest.mark.parametrize(
    "data", [{"state": "paused", "by": "a", "reason": "r"}, {"state": "held", "by": "a"}]
)
def test_a_pause_that_does_not_say_who_and_why_is_no_record(data: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        check_data("holding", data)
