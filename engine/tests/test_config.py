"""The configuration file: what is accepted, what is refused and how it says so."""

import os
import re
import subprocess
from dataclasses import fields
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.cli import main
from cfn.config import KEYS, Config, as_text, check, edit, parse, render_env
from cfn.config_follower import ConfigFollower
from cfn.errors import ConfigError


def test_every_field_has_exactly_one_key() -> None:
    assert sorted(key.field for key in KEYS) == sorted(field.name for field in fields(Config))
    assert len({key.name for key in KEYS}) == len(KEYS)


@pytest.mark.parametrize(
    "line",
    [
        'CFN_MAX_AGENTS="7"',
        "CFN_MAX_AGENTS=7",
        "CFN_MAX_AGENTS='7'",
        'export CFN_MAX_AGENTS="7"  # a comment',
        "  CFN_MAX_AGENTS=7 # with $signs in it",
    ],
)
def test_spellings_that_mean_the_same(line: str) -> None:
    assert parse(f"# head\n\n{line}\n").config.max_agents == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('CFN_MAX_AGENTS="0"', ["CFN_MAX_AGENTS", "'0'", "1 to 2000"]),
        ('CFN_MAX_AGENTS="x"', ["'x'", "whole number"]),
        ('CFN_TRAFFIC_PERCENTAGE="175"', ["'175'", "0 to 100"]),
        ('CFN_TRAFFIC_PERCENTAGE=""', ["''", "0 to 100"]),
        ('CFN_TRAFFIC_PERCENTAGE="nan"', ["'nan'"]),
        ('CFN_COORDINATION_VERSION="v3"', ["v1 or v2"]),
        ('CFN_MAX_AGENTS="$(id)"', ["dollar", "line 1"]),
        ('CFN_AGENT_COMMAND="/bin/`id`"', ["backtick"]),
        ('CFN_AGENT_COMMAND="/bin/a # $(id)"', ["dollar"]),
        ('CFN_AGENT_COMMAND="/bin/a \'b"', ["quotes"]),
        ('CFN_AGENT_COMMAND="/bin/a\\b"', ["backslash"]),
        ("CFN_MAX_AGENTS=7\nCFN_MAX_AGENTS=8", ["line 2", "twice"]),
        ("CFN_MAX_AGENTS = 7", ["KEY="]),
        ("rm -rf /", ["KEY="]),
        ("CFN_MAX_AGENTS=7;id", ["'7;id'"]),
        ('CFN_AGENT_COMMAND="relative"', ["absolute path"]),
    ],
)
def test_refusals_name_line_key_value_and_what_is_allowed(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, source="config.sh")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_unknown_keys_are_refused_at_deployment_only() -> None:
    text = 'CFN_NEW_KEY="1"\nCFN_MAX_AGENTS="7"\n'
    assert parse(text).unknown == ("CFN_NEW_KEY",)
    assert parse(text).config.max_agents == 7
    with pytest.raises(ConfigError, match="unknown key CFN_NEW_KEY"):
        check(text)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = parse(text)
    except ConfigError:
        return
    assert isinstance(parsed.config, Config)


def test_bash_and_the_parser_read_the_rendered_environment_alike(tmp_path: Path) -> None:
    config = Config(agent_command="/bin/echo a  b # c; d", traffic_pct=Decimal("0.50"), max_agents=3)
    rendered = tmp_path / "env"
    rendered.write_text(render_env(config))
    assert parse(rendered.read_text()).config == config
    script = f'. {rendered}; printf "%s|%s" "$CFN_AGENT_COMMAND" "$CFN_TRAFFIC_PERCENTAGE"'
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout == "/bin/echo a  b # c; d|0.5"


def test_edit_changes_only_what_is_named() -> None:
    text = '# mine\nexport CFN_COORDINATION_VERSION="v2" # why\nCFN_MAX_AGENTS=7\n'
    edited = edit(text, {"CFN_COORDINATION_VERSION": "v1", "CFN_EPOCH": "4"})
    assert edited == '# mine\nCFN_COORDINATION_VERSION="v1"\nCFN_MAX_AGENTS=7\nCFN_EPOCH="4"\n'
    with pytest.raises(ConfigError):
        edit(text, {"CFN_COORDINATION_VERSION": "v9"})


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_a_bad_file_leaves_the_configuration_in_force(tmp_path: Path) -> None:
    path, last_good = tmp_path / "config.sh", tmp_path / "last-good"
    rewrite(path, "CFN_MAX_AGENTS=7\n")
    follower = ConfigFollower(path, last_good)
    assert (follower.config.max_agents, follower.problem) == (7, "")

    rewrite(path, "CFN_MAX_AGENTS=none\n")
    assert not follower.poll()
    assert follower.config.max_agents == 7
    assert "CFN_MAX_AGENTS" in follower.problem

    restarted = ConfigFollower(path, last_good)
    assert restarted.config.max_agents == 7
    assert "CFN_MAX_AGENTS" in restarted.problem

    rewrite(path, "CFN_MAX_AGENTS=80\n")
    assert follower.poll()
    assert (follower.config.max_agents, follower.problem) == (80, "")
    assert not follower.poll()


def test_a_file_that_comes_back_unchanged_is_no_problem_any_more(tmp_path: Path) -> None:
    path = tmp_path / "config.sh"
    rewrite(path, "CFN_MAX_AGENTS=7\n")
    follower = ConfigFollower(path, tmp_path / "last-good")
    path.rename(tmp_path / "away")
    follower.poll()
    assert "config.sh" in follower.problem
    (tmp_path / "away").rename(path)
    follower.poll()
    assert (follower.config.max_agents, follower.problem) == (7, "")


def test_a_damaged_last_good_file_beside_a_bad_one_leaves_v1(tmp_path: Path) -> None:
    path, last_good = tmp_path / "config.sh", tmp_path / "last-good"
    rewrite(path, "CFN_MAX_AGENTS=none\n")
    last_good.write_text("\0garbage")
    follower = ConfigFollower(path, last_good)
    assert follower.config == Config()
    assert "nor is the last good one" in follower.problem


def test_without_any_file_v1_serves(tmp_path: Path) -> None:
    follower = ConfigFollower(tmp_path / "absent", tmp_path / "last-good")
    assert follower.config.coordination_version == "v1"
    assert "absent" in follower.problem


def test_a_file_that_says_the_defaults_is_in_force_over_the_last_good_one(tmp_path: Path) -> None:
    path, last_good = tmp_path / "config.sh", tmp_path / "last-good"
    last_good.write_text("CFN_MAX_AGENTS=7\n")
    rewrite(path, f"CFN_MAX_AGENTS={Config().max_agents}\n")
    assert ConfigFollower(path, last_good).config == Config()


def test_the_reference_lists_every_key_with_its_default() -> None:
    reference = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
    rows = dict(re.findall(r"^\| `(CFN_\w+)` \| (\S+) \|", reference, re.MULTILINE))
    assert rows == {key.name: as_text(getattr(Config(), key.field)) or "empty" for key in KEYS}


@pytest.mark.parametrize(("new", "old", "code"), [(4, 4, 0), (5, 4, 0), (3, 4, 5), (3, None, 0)])
def test_a_deployment_does_not_undo_a_later_change(
    new: int, old: int | None, code: int, tmp_path: Path
) -> None:
    fresh, in_force = tmp_path / "fresh", tmp_path / "config.sh"
    fresh.write_text(f'CFN_EPOCH="{new}"\n')
    if old is not None:
        in_force.write_text(f'CFN_EPOCH="{old}"\n')
    assert main(["config", "check", "--replaces", str(in_force), str(fresh)]) == code
