"""Messages across teams on different hubs, and what killed hubs do to them: nothing is lost or doubled."""

import threading

import pytest

from cfn.engine.messages import datagram
from cfn.errors import RefusedError

from .conftest import Hubs
from .test_bus import in_background, received

STREAM = 2_000


@pytest.fixture
def two(hubs: Hubs) -> Hubs:
    """Two hubs with a team each; hub 0 has none."""
    hubs.plan(t=(1, ["a", "a2"]), u=(2, ["b", "b2"]))
    hubs.start(0, 1, 2, hubs=3)
    return hubs


def test_across_hubs(two: Hubs) -> None:
    with two.bus("a") as a, two.bus("b") as b:
        a.send("b", "n", b"there")
        assert received(b, 1) == [b"there"]
        b.send("a", "n", b"back")
        assert received(a, 1) == [b"back"]
        with pytest.raises(RefusedError, match="no such agent"):
            a.send("c", "n")


def test_a_broadcast_reaches_all_hubs(two: Hubs) -> None:
    with two.bus("a") as a:
        a.broadcast("news", b"x")
    for agent in ("a2", "b", "b2"):
        with two.bus(agent) as bus:
            assert received(bus, 1) == [b"x"]


def test_an_agent_that_asks_the_wrong_hub_is_sent_on(two: Hubs) -> None:
    with two.bus("b", hub=1) as b, two.bus("a", hub=0) as a:
        a.send("b", "n", b"x")
        assert received(b, 1) == [b"x"]


def test_each_two_hubs_are_connected_once(two: Hubs) -> None:
    with two.bus("a") as a:
        a.send("b", "n")
    for hub in range(3):
        assert two.ask(hub, "report")["mesh_links"] == 2


class Stream:
    """Numbered messages from a to b, sent and received in threads of their own."""

    def __init__(self, hubs: Hubs) -> None:
        self.got: list[bytes] = []
        self._a, self._b = hubs.bus("a"), hubs.bus("b")
        self._half = threading.Event()
        self._threads = [in_background(self._send), in_background(self._receive)]
        assert self._half.wait(10)

    def _send(self) -> None:
        for number in range(STREAM):
            self._a.post("b", "n", str(number).encode())
        self._a.flush(20)

    def _receive(self) -> None:
        while len(self.got) < STREAM:
            message = self._b.receive(20)
            assert message is not None
            assert message.number == len(self.got) + 1
            self.got.append(message.payload)
            if len(self.got) == STREAM // 4:
                self._half.set()

    def end(self) -> None:
        """Every message came once and in its order, and nothing is left."""
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        assert self.got == [str(number).encode() for number in range(STREAM)]
        assert self._b.receive(0.05) is None
        self._a.close()
        self._b.close()


def test_the_only_hub_of_a_stream_is_killed_and_restarted(pair: Hubs) -> None:
    stream = Stream(pair)
    pair.kill(0)
    pair.restart(0)
    stream.end()


def test_what_was_handed_out_does_not_come_again_after_the_hub_died(pair: Hubs) -> None:
    """Neither the message in hand, nor an answer that was taken before its turn."""
    with pair.bus("a") as a, pair.bus("b") as b:
        for payload in (b"1", b"2"):
            b.send("a", "n", payload)

        def answer() -> None:
            question = b.receive(5)
            assert question is not None
            b.answer(question, b"answered")

        helper = in_background(answer)
        assert received(a, 1) == [b"1"]
        assert a.ask("b", "q", timeout_s=5).payload == b"answered"
        helper.join(5)
        pair.kill(0)
        pair.restart(0)
        a.send("b", "n", b"with the first one still in hand")
        b.send("a", "n", b"3")
        assert received(a, 2) == [b"2", b"3"]
        assert a.receive(0.05) is None


@pytest.mark.parametrize("killed", ["t", "u"], ids=["the sender's hub", "the receiver's hub"])
def test_a_hub_is_killed_in_the_middle_of_a_stream_and_another_takes_its_team(two: Hubs, killed: str) -> None:
    stream = Stream(two)
    two.kill(two.teams[killed]["hub"])
    two.move(killed, 0)
    stream.end()


def test_both_hubs_of_a_stream_are_killed_and_one_takes_all(two: Hubs) -> None:
    stream = Stream(two)
    two.kill(1)
    two.kill(2)
    two.move("t", 0)
    two.move("u", 0)
    stream.end()


def test_teams_are_handed_over_in_the_middle_of_a_stream(two: Hubs) -> None:
    stream = Stream(two)
    for team, hub in (("u", 0), ("t", 2), ("u", 1), ("t", 0), ("u", 0)):
        two.move(team, hub)
    stream.end()


def test_messages_to_a_team_that_nobody_holds_wait_for_it(two: Hubs) -> None:
    two.kill(2)
    with two.bus("a") as a:
        a.post("b", "n", b"x")
        with pytest.raises(TimeoutError, match="1 messages have no decision yet"):
            a.flush(0.1)
        two.move("u", 1)
        a.flush(5)
    with two.bus("b") as b:
        assert received(b, 1) == [b"x"]


def test_messages_on_their_way_when_the_swarm_ends_are_refused(two: Hubs) -> None:
    two.kill(2)
    a = two.bus("a")
    a.post("b", "n", b"x")
    two.teams.pop("u")
    two.move("t", 1)
    with pytest.raises(RefusedError, match="swarm has ended"):
        a.close()


def test_put_and_take_from_another_hub(two: Hubs) -> None:
    assert two.ask(0, "put", "s", "a", "b", "hello") == {"reason": 0}
    assert two.ask(1, "put", "s", "a2", "b", "more") == {"reason": 0}
    for hub in (0, 1, 2):  # until it is confirmed, it stays
        assert two.ask(hub, "take", "s", "b") == {"reason": 0, "messages": ["hello", "more"], "first": 1}
    two.ask(0, "confirm", "s", "b", 1)
    assert two.ask(0, "take", "s", "b") == {"reason": 0, "messages": ["more"], "first": 2}
    with two.bus("b") as b:
        assert two.ask(0, "take", "s", "b")["reason"] == datagram.READ
        assert received(b, 1) == [b"more"]
    assert "no agent c" in two.ask(0, "put", "s", "a", "c", "x")["error"]
    two.kill(2)
    assert two.ask(0, "take", "s", "b")["reason"] == -1
