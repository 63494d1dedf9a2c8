"""The `cfn` command itself."""

import importlib

import pytest

from cfn.cli import COMMANDS, main


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_listed_command_exists(name: str) -> None:
    module = importlib.import_module(f"cfn.commands.{COMMANDS[name][0]}")
    assert callable(module.main)


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert "coordinate" in capsys.readouterr().err


def test_errors_become_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "/nonexistent"]) == 2
    assert "/nonexistent" in capsys.readouterr().err
