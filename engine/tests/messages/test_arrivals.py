"""A message that comes by a lane: decided once, never before the one that its sender sent before it."""

from pathlib import Path
from unittest import mock

import pytest

from cfn.engine.messages import datagram
from cfn.engine.messages.arrivals import Arrivals
from cfn.engine.messages.bounds import MessageBounds
from cfn.engine.messages.journal import Journal
from cfn.engine.messages.lanes import NOT_NOW
from cfn.engine.messages.state import State
from cfn.engine.messages.team import HUB_INCARNATION, Team

from .test_team import message


class Nowhere:
    """A directory that arrivals do not need."""

    def team_of(self, _swarm_id: str, _agent: str) -> str | None:
        return None

    def hub_of(self, _swarm_id: str, _team: str) -> int | None:
        return None

    def teams(self, _swarm_id: str) -> list[str]:
        return []


def hub(folder: Path, **bounds: int) -> tuple[Arrivals, Team]:
    state = State(lambda: MessageBounds(**bounds), Nowhere())
    team = Team("s", "t", (b"a", b"b"), Journal(folder / "s" / "t"), state.totals)
    state.teams["s", "t"] = team
    return Arrivals(state), team


def test_in_the_order_of_its_sender(tmp_path: Path) -> None:
    arrivals, team = hub(tmp_path)
    first, second = message(b"x", b"a", 10, 1), message(b"x", b"b", 12, 1)
    assert arrivals.arrive("s", "t", second, 10) == (NOT_NOW, 0)  # 10 may still be on its way
    assert arrivals.arrive("s", "t", first, 0) == (0, 0)
    assert arrivals.arrive("s", "t", second, 10) == (0, 0)
    assert arrivals.arrive("s", "t", first, 0) == (0, 0)  # again, as after a broken link
    assert {inbox.name: list(inbox.waiting) for inbox in team.inboxes.values()} == {
        b"a": [first],
        b"b": [second],
    }


def test_a_decision_stays(tmp_path: Path) -> None:
    arrivals, team = hub(tmp_path, max_inbox_messages=1, inbox_wait_ms=0)
    assert arrivals.arrive("s", "t", message(b"x", b"a", 1, 1), 0) == (0, 0)
    refused = message(b"x", b"a", 2, 1)
    assert arrivals.arrive("s", "t", refused, 1) == (datagram.FULL, 0)
    inbox = team.inbox(b"a")
    assert inbox is not None
    team.consume(inbox, 1, sent_only=False)
    assert arrivals.arrive("s", "t", refused, 0) == (datagram.FULL, 0)
    assert arrivals.arrive("s", "t", message(b"x", b"a", 3, 1), 2) == (0, 0)


def test_a_decision_outlives_the_hub(tmp_path: Path) -> None:
    arrivals, team = hub(tmp_path, max_inbox_messages=1, inbox_wait_ms=0)
    for number, reason in ((1, 0), (2, datagram.FULL)):
        assert arrivals.arrive("s", "t", message(b"x", b"a", number, 1), 0) == (reason, 0)
    assert arrivals.arrive("s", "t", message(b"x", b"b", 3, 1), 0) == (0, 0)
    team.close(remove=False)
    arrivals, _ = hub(tmp_path)
    for number, reason in ((1, 0), (2, datagram.FULL), (3, 0)):
        assert arrivals.arrive("s", "t", message(b"x", b"a", number, 1), 0) == (reason, 0)


def test_who_waits_for_room(tmp_path: Path) -> None:
    """An agent does, a caller of the command line does not."""
    arrivals, _ = hub(tmp_path, max_inbox_messages=1, inbox_wait_ms=60_000)
    assert arrivals.arrive("s", "t", message(b"x", b"a", 1, 1), 0) == (0, 0)
    assert arrivals.arrive("s", "t", message(b"x", b"a", 2, 1), 0) == (NOT_NOW, 0)
    caller = message(b"x", b"a", 5, HUB_INCARNATION + 3)
    assert arrivals.arrive("s", "t", caller, 0) == (datagram.FULL, 0)


@pytest.mark.parametrize("raw", [b"x", message(b"x", b"a", 1, 1) + b"y"])
def test_what_is_no_message(tmp_path: Path, raw: bytes) -> None:
    arrivals, _ = hub(tmp_path)
    with pytest.raises(ValueError, match="header"):
        arrivals.arrive("s", "t", raw, 0)


def test_a_team_that_is_elsewhere(tmp_path: Path) -> None:
    arrivals, _ = hub(tmp_path)
    assert arrivals.arrive("s", "other", message(b"x", b"a", 1, 1), 0) == (NOT_NOW, 0)


def test_an_agent_that_left(tmp_path: Path) -> None:
    arrivals, _ = hub(tmp_path)
    assert arrivals.arrive("s", "t", message(b"x", b"gone", 1, 1), 0) == (datagram.NO_AGENT, 0)


def to_all(number: int, sender: bytes = b"x") -> bytes:
    return datagram.pack(datagram.BROADCAST, number, incarnation=1, sender=sender, type_=b"n", payload=b"p")


def test_to_all_but_the_sender(tmp_path: Path) -> None:
    arrivals, team = hub(tmp_path)
    assert arrivals.arrive("s", "t", to_all(1, b"a"), 0) == (0, 0)
    assert team.inboxes.keys() == {b"b"}
    (raw,) = team.inboxes[b"b"].waiting
    header = datagram.Header(raw)
    assert (header.sender, header.receiver, header.type, raw[header.end :]) == (b"a", b"b", b"n", b"p")


def test_to_all_with_room(tmp_path: Path) -> None:
    arrivals, team = hub(tmp_path, max_inbox_messages=1)
    assert arrivals.arrive("s", "t", message(b"x", b"a", 1, 1), 0) == (0, 0)
    assert arrivals.arrive("s", "t", to_all(2), 0) == (datagram.FULL, 1)
    assert [len(team.inboxes[agent].waiting) for agent in (b"a", b"b")] == [1, 1]


def test_no_room_in_tmpfs(tmp_path: Path) -> None:
    arrivals, team = hub(tmp_path)
    with mock.patch.object(Journal, "append", side_effect=OSError("full")):
        assert arrivals.arrive("s", "t", message(b"x", b"a", 1, 1), 0) == (datagram.NO_ROOM, 0)
        assert arrivals.arrive("s", "t", to_all(2), 0) == (datagram.NO_ROOM, 2)
    assert team.queued == 0
    assert arrivals.arrive("s", "t", to_all(3), 0) == (0, 0)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"max_queued_messages": 1}, datagram.QUEUED_MESSAGES),
        ({"max_queued_bytes": 60}, datagram.QUEUED_BYTES),
    ],
)
def test_bounds_of_all_inboxes(tmp_path: Path, bounds: dict[str, int], reason: int) -> None:
    arrivals, _ = hub(tmp_path, **bounds)
    assert arrivals.arrive("s", "t", message(b"x", b"a", 1, 1), 0) == (0, 0)
    assert arrivals.arrive("s", "t", message(b"x", b"b", 2, 1), 0) == (reason, 0)


def test_an_earlier_process_of_the_sender(tmp_path: Path) -> None:
    arrivals, _ = hub(tmp_path)
    assert arrivals.arrive("s", "t", message(b"x", b"a", 900, 800), 0) == (0, 0)
    assert arrivals.arrive("s", "t", message(b"x", b"a", 30, 20), 0) == (datagram.EARLIER, 0)
