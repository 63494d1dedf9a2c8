"""Agents talk through one hub: what arrives, in which order, and what happens when one misbehaves."""

import socket
import threading
from collections.abc import Callable

import pytest

from cfn.agent import Bus, Message
from cfn.engine.messages import datagram
from cfn.errors import NotRunningError, RefusedError, UsageError

from .conftest import Hubs


def received(bus: Bus, count: int) -> list[bytes]:
    """The next payloads; fails after five seconds without one."""
    found: list[bytes] = []
    for _ in range(count):
        message = bus.receive(5)
        assert message is not None, f"{len(found)} of {count} came"
        found.append(message.payload)
    return found


def in_background(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_a_message_arrives_as_it_was_sent(pair: Hubs) -> None:
    with pair.bus("a") as a, pair.bus("b") as b:
        a.send("b", "greeting", b"hello\x00\xff")
        message = b.receive(5)
        assert message is not None
        assert (message.number, message.sender, message.type, message.payload) == (
            1,
            "a",
            "greeting",
            b"hello\x00\xff",
        )
        assert not message.is_question
        assert b.receive(0) is None


def test_a_message_waits_for_its_reader(pair: Hubs) -> None:
    with pair.bus("a") as a:
        a.send("b", "note", b"early")
    with pair.bus("b") as b:
        assert received(b, 1) == [b"early"]


def test_a_stream_keeps_its_order(pair: Hubs) -> None:
    sent = [str(number).encode() for number in range(3_000)]
    with pair.bus("a") as a, pair.bus("b") as b:
        got: list[bytes] = []
        reader = in_background(lambda: got.extend(received(b, 3_000)))
        for payload in sent:
            a.post("b", "n", payload)
        a.flush(5)
        reader.join(10)
        assert got == sent


def test_a_batch_is_the_same_messages(pair: Hubs) -> None:
    sent = [str(number).encode() for number in range(900)]
    with pair.bus("a") as a, pair.bus("b") as b:
        a.post_all("b", "n", sent)
        assert received(b, 900) == sent


@pytest.mark.parametrize("size", [0, 1, 131_072])
def test_payloads_of_every_size(hubs: Hubs, size: int) -> None:
    hubs.plan(t=(0, ["a", "b"]))
    hubs.start(0, hubs=1, max_payload_bytes=131_072)
    with hubs.bus("a") as a, hubs.bus("b") as b:
        a.send("b", "n", b"x" * size)
        assert received(b, 1) == [b"x" * size]


def test_ask_and_answer(pair: Hubs) -> None:
    with pair.bus("a") as a, pair.bus("b") as b:

        def answer() -> None:
            question = b.receive(5)
            assert question is not None
            assert question.is_question
            b.post("a", "aside", b"first")
            b.answer(question, question.payload.upper())

        helper = in_background(answer)
        assert a.ask("b", "question", b"why", timeout_s=5).payload == b"WHY"
        helper.join(5)
        assert received(a, 1) == [b"first"]


def test_a_question_without_an_answer_times_out_and_a_late_answer_is_dropped(pair: Hubs) -> None:
    with pair.bus("a") as a, pair.bus("b") as b:
        with pytest.raises(TimeoutError, match="b did not answer within"):
            a.ask("b", "question", timeout_s=0.05)
        question = b.receive(5)
        assert question is not None
        b.answer(question, b"late")
        assert a.receive(0.1) is None
        b.send("a", "note", b"next")
        assert received(a, 1) == [b"next"]


def test_a_broadcast_reaches_all_others(hubs: Hubs) -> None:
    hubs.plan(t=(0, ["a", "b", "c"]), u=(0, ["d"]))
    hubs.start(0, hubs=1)
    with hubs.bus("a") as a:
        a.broadcast("news", b"x")
        assert a.receive(0.05) is None
    for agent in ("b", "c", "d"):
        with hubs.bus(agent) as bus:
            message = bus.receive(5)
            assert message is not None
            assert message.is_broadcast
            assert (message.sender, message.payload) == ("a", b"x")


def test_what_was_not_done_with_comes_again_under_its_number(pair: Hubs) -> None:
    with pair.bus("a") as a:
        for payload in (b"1", b"2", b"3"):
            a.send("b", "n", payload)

    def take_two_and_die() -> None:
        with pair.bus("b") as b:
            received(b, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_two_and_die()
    with pair.bus("b") as b:
        message = b.receive(5)
        assert message is not None
        assert (message.number, message.payload) == (2, b"2")
        assert received(b, 1) == [b"3"]
    with pair.bus("b") as b:
        assert b.receive(0.05) is None


@pytest.mark.parametrize(
    ("receiver", "kind", "reason"),
    [
        ("nobody", "n", "no such agent"),
        ("b", "no good type", "not an identifier"),
        ("b", "..", "not an identifier"),
        ("ü", "n", "not an identifier"),
        ("", "n", "made no sense"),
    ],
)
def test_bad_names_are_refused(pair: Hubs, receiver: str, kind: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason), pair.bus("a") as a:
        a.send(receiver, kind)


def test_refusals_of_a_stream_are_told_at_the_end(pair: Hubs) -> None:
    with pair.bus("a") as a:
        first = a.post("nobody", "n")
        a.post("b", "n", b"good")
        a.post("nobody", "n")
        with pytest.raises(RefusedError, match=f"message {first}, and 1 more refused: the swarm has no"):
            a.flush(5)
        a.flush(5)
    with pair.bus("b") as b:
        assert received(b, 1) == [b"good"]


def test_a_later_process_takes_the_place_of_an_earlier_one(pair: Hubs) -> None:
    old = pair.bus("b")
    with pair.bus("b") as new, pair.bus("a") as a:
        a.send("b", "n", b"x")
        assert received(new, 1) == [b"x"]
        with pytest.raises(RefusedError, match="another process of this agent"):
            old.receive(5)


def test_an_agent_of_no_swarm_is_refused(pair: Hubs) -> None:
    environment = pair.environment("a") | {"CFN_SWARM_ID": "other"}
    with pytest.raises(RefusedError, match="no such agent"):
        Bus(environment)


def test_a_process_that_is_no_agent(tmp_path: object) -> None:
    with pytest.raises(UsageError, match="CFN_BUS is not set"):
        Bus({})
    environment = dict.fromkeys(("CFN_SWARM_ID", "CFN_TEAM", "CFN_AGENT_ID"), "x")
    with pytest.raises(NotRunningError, match="no hub answers"):
        Bus(environment | {"CFN_BUS": f"{tmp_path}/bus-1.sock"}, connect_s=0.05)


def test_the_end_of_a_swarm_is_told(pair: Hubs) -> None:
    a = pair.bus("a")
    a.send("b", "n", b"x")
    assert pair.journal("t").exists()
    pair.end()
    with pytest.raises(RefusedError, match="the swarm has ended"):
        a.receive(5)
    assert pair.ask(0, "report")["queued_messages"] == 0
    assert not pair.journal("t").parent.exists()


def raw_agent(pair: Hubs, agent: str) -> socket.socket:
    """An agent without the library, after its hello."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(5)
    connection.connect(pair.environment(agent)["CFN_BUS"])
    connection.send(
        datagram.pack(datagram.HELLO, 8, incarnation=7, sender=agent.encode(), receiver=b"t", type_=b"s")
    )
    assert datagram.Header(connection.recv(200)).kind == datagram.WELCOME
    return connection


def note(number: int = 8, sender: bytes = b"a", incarnation: int = 7, kind: int = datagram.NOTE) -> bytes:
    return datagram.pack(
        kind, number, incarnation=incarnation, sender=sender, receiver=b"b", type_=b"n", payload=b"x"
    )


GARBAGE = {
    "nothing like it": b"garbage that is longer than a header is, by far",
    "short": b"x",
    "truncated": note()[:-1],
    "longer than it says": note() + b"y",
    "oversized": b"\0" * 150_000,
    "another's name": note(sender=b"b"),
    "another incarnation": note(incarnation=9),
    "a number that goes back": note(number=7),
    "unknown kind": note(kind=99),
    "a hub's word": note(kind=datagram.DECIDED),
    "hello again": note(kind=datagram.HELLO),
    "consumed what never came": datagram.pack(datagram.CONSUMED, 99),
    "a batch of garbage": datagram.pack(datagram.BATCH, payload=b"\xff" * 40),
    "a batch in a batch": datagram.pack(datagram.BATCH, payload=datagram.pack(datagram.BATCH)),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_ends_its_connection_and_nothing_else(pair: Hubs, garbage: bytes) -> None:
    with pair.bus("b") as b:
        bad = raw_agent(pair, "a")
        bad.send(garbage)
        answers = []
        while raw := bad.recv(200):
            answers.append(datagram.Header(raw))
        assert [(one.kind, one.answers) for one in answers] == [(datagram.GOODBYE, datagram.MALFORMED)]
        with pair.bus("a") as a:
            a.send("b", "n", b"good")
        assert received(b, 1) == [b"good"]
        assert pair.ask(0, "report")["malformed"] == 1


def test_messages_say_what_they_are() -> None:
    assert repr(Message(3, note())) == "Message(3, 'n' from 'a', 1 bytes)"
