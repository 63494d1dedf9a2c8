"""The modules of the gate: what they ask the deployed release for."""

import json
from typing import Any

import pytest

from library.cfn_gate import with_facts
from library.cfn_metrics import prometheus_argv

REQUEST = {"stage": "stage1", "since": "2026-01-31T12:00:00.000Z"}


class FakeModule:
    """Answers one command."""

    def __init__(self, code: int, out: str) -> None:
        self.answer = (code, out, "")
        self.asked: list[list[str]] = []

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        self.asked.append(argv)
        return self.answer


def test_the_ledgers_facts_are_put_into_the_request() -> None:
    facts = {"critical_incidents": 0, "incidents": [], "attested": {}}
    module: Any = FakeModule(0, json.dumps(facts))
    assert with_facts(module, REQUEST) == REQUEST | {"facts": facts}
    assert module.asked[0][1:] == ["rollout", "facts", "--stage", "stage1", "--since", REQUEST["since"]]
    assert with_facts(module, REQUEST | {"facts": None}) == REQUEST | {"facts": None}
    assert len(module.asked) == 1


@pytest.mark.parametrize(("code", "out"), [(2, ""), (6, "{}"), (0, "no JSON")])
def test_without_an_answer_of_the_ledger_there_are_no_facts(code: int, out: str) -> None:
    module: Any = FakeModule(code, out)
    assert with_facts(module, REQUEST) == REQUEST


def test_a_prometheus_is_asked_for_every_host_and_the_token_stays_in_its_file() -> None:
    options = {
        "url": "https://p:9090", "timeout_s": 30.0, "token_file": "/etc/cfn/token", "ca_file": None,
        "hosts": {"b": "b:8471", "a": "a:8471"},
    }  # fmt: skip
    assert prometheus_argv(options) == [
        "--prometheus", "https://p:9090", "--timeout-s", "30", "--token-file", "/etc/cfn/token",
        "--instance", "a=a:8471", "--instance", "b=b:8471",
    ]  # fmt: skip
