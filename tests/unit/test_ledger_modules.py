"""Modules of ledger, lock, order and report: one call of the release's command each, and its own words."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT, RunModule

OPERATIONS = yaml.safe_load((PROJECT / "inventories/common/group_vars/all/operations.yml").read_text())
TABLE = yaml.safe_load((PROJECT / "inventories/common/group_vars/all/stages.yml").read_text())["cfn_stages"]
LOCK = {"state": "taken", "run": "r-1", "controller": "desk", "environment": "lab", "actor": "ada"}
APPEND = {"state": "appended", "kind": "flipped", "stage": "stage1", "environment": "lab", "actor": "ada"}
PLAN = {
    "v": 1,
    "environment": "lab",
    "kind": "production",
    "stage": "stage1",
    "time_factor": 1,
    "table": TABLE,
    "table_sha256": "",
    "severities": OPERATIONS["cfn_severities"],
    "attested_at_the_end": [],
    "hosts": ["one"],
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose release is this checkout, below a folder of its own."""
    import ansible.module_utils.cfn_command as command

    launcher = tmp_path / "cfn"
    launcher.write_text(f'#!/bin/sh\nCFN_ROOT={tmp_path}/root exec {sys.executable} -m cfn "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(command, "CFN", str(launcher))
    return tmp_path / "root"


def test_records_heads_and_a_rewritten_ledger(host: Path, run_module: RunModule) -> None:
    record = run_module("cfn_ledger", **APPEND, data={"traffic_pct": 10})["record"]
    assert run_module("cfn_ledger", state="anchored", environment="lab", head=record)["changed"]
    assert not run_module("cfn_ledger", state="anchored", environment="lab", head=record)["changed"]
    kept = run_module("cfn_ledger", state="anchors", environment="lab")["anchors"]
    assert kept == [{"sequence": 1, "hash": record["hash"]}]
    assert run_module("cfn_ledger", state="verified", anchors={"one": kept})["intact"]
    for path in (host / "var/lib/cfn/ledger").iterdir():
        path.unlink()
    other = run_module("cfn_ledger", **APPEND)["record"]
    found = run_module("cfn_ledger", state="verified", anchors={"one": kept})
    assert not found["intact"]
    assert "rewritten" in found["problem"]
    refused = run_module("cfn_ledger", state="anchored", environment="lab", head=other)
    assert refused["failed"]
    assert "cut or rewritten" in refused["msg"]


def test_check_mode_appends_and_takes_nothing(host: Path, run_module: RunModule) -> None:
    assert run_module("cfn_ledger", check_mode=True, **APPEND) == {
        "changed": True,
        "record": None,
        "invocation": run_module("cfn_ledger", check_mode=True, **APPEND)["invocation"],
    }
    assert run_module("cfn_lock", check_mode=True, **LOCK)["lock"] is None
    assert run_module("cfn_ledger")["records"] == []
    assert not (host / "var/lib/cfn/ledger/ledger.jsonl").exists()


def test_the_lock_says_who_since_when_and_how_to_break_it(host: Path, run_module: RunModule) -> None:
    assert host
    assert run_module("cfn_lock")["lock"] is None
    assert run_module("cfn_lock", **LOCK)["lock"]["run"] == "r-1"
    refused = run_module("cfn_lock", **(LOCK | {"run": "r-2", "controller": "elsewhere"}))
    assert refused["failed"]
    assert "ada holds the lock" in refused["msg"]
    assert "break_lock_reason" in refused["msg"]
    broken = run_module("cfn_lock", **(LOCK | {"run": "r-2", "break_reason": "gone"}))
    assert broken["lock"]["run"] == "r-2"
    released = run_module("cfn_lock", state="released", run="r-2", environment="lab", actor="ada")
    assert released["lock"] is None


def asked(**changes: Any) -> dict[str, Any]:
    rules = {"staging_verdict": False, "previous_step": True, "verdict_max_age_s": 1, "retry_staging_s": 1,
             "attestation_max_age_s": 1, "attestations": [], "time_factor": 1}  # fmt: skip
    steps = [
        {"stage": "stage1", "name": "10", "traffic_pct": 10},
        {"stage": "stage2", "name": "50", "traffic_pct": 50},
    ]
    return {
        "environment": "lab", "kind": "production", "stage": "stage2", "traffic_pct": 50.0, "release": "r",
        "stage_table_sha256": "", "now": "2026-01-05T00:00:00Z", "steps": steps, "rules": rules,
    } | changes  # fmt: skip


def test_a_step_that_may_not_start_says_all_that_is_missing(host: Path, run_module: RunModule) -> None:
    assert host
    refused = run_module("cfn_rollout", question="may_start", request=asked(), actor="ada")
    assert refused["failed"]
    assert "stage2 at 50 % may not start. No traffic was moved." in refused["msg"]
    assert "stage1 at 10 % has no PASS" in refused["msg"]
    assert "override_by" in refused["msg"]
    override = {"override_by": "ada", "override_reason": "a drill"}
    allowed = run_module("cfn_rollout", question="may_start", request=asked(**override), actor="ada")
    assert allowed["answer"]["allowed"]
    assert [each["kind"] for each in run_module("cfn_ledger")["records"]] == ["override"]


@pytest.mark.parametrize("question", ["due", "escalations", "outcome"])
def test_the_other_questions(host: Path, run_module: RunModule, question: str) -> None:
    assert host
    assert not run_module("cfn_rollout", question=question, request=PLAN).get("failed")


def test_the_report(host: Path, run_module: RunModule) -> None:
    assert host
    run_module("cfn_ledger", **APPEND)
    found = run_module("cfn_report", plan=PLAN, stage="all")
    assert found["intact"]
    assert found["html"].startswith("<!doctype html>")
    assert json.loads(found["json"])["outcome"]["outcome"] == "INCOMPLETE"


def test_without_a_release_there_is_nothing_to_ask(
    tmp_path: Path, run_module: RunModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ansible.module_utils.cfn_command as command

    monkeypatch.setattr(command, "CFN", str(tmp_path / "nothing"))
    assert run_module("cfn_ledger", **APPEND)["record"] is None
    assert run_module("cfn_lock", **LOCK)["lock"] is None
    answer = run_module("cfn_rollout", question="may_start", request=asked())["answer"]
    assert answer == {"decided": False}


def test_a_signed_verdict_is_believed_elsewhere_and_a_changed_one_is_not(
    host: Path, run_module: RunModule
) -> None:
    verdict = {"verdict": "PASS", "step": "staging", "release": "r", "stage_table_sha256": "", "results": [],
               "since": "2026-01-01T00:00:00Z", "ordered": {"version": "v2", "traffic_pct": "100"},
               "time_scale": {"factor": 1, "note": ""}}  # fmt: skip
    data = {"request": {}, "verdict": verdict}
    run_module("cfn_ledger", **(APPEND | {"kind": "verdict", "environment": "staging"}), data=data)
    export = run_module("cfn_ledger", state="exported", stage="stage1")["export"]
    assert (host / "var/lib/cfn/ledger/signing-key").stat().st_mode & 0o777 == 0o600
    rules = asked()["rules"] | {"staging_verdict": True, "previous_step": False, "verdict_max_age_s": 1e9}
    question = asked(stage="stage1", traffic_pct=10.0, rules=rules, now="2036-01-01T00:00:00Z")

    def ask(exported: Any, signers: str) -> dict[str, Any]:
        request = question | {"staging_verdict": exported, "allowed_signers": signers}
        return run_module("cfn_rollout", question="may_start", request=request, actor="ada")

    signers = f"staging {export['public_key']}"
    assert "no signer is allowed" in ask(export, "")["msg"]
    stranger = "staging ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIA8OEJ8sHPbGBdZ3wQGL+hC3Uuvl3jPGG3yqJp0K1aB"
    assert "not signed by an allowed signer" in ask(export, stranger)["msg"]
    changed = json.loads(json.dumps(export).replace('"PASS"', '"FAIL"'))
    assert "cannot be trusted" in ask(changed, signers)["msg"]
    believed = ask(export, signers)
    assert believed["answer"]["allowed"], believed
    # The ledger has it now: it need not be given again.
    assert ask(None, signers)["answer"]["allowed"]
    kinds = [each["kind"] for each in run_module("cfn_ledger")["records"]]
    assert kinds == ["verdict", "imported"]
