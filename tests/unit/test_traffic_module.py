"""cfn_traffic: one call of the deployed command, and what a playbook sees of its answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import cfn_command
from ansible.module_utils.basic import AnsibleModule

from tests.conftest import RunModule

STATE = {"version": "v2", "traffic_pct": 50, "epoch": 7, "generation": 3, "breaker": "open"}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `cfn` that prints the file `answer` and notes its arguments in `words`."""
    path = tmp_path / "cfn"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/words\ncat {tmp_path}/answer\n')
    path.chmod(0o755)
    monkeypatch.setattr(cfn_command, "CFN", str(path))
    return path


def answer(command: Path, **changes: Any) -> None:
    value = {"changed": True, "before": STATE, "after": STATE, "confirmed": True, "seconds": 0.1, "v1": {}}
    command.with_name("answer").write_text(json.dumps(value | changes))


def words(command: Path) -> list[str]:
    return command.with_name("words").read_text().splitlines()


def test_options_become_arguments_and_the_breaker_shows_in_the_diff(
    command: Path, run_module: RunModule
) -> None:
    answer(command, after=STATE | {"breaker": "closed"})
    result = run_module(
        "cfn_traffic", breaker="closed", breaker_reason="mended it", breaker_by="ann", epoch=8
    )
    arguments = "traffic --json --wait-s 10.0 --epoch 8 --breaker closed --reason"
    assert words(command) == [*arguments.split(), "mended it", "--by", "ann"]
    assert result["changed"]
    assert "breaker: open" in result["diff"]["before"]
    assert "breaker: closed" in result["diff"]["after"]


def test_v1s_end_is_ordered_and_shows_in_the_diff(command: Path, run_module: RunModule) -> None:
    answer(command, before=STATE | {"v1_enabled": True}, after=STATE | {"v1_enabled": False})
    result = run_module("cfn_traffic", v1_enabled=False, epoch=8, wait_s=60)
    assert words(command) == ["traffic", "--json", "--wait-s", "60.0", "--epoch", "8", "--v1", "disabled"]
    assert "v1_enabled: True" in result["diff"]["before"]
    assert "v1_enabled: False" in result["diff"]["after"]


def test_a_release_that_knows_no_end_of_v1_has_it(command: Path, run_module: RunModule) -> None:
    answer(command)
    assert run_module("cfn_traffic")["before"]["v1_enabled"] is True


def test_check_mode_asks_the_command_to_predict(command: Path, run_module: RunModule) -> None:
    answer(command)
    run_module("cfn_traffic", check_mode=True, version="v2", percent="5")
    assert words(command)[-1] == "--check"


def test_a_breaker_is_not_moved_without_a_reason(command: Path, run_module: RunModule) -> None:
    result = run_module("cfn_traffic", breaker="open")
    assert result["failed"]
    assert "breaker_reason" in result["msg"]
    assert not command.with_name("words").exists()


@pytest.mark.parametrize(
    ("version", "bears_all", "warned"),
    [("v1", False, True), ("v1", True, False), ("v1", None, False), ("v2", False, False)],
)
def test_v1_that_is_given_more_than_it_bears_is_warned_of(
    command: Path,
    run_module: RunModule,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    bears_all: bool | None,
    warned: bool,
) -> None:
    found: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _, text: found.append(text))
    v1 = {"capacity_per_s": 20.0, "demand_per_s": 33.0, "bears_all": bears_all}
    answer(command, after=STATE | {"version": version}, v1=v1)
    run_module("cfn_traffic", version=version)
    assert any("33 are asked for" in text for text in found) == warned
