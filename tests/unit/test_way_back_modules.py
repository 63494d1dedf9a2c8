"""cfn_fallback and cfn_spool: one call of the deployed command each, and what a playbook sees of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import cfn_command

from tests.conftest import RunModule, load
from tests.unit.conftest import answer, words

LADDER = [{"agents": 10, "coordination_time_ms": 5000, "delivery_rate_pct": 95}, {"agents": 99}]
STANDING = {"refused": "", "v1": {"works": True, "problem": ""}, "engine": "running"}
PROVED = {**STANDING, "proved": True, "problem": "", "changed": True, "epoch": 9}


def test_a_fall_back_is_one_call_with_the_first_step_of_the_ladder(
    command: Path, run_module: RunModule
) -> None:
    answer(command, PROVED)
    result = run_module("cfn_fallback", epoch=7, ladder=LADDER, force=True)
    assert words(command) == (
        "fallback --json --epoch 7 --agents 10 --within-ms 5000 --delivery-pct 95 --force"
    )
    assert (result["changed"], result["standing"]["epoch"]) == (True, 9)


@pytest.mark.parametrize(
    ("value", "code", "msg"),
    [
        ({**PROVED, "proved": False, "problem": "served by v2"}, 1, "served by v2"),
        ({**STANDING, "refused": "V1 does not work"}, 5, "V1 does not work"),
    ],
)
def test_what_is_not_proved_fails_and_still_tells_all(
    command: Path, run_module: RunModule, value: dict[str, Any], code: int, msg: str
) -> None:
    answer(command, value, code)
    result = run_module("cfn_fallback")
    assert (result["failed"], result["msg"]) == (True, msg)
    assert result["standing"]["engine"] == "running"


@pytest.mark.parametrize(("state", "check"), [("checked", False), ("fallen_back", True)])
def test_what_only_looks_changes_nothing(
    command: Path, run_module: RunModule, state: str, check: bool
) -> None:
    answer(command, {**STANDING, "refused": "V1 does not work"}, 5)
    result = run_module("cfn_fallback", state=state, check_mode=check)
    assert words(command).endswith("--check")
    assert "failed" not in result
    assert result["standing"]["refused"] == "V1 does not work"
    assert result["changed"] is check


def test_being_reached_asks_nothing(command: Path, run_module: RunModule) -> None:
    result = run_module("cfn_fallback", state="reached")
    assert (result["changed"], result["installed"]) == (False, True)
    assert not command.with_name("words").exists()


def test_without_a_release_there_is_nothing_to_fall_back(
    tmp_path: Path, run_module: RunModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cfn_command, "CFN", str(tmp_path / "none"))
    assert run_module("cfn_fallback") == {
        "changed": False,
        "installed": False,
        "standing": {},
        "invocation": {"module_args": {"state": "fallen_back", "epoch": 0, "ladder": [], "force": False}},
    }
    joined = run_module("cfn_spool", state="joined", lines={"a": []}, environment="lab", actor="me")
    assert joined["records"] == []


def test_a_record_is_kept_and_joined(command: Path, run_module: RunModule) -> None:
    record = {"id": "b-1", "stage": "stage1", "actor": "ada", "data": {"text": "V1 serves"}}
    answer(command, {"time": "T"})
    assert run_module("cfn_spool", state="added", record=record)["changed"]
    assert words(command) == "spool add"
    assert json.loads(command.with_name("input").read_text()) == record
    answer(command, {"records": [{"sequence": 4}]})
    lines = {"one": [{"time": "T", "back": record}]}
    joined = run_module("cfn_spool", state="joined", lines=lines, environment="lab", actor="me")
    assert words(command) == "spool join --environment lab --stage rollout --actor me"
    assert json.loads(command.with_name("input").read_text()) == lines
    assert (joined["changed"], joined["records"]) == (True, [{"sequence": 4}])


def test_in_check_mode_nothing_is_kept(command: Path, run_module: RunModule) -> None:
    result = run_module("cfn_spool", check_mode=True, state="added", record={"id": "b-1"})
    assert not result["changed"]
    assert not command.with_name("words").exists()


def test_the_release_before_is_remembered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("cfn_release")
    for name in ("OPT", "CURRENT", "PREVIOUS"):
        monkeypatch.setattr(module, name, {"OPT": tmp_path}.get(name, tmp_path / name.lower()))
    for name in ("a", "b"):
        (tmp_path / "releases" / name).mkdir(parents=True)

    def put_in_force(version: str) -> str:
        module.remember(version)
        module.switch(module.CURRENT, f"releases/{version}")
        before: str = module.predecessor()
        return before

    assert put_in_force("a") == ""
    assert put_in_force("b") == "a"
    assert put_in_force("b") == "a"  # mending it forgets nothing
    assert put_in_force("a") == ""  # and going back does not lead forth again
    assert put_in_force("b") == "a"
