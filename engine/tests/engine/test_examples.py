"""The example agent in bash, run by a real engine in a kept swarm."""

import base64
import shutil
from pathlib import Path

import pytest

from .conftest import BIN, Engine

pytestmark = pytest.mark.processes

EXAMPLE = Path(__file__).parents[3] / "docs/examples/adder.sh"


def test_the_adder_in_bash(engine: Engine) -> None:
    agent = Path(shutil.copy(EXAMPLE, engine.paths.root / "adder.sh"))
    engine.environment["PATH"] += f":{BIN}"
    engine.configure(CFN_MAX_AGENTS=100, CFN_AGENT_COMMAND=agent)
    engine.start()
    swarm_id = engine.ask(verb="init", agents=3)["swarm_id"]
    answer = engine.ask(
        verb="coordinate",
        task_id="add-1",
        agents=3,
        swarm_id=swarm_id,
        payload_b64=base64.b64encode(b"3").decode(),
    )
    assert answer["completion_rate_pct"] == 100.0, answer
    output = next(one["output"] for one in answer["results"] if one["agent"] == "agent-1")
    assert output.startswith("2 agents, ")
