"""The order of steps: each rule lets a step start, and each thing that is missing keeps it from starting."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cfn.errors import UsageError
from cfn.rollout.steps import Asked, Decision, Rules, Step, may_start, overrides_in_force, read_asked
from engine.tests.rollout.conftest import DAY_MS, HOUR_MS, RELEASE, T0, TABLE_SHA, Story

STEPS = (
    Step(stage="stage1", name="10", traffic_pct=10),
    Step(stage="stage2", name="50", traffic_pct=50),
    Step(stage="stage3", name="75", traffic_pct=75),
    Step(stage="stage3", name="100", traffic_pct=100),
    Step(stage="epic", name="100", traffic_pct=100),
    Step(stage="decommission", name="v1", traffic_pct=100),
)
RULES = Rules(
    staging_verdict=True,
    previous_step=True,
    verdict_max_age_s=3 * 86_400,
    retry_staging_s=86_400,
    attestation_max_age_s=14 * 86_400,
    attestations=(),
    time_factor=1,
)
ATTESTED = replace(RULES, attestations=("oncall_available",))
FREE = replace(RULES, staging_verdict=False)


def asked(stage: str, traffic: float, hour: float, rules: Rules = FREE, **changes: Any) -> Asked:
    values: dict[str, Any] = {
        "environment": "production",
        "kind": "production",
        "stage": stage,
        "traffic_pct": traffic,
        "release": RELEASE,
        "stage_table_sha256": TABLE_SHA,
        "now_ms": T0 + round(hour * HOUR_MS),
        "steps": STEPS,
        "rules": rules,
    }
    return Asked(**(values | changes))


def decide(story: Story, question: Asked, staging: Any = None) -> Decision:
    return may_start(story.records, question, staging)


def staging(hour: float, stage: str = "stage1", word: str = "PASS", **changes: Any) -> Any:
    return Story().verdict(hour, stage, "staging", word, **changes)


@pytest.mark.parametrize(
    ("stage", "traffic", "before"),
    [
        ("stage2", 50, ("stage1", "10")),
        ("stage2", 20, ("stage1", "10")),
        ("stage3", 75, ("stage2", "50")),
        ("stage3", 60, ("stage2", "50")),
        ("stage3", 100, ("stage3", "75")),
        ("stage3", 80, ("stage3", "75")),
        ("decommission", 100, ("epic", "100")),
    ],
)
def test_a_step_needs_the_pass_of_the_one_before(
    story: Story, stage: str, traffic: float, before: tuple[str, str]
) -> None:
    missing = decide(story, asked(stage, traffic, 1))
    assert not missing.allowed
    assert f"{before[0]} at {before[1]} % has no PASS" in missing.reasons[0]
    story.verdict(0, *before, "PASS")
    found = decide(story, asked(stage, traffic, 1))
    assert found.allowed, found.reasons
    assert "record 1" in found.because[0]


def test_the_first_step_of_all_needs_none_before(story: Story) -> None:
    assert decide(story, asked("stage1", 10, 0)).allowed


NO_PASS: list[tuple[str, Callable[[Story], object], str]] = [
    ("held", lambda story: story.verdict(0, "stage1", "10", "INCONCLUSIVE"), "last verdict is INCONCLUSIVE"),
    ("old", lambda story: story.verdict(-73, "stage1", "10", "PASS"), "74.0 hours old; at most 72"),
    ("tomorrow", lambda story: story.verdict(9, "stage1", "10", "PASS"), "hours old"),
    ("release", lambda story: story.verdict(0, "stage1", "10", "PASS", release="2"), "judges release 2"),
    ("table", lambda story: story.verdict(0, "stage1", "10", "PASS", stage_table_sha256=""), "another stage"),
    (
        "traffic",
        lambda story: story.verdict(0, "stage1", "10", "PASS", ordered={"traffic_pct": "5"}),
        "5 % of traffic, not 10 %",
    ),
    (
        "lab",
        lambda story: story.verdict(0, "stage1", "10", "PASS", time_scale={"factor": 2, "note": "in a lab"}),
        "in a lab",
    ),
    ("step", lambda story: story.verdict(0, "stage1", "staging", "PASS"), "no PASS in this ledger"),
]


@pytest.mark.parametrize(("case", "tell", "words"), NO_PASS, ids=[case for case, _, _ in NO_PASS])
def test_a_pass_that_is_not_of_this_step_does_not_count(
    story: Story, case: str, tell: Callable[[Story], object], words: str
) -> None:
    tell(story)
    decision = decide(story, asked("stage2", 50, 1))
    assert not decision.allowed, case
    assert words in "; ".join(decision.reasons)


def test_v1_does_not_end_after_13_days_and_it_is_said_when_it_may(story: Story) -> None:
    story.verdict(
        13 * 24, "epic", "100", "INCONCLUSIVE",
        reasons=["capacity: the window is not full", "delivery_rate: the window is not full"],
        ask_again_at="2026-01-19T00:00:00.000Z",
    )  # fmt: skip
    refused = decide(story, asked("decommission", 100, 13 * 24))
    assert not refused.allowed
    for words in (
        "epic at 100 % has no PASS in this ledger; its last verdict is INCONCLUSIVE (2026-01-18T",
        "its window is full at 2026-01-19T00:00:00.000Z): capacity: the window is not full, and 1 more",
    ):
        assert words in refused.reasons[0]
    answered = decide(
        story, asked("decommission", 100, 13 * 24, override_by="ann", override_reason="moving house")
    )
    assert answered.allowed
    assert answered.override is not None
    assert answered.override["overridden"] == refused.reasons


@pytest.mark.parametrize(("traffic", "void"), [("v1", True), ("keep", False)])
def test_a_v1_that_was_restored_ends_again_only_after_two_more_weeks(
    story: Story, traffic: str, void: bool
) -> None:
    story.verdict(0, "epic", "100", "PASS")
    story.tell(1, "restored", "decommission", {"traffic": traffic, "proved": ["one"]})
    found = decide(story, asked("decommission", 100, 2))
    assert found.allowed is not void
    assert any("voided by the restoration of V1 of decommission" in each for each in found.reasons) is void


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("how", ["FAIL", "rollback"])
def test_a_setback_voids_the_passes_before_it(story: Story, stage: str, how: str) -> None:
    story.verdict(0, "stage1", "10", "PASS")
    if how == "FAIL":
        story.verdict(1, stage, "50" if stage == "stage2" else "10", "FAIL")
    else:
        story.back(1, stage)
    refused = decide(story, asked("stage2", 50, 2))
    assert f"voided by the {how} of {stage}" in refused.reasons[0]
    story.verdict(3, "stage1", "10", "PASS")
    assert decide(story, asked("stage2", 50, 4)).allowed


def test_a_setback_of_a_later_stage_starts_again_at_the_stage_before_it(story: Story) -> None:
    story.verdict(0, "stage1", "10", "PASS")
    story.verdict(1, "stage2", "50", "PASS")
    story.verdict(2, "stage3", "75", "FAIL")
    assert decide(story, asked("stage2", 50, 3)).allowed
    assert not decide(story, asked("stage3", 75, 3)).allowed
    story.verdict(4, "stage2", "50", "PASS")
    assert decide(story, asked("stage3", 75, 5)).allowed


def test_a_clock_that_was_set_back_hides_no_setback(story: Story) -> None:
    story.verdict(2, "stage1", "10", "PASS")
    story.verdict(1, "stage1", "10", "FAIL")
    story.verdict(0.5, "stage1", "10", "INCONCLUSIVE")
    assert not decide(story, asked("stage2", 50, 2.5)).allowed
    story = Story()
    story.verdict(2, "stage1", "10", "FAIL")
    story.verdict(1, "stage1", "10", "PASS")
    assert decide(story, asked("stage2", 50, 1.5)).allowed


@pytest.mark.parametrize("word", ["PASS", "FAIL"])
def test_a_verdict_on_a_past_window_decides_nothing(story: Story, word: str) -> None:
    if word == "FAIL":
        story.verdict(0, "stage1", "10", "PASS")
    story.verdict(1, "stage1", "10", word, retrospective=True)
    assert decide(story, asked("stage2", 50, 2)).allowed is (word == "FAIL")
    past = staging(1, retrospective=True)
    assert "past window" in "; ".join(decide(Story(), asked("stage1", 10, 2, RULES), past).reasons)


@pytest.mark.parametrize("stage", ["stage1", "stage3"])
def test_a_setback_of_any_stage_keeps_v1(story: Story, stage: str) -> None:
    story.verdict(0, "epic", "100", "PASS")
    story.back(1, stage)
    refused = decide(story, asked("decommission", 100, 2))
    assert f"voided by the rollback of {stage}" in "; ".join(refused.reasons)


@pytest.mark.parametrize(
    ("current", "allowed"),
    [
        ([("v2", 50, RELEASE)], True),
        ([("v2", 75, RELEASE), ("v2", 50, RELEASE)], True),
        ([("v2", 75, RELEASE), ("v2", 10, RELEASE)], False),
        ([("v2", 50, "another")], False),
        ([("v1", 50, RELEASE)], False),
        ([], False),
    ],
)
def test_lowering_and_running_again_need_nothing(
    story: Story, current: list[tuple[str, float, str]], allowed: bool
) -> None:
    assert decide(story, asked("stage2", 50, 0, RULES, current=tuple(current))).allowed is allowed


def test_the_end_of_v1_is_never_nothing_to_do(story: Story) -> None:
    assert not decide(story, asked("decommission", 100, 0, current=(("v2", 100, RELEASE),))).allowed


def test_staging_comes_before_production(story: Story) -> None:
    question = asked("stage1", 10, 1, RULES)
    assert "-e staging_verdict=FILE" in decide(story, question).reasons[0]
    assert decide(story, question, staging(0)).allowed
    assert decide(story, replace(question, kind="staging")).allowed


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (staging(0, word="FAIL"), "it is no PASS"),
        (staging(0, stage="stage2"), "judges stage2"),
        (Story().verdict(0, "stage1", "10", "PASS"), "at step 10"),
        (staging(0, release="2"), "judges release 2"),
        (staging(-90), "hours old"),
    ],
)
def test_another_verdict_of_staging_does_not_count(story: Story, verdict: Any, words: str) -> None:
    assert words in "; ".join(decide(story, asked("stage1", 10, 1, RULES), verdict).reasons)


@pytest.mark.parametrize(("hour", "allowed"), [(23, False), (24, True)])
def test_after_a_setback_staging_needs_a_day_of_evidence_from_after_it(
    story: Story, hour: float, allowed: bool
) -> None:
    story.verdict(0, "stage1", "10", "FAIL")
    decision = decide(story, asked("stage1", 10, hour, RULES), staging(hour))
    assert decision.allowed is allowed
    assert allowed or "24 hours of evidence" in decision.reasons[0]


@pytest.mark.parametrize(
    ("there", "allowed"),
    [({"rollback_tested": True}, True), ({"rollback_tested": False}, False), ({}, False), (None, False)],
)
def test_the_way_back_is_proved_by_stagings_rehearsal(
    story: Story, there: dict[str, bool] | None, allowed: bool
) -> None:
    verdict = staging(0)
    verdict["data"]["request"] = {} if there is None else {"facts": {"attested": there}}
    rules = replace(RULES, attestations=("rollback_tested",))
    decision = decide(story, asked("stage1", 10, 1, rules), verdict)
    assert decision.allowed is allowed
    assert ("rollback_tested, measured in staging" in decision.because) is allowed
    assert allowed or "rehearse.yml -e stage=stage1" in decision.reasons[0]
    story.attest(0.5, "stage1", "rollback_tested", holds=False)  # this ledger's own word counts first
    assert not decide(story, asked("stage1", 10, 1, rules), verdict).allowed


def test_only_what_is_measured_comes_from_staging(story: Story) -> None:
    verdict = staging(0)
    verdict["data"]["request"] = {"facts": {"attested": {"oncall_available": True}}}
    assert not decide(story, asked("stage1", 10, 1, ATTESTED), verdict).allowed


def test_attestations_are_asked_for_by_name_and_age(story: Story) -> None:
    question = asked("stage1", 10, 1, replace(ATTESTED, staging_verdict=False))
    assert "attest=oncall_available" in decide(story, question).reasons[0]
    story.attest(0, "stage1", "oncall_available", holds=False)
    assert "does not hold" in decide(story, question).reasons[0]
    story.attest(0.5, "stage1", "oncall_available")
    assert decide(story, question).allowed
    later = replace(question, now_ms=question.now_ms + 15 * DAY_MS)
    assert "older than 14 days" in decide(story, later).reasons[0]


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, False),
        ({"attributed_to": "unknown"}, False),
        ({"attributed_to": "v1"}, True),
        ({"severity": "P1"}, True),
        ({"state": "closed"}, True),
    ],
)
def test_an_open_critical_incident_of_v2_keeps_everything_where_it_is(
    story: Story, changes: dict[str, Any], allowed: bool
) -> None:
    story.incident(0, "stage1", **changes)
    assert decide(story, asked("stage1", 10, 1)).allowed is allowed


def test_an_override_answers_for_all_that_is_missing(story: Story) -> None:
    question = asked("stage2", 50, 1, RULES)
    with pytest.raises(UsageError, match="both"):
        decide(story, replace(question, override_by="someone"))
    decision = decide(story, replace(question, override_by="someone", override_reason="a drill"))
    assert decision.allowed
    assert decision.override is not None
    assert decision.override["overridden"] == decision.reasons
    assert len(decision.reasons) == 2


def test_nothing_is_overridden_where_nothing_is_missing(story: Story) -> None:
    question = asked("stage1", 10, 1, override_by="someone", override_reason="a drill")
    assert decide(story, question).override is None


def test_overrides_stay_visible_until_the_stage_ends(story: Story) -> None:
    story.tell(0, "override", "stage1", {})
    assert len(overrides_in_force(story.records, "stage1")) == 1
    assert overrides_in_force(story.records, "stage2") == []
    story.back(1, "stage1")
    assert overrides_in_force(story.records, "stage1") == []


def test_a_share_that_no_step_reaches_is_refused(story: Story) -> None:
    with pytest.raises(UsageError, match="no step"):
        decide(story, asked("stage2", 60, 0))


@pytest.mark.parametrize("damage", [{"kind": "lab"}, {"traffic_pct": "10"}, {"rules": {}}, {"steps": [1]}])
def test_a_malformed_question_is_refused(damage: dict[str, Any]) -> None:
    rules = {"staging_verdict": True, "previous_step": True, "verdict_max_age_s": 1, "retry_staging_s": 1,
             "attestation_max_age_s": 1, "attestations": [], "time_factor": 1}  # fmt: skip
    value = {"environment": "e", "kind": "staging", "stage": "stage1", "traffic_pct": 10, "release": "r",
             "stage_table_sha256": "", "now": "2026-01-05T00:00:00Z", "steps": [],
             "rules": rules}  # fmt: skip
    assert read_asked(value).traffic_pct == 10
    with pytest.raises(UsageError, match="asked for"):
        read_asked(value | damage)
