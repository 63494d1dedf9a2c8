"""What an incident is asked with, in which stage it is, and what is said of it."""

import json
import shlex
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import cfn_incident
from tests.conftest import PROJECT

TABLE = yaml.safe_load((PROJECT / "inventories/common/group_vars/all/stages.yml").read_text())["cfn_stages"]
GROUPS = {"cfn": ["one", "two"], "control": ["one"]}
NOW_S = 1_769_860_800.0  # 2026-01-31T12:00:00Z
GIVEN = {
    "severity": "P1", "by": "ada", "text": "it's slow", "incident": "INC-1", "attributed_to": "", "stage": "",
    "started": "",
}  # fmt: skip
FACTS = {
    "installed": True, "release": "r1", "version": "v2", "traffic_pct": 10.0, "engine": "running",
    "router": "running", "breaker": "open", "breaker_reason": "5 of 20 bad", "config_problem": "",
    "units": {
        "cfn-router.service": {"state": "active/running", "result": "success", "restarts": 2},
        "cfn-metrics.service": {"state": "failed/failed", "result": "signal", "restarts": 0},
    },
    "processes": 3, "memory_kb": 90000, "fd_count": 40, "memory_available_mb": 1000, "tmpfs_pct": 12.5,
}  # fmt: skip
BUNDLE = {"facts": FACTS, "bytes": 100, "sha256": "00ff", "missing": ["journal.txt: exit\ncode 1"]}


def asked(**changed: str) -> dict[str, Any]:
    return cfn_incident.asked({**GIVEN, **changed}, GROUPS, NOW_S)


