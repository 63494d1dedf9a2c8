"""The example agents of docs/ do what they say."""

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Hubs

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).parents[3] / "docs/examples"


def test_the_adder_in_python(hubs: Hubs) -> None:
    """On two hubs."""
    hubs.plan(t=(0, ["agent-1", "agent-2"]), u=(1, ["agent-3"]))
    hubs.start(0, 1, hubs=2)
    payload = hubs.folder / "payload"
    payload.write_text("3")
    agents = []
    for agent in ("agent-1", "agent-2", "agent-3"):
        with payload.open() as given:
            agents.append(
                subprocess.Popen(
                    [sys.executable, EXAMPLES / "adder.py"],
                    env=hubs.environment(agent),
                    stdin=given,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
    said = [agent.communicate(timeout=30)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0, 0]
    assert said[0].startswith("2 answers, load ")
    assert said[1:] == ["", ""]
