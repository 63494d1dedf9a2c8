"""Escalations and the outcome: each trigger fires on its own cause, and on nothing less."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cfn.errors import UsageError
from cfn.metrics.arm import Arm
from cfn.rollout.escalation import Figures, escalations, failed_attempts, read_figures, severity
from cfn.rollout.observations import Bucket, Observed
from cfn.rollout.outcome import outcome
from cfn.rollout.records import check_data, facts, incidents
from engine.tests.rollout.conftest import HOUR_MS, T0, TABLE, Story
from tests.conftest import PROJECT

OPERATIONS = yaml.safe_load((PROJECT / "inventories/common/group_vars/all/operations.yml").read_text())
FIGURES = read_figures(TABLE["stage1"], OPERATIONS["cfn_severities"], 1)
BUCKET_MS = 300_000


def arm(time_ms: float, delivery_pct: float, requests: int = 10) -> Any:
    """Requests that are all alike, as far as an escalation looks at them."""
    return SimpleNamespace(
        requests=requests,
        rate_pct=lambda _: delivery_pct,
        times_ms=SimpleNamespace(quantile=lambda _: time_ms),
    )


def observed(*arms: tuple[float, float] | None) -> Observed:
    buckets = tuple(
        Bucket(start_ms=T0 + number * BUCKET_MS, v2=arm(*each) if each else Arm())
        for number, each in enumerate(arms)
    )
    return Observed(buckets, BUCKET_MS, ())


def fired(story: Story, seen: Observed, results: Any = (), figures: Figures = FIGURES) -> dict[str, str]:
    found = escalations(story.records, "stage1", seen, results, figures, T0 + 99 * HOUR_MS)
    return {each.trigger: each.severity for each in found}


@pytest.mark.parametrize(
    ("time_ms", "delivery_pct", "expected"),
    [
        (100, 100, None),
        (14_000, 86, None),
        (16_000, 100, "P2"),
        (100, 84, "P2"),
        (31_000, 100, "P1"),
        (100, 79, "P1"),
        (60_000, 0, "P0"),
    ],
)
def test_severities(time_ms: float, delivery_pct: float, expected: str | None) -> None:
    assert severity(Bucket(start_ms=T0, v2=arm(time_ms, delivery_pct)), FIGURES) == expected


def test_idle_has_no_severity(story: Story) -> None:
    assert severity(Bucket(start_ms=T0), FIGURES) is None
    assert fired(story, observed(None, None)) == {}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (observed((9_000, 100)), {}),
        (observed((12_000, 100)), {"coordination_time": "P3"}),
        (observed((12_000, 100), (100, 100)), {}),
        (observed((40_000, 100)), {"coordination_time": "P1", "degraded": "P1"}),
    ],
)
def test_twice_the_target(story: Story, seen: Observed, expected: dict[str, str]) -> None:
    assert fired(story, seen) == expected


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ([(100.0, 84.0)] * 48, {"delivery_rate": "P2"}),
        ([(100.0, 84.0)] * 47, {}),
        ([(100.0, 84.0), None] * 24, {}),
        ([(100.0, 84.0), None] * 24 + [(100.0, 84.0)], {"delivery_rate": "P2"}),
        ([(100.0, 84.0)] * 47 + [(100.0, 90.0), (100.0, 84.0)], {}),
    ],
    ids=["4 hours", "less", "sparse, less", "sparse", "better between"],
)
def test_delivery_below_85_for_4_hours(story: Story, arms: Any, expected: dict[str, str]) -> None:
    assert fired(story, observed(*arms)) == expected


def test_resources_and_coordinators(story: Story) -> None:
    def result(metric: str, verdict: str = "FAIL", layer: str = "guardrail") -> dict[str, Any]:
        return {"name": metric, "metric": metric, "layer": layer, "verdict": verdict, "reason": "why"}

    broken = [result("fd_count"), result("coordinator_health"), result("restarts")]
    assert fired(story, observed(), broken) == {"resource_exhaustion": "P1", "coordinator_cascade": "P1"}
    assert fired(story, observed(), [result("fd_count", "PASS"), result("fd_count", layer="criterion")]) == {}


def test_a_critical_incident_of_v2(story: Story) -> None:
    story.incident(0, "stage1")
    assert fired(story, observed()) == {"critical_incident": "P0"}
    story.incident(1, "stage1", attributed_to="v1")
    assert fired(story, observed()) == {}
    assert len(incidents(story.records)) == 1


def test_facts_count_what_began_in_the_window_or_is_open(story: Story) -> None:
    story.incident(0, "stage1", state="closed")
    story.incident(5, "stage1", incident="i-2", state="closed")
    story.incident(1, "stage2", incident="i-3", severity="P1")
    assert facts(story.records, "stage1", T0 + HOUR_MS)["incidents"] == ["i-2"]
    story.attest(6, "stage1", "dashboards_accessible", holds=False)
    assert facts(story.records, "stage1", T0)["attested"] == {"dashboards_accessible": False}


@pytest.mark.parametrize("failures", [2, 3])
def test_failed_retries(story: Story, failures: int) -> None:
    for number in range(failures):
        story.flip(number, "stage1", 10)
        story.verdict(number + 0.1, "stage1", "10", "FAIL")
        story.back(number + 0.2, "stage1")  # of the same attempt
    assert failed_attempts(story.records, "stage1") == failures
    assert ("failed_retries" in fired(story, observed())) is (failures > 2)
    story.flip(9, "stage1", 10)
    story.verdict(10, "stage1", "10", "PASS")
    assert failed_attempts(story.records, "stage1") == 0


@pytest.mark.parametrize("times", [3, 4])
def test_more_than_three_fallbacks_in_a_stage(story: Story, times: int) -> None:
    for number in range(times):
        story.back(number, "stage1")
        story.back(number, "stage2")
    assert ("fallbacks" in fired(story, observed(), figures=replace(FIGURES, failed_retries=99))) is (
        times > 3
    )


@pytest.mark.parametrize(
    ("item", "trigger"),
    [("architecture_sound", "architecture_flaw"), ("infrastructure_sufficient", "infrastructure")],
)
def test_what_people_attest_against_the_plan(story: Story, item: str, trigger: str) -> None:
    story.attest(0, "stage1", item, holds=False)
    assert trigger in fired(story, observed())
    story.attest(1, "stage1", item)
    assert trigger not in fired(story, observed())


ITEMS = tuple(OPERATIONS["cfn_attestations"]["epic"])
ALL_FIGURES = dict.fromkeys(("stage1", "stage2", "stage3"), FIGURES)


def ended(story: Story) -> Any:
    return outcome(story.records, tuple(ALL_FIGURES), ITEMS, ALL_FIGURES)


def whole(story: Story) -> None:
    story.verdict(0, "epic", "100", "PASS")
    for item in ITEMS:
        story.attest(0, "epic", item)


def test_complete(story: Story) -> None:
    whole(story)
    assert (ended(story).outcome, ended(story).unmet) == ("COMPLETE", ())


def test_nothing_judged_is_incomplete_and_says_what_next(story: Story) -> None:
    found = ended(story)
    assert found.outcome == "INCOMPLETE"
    assert [name for name, _ in found.unmet] == ["verdict", *ITEMS]
    assert "ask the gate when its window is full" in found.next


@pytest.mark.parametrize("word", ["FAIL", "INCONCLUSIVE", "NO_DATA", "ERROR"])
def test_each_other_verdict_is_incomplete_and_names_the_criterion(story: Story, word: str) -> None:
    whole(story)
    story.verdict(1, "epic", "100", word)
    found = ended(story)
    assert (found.outcome, found.unmet) == ("INCOMPLETE", (("delivery_rate", "because"),))
    assert "extend stage 3 while you find what is lost" in found.next[0]


def test_an_attestation_or_an_incident_is_enough(story: Story) -> None:
    whole(story)
    story.attest(1, "epic", ITEMS[0], holds=False)
    assert ended(story).unmet == ((ITEMS[0], "someone: why"),)
    story.attest(2, "epic", ITEMS[0])
    story.incident(3, "stage3")
    assert [name for name, _ in ended(story).unmet] == ["no_critical_incident"]


def test_an_epic_that_was_taken_back_after_its_pass_is_not_complete(story: Story) -> None:
    whole(story)
    story.back(1, "stage3")
    found = ended(story)
    assert found.outcome == "INCOMPLETE"
    assert "stage3 was taken back after it" in dict(found.unmet)["verdict"]


def test_a_verdict_on_a_past_window_completes_nothing(story: Story) -> None:
    whole(story)
    story.verdict(1, "epic", "100", "FAIL")
    story.verdict(2, "epic", "100", "PASS", retrospective=True)
    assert ended(story).outcome == "INCOMPLETE"


def test_a_plan_that_cannot_work_is_a_pivot_whatever_the_gate_says(story: Story) -> None:
    for number in range(3):
        story.flip(number, "stage2", 50)
        story.back(number, "stage2")
    whole(story)
    found = ended(story)
    assert (found.outcome, found.unmet[0][0]) == ("PIVOT", "failed_retries")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("attested", {"item": "a b", "holds": True, "by": "x", "note": ""}),
        ("attested", {"item": "a", "holds": "yes", "by": "x", "note": ""}),
        ("attested", {"item": "a", "holds": True, "by": " ", "note": ""}),
        ("incident", {"incident": "i", "severity": "P9"}),
        ("override", {"override_by": "x", "override_reason": "", "overridden": ["y"]}),
        ("override", {"override_by": "x", "override_reason": "z", "overridden": []}),
        ("learned", {"text": ""}),
        ("verdict", {"verdict": "PASS"}),
        ("verdict", {"request": {}, "verdict": {"verdict": "GREAT"}}),
    ],
)
def test_a_record_that_decides_must_be_whole(kind: str, data: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=kind):
        check_data(kind, data)
    check_data("flipped", data)
