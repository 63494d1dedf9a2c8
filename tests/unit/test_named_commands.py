"""Commands that a run names reach the hosts that the run was for."""

import os
import subprocess
from pathlib import Path

import pytest

from plugins.callback.cfn_commands import reminder
from tests.conftest import PROJECT

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.set_stats: {data: {cfn_outcome: REFUSED}}
    - ansible.builtin.fail: {msg: "refused; type: %s fallback_v1.yml"}
"""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["/project/inventories/lab"], ""),
        (["/project/inventories/production"], "-i inventories/production"),
        (["/elsewhere/my hosts", "web-1,"], "-i '/elsewhere/my hosts' -i web-1,"),
    ],
)
def test_an_inventory_of_its_own_is_named(given: list[str], said: str) -> None:
    text = reminder(given, ["/project/inventories/lab"], "/project")
    assert text.endswith(said)
    assert bool(text) is bool(said)


@pytest.mark.parametrize(("named", "said"), [("ansible-playbook", True), ("see", False)])
def test_a_run_says_so_last_and_keeps_its_exit_code(tmp_path: Path, named: str, said: bool) -> None:
    play = tmp_path / "play.yml"
    play.write_text(PLAY % named)
    run = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", "-c", "local", str(play)],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_LOCAL_TEMP": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 20
    assert (run.stdout.rstrip().splitlines()[-1].endswith("type them with -i localhost,")) is said, run.stdout
