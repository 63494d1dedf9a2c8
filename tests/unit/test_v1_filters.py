"""The end of V1 and its way back: what is not fit, what there is to do, how it went."""

import json
from pathlib import Path
from typing import Any

import pytest

from plugins.filter import cfn_v1 as filters

PATHS = ["/opt/cfn-v1"]
COMMAND = "/opt/cfn-v1/bin/coordinate"
ARCHIVE: dict[str, Any] = {
    "name": "v1-one-0123456789ab.tar.gz",
    "sha256": "0123456789ab" + "0" * 52,
    "files": 3,
}
STATUS: dict[str, Any] = {
    "version": "v2", "traffic_pct": 100, "epoch": 7, "v1_enabled": True, "release": "r1",
    "engine": "running", "router": "running", "config_problem": "", "breaker": {"state": "closed"},
}  # fmt: skip
THERE = {"left": PATHS, "missing": []}
GONE: dict[str, Any] = {"left": [], "missing": PATHS}


def record(kind: str, sequence: int, **data: Any) -> dict[str, Any]:
    return {"kind": kind, "sequence": sequence, "time": f"T{sequence}", "data": data}


ARCHIVED = record("archived", 1, archives={"one": ARCHIVE})
ENDED = record("decommissioned", 2)
RESTORED = record("restored", 3, traffic="v1")


def host(own: dict[str, Any] = THERE, **status: Any) -> dict[str, Any]:
    return {"order_status": {"installed": True, "status": STATUS | status}, "end_v1": own}


def plan(one: dict[str, Any], *records: dict[str, Any], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = filters.end_plan(
        ["one"], {"one": one}, {"records": list(records)}, PATHS, more.get("command", COMMAND)
    )
    return found


def test_what_there_is_to_do() -> None:
    new = plan(host())
    assert (new["problems"], new["needed"], new["archive"], new["remove"]) == ([], True, ["one"], ["one"])
    assert new["release"] == "r1"
    # ended between the router's change and the removal: with the archive that the ledger has
    left = plan(host(v1_enabled=False), ARCHIVED)
    assert (left["problems"], left["needed"], left["archive"], left["remove"]) == ([], True, [], ["one"])
    # ended before the record
    open_end = plan(host(GONE, v1_enabled=False), ARCHIVED)
    assert (open_end["needed"], open_end["archive"], open_end["remove"]) == (True, [], [])
    done = plan(host(GONE, v1_enabled=False), ARCHIVED, ENDED)
    assert (done["problems"], done["needed"]) == ([], False)
    assert plan(host(), ARCHIVED, ENDED, RESTORED)["needed"]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (host(version="v1"), "it runs v1 at 100 %; V2 at 100 % is required"),
        (host(traffic_pct=75), "it runs v2 at 75 %"),
        (host(engine="not running: x"), "engine is not well: not running: x"),
        (host(router="not running"), "router is not well"),
        (host(breaker={"state": "open", "reason": "bad"}), "the breaker is open: bad"),
        (host(config_problem="CFN_X"), "the configuration: CFN_X"),
        (host(GONE), "/opt/cfn-v1 is missing"),
        (host({"failed": True, "msg": "'/' is refused"}), "'/' is refused"),
        (host(GONE, v1_enabled=False), "the ledger of no archive"),
        ({"order_status": {"unreachable": True, "msg": "no route"}}, "no route"),
        ({}, "not in this run"),
        ({"order_status": {"installed": False, "status": {}}, "end_v1": THERE}, "no release is installed"),
    ],
)  # fmt: skip
def test_what_keeps_v1_from_ending(one: dict[str, Any], words: str) -> None:
    found = plan(one)
    assert any(words in problem for problem in found["problems"]), found["problems"]
    assert found["text"].startswith("V1 is not decommissioned. Nothing was changed")


def test_a_command_that_would_not_be_archived_and_hosts_that_differ() -> None:
    assert "lies in none of cfn_v1_paths" in plan(host(), command="/usr/bin/mine --x")["problems"][0]
    assert not plan(host(), command="/usr/bin/java -jar /opt/cfn-v1/x.jar")["problems"]
    hosts = {"one": host(), "two": host(release="r2")}
    found = filters.end_plan(["one", "two"], hosts, {"records": []}, PATHS, COMMAND)
    assert found["problems"] == ["the hosts run different releases: r1, r2"]


def test_the_epoch_of_the_end_is_a_new_one_and_a_repetitions_is_not() -> None:
    hosts = {"one": host(epoch=7), "two": host(epoch=9)}
    assert filters.end_epoch(["one", "two"], hosts, {"archive": ["one"]}) == 10
    assert filters.end_epoch(["one", "two"], hosts, {"archive": []}) == 9


