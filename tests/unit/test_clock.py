"""Times of playbooks are the same wherever they are run."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: "time={{ now(utc=true) | cfn_epoch_s }}"}
"""


@pytest.mark.parametrize("zone", ["UTC0", "CET-1", "EST5"])
def test_seconds_since_1970_in_any_zone(tmp_path: Path, zone: str) -> None:
    play = tmp_path / "play.yml"
    play.write_text(PLAY)
    began_s = time.time()
    run = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", "-c", "local", str(play)],
        cwd=PROJECT,
        env={**os.environ, "TZ": zone, "ANSIBLE_LOCAL_TEMP": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said_s = float(run.stdout.split("time=")[1].split()[0].strip("\"'"))
    assert began_s <= said_s <= time.time()


def test_no_playbook_takes_utc_for_local_time() -> None:
    texts = [
        path for folder in ("roles", "playbooks", "library") for path in (PROJECT / folder).rglob("*.[yp]*")
    ]
    wrong = [str(path) for path in texts if "now(" in (text := path.read_text()) and ".timestamp()" in text]
    assert len(texts) > 100
    assert not [path for path in wrong if path.endswith(".yml")]
    assert "strftime('%s')" not in "".join(path.read_text() for path in texts)