@pytest.mark.parametrize(
    ("severity", "first"), [("P0", "fallback"), ("P1", "rollback"), ("P2", ""), ("P3", "")]
)
def test_what_a_severity_asks_for_first(severity: str, first: str) -> None:
    incident = asked(severity=severity)
    assert incident["way_back"] == first
    assert incident["started"] == incident["asked"] == "2026-01-31T12:00:00.000Z"
    assert cfn_incident.record(incident) == {
        "incident": "INC-1", "severity": severity, "attributed_to": "unknown", "state": "open",
        "started": "2026-01-31T12:00:00.000Z", "text": "it's slow", "by": "ada",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"severity": "P9"}, "severity=P9 is refused: P0, P1, P2 and P3 are allowed"),
        ({"severity": "p0"}, "severity=p0 is refused"),
        ({"severity": ""}, "-e severity=P0|P1|P2|P3 is missing"),
        ({"by": " "}, "-e by=... is missing"),
        ({"text": ""}, "-e text=... is missing"),
        ({"attributed_to": "v3"}, "attributed_to=v3 is refused"),
        ({"stage": "stage4"}, "stage=stage4 is refused"),
        ({"incident": "../x"}, "incident=../x is refused"),
        ({"incident": "a b"}, "incident=a b is refused"),
        ({"started": "noon"}, "started=noon is refused"),
        ({"started": "2026-01-31T12:00:01Z"}, "it is in the future"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_touched(
    changed: dict[str, str], words: str
) -> None:
    with pytest.raises(AnsibleFilterError) as refused:
        asked(**changed)
    assert words in str(refused.value)
    assert "Nothing was touched" in str(refused.value)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(AnsibleFilterError) as refused:
        cfn_incident.asked({**GIVEN, "severity": "P9", "by": ""}, {"cfn": [], "control": ["a", "b"]}, NOW_S)
    for words in ("severity=P9", "-e by=", "no host in the group cfn", "2 hosts in the group control"):
        assert words in str(refused.value)


def test_an_incident_without_an_id_gets_one() -> None:
    assert asked(incident="")["incident"] == "INC-20260131-120000"


def traffic(version: str, pct: float) -> dict[str, Any]:
    return {"traffic_before": {"before": {"version": version, "traffic_pct": pct}}}


@pytest.mark.parametrize(
    ("given", "records", "one", "stage"),
    [
        ("stage2", [("flipped", "stage3")], traffic("v2", 75), "stage2"),
        ("", [("flipped", "stage1"), ("flipped", "stage2"), ("verdict", "stage1")], {}, "stage2"),
        ("", [], traffic("v2", 10), "stage1"),
        ("", [], traffic("v2", 10.5), "stage2"),
        ("", [], traffic("v2", 100), "stage3"),
        ("", [], traffic("v1", 100), "stage1"),
        ("", [], {"traffic_before": {"unreachable": True}}, "stage1"),
        ("", [], {"back_standing": {"standing": {"before": {"version": "v2", "traffic_pct": 75}}}}, "stage3"),
    ],
)
def test_the_stage_of_an_incident(
    given: str, records: list[tuple[str, str]], one: dict[str, Any], stage: str
) -> None:
    ledger = {"records": [{"kind": kind, "stage": of} for kind, of in records]}
    hostvars = {"one": one, "two": traffic("v1", 0)}
    assert cfn_incident.stage_of(["one", "two"], hostvars, given, ledger, TABLE) == stage


def test_what_a_way_back_came_to() -> None:
    assert cfn_incident.way_back(asked(severity="P3"), {})["proved"]
    done = {"back_result": {"text": "V1 serves", "unproved": {}}}
    assert cfn_incident.way_back(asked(), done) == {"text": "V1 serves", "proved": True}
    done["back_result"]["unproved"] = {"two": "unreachable"}
    assert not cfn_incident.way_back(asked(), done)["proved"]
    refused = cfn_incident.way_back(asked(), {"back_way": {"refused": "V1 does not work"}})
    assert refused == {"text": "NOT TAKEN BACK. V1 does not work", "proved": False}
    assert not cfn_incident.way_back(asked(), {})["proved"]


def test_findings_name_what_is_bad_and_who_is_silent() -> None:
    hostvars: dict[str, Any] = {
        "one": {"incident_bundle": BUNDLE, "incident_fetched": {"dest": "/x/one-T.tar.gz"}},
        "two": {"incident_bundle": {"unreachable": True, "msg": "no\nroute"}},
        "three": {"incident_bundle": BUNDLE, "incident_fetched": {"failed": True, "msg": "disk full"}},
    }
    one, two, three = cfn_incident.findings(hostvars, hostvars)
    assert one["units"] == "cfn-metrics.service failed/failed"
    assert one["restarts"] == "cfn-router.service 2"
    assert one["breaker"] == "open 5 of 20 bad"
    assert one["traffic"] == "v2 at 10 %"
    assert one["file"] == "one-T.tar.gz"
    assert one["missing"] == ["journal.txt: exit code 1"]
    assert two["problem"] == "cannot be reached: no route"
    assert three["problem"] == "no bundle: disk full"


def test_the_timeline_has_what_happened_since() -> None:
    records = [
        {"time": "2026-01-31T09:00:00.000Z", "kind": "verdict", "stage": "stage1", "actor": "ada",
         "data": {"verdict": {"verdict": "PASS"}}},
        {"time": "2026-01-31T11:00:00.000Z", "kind": "rolled_back", "stage": "stage1", "actor": "watch",
         "data": {"text": "V1 serves\non 2"}},
    ]  # fmt: skip
    since = cfn_incident.since(asked(), 7200)["time"]
    assert since == "2026-01-31T10:00:00.000Z"
    assert cfn_incident.timeline({"records": records}, since) == [
        "2026-01-31T11:00:00.000Z rolled_back (stage1, by watch) V1 serves on 2"
    ]


def test_the_command_that_records_it_by_hand_is_one_that_a_shell_reads_back() -> None:
    words = shlex.split(cfn_incident.attest_command(asked(), "stage1", "closed"))
    assert words[:4] == ["ansible-playbook", "attest.yml", "-e", "stage=stage1"]
    assert json.loads(words[-1]) == {**cfn_incident.record(asked()), "state": "closed"}


def test_the_last_words_name_every_open_end() -> None:
    facts = {
        "report": "/r.md", "recorded": False, "unsent": ["pager: no line"],
        "stage": "stage1", "watch": "runs",
    }  # fmt: skip
    found = [{"host": "two", "problem": "cannot be reached: x"}, {"host": "one", "problem": ""}]
    text = cfn_incident.last_words(asked(), {"text": "V1 serves"}, found, facts)
    for words in ("INC-1, P1: V1 serves", "two: cannot be reached", "1 of 2 hosts", "not told: pager",
                  "NOT IN THE LEDGER", "attest.yml", "fill in: /r.md"):  # fmt: skip
        assert words in text
    assert "NOT IN" not in cfn_incident.last_words(asked(), {"text": ""}, [], {**facts, "recorded": True})


def watching(severity: str, timer: str = "", **silent: Any) -> dict[str, Any]:
    units = {"cfn-watch.timer": {"state": timer}} if timer else {}
    hostvars: dict[str, Any] = {
        host: {"incident_bundle": {"facts": {"installed": True, "units": units}}} for host in GROUPS["cfn"]
    }
    hostvars |= silent
    return cfn_incident.watch_decision(asked(severity=severity), GROUPS["cfn"], hostvars, "one")


def test_the_watch_is_started_where_nothing_was_moved_and_everybody_answers() -> None:
    assert watching("P2")["start"]
    assert not watching("P2", timer="active/waiting")["start"]
    assert not watching("P1")["start"]
    silent = watching("P3", two={"incident_bundle": {"unreachable": True}})
    assert (silent["start"], "two" in silent["text"]) == (False, True)
    bare = {"incident_bundle": {"facts": {"installed": False, "units": {}}}}
    assert watching("P3", two=bare)["text"] == "not started: no release is in force"


def test_who_was_not_told() -> None:
    assert cfn_incident.untold({"sent": [], "unsent": ["a: b"]}) == ["a: b"]
    assert cfn_incident.untold({"msg": "module\nfailed"}) == ["module failed"]
    assert cfn_incident.untold({}) == []