def test_which_archive_v1_is_restored_from() -> None:
    ledger = {"records": [ARCHIVED, ENDED]}
    own = filters.source("one", ledger, "/kept", "")
    assert (own["file"], own["sha256"], own["problem"]) == (f"/kept/{ARCHIVE['name']}", ARCHIVE["sha256"], "")
    named = filters.source("fresh", ledger, "/kept", f"/tmp/{ARCHIVE['name']}")
    assert (named["sha256"], named["from"]) == (ARCHIVE["sha256"], "the ledger")
    alone = filters.source("fresh", {"msg": "off"}, "/kept", f"/tmp/{ARCHIVE['name']}")
    assert (alone["sha256"], alone["from"], alone["problem"]) == ("0123456789ab", "the file's name", "")
    assert "no archive of V1 of fresh: name one" in filters.source("fresh", ledger, "/kept", "")["problem"]
    assert "could not be read" in filters.source("fresh", {"msg": "off"}, "/kept", "")["problem"]
    assert "nothing to hold it against" in filters.source("one", ledger, "/k", "/tmp/mine.tar.gz")["problem"]


def test_a_damaged_archive_is_named_once_and_one_that_was_not_verified_is_none() -> None:
    bad = {"v1_source": {"problem": ""}, "v1_source_checked": {"rc": 1, "stderr": "F is damaged"}}
    good = {"v1_source": {"problem": ""}, "v1_source_checked": {"rc": 0}}
    assert filters.source_problems(["a", "b"], {"a": good, "b": good}) == ""
    assert filters.source_problems(["a", "b", "c"], {"a": bad, "b": bad, "c": good}).splitlines() == [
        "V1 is not restored. Nothing was touched.", "F is damaged",
    ]  # fmt: skip
    assert filters.source_problems(["a"], {"a": {"v1_source": {"problem": ""}}})
    assert "a: its archive could not be made" in filters.source_problems(["a"], {"a": {}})


def test_the_epoch_of_the_return_is_a_new_one_until_all_is_as_asked_for() -> None:
    def answer(**status: Any) -> dict[str, Any]:
        return {"restore_status": {"status": STATUS | status}}

    back = answer(version="v1", epoch=8)
    assert filters.restore_epoch(["a", "b"], {"a": answer(v1_enabled=False), "b": back}, "v1") == 9
    assert filters.restore_epoch(["a", "b"], {"a": back, "b": back}, "v1") == 8
    assert filters.restore_epoch(["a"], {"a": answer()}, "keep") == 7
    assert filters.restore_epoch(["a"], {"a": answer()}, "v1") == 8
    assert filters.restore_epoch(["a"], {"a": {"restore_status": {"unreachable": True}}}, "v1") == 0


OBJECTIVES = {"v1_archive_retrieved_s": 1800, "v1_restored_s": 3600}


def outcome(hostvars: dict[str, Any], now_s: float, **asked: Any) -> dict[str, Any]:
    asked = {"traffic": "v1", "rehearse": False, "check": False, "objectives": OBJECTIVES} | asked
    found: dict[str, Any] = filters.restore_outcome(list(hostvars), hostvars, 1000.0, now_s, asked)
    return found


def test_how_the_restoration_went() -> None:
    source = {"file": f"/kept/{ARCHIVE['name']}", "sha256": ARCHIVE["sha256"]}
    good: dict[str, Any] = {
        "restore_status": {"installed": True},
        "restore_proved": True,
        "v1_archive_there_s": 1010.0,
        "v1_source": source,
    }
    hosts = {
        "one": good,
        "fresh": good | {"restore_status": {"installed": False}},
        "off": {"restore_status": {"unreachable": True, "msg": "no route"}, "v1_source": source},
        "bad": {"restore_status": {"installed": True}, "restore_failure": "disk full", "v1_source": source},
    }
    found = outcome(hosts, 1060.0)
    assert (found["seconds"], found["proved"], found["within"]) == (60.0, ["one", "fresh"], True)
    assert found["unproved"] == {"off": "no route", "bad": "disk full"}
    assert "2 of 4 hosts, 60 s after the decision (3600 s are allowed)" in found["text"]
    assert "fresh: no release is installed" in found["text"]
    assert outcome({"one": good}, 1060.0)["retrieved_s"] == 10.0
    late = outcome({"one": good}, 5000.0)
    assert (late["within"], "TOO SLOW" in late["text"]) == (False, True)
    assert "rehearsed" in outcome({"one": good}, 1060.0, rehearse=True)["text"]
    dry = outcome(hosts, 1060.0, check=True)
    assert filters.restore_text(dry, {}) == "Predicted: V1 serves again. Nothing was changed."


def test_a_rehearsal_attests_only_what_it_proved() -> None:
    good = {"unproved": {}, "within": True, "text": "T"}
    assert filters.attested(good, "ada") == {
        "item": "restoration_tested", "holds": True, "by": "ada", "note": "T",
    }  # fmt: skip
    assert not filters.attested(good | {"unproved": {"one": "x"}}, "ada")["holds"]
    assert not filters.attested(good | {"within": False}, "ada")["holds"]


def test_everything_that_is_recorded_is_json(tmp_path: Path) -> None:
    known = filters.standing([ARCHIVED, ENDED])
    (tmp_path / "x").write_text(json.dumps(known))
    assert (known["decommissioned"], known["record"]) == (True, 2)
    text = filters.end_text(known["archives"], "/kept", {"needed": False, "standing": known})
    assert "since T2 (record 2)" in text
    assert ARCHIVE["sha256"] in text
