"""The exit codes that tell how a playbook ended."""

import re
from types import SimpleNamespace

import pytest

from plugins.callback.cfn_exit import EXIT_CODES, CallbackModule, exit_code
from tests.conftest import PROJECT


def said(word: str) -> dict[str, dict[str, str]]:
    return {"_run": {"cfn_outcome": word}}


@pytest.mark.parametrize(("word", "code"), EXIT_CODES.items())
def test_a_failed_run_has_the_code_of_its_word(word: str, code: int) -> None:
    assert exit_code(said(word), failed=True) == code


@pytest.mark.parametrize("word", ["HOLDING", "PASS", "", "nonsense"])
def test_any_other_word_leaves_ansibles_own_code(word: str) -> None:
    assert exit_code(said(word), failed=True) is None
    assert exit_code({}, failed=True) is None


def test_a_run_without_failure_ends_with_0_whatever_was_said_first() -> None:
    assert exit_code(said("REFUSED"), failed=False) is None


def test_the_code_ends_the_process() -> None:
    plugin = CallbackModule()
    plugin.v2_playbook_on_stats(SimpleNamespace(custom=said("FAIL"), failures={}, dark={}))
    with pytest.raises(SystemExit) as ended:
        plugin.v2_playbook_on_stats(SimpleNamespace(custom=said("FAIL"), failures={"a": 1}, dark={}))
    assert ended.value.code == 11


def test_the_documented_codes_are_the_ones_given() -> None:
    text = (PROJECT / "docs/reference/stage-run.md").read_text()
    section = text.partition("## Exit codes")[2].partition("\n## ")[0]
    table = {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", section)}
    assert table == {0, *EXIT_CODES.values()}
