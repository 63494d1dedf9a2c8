"""A stand-in for the deployed `cfn` command, for tests of the modules that call it."""

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import cfn_command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `cfn` that prints the file `answer`, exits with `code`, and notes its arguments in `words` and its
    input in `input`, all beside it."""
    path = tmp_path / "cfn"
    path.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/words\ncat >{tmp_path}/input\n'
        f"cat {tmp_path}/answer\nexit $(cat {tmp_path}/code)\n"
    )
    path.chmod(0o755)
    (tmp_path / "code").write_text("0")
    monkeypatch.setattr(cfn_command, "CFN", str(path))
    return path


def answer(command: Path, value: dict[str, Any], code: int = 0) -> None:
    """What the command prints from now on, and its exit code."""
    command.with_name("answer").write_text(json.dumps(value))
    command.with_name("code").write_text(str(code))


def words(command: Path) -> str:
    """The arguments of its last call."""
    return " ".join(command.with_name("words").read_text().split())
