"""Identifiers at the boundary."""

import pytest

from cfn.errors import IdError
from cfn.ids import MAX_ID_CHARS, agent_ids, check_id


@pytest.mark.parametrize("value", ["a", "task-1", "build:2026.01", "A_b", "9" * MAX_ID_CHARS])
def test_accepted(value: str) -> None:
    assert check_id("task", value) == value


@pytest.mark.parametrize(
    "value", ["", "a/b", "..", "a..b", "a\nb", "a\n", " a", "-a", ".a", "a b", "ä", "a\0", "x" * 10_240]
)
def test_refused(value: str) -> None:
    with pytest.raises(IdError, match="agent id"):
        check_id("agent", value)


def test_a_swarm_names_its_agents_from_one() -> None:
    assert agent_ids(3) == ["agent-1", "agent-2", "agent-3"]
