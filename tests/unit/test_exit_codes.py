"""The exit codes that tell how a playbook ended."""

import re
from types import SimpleNamespace

import pytest

from cfn.judge.verdict import EXIT_CODES as VERDICTS
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


def showing() -> tuple[CallbackModule, list[str]]:
    """The plugin, and the errors that it shows."""
    plugin = CallbackModule()
    shown: list[str] = []
    plugin._display = SimpleNamespace(error=shown.append)
    return plugin, shown


def stats(outcome: str = "", **counts: dict[str, int]) -> SimpleNamespace:
    """A run's counts, by host."""
    return SimpleNamespace(
        custom=said(outcome), **({"failures": {}, "dark": {}, "processed": {"a": 1}} | counts)
    )


def test_the_code_ends_the_process() -> None:
    plugin = CallbackModule()
    plugin.v2_playbook_on_stats(stats("FAIL"))
    with pytest.raises(SystemExit) as ended:
        plugin.v2_playbook_on_stats(stats("FAIL", failures={"a": 1}))
    assert ended.value.code == 10


def failed(msg: object) -> SimpleNamespace:
    return SimpleNamespace(_result={"msg": msg})


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (["state=x is refused. Nothing was touched."], 20),
        (["No. Nothing\nwas recorded."], 20),
        (["state=x is refused. Nothing was touched.", "the disk is full"], None),
        (["the disk is full"], None),
    ],
)
def test_a_run_that_only_refused_says_so(messages: list[str], code: int | None) -> None:
    plugin = CallbackModule()
    plugin.v2_runner_on_failed(failed("it is no matter"), ignore_errors=True)
    for message in messages:
        plugin.v2_runner_on_failed(failed(message))
    if code is None:
        plugin.v2_playbook_on_stats(stats(failures={"a": 1}))
    else:
        with pytest.raises(SystemExit) as ended:
            plugin.v2_playbook_on_stats(stats(failures={"a": 1}))
        assert ended.value.code == code


@pytest.mark.parametrize("processed", [{}, {"localhost": 1}])
def test_a_run_in_which_no_host_did_anything_is_refused(processed: dict[str, int]) -> None:
    plugin, shown = showing()
    plugin.v2_playbook_on_stats(stats(processed=processed))  # of localhost alone, if it was meant so
    plugin.v2_playbook_on_no_hosts_matched()
    plugin.v2_playbook_on_stats(stats(processed={"a": 1, **processed}))
    with pytest.raises(SystemExit) as ended:
        plugin.v2_playbook_on_stats(stats(processed=processed))
    assert ended.value.code == 20
    assert shown[0].startswith("Nothing was done: no host of the inventory")


def test_words_that_lost_their_quotes_are_refused_before_anything_is_done() -> None:
    def play(extra_vars: dict[str, str]) -> SimpleNamespace:
        return SimpleNamespace(get_variable_manager=lambda: SimpleNamespace(extra_vars=extra_vars))

    plugin, shown = showing()
    plugin.v2_playbook_on_play_start(play({"reason": "christmas holidays"}))
    with pytest.raises(SystemExit) as ended:
        plugin.v2_playbook_on_play_start(play({"reason": "christmas", "_raw_params": "holidays"}))
    assert ended.value.code == 20
    assert "'holidays' belongs to no variable" in shown[0]


def test_codes_of_verdicts_are_those_of_the_gate_command() -> None:
    assert {word: EXIT_CODES[word] for word in VERDICTS if word in EXIT_CODES} == {
        word: code for word, code in VERDICTS.items() if code
    }


def test_the_documented_codes_are_the_ones_given() -> None:
    text = (PROJECT / "docs/reference/stage-run.md").read_text()
    section = text.partition("## Exit codes")[2].partition("\n## ")[0]
    table = {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", section)}
    assert table == {0, *EXIT_CODES.values()}
